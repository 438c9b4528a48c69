"""A model with an encoder and a decoder (T5) in torch, as the artifact is compared with it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from exporter.verify.reference import TorchSource, bos_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt


class TransformersPair(TorchSource):
    """Its directory, run by transformers on the CPU. Of every piece of text the encoder reads the first half.

    The decoder is made to say the second half, so what is scored is what it thinks of each of those tokens.
    """

    def __init__(
        self, path: Path, *, dtype: str = "float32", threads: int | None = None, trust_remote_code: bool = False
    ) -> None:
        super().__init__(path, "AutoModelForSeq2SeqLM", dtype=dtype, trust_remote_code=trust_remote_code)
        self.use_threads(threads)
        self.n_vocab = int(self._model.get_output_embeddings().weight.shape[0])
        self.bos_id = bos_of(self.tokenize)
        config = self._model.config
        start = config.decoder_start_token_id
        self._start = int(config.pad_token_id if start is None else start)

    has_chat_template = False

    def logits(self, ids: Sequence[int], first: int = 0) -> npt.NDArray[np.float32]:
        """At the positions from `first` on, which is at least the half: see `Reference`."""
        half = len(ids) // 2
        forced = self._torch.tensor([[self._start, *ids[half:]]], dtype=self._torch.long)
        return self.as_float32(self.forward(ids[:half], decoder_input_ids=forced).logits[0, 1 + first - half :])

    def render(self, conversation: Sequence[dict[str, str]], *, prompt: bool) -> str:
        """There is no template."""
        raise NotImplementedError
