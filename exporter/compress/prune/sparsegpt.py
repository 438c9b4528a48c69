"""SparseGPT: what a pruned weight did is done by those behind it in its row (https://arxiv.org/abs/2301.00774)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.prune.masks import lowest, lowest_of_groups
from exporter.compress.quantize.gptq import hessian_factor

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]

BATCH = 128
"""Columns whose mask is chosen together (the paper's Bs), and whose errors reach those behind in one product."""
INNER = 16
"""Columns whose errors reach the rest of their batch in one product: one at a time would be bound by memory."""
DAMPING = 0.01


def sparsegpt(
    weight: Floats, hessian: Floats, sparsity: float = 0.5, pattern: tuple[int, int] | None = None,
    mask: Mask | None = None, damping: float = DAMPING,
) -> Floats:  # fmt: skip
    """The pruned weights, (rows, columns), those that stay changed to make up for those that go.

    hessian, damping: see `hessian_factor`; pattern: (N, M), N of every M neighbours of a row stay, columns whole
    groups, in place of the sparsity; mask: True where a weight goes, in place of both.
    A weight costs w^2 / [H^-1]_jj, with the inverse of the Hessian of the columns from its own on: of the weights as
    they are when their batch is reached, or their group. Where the input was always zero it costs nothing.
    """
    factor = hessian_factor(hessian, damping)
    worth: Floats = np.reciprocal(factor.diagonal() ** 2)
    worth[hessian.diagonal() == 0] = 0
    # Transposed, so that a column of the weight lies in one piece.
    left, gone = np.array(weight.T, np.float32, order="C"), np.zeros(weight.T.shape, np.bool_)
    if mask is not None:
        gone[:], pattern = mask.T, None
    for batch in _pieces(0, len(left), BATCH, pattern):
        if mask is None and pattern is None:
            # Counted from the first column on, so that roundings do not add up.
            count = round(sparsity * gone[: batch.stop].size) - int(np.count_nonzero(gone[: batch.start]))
            gone[batch] = lowest(left[batch] ** 2 * worth[batch, None], count)
        errors = np.zeros_like(left[batch])
        for inner in _pieces(batch.start, batch.stop, INNER, pattern):
            own = errors[inner.start - batch.start : inner.stop - batch.start]
            _prune(left, gone, own, inner, factor, worth, pattern)
            left[inner.stop : batch.stop] -= factor[inner, inner.stop : batch.stop].T @ own
        left[batch.stop :] -= factor[batch, batch.stop :].T @ errors
    return np.ascontiguousarray(left.T)


def _prune(
    left: Floats, gone: Mask, errors: Floats, inner: slice, factor: Floats, worth: Floats,
    pattern: tuple[int, int] | None,
) -> None:  # fmt: skip
    """Prune a few columns in place, and write into `errors`, (columns, rows), what those behind them have to do.

    left: the weights, (columns, rows); gone: which of them go, chosen here by the pattern, group by group, for weights
    as they are by then
    """
    for number, column in enumerate(range(inner.start, inner.stop)):
        if pattern is not None and column % pattern[1] == 0:
            group = slice(column, column + pattern[1])
            costs = left[group] ** 2 * worth[group, None]
            gone[group] = lowest_of_groups(np.ascontiguousarray(costs.T), *pattern).T
        error = errors[number]
        np.divide(left[column], factor[column, column], out=error, where=gone[column])
        left[column, gone[column]] = 0
        left[column + 1 : inner.stop] -= factor[column, column + 1 : inner.stop, None] * error


def _pieces(start: int, stop: int, width: int, pattern: tuple[int, int] | None) -> Iterator[slice]:
    """Columns in pieces of about that width, of whole groups where there is a pattern."""
    group = 1 if pattern is None else pattern[1]
    step = max(width // group, 1) * group
    for first in range(start, stop, step):
        yield slice(first, min(first + step, stop))
