"""An encoder's source model in torch, as the artifact is compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from exporter.verify.reference import TorchSource
from runtime.artifact import open_artifact
from runtime.errors import ModelError
from runtime.sessions.base import is_encoder
from runtime.sessions.llamacpp_encoder import LlamaCppEncoderSession
from targets.pooling import read_pooling

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

    from runtime.measurement import RunOptions

AUTO_CLASSES = {
    "feature-extraction": "AutoModel",
    "text-classification": "AutoModelForSequenceClassification",
    "token-classification": "AutoModelForTokenClassification",
}
# BERT's pooler was trained for another task and is often left out of embedding models; the embedding does not read it.
_UNUSED = {"feature-extraction": "pooler."}


class EncoderReference(Protocol):
    """The source model of an encoder, open. Token ids are plain ints.

    description: what it is and how it runs, for the record
    max_tokens: longest text that it takes, special tokens counted
    n_vocab: token ids that it knows
    special_tokens, added_tokens: as of `Reference`
    """

    description: str
    max_tokens: int
    n_vocab: int
    special_tokens: tuple[str, ...]
    added_tokens: tuple[str, ...]

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids of `text`, neither padded nor cut."""

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """The outputs for one text: see `runtime.sessions.base.EncoderSession.encode`."""

    def close(self) -> None:
        """Free everything."""


class GgufEncoder:
    """A .gguf source of an encoder in llama.cpp. Its embeddings are of length 1, as llama.cpp's tools make them."""

    def __init__(self, path: Path, options: RunOptions) -> None:
        artifact = open_artifact(path)
        if not is_encoder(artifact):
            raise ModelError(f"{path}: is no encoder's; name the model that the artifact was made from")
        self._session = LlamaCppEncoderSession.open(artifact, options)
        self.description = f"{path.name} in {self._session.engine}"
        self.max_tokens, self.n_vocab = self._session.max_tokens, self._session.n_vocab
        texts = (self._session.special_text(which) for which in ("bos", "eos"))
        self.special_tokens = self.added_tokens = tuple(dict.fromkeys(text for text in texts if text))

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `EncoderReference`."""
        return self._session.tokenize(text, add_special=add_special)

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """See `EncoderReference`."""
        return self._session.encode(ids)

    def close(self) -> None:
        """See `EncoderReference`."""
        self._session.close()


class TransformersEncoder(TorchSource):
    """An encoder's directory, run by transformers; its sentence embedding is that of sentence-transformers."""

    def __init__(
        self,
        path: Path,
        task: str,
        *,
        dtype: str = "float32",
        threads: int | None = None,
        trust_remote_code: bool = False,
    ) -> None:
        super().__init__(
            path, AUTO_CLASSES[task], dtype=dtype, trust_remote_code=trust_remote_code, unused=_UNUSED.get(task)
        )
        self.use_threads(threads)
        self.pooling = read_pooling(path) if task == "feature-extraction" else None
        self.n_vocab = int(self._model.get_input_embeddings().weight.shape[0])
        self.max_tokens = self._longest()

    def encode(self, ids: Sequence[int]) -> dict[str, npt.NDArray[np.float32]]:
        """See `EncoderReference`."""
        output = self.forward(ids)
        if hasattr(output, "logits"):
            return {"logits": self.as_float32(output.logits[0])}
        states = self.as_float32(output.last_hidden_state[0])
        if self.pooling is None:
            return {"last_hidden_state": states}
        return {"last_hidden_state": states, "sentence_embedding": self.pooling(states)}

    def _longest(self) -> int:
        """Positions that the model has. RoBERTa and its kin count theirs from behind the padding token's id."""
        positions = int(getattr(self._model.config, "max_position_embeddings", 0) or self._tokenizer.model_max_length)
        for name, module in self._model.named_modules():
            padding = getattr(module, "padding_idx", None)
            if name.rsplit(".", 1)[-1] == "position_embeddings" and padding is not None:
                return positions - int(padding) - 1
        return positions
