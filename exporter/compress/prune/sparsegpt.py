"""SparseGPT: what a pruned weight did is done by those behind it in its row (https://arxiv.org/abs/2301.00774)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.prune.masks import lowest, lowest_of_groups
from exporter.compress.quantize.gptq import hessian_factor

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]

BATCH = 128
"""Columns whose mask is chosen together (the paper's Bs), and whose errors reach those behind in one product."""
DAMPING = 0.01


def sparsegpt(
    weight: Floats, hessian: Floats, sparsity: float = 0.5, pattern: tuple[int, int] | None = None,
    mask: Mask | None = None,
) -> Floats:  # fmt: skip
    """The pruned weights, (rows, columns), those that stay changed to make up for those that go.

    hessian: the sum of x x' over inputs x, (columns, columns); pattern: (N, M), N of every M neighbours stay, in place
    of the sparsity; mask: True where a weight goes, in place of both. A weight costs w^2 / [H^-1]_jj, with the inverse
    of the Hessian of the columns from its own on, and the weights as they are when their batch is reached.
    """
    factor = hessian_factor(hessian, DAMPING)
    left = np.asfortranarray(weight, dtype=np.float32).copy(order="F")
    # Inputs that were always zero: nothing shows their weights, and none of them is needed.
    left[:, hessian.diagonal() == 0] = 0
    step = BATCH if pattern is None else BATCH // pattern[1] * pattern[1] or pattern[1]
    for start in range(0, left.shape[1], step):
        batch = slice(start, min(start + step, left.shape[1]))
        chosen = None
        if mask is not None:
            chosen = mask[:, batch]
        elif pattern is None:
            chosen = lowest(_costs(left[:, batch], factor, batch), sparsity)
        errors = _prune(left, factor, batch, chosen, pattern)
        left[:, batch.stop :] -= errors @ factor[batch, batch.stop :]
    return np.ascontiguousarray(left)


def _costs(weights: Floats, factor: Floats, columns: slice) -> Floats:
    costs: Floats = (weights / factor.diagonal()[columns]) ** 2
    return costs


def _prune(left: Floats, factor: Floats, batch: slice, mask: Mask | None, pattern: tuple[int, int] | None) -> Floats:
    """Prune a batch of columns in place; the errors for the columns behind it, (rows, columns of the batch).

    mask: of the batch; None chooses it by the pattern, group by group, for weights as they are by then
    """
    width = batch.stop - batch.start
    errors = np.zeros((len(left), width), np.float32, order="F")
    chosen = np.zeros((len(left), width), np.bool_) if mask is None else mask
    for number in range(width):
        column = batch.start + number
        if mask is None and pattern is not None and number % pattern[1] == 0:
            group = slice(column, column + pattern[1])
            costs = _costs(left[:, group], factor, group)
            chosen[:, number : number + pattern[1]] = lowest_of_groups(costs, *pattern)
        gone = chosen[:, number]
        error = np.where(gone, left[:, column], np.float32(0)) / factor[column, column]
        left[gone, column] = 0
        left[:, column + 1 : batch.stop] -= error[:, None] * factor[column, column + 1 : batch.stop]
        errors[:, number] = error
    return errors
