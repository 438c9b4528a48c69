"""ONNX graphs in ONNX Runtime, on the CPU: decoders with their KV cache in place, and encoders."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError, UserError, in_one_line
from runtime.host import default_threads
from runtime.memory import anonymous_bytes, release_mapped, return_freed_memory
from runtime.sessions.directory import DirectoryEngine
from runtime.sessions.limits import check_context, check_ids, check_length, check_room, pieces

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions

KEEP = "num_logits_to_keep"
PIECE = 64
"""Most prompt tokens that are evaluated at once: larger pieces are no faster here and take more memory."""
ERRORS_ONLY = 3
_NUMPY_TYPES = {"tensor(float)": "float32", "tensor(float16)": "float16"}


def _engine_error(artifact: Artifact, doing: str, error: Exception) -> EngineError:
    reason = in_one_line(error, 300)
    return EngineError(f"{artifact.entry_path}: ONNX Runtime cannot {doing}: {reason}")


class _Engine(DirectoryEngine):
    """What decoders and encoders share: the open graph and the tokenizer beside it."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError("the package onnxruntime is missing; pip install onnxruntime") from error
        if not options.mmap:
            raise UserError("ONNX Runtime maps external weights always; leave out --no-mmap")
        self._ort: Any = onnxruntime
        super().__init__(artifact, options)
        self.engine = f"ONNX Runtime {onnxruntime.__version__}, CPU"
        return_freed_memory()
        before = anonymous_bytes() or 0
        try:
            self._session: Any = onnxruntime.InferenceSession(
                str(artifact.entry_path), self._session_options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise _engine_error(artifact, "load it", error) from error
        release_mapped(artifact.root)
        self._loaded = anonymous_bytes() or 0
        self._weights = max(self._loaded - before, 0)
        self._inputs = {value.name: value for value in self._session.get_inputs()}

    def _session_options(self) -> Any:  # noqa: ANN401 - onnxruntime is untyped
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._options.threads or default_threads()
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        # An arena keeps what one long prompt needed for ever; without it memory goes back to the system.
        options.enable_cpu_mem_arena = False
        options.enable_mem_pattern = False
        return options

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        self._session = None


class OnnxSession(_Engine):
    """An open decoder and one sequence of context. Not for use from several threads.

    The cache of every layer is one buffer for the whole context, which the graph's attention reads and extends in
    place; n_past counts the tokens in it.
    """

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        import numpy as np

        check_context(artifact, options)
        super().__init__(artifact, options)
        self._np = np
        outputs = {value.name: value for value in self._session.get_outputs()}
        self.n_vocab = int(outputs["logits"].shape[-1])
        self.n_context = options.context
        self.n_past = 0
        self._logits: npt.NDArray[np.float32] | None = None
        self._ones = np.ones((1, options.context), np.int64)
        # numpy's zeros are pages that nobody has touched: they become resident as the context fills.
        self._caches = {
            name: np.zeros((1, value.shape[1], options.context, value.shape[3]), _NUMPY_TYPES[value.type])
            for name, value in self._inputs.items()
            if name.startswith("past_key_values.")
        }
        self._binding = self._session.io_binding()
        for name, cache in self._caches.items():
            shared = onnx_value(self._ort, cache)
            self._binding.bind_ortvalue_input(name, shared)
            self._binding.bind_ortvalue_output(name.replace("past_key_values.", "present."), shared)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> OnnxSession:
        """Load the graph and allocate its cache. Raises EngineError with ONNX Runtime's own reason."""
        return cls(artifact, options)

    def reset(self) -> None:
        """Forget the context."""
        self.n_past = 0
        self._logits = None

    def prefill(self, ids: Sequence[int]) -> None:
        """Evaluate a prompt after what the context holds, keeping the logits of its last token only."""
        for piece in self._pieces(ids):
            self._evaluate(piece)

    def decode(self, token: int) -> None:
        """Evaluate one more token."""
        self._evaluate((token,))

    def greedy(self) -> int:
        """The token with the largest logit after the last evaluated one."""
        return int(self._last().argmax())

    def last_logits(self) -> npt.NDArray[np.float32]:
        """Logits after the last evaluated token, shape (n_vocab,), a copy."""
        return self._last().copy()

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """Reset, evaluate `ids` and return the logits of every position, shape (len(ids), n_vocab), float32."""
        self.reset()
        pieces = []
        for piece in self._pieces(ids):
            self._evaluate(piece, keep=0)
            pieces.append(self._logits)
        self._logits = None
        whole: npt.NDArray[np.float32] = self._np.concatenate([piece for piece in pieces if piece is not None])
        return whole

    def _pieces(self, ids: Sequence[int]) -> Iterator[Sequence[int]]:
        return pieces(ids, min(self._options.batch, PIECE))

    def _last(self) -> npt.NDArray[np.float32]:
        if self._logits is None:
            raise EngineError("no logits before a token is evaluated")
        row: npt.NDArray[np.float32] = self._logits[-1]
        return row

    def _evaluate(self, ids: Sequence[int], keep: int = 1) -> None:
        check_room(len(ids), self.n_past, self.n_context)
        check_ids(ids, self.n_vocab)
        binding, np = self._binding, self._np
        total = self.n_past + len(ids)
        values = {"input_ids": np.array([ids], np.int64), "attention_mask": self._ones[:, :total]}
        for name, value in values.items():
            binding.bind_ortvalue_input(name, onnx_value(self._ort, value))
        binding.bind_ortvalue_input(KEEP, onnx_value(self._ort, np.array([keep], np.int64)))
        binding.bind_output("logits", "cpu")
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise _engine_error(self._artifact, f"evaluate {len(ids)} tokens after {self.n_past}", error) from error
        # In the order in which they were bound: the caches first.
        self._logits = binding.get_outputs()[len(self._caches)].numpy()[0]
        self.n_past = total

    def _cache_bytes(self) -> int:
        return sum(cache.nbytes for cache in self._caches.values())

    def close(self) -> None:
        """Free everything. A second call does nothing."""
        super().close()
        self._binding, self._caches = None, {}


def onnx_value(ort: Any, array: npt.NDArray[np.generic]) -> Any:  # noqa: ANN401 - onnxruntime is untyped
    """An OrtValue over the memory of `array`, which has to stay alive."""
    return ort.OrtValue.ortvalue_from_numpy(array)


class OnnxEncoderSession(_Engine):
    """An open encoder: one text at a time, nothing kept between texts."""

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        super().__init__(artifact, options)
        self.outputs = tuple(value.name for value in self._session.get_outputs())
        self.max_tokens = artifact.context_length
        self.n_vocab = int(artifact.contract.get("n_vocab", 0))

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> OnnxEncoderSession:
        """Load the graph. Raises EngineError with ONNX Runtime's own reason."""
        return cls(artifact, options)

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs for one text, without the batch dimension, float32."""
        import numpy as np

        found = self._run(ids)
        return {name: np.asarray(value[0], np.float32) for name, value in zip(self.outputs, found, strict=True)}

    def run(self, ids: Sequence[int]) -> None:
        """Compute the outputs for one text and drop them."""
        self._run(ids)

    def _run(self, ids: Sequence[int]) -> list[npt.NDArray[np.generic]]:
        import numpy as np

        check_length(ids, self.max_tokens)
        row = np.array([ids], np.int64)
        values = {"input_ids": row, "attention_mask": np.ones_like(row), "token_type_ids": np.zeros_like(row)}
        feeds = {name: value for name, value in values.items() if name in self._inputs}
        try:
            found: list[npt.NDArray[np.generic]] = self._session.run(list(self.outputs), feeds)
        except Exception as error:
            raise _engine_error(self._artifact, f"read {len(ids)} tokens", error) from error
        return found
