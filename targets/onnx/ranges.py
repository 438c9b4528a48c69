"""The range that fixed 8-bit codes of an activation spread over: by min-max, percentile or entropy.

Source of the last two: S. Migacz, "8-bit inference with TensorRT", GTC 2017; here
both tails are cut on their own, because the codes have a zero point.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Counts = npt.NDArray[np.float64]

BINS = 2048
CODES = 256
TAIL = 1e-5
"""Share of the values that `percentile` may leave outside, both tails together."""


@dataclass
class Histogram:
    """What was seen of one activation. First `widen` over all of the data, then `count` over all of it again."""

    low: float = 0.0
    high: float = 0.0
    counts: Counts = field(default_factory=lambda: np.zeros(BINS))

    def widen(self, values: Floats) -> None:
        """Take the extremes."""
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    def count(self, values: Floats) -> None:
        """Take the values, between extremes that are known."""
        if self.high > self.low:
            self.counts += np.histogram(values, BINS, (self.low, self.high))[0]

    def range(self, method: str) -> tuple[float, float]:
        """Lowest and highest value that gets a code of its own; "minmax", "percentile" or "entropy"."""
        if method == "minmax" or not self.counts.any():
            return self.low, self.high
        first, last = self._percentile() if method == "percentile" else self._entropy()
        step = (self.high - self.low) / BINS
        # Zero keeps its code, whatever is cut.
        return min(self.low + first * step, 0.0), max(self.low + last * step, 0.0)

    def _percentile(self) -> tuple[int, int]:
        """First bin and the one behind the last, with TAIL / 2 of the values cut at each end."""
        share = np.cumsum(self.counts) / self.counts.sum()
        first = int(np.searchsorted(share, TAIL / 2))
        return first, int(np.searchsorted(share, 1 - TAIL / 2)) + 1

    def _entropy(self) -> tuple[int, int]:
        """The cut, at one distance from zero, that changes the distribution least, by KL(seen || after rounding)."""
        step = (self.high - self.low) / BINS
        centre = round(-self.low / step)
        widest = max(centre, BINS - centre)
        best, chosen = np.inf, (0, BINS)
        for reach in np.unique(np.linspace(CODES // 2, widest, 64).astype(int)):
            first, last = max(centre - int(reach), 0), min(centre + int(reach), BINS)
            divergence = rounding_divergence(self.counts, first, last)
            if divergence < best:
                best, chosen = divergence, (first, last)
        return chosen


def rounding_divergence(counts: Counts, first: int, last: int) -> float:
    """KL in nats between what lies in bins first..last (the tails heaped on their edges) and the same after rounding.

    Rounding to CODES levels spreads what a level holds evenly over its bins that hold anything.
    """
    seen = counts[first:last].copy()
    seen[0] += counts[:first].sum()
    seen[-1] += counts[last:].sum()
    inside = counts[first:last]
    level = np.arange(len(inside)) * CODES // len(inside)
    held = np.bincount(level, inside, CODES)
    occupied = np.bincount(level, inside > 0, CODES)
    rounded = np.where(inside > 0, held[level] / np.maximum(occupied[level], 1), 0.0)
    p, q = seen / seen.sum(), rounded / max(rounded.sum(), 1.0)
    # A heap on an edge that nothing is rounded to is impossible under q: the least weight stands for it.
    q = np.where((q == 0) & (p > 0), 1e-9, q)
    used = p > 0
    return float((p[used] * np.log(p[used] / q[used])).sum())


def rounding_noise(values: Floats, low: float, high: float) -> float:
    """Mean over the rows of squared rounding error / squared length: what a token loses. values: (tokens, features)."""
    from targets.onnx.linear import activation_grid

    scale, zero = activation_grid(low, high)
    codes = np.clip(np.rint(values / np.float32(scale)) + zero, 0, CODES - 1)
    error = (codes - zero) * np.float32(scale) - values
    length = np.einsum("tf,tf->t", values, values)
    lost = np.einsum("tf,tf->t", error, error)
    return float((lost[length > 0] / length[length > 0]).mean()) if (length > 0).any() else 0.0
