"""How far a model in torch has moved from what it was."""

from __future__ import annotations

from typing import TYPE_CHECKING

from targets.text import default_text

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from exporter.verify.reference import TransformersReference

EVALUATED = (4, 512)
"""Chunks and tokens that drift is told on after a step; `verify` of the export is the certificate."""


class TorchDrift:
    """Compares a model with what it was when this was made."""

    def __init__(self, model: TransformersReference) -> None:
        from exporter.verify.run import cut_chunks

        n, tokens = EVALUATED
        self._model, self._first = model, tokens // 2
        self._chunks = cut_chunks(model, default_text("evaluation"), n, tokens)
        self._expected = [self._logits(ids) for ids in self._chunks]

    def _logits(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.float32]:
        return self._model.logits(ids.tolist(), self._first)[:-1]

    def now(self) -> tuple[float, float, float]:
        """Mean KL divergence, quotient of the perplexities, and share of same top-1."""
        from targets.drift import DriftAccumulator

        accumulator = DriftAccumulator()
        for ids, expected in zip(self._chunks, self._expected, strict=True):
            accumulator.add(expected, self._logits(ids), ids[self._first + 1 :])
        found = accumulator.statistics()
        return found.mean_kl, found.perplexity_ratio, found.same_top1
