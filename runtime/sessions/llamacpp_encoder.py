"""GGUF files of encoders in llama.cpp, through llama-cpp-python's low-level ctypes bindings, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError
from runtime.gguf_kind import POOLINGS
from runtime.sessions.llamacpp_model import LlamaCppModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import numpy.typing as npt

    from runtime.artifact import Artifact
    from runtime.measurement import RunOptions


class LlamaCppEncoderSession(LlamaCppModel):
    """An open encoder: one text at a time, nothing kept between texts.

    A text goes through in one piece, because every token looks at all others: the context and its batch are as long as
    the longest text, which is the model's own limit or `RunOptions.context` where that is less. What a text gives is
    what the file says of pooling; the states of its tokens come from a second context, which is made when `encode` is
    called first.
    """

    def __init__(self, artifact: Artifact, options: RunOptions) -> None:
        self._states: Any = None
        super().__init__(artifact, options)
        self.max_tokens = self._tokens()  # llama.cpp rounds its context up
        pooling = self._lib.llama_pooling_type(self._context)
        self._classifies, self._pools = pooling == POOLINGS["rank"], pooling != POOLINGS["none"]
        # Not in the file: llama.cpp's tools and servers make embeddings of length 1 unless they are told not to.
        self._normalizes = bool(artifact.contract.get("normalize", True))
        self.outputs: tuple[str, ...] = ("logits",) if self._classifies else ("last_hidden_state",)
        if self._pools and not self._classifies:
            self.outputs += ("sentence_embedding",)

    @classmethod
    def open(cls, artifact: Artifact, options: RunOptions) -> LlamaCppEncoderSession:
        """Load the file and make its context. Raises EngineError with llama.cpp's own reason."""
        return cls(artifact, options)

    def _tokens(self) -> int:
        longest: int = self._lib.llama_model_n_ctx_train(self._model)
        return min(self._options.context, longest)

    def _adapt(self, params: Any) -> None:  # noqa: ANN401 - a ctypes struct
        params.n_batch = params.n_ubatch = params.n_ctx
        params.embeddings = True

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs for one text, without a batch dimension, float32: see `EncoderSession.encode`."""
        self._encode(self._context, ids, self.max_tokens)
        if self._classifies:
            return {"logits": self._pooled(self._lib.llama_model_n_cls_out(self._model))}
        if not self._pools:
            return {"last_hidden_state": self._of_tokens(self._context, len(ids))}
        sentence = self._pooled(self._width())
        if self._states is None:
            self._states = self._new_context(pooling_type=POOLINGS["none"])
        self._encode(self._states, ids, self.max_tokens)
        states = self._of_tokens(self._states, len(ids))
        return {"last_hidden_state": states, "sentence_embedding": self._normalized(sentence)}

    def run(self, ids: Sequence[int]) -> None:
        """Compute what the file pools to, and drop it."""
        self._encode(self._context, ids, self.max_tokens)

    def _width(self) -> int:
        width: int = self._lib.llama_model_n_embd_out(self._model)
        return width

    def _pooled(self, width: int) -> npt.NDArray[np.float32]:
        """What the text pools to, shape (width,), a copy."""
        return self._copy(self._lib.llama_get_embeddings_seq(self._context, 0), (width,))

    def _of_tokens(self, context: Any, count: int) -> npt.NDArray[np.float32]:  # noqa: ANN401 - a ctypes pointer
        """The last hidden states, shape (count, hidden), a copy."""
        return self._copy(self._lib.llama_get_embeddings(context), (count, self._width()))

    def _copy(self, pointer: Any, shape: tuple[int, ...]) -> npt.NDArray[np.float32]:  # noqa: ANN401 - a ctypes pointer
        import numpy as np

        if not pointer:
            raise EngineError(f"{self._path}: llama.cpp gives no embeddings: {self._log.cause()}")
        copy: npt.NDArray[np.float32] = np.ctypeslib.as_array(pointer, shape=shape).astype(np.float32)
        return copy

    def _normalized(self, embedding: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The embedding of length 1, where that is asked for."""
        import numpy as np

        if not self._normalizes:
            return embedding
        scaled: npt.NDArray[np.float32] = embedding / max(float(np.linalg.norm(embedding)), 1e-12)
        return scaled

    def close(self) -> None:
        """Free the contexts and the model. A second call does nothing."""
        if self._states:
            self._lib.llama_free(self._states)
        self._states = None
        super().close()
