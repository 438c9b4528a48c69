"""ExecuTorch programs in ExecuTorch's own runtime, on the CPU."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError
from runtime.host import default_threads
from runtime.memory import anonymous_bytes
from runtime.sessions.directory import DirectoryEngine
from runtime.sessions.limits import check_context, check_ids, check_length, check_room
from runtime.sessions.torch_decoder import TorchDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

CACHE_OPERATORS = "extension/llm/custom_ops/libcustom_ops_aot_lib.so"
"""Attention over a cache: a library that registers its kernels when it is loaded. Relative to the package."""


class _Engine(DirectoryEngine):
    """What decoders and encoders share: the loaded method and the tokenizer beside it."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        found = importlib.util.find_spec("executorch")
        if found is None:
            raise EngineError("the package executorch is missing; pip install 'packlight[executorch]'")
        if not options.mmap:
            raise UserError("ExecuTorch maps the file always; leave out --no-mmap")
        import torch

        self._torch: Any = torch
        super().__init__(artifact, options)
        with _standard_error() as said, self._errors("load it", said):
            # The module behind executorch.runtime, which itself would import the whole exporter: 150 MB and 5 s.
            native: Any = importlib.import_module("executorch.extension.pybindings._C")
            if artifact.contract.get("kv_type"):
                self._torch.ops.load_library(str(Path((found.submodule_search_locations or [""])[0]) / CACHE_OPERATORS))
            native._unsafe_reset_threadpool(options.threads or default_threads())
            before = anonymous_bytes() or 0
            self._program: Any = native._load_program(str(artifact.entry_path))
            self._forward: Any = self._program.load_method("forward")
        self.engine = f"executorch {version('executorch')}, XNNPACK, CPU"
        self._loaded = anonymous_bytes() or 0
        self._weights = max(self._loaded - before - self._cache_bytes(), 0)

    def _call(self, *inputs: Any) -> list[Any]:
        with self._errors(f"evaluate {inputs[0].shape[1]} tokens", None):
            found: list[Any] = self._forward.call(inputs)
        return found

    @contextlib.contextmanager
    def _errors(self, doing: str, said: Path | None) -> Iterator[None]:
        """ExecuTorch's own errors as one line, with the last that it wrote to standard error."""
        try:
            yield
        except (RuntimeError, OSError, ImportError) as error:
            sys.stderr.flush()
            lines = said.read_text(encoding="utf-8", errors="replace").splitlines() if said is not None else []
            reason = " ".join(f"{error} {lines[-1] if lines else ''}".split())[:300]
            raise EngineError(f"{self._artifact.entry_path}: ExecuTorch cannot {doing}: {reason}") from error

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._forward = self._program = None


class ExecuTorchSession(TorchDecoder, _Engine):
    """An open decoder and one sequence of context, in the cache that the program keeps."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        check_context(artifact, options)
        self.n_vocab, self.n_context = int(artifact.contract["n_vocab"]), options.context
        self.piece = min(options.batch, int(artifact.contract["piece"]))
        super().__init__(artifact, options)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> ExecuTorchSession:
        """Load the program and its cache. Raises EngineError with ExecuTorch's own reason."""
        return cls(artifact, options)

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reset, evaluate `ids` and return the logits of every position, shape (len(ids), n_vocab), float32.

        One after the other: the program gives those of the last token only, as ExecuTorch's runner wants it.
        """
        self.reset()
        logits: npt.NDArray[np.float32] = self._torch.stack([self._last_of((token,)) for token in ids]).numpy()
        return logits

    def _last_of(self, ids: Sequence[int]) -> Any:  # noqa: ANN401 - torch is untyped here
        check_room(len(ids), self.n_past, self.n_context)
        check_ids(ids, self.n_vocab)
        (logits,) = self._call(self._torch.tensor([list(ids)]), self._torch.tensor([self.n_past]))
        self.n_past += len(ids)
        return logits[0, -1]

    def _cache_bytes(self) -> int:
        return int(self._artifact.contract.get("kv_bytes", 0))

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        super().close()
        self._logits = None


class ExecuTorchEncoderSession(_Engine):
    """An open encoder: one text at a time, nothing kept between texts."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self.outputs = tuple(artifact.contract["outputs"])
        self.max_tokens, self.n_vocab = artifact.context_length, int(artifact.contract["n_vocab"])
        self._kinds = "token_type_ids" in artifact.contract["inputs"]
        super().__init__(artifact, options)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> ExecuTorchEncoderSession:
        """Load the program. Raises EngineError with ExecuTorch's own reason."""
        return cls(artifact, options)

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs for one text, without the batch dimension, float32."""
        return {name: value[0].numpy() for name, value in zip(self.outputs, self._run(ids), strict=True)}

    def run(self, ids: Sequence[int]) -> None:
        """Compute the outputs for one text and drop them."""
        self._run(ids)

    def _run(self, ids: Sequence[int]) -> list[Any]:
        check_length(ids, self.max_tokens)
        check_ids(ids, self.n_vocab)
        row = self._torch.tensor([list(ids)])
        return self._call(row, self._torch.ones_like(row), *[self._torch.zeros_like(row)] * self._kinds)


@contextlib.contextmanager
def _standard_error() -> Iterator[Path]:
    """Catch what native code writes to file descriptor 2: remarks about the processor, and reasons for refusals."""
    with tempfile.TemporaryDirectory() as room:
        said = Path(room) / "stderr"
        sys.stderr.flush()
        before = os.dup(2)
        try:
            with said.open("wb") as file:
                os.dup2(file.fileno(), 2)
                yield said
        finally:
            os.dup2(before, 2)
            os.close(before)
