"""TorchScript modules in torch, on the CPU: decoders with their KV cache in place, and encoders."""

from __future__ import annotations

import contextlib
import importlib
import warnings
from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError
from runtime.host import default_threads
from runtime.memory import anonymous_bytes
from runtime.sessions.directory import DirectoryEngine
from runtime.sessions.limits import check_context, check_ids, check_length, check_room, pieces
from runtime.sessions.torch_decoder import TorchDecoder

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

PIECE = 128
"""Most prompt tokens that are evaluated at once: their activations stay small beside the weights."""


class _Engine(DirectoryEngine):
    """What decoders and encoders share: the loaded module and the tokenizer beside it."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        try:
            import torch
        except ImportError as error:
            raise EngineError("the package torch is missing; pip install torch") from error
        if not options.mmap:
            raise UserError("torch.jit.load reads the file into memory always; leave out --no-mmap")
        self._torch: Any = torch
        super().__init__(artifact, options)
        self._threads_before = torch.get_num_threads()
        torch.set_num_threads(options.threads or default_threads())
        self._lite = artifact.format == "ptl"
        self.engine = f"torch {torch.__version__}, {'lite interpreter' if self._lite else 'TorchScript'}, CPU"
        wanted = artifact.contract.get("quantized_engine")
        if wanted:
            self.engine += f", {wanted}"
            self._use_engine(str(wanted))
        before = anonymous_bytes() or 0
        with warnings.catch_warnings(), self._errors("load it"):
            warnings.simplefilter("ignore", DeprecationWarning)  # of TorchScript as a whole; see the docs
            self._module: Any = self._load(str(artifact.entry_path))
        self._loaded = anonymous_bytes() or 0
        self._weights = max(self._loaded - before, 0)

    def _load(self, path: str) -> Any:  # noqa: ANN401 - torch is untyped here
        if self._lite:
            mobile: Any = importlib.import_module("torch.jit.mobile")
            return mobile._load_for_lite_interpreter(path, "cpu")
        return self._torch.jit.load(path, map_location="cpu")

    def _use_engine(self, name: str) -> None:
        """The engine that the weights were made for; another one rounds otherwise."""
        known = self._torch.backends.quantized.supported_engines
        if name not in known:
            have = ", ".join(one for one in known if one != "none") or "none"
            raise EngineError(
                f"{self._artifact.entry_path}: needs torch's engine {name}, this build has {have}; "
                "export the model again on such a machine, or with --quant int8"
            )
        self._torch.backends.quantized.engine = name

    @contextlib.contextmanager
    def _errors(self, doing: str) -> Iterator[None]:
        """Torch's own errors as one line."""
        try:
            yield
        except (RuntimeError, self._torch.jit.Error) as error:
            lines = [line.strip() for line in str(error).splitlines() if line.strip()]
            # The traceback of the interpreter comes first, what it says last.
            reason = (lines[-1] if lines and "Traceback" in str(error) else " ".join(lines))[:300]
            raise EngineError(f"{self._artifact.entry_path}: torch cannot {doing}: {reason}") from error

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        if self._module is not None:
            self._torch.set_num_threads(self._threads_before)
        self._module = None


class TorchScriptSession(TorchDecoder, _Engine):
    """An open decoder and one sequence of context, in one cache tensor that the module extends in place."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        check_context(artifact, options)
        super().__init__(artifact, options)
        with self._errors("make a cache"):
            size = (options.context, 1)  # the lite interpreter knows no defaults
            module = self._module
            self._cache: Any = module.run_method("new_cache", *size) if self._lite else module.new_cache(*size)
        self.n_vocab, self.n_context = int(artifact.contract["n_vocab"]), options.context
        self.piece = min(options.batch, PIECE)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> TorchScriptSession:
        """Load the module and allocate its cache. Raises EngineError with torch's own reason."""
        return cls(artifact, options)

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reset, evaluate `ids` and return the logits of every position, shape (len(ids), n_vocab), float32."""
        self.reset()
        found = self._torch.cat([self._evaluate(piece, keep=0) for piece in pieces(ids, self.piece)])
        logits: npt.NDArray[np.float32] = found.numpy()
        return logits

    def _last_of(self, ids: Sequence[int]) -> Any:  # noqa: ANN401 - torch is untyped here
        return self._evaluate(ids)[-1]

    def _evaluate(self, ids: Sequence[int], keep: int = 1) -> Any:  # noqa: ANN401 - torch is untyped here
        """Logits of the last `keep` tokens (0 for all), shape (tokens, n_vocab)."""
        check_room(len(ids), self.n_past, self.n_context)
        check_ids(ids, self.n_vocab)
        with self._torch.inference_mode(), self._errors(f"evaluate {len(ids)} tokens after {self.n_past}"):
            logits, _ = self._module(self._torch.tensor([list(ids)]), self._cache, self.n_past, keep)
        self.n_past += len(ids)
        return logits[0]

    def _cache_bytes(self) -> int:
        return 0 if self._cache is None else int(self._cache.nbytes)

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        super().close()
        self._cache = self._logits = None


class TorchScriptEncoderSession(_Engine):
    """An open encoder: one text at a time, nothing kept between texts."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        super().__init__(artifact, options)
        self.outputs = tuple(artifact.contract["outputs"])
        self.max_tokens, self.n_vocab = artifact.context_length, int(artifact.contract["n_vocab"])

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> TorchScriptEncoderSession:
        """Load the module. Raises EngineError with torch's own reason."""
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
        with self._torch.inference_mode(), self._errors(f"read {len(ids)} tokens"):
            row = self._torch.tensor([list(ids)])
            found: list[Any] = self._module(row, self._torch.ones_like(row), None)
        return found
