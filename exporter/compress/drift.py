"""How far a model in torch has moved from what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from exporter.compress.mapped import MappedEncoder, MappedReference
from targets.text import default_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

EVALUATED = (4, 512)
"""Chunks and tokens that drift is told on after a step; `verify` of the export is the certificate."""
ROUNDS = 4
"""Of an encoder's texts, from a few tokens to the longest that it takes."""


class Drifting(Protocol):
    """Compares a model with what it was when this was made."""

    def now(self) -> dict[str, float | None]:
        """Numbers of a `StepReport`, by their names there."""


def drifting(model: MappedReference | MappedEncoder) -> Drifting:
    """For a model that is about to change."""
    return TorchDrift(model) if isinstance(model, MappedReference) else EncoderTorchDrift(model)


class TorchDrift:
    """See `Drifting`: of a decoder."""

    def __init__(self, model: MappedReference) -> None:
        from exporter.verify.run import cut_chunks

        n, tokens = EVALUATED
        self._model, self._first = model, tokens // 2
        self._chunks = cut_chunks(model, default_text("evaluation"), n, tokens)
        self._expected = [self._logits(ids) for ids in self._chunks]

    def _logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._model.logits(ids.tolist(), self._first)[:-1]

    def now(self) -> dict[str, float | None]:
        """Mean KL divergence, quotient of the perplexities, and share of same top-1."""
        from targets.drift import DriftAccumulator

        accumulator = DriftAccumulator()
        for ids, expected in zip(self._chunks, self._expected, strict=True):
            accumulator.add(expected, self._logits(ids), ids[self._first + 1 :])
        found = accumulator.statistics()
        return {
            "mean_kl": found.mean_kl,
            "perplexity_ratio": found.perplexity_ratio,
            "same_top1": found.same_top1,
        }


class EncoderTorchDrift:
    """See `Drifting`: of an encoder."""

    def __init__(self, model: MappedEncoder) -> None:
        from exporter.verify.encoder import cut_texts, find_frame

        self._model, self._frame = model, find_frame(model)
        self._texts = cut_texts(model, default_text("evaluation"), ROUNDS, model.max_tokens)
        self._expected = [model.encode(ids) for ids in self._texts]

    def now(self) -> dict[str, float | None]:
        """Mean cosine and rank correlation of embeddings, share of texts or tokens with the same best label."""
        from exporter.verify.encoder import add_outputs
        from targets.encoder_drift import EncoderDriftAccumulator

        accumulator = EncoderDriftAccumulator()
        for ids, expected in zip(self._texts, self._expected, strict=True):
            add_outputs(accumulator, expected, self._model.encode(ids), self._frame)
            accumulator.count(len(ids))
        found = accumulator.statistics()
        return {
            "mean_cosine": found.mean_cosine,
            "rank_correlation": found.rank_correlation,
            "label_agreement": found.label_agreement,
        }
