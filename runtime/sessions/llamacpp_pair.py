"""GGUF files of an encoder and a decoder in one (T5) in llama.cpp, on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from runtime.errors import EngineError
from runtime.sessions.llamacpp import LlamaCppSession

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt


class LlamaCppPairSession(LlamaCppSession):
    """An open model: the encoder reads a prompt as a whole, the decoder answers it from its start token on.

    A prompt takes the place of the one before, and of what the decoder has said to it: n_past counts the decoder's
    tokens. The encoder looks at all tokens at once, so its batch is as long as the context.
    """

    def _refuse(self, path: Path) -> None:
        """EngineError for a model that is not such a one."""
        both = self._lib.llama_model_has_encoder(self._model) and self._lib.llama_model_has_decoder(self._model)
        if not both:
            raise EngineError(f"{path}: has not both an encoder and a decoder, as its architecture has")

    def _adapt(self, params: Any) -> None:  # noqa: ANN401 - a ctypes struct
        super()._adapt(params)
        params.n_batch = params.n_ubatch = params.n_ctx

    @property
    def _batch(self) -> int:
        return self.n_context

    def prefill(self, ids: Sequence[int]) -> None:
        """Let the encoder read a prompt, and the decoder its start token."""
        self._read(ids)
        self._evaluate((self._start,))

    def all_logits(self, ids: Sequence[int]) -> npt.NDArray[np.float32]:
        """What the decoder makes of the second half of `ids` where the encoder has read the first, (len(ids), n_vocab).

        Rows of the first half are zeros: nothing is said of what the encoder reads.
        """
        import numpy as np

        half = len(ids) // 2
        self._read(ids[:half])
        forced = [self._start, *ids[half:]]
        self._evaluate(forced, all_outputs=True)
        logits = np.zeros((len(ids), self.n_vocab), np.float32)
        logits[half:] = self._copy(self._lib.llama_get_logits(self._context), len(forced))[1:]
        return logits

    @property
    def _start(self) -> int:
        token: int = self._lib.llama_model_decoder_start_token(self._model)
        if token < 0:
            raise EngineError(f"{self._path}: names no token that the decoder begins with")
        return token

    def _read(self, ids: Sequence[int]) -> None:
        self.reset()
        self._encode(self._context, ids, self.n_context)
