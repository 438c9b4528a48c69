"""GPTQ: codes column by column, the error of each spread over those to come (https://arxiv.org/abs/2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.grids import Grid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

PRUNED = 0.05
"""Share of zeros from which on a matrix counts as pruned: trained weights have hardly any that are exactly zero."""
BATCH = 128
"""Columns whose errors reach the columns behind them in one product (the paper's lazy batches)."""
ROWS = 4096
"""Rows that are rounded at once: rows do not see each other."""


@dataclass(frozen=True)
class GptqOptions:
    """How to round.

    damping: share of the Hessian's mean diagonal that is added to its diagonal
    activation_order: columns in the order of their inputs' energy, under scales that were chosen before; else columns
        as they stand, and scales of a block when it is reached, for weights that carry the errors so far
    """

    damping: float = 0.01
    activation_order: bool = True


def hessian_factor(hessian: Floats, damping: float) -> Floats:
    """The upper Cholesky factor of the damped Hessian's inverse, (columns, columns).

    hessian: the sum of x x' over inputs x, (columns, columns); inputs that were always zero count as one.
    """
    damped = torch.from_numpy(hessian).double()
    diagonal = damped.diagonal()
    unseen = diagonal == 0
    diagonal[unseen] = 1.0
    # Again and again more where the inputs span too little: the paper's remedy for layers without a factor.
    for more in (1.0, 10.0, 100.0):
        trial = damped.clone()
        trial.diagonal().add_(damping * more * diagonal.mean())
        lower, failed = torch.linalg.cholesky_ex(trial)
        if failed.item() == 0:
            break
    inverse = torch.cholesky_inverse(lower)
    factor: Floats = torch.linalg.cholesky(inverse, upper=True).float().numpy()
    return factor


def gptq(weight: Floats, hessian: Floats, grid: Grid, options: GptqOptions | None = None) -> Bytes:
    """The bytes of `weight`, (rows, columns), on the grid, (rows, bytes of a row).

    hessian: see `hessian_factor`. Raises OverflowError for weights too large for the grid.

    In a matrix that was pruned, zeros stay what the grid has nearest to zero, and what errors would have moved them by
    is spread on (SparseGPT, https://arxiv.org/abs/2301.00774, section 3.5).
    """
    options = options or GptqOptions()
    importance = hessian.diagonal().copy()
    if not importance.any():
        importance[:] = 1.0
    pruned = bool(np.count_nonzero(weight == 0) >= PRUNED * weight.size)
    if options.activation_order:
        order = np.argsort(-importance, kind="stable")
        factor = hessian_factor(hessian[order][:, order], options.damping)
        pieces = [_ordered(rows, factor, order, importance, grid, pruned=pruned) for rows in _pieces(weight)]
    else:
        factor = hessian_factor(hessian, options.damping)
        pieces = [_natural(rows, factor, importance, grid, pruned=pruned) for rows in _pieces(weight)]
    return np.concatenate(pieces)


def _pieces(weight: Floats) -> list[Floats]:
    return [np.array(weight[start : start + ROWS], np.float32) for start in range(0, len(weight), ROWS)]


def _ordered(
    rows: Floats, factor: Floats, order: npt.NDArray[np.intp], importance: Floats, grid: Grid, *, pruned: bool
) -> Bytes:
    """Rows under scales that fit the weights as they were, in the given order of columns."""
    fitted = grid.fit(rows, importance)
    scales, offsets = (grid.spread(part, order) for part in (fitted.scales, fitted.offsets))
    left, found = np.asfortranarray(rows[:, order]), np.empty(rows.shape, np.uint8)
    gone = left == 0 if pruned else None
    for start in range(0, rows.shape[1], BATCH):
        batch = slice(start, min(start + BATCH, rows.shape[1]))
        found[:, batch] = _round(left, factor, batch, (scales[:, batch], offsets[:, batch]), grid, gone)
    codes = np.empty_like(found)
    codes[:, order] = found
    return grid.pack(fitted, codes)


def _natural(rows: Floats, factor: Floats, importance: Floats, grid: Grid, *, pruned: bool) -> Bytes:
    """Rows from the first column to the last, a block's scales when it is reached."""
    left = np.asfortranarray(rows)
    gone = left == 0 if pruned else None
    packed = []
    for start in range(0, rows.shape[1], grid.block):
        block = slice(start, start + grid.block)
        seen = left[:, block] if gone is None else np.where(gone[:, block], np.float32(0), left[:, block])
        fitted = grid.fit(np.ascontiguousarray(seen), importance[block])
        codes = np.empty((len(rows), grid.block), np.uint8)
        for first in range(0, grid.block, BATCH):
            inner = slice(first, min(first + BATCH, grid.block))
            outer = slice(start + inner.start, start + inner.stop)
            scales, offsets = (grid.spread(part, inner) for part in (fitted.scales, fitted.offsets))
            codes[:, inner] = _round(left, factor, outer, (scales, offsets), grid, gone)
        packed.append(grid.pack(fitted, codes))
    return np.concatenate(packed, axis=1)


def _round(
    left: Floats, factor: Floats, batch: slice, fitted: tuple[Floats, Floats], grid: Grid,
    gone: npt.NDArray[np.bool_] | None,
) -> Bytes:  # fmt: skip
    """Codes of a batch of columns; what they leave of `left` is spread over the columns behind, in place.

    fitted: scales and offsets of the batch, (rows, columns) each; gone: weights of all columns that were pruned
    """
    width = batch.stop - batch.start
    codes, errors = np.empty((len(left), width), np.uint8), np.empty((len(left), width), np.float32, order="F")
    for number in range(width):
        column = batch.start + number
        scale, offset = fitted[0][:, number], fitted[1][:, number]
        wanted = left[:, column] if gone is None else np.where(gone[:, column], np.float32(0), left[:, column])
        codes[:, number] = grid.nearest(wanted, scale, offset)
        error = (left[:, column] - grid.values(codes[:, number], scale, offset)) / factor[column, column]
        left[:, column + 1 : batch.stop] -= error[:, None] * factor[column, column + 1 : batch.stop]
        errors[:, number] = error
    if batch.stop < left.shape[1]:
        left[:, batch.stop :] -= errors @ factor[batch, batch.stop :]
    return codes
