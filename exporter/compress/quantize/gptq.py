"""GPTQ: codes column by column, the error of each spread over those to come (https://arxiv.org/abs/2210.17323)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.grids import Fitted, Grid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

PRUNED = 0.05
"""Share of zeros from which on a matrix counts as pruned: trained weights have hardly any that are exactly zero."""
BATCH = 128
"""Columns whose errors reach the columns behind them in one product (the paper's lazy batches)."""
INNER = 16
"""Columns whose errors reach the rest of their batch in one product: one at a time would be bound by memory."""
ROWS = 4096
"""Rows that are rounded at once: rows do not see each other."""
WHOLE = 512
"""Columns of a triangle that is inverted in one piece."""


def is_pruned(weight: Floats) -> bool:
    """Whether so many weights of a matrix are zero that they were set so."""
    return bool(np.count_nonzero(weight == 0) >= PRUNED * weight.size)


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
    diagonal[diagonal == 0] = 1.0
    mean, added = diagonal.mean(), 0.0
    # Backwards, because H = U U' with an upper U, so that its inverse U^-1, upper too, is the factor of H's inverse.
    backwards = damped.flip(0, 1)
    del damped, diagonal
    # Again and again more where the inputs span too little: the paper's remedy for layers without a factor.
    for more in (1.0, 10.0, 100.0):
        backwards.diagonal().add_(mean * damping * (more - added))
        lower, failed = torch.linalg.cholesky_ex(backwards)
        added = more
        if failed.item() == 0:
            break
    del backwards
    _invert(lower)
    factor: Floats = lower.float().flip(0, 1).numpy()
    return factor


def _invert(lower: torch.Tensor) -> None:
    """Put a lower triangle's inverse in its place, by its quarters: products of matrices are what is fast."""
    count = len(lower)
    if count <= WHOLE:
        lower.copy_(torch.linalg.solve_triangular(lower, torch.eye(count, dtype=lower.dtype), upper=False))
        return
    half = count // 2
    first, below, second = lower[:half, :half], lower[half:, :half], lower[half:, half:]
    _invert(first)
    _invert(second)
    below.copy_((second @ below).neg_() @ first)


class Gptq:
    """Chooses codes of matrices that read one input.

    hessian: see `hessian_factor`

    In a matrix that was pruned, zeros stay what the grid has nearest to zero, and what errors would have moved them by
    is spread on (SparseGPT, https://arxiv.org/abs/2301.00774, section 3.5).
    """

    def __init__(self, hessian: Floats, options: GptqOptions | None = None) -> None:
        self._hessian, self._options = hessian, options or GptqOptions()
        self._importance = hessian.diagonal().copy()
        if not self._importance.any():
            self._importance[:] = 1.0

    @cached_property
    def _order(self) -> npt.NDArray[np.intp]:
        return np.argsort(-self._importance, kind="stable")

    @cached_property
    def _factor(self) -> Floats:
        if self._options.activation_order:
            return hessian_factor(self._hessian[np.ix_(self._order, self._order)], self._options.damping)
        return hessian_factor(self._hessian, self._options.damping)

    def __call__(self, weight: Floats, grid: Grid) -> Bytes:
        """The bytes of `weight`, (rows, columns), on the grid, (rows, bytes of a row).

        Raises OverflowError for weights too large for the grid.
        """
        pruned = is_pruned(weight)
        choose = self._ordered if self._options.activation_order else self._natural
        pieces = (weight[start : start + ROWS] for start in range(0, len(weight), ROWS))
        return np.concatenate([choose(np.array(rows, np.float32), grid, pruned=pruned) for rows in pieces])

    def _ordered(self, rows: Floats, grid: Grid, *, pruned: bool) -> Bytes:
        """Rows under scales that fit the weights as they were, in the order of columns."""
        fitted, order = grid.fit(rows, self._importance), self._order
        # Transposed, so that a column of the weights lies in one piece.
        left = np.ascontiguousarray(rows.T[order])
        gone = left == 0 if pruned else None
        codes = np.empty(left.shape, np.uint8)
        for start in range(0, len(left), BATCH):
            batch = slice(start, min(start + BATCH, len(left)))
            codes[order[batch]] = _round(left, self._factor, batch, _spread(grid, fitted, order[batch]), grid, gone)
        return grid.pack(fitted, np.ascontiguousarray(codes.T))

    def _natural(self, rows: Floats, grid: Grid, *, pruned: bool) -> Bytes:
        """Rows from the first column to the last, a block's scales when it is reached."""
        left = np.ascontiguousarray(rows.T)
        gone = left == 0 if pruned else None
        packed = []
        for start in range(0, len(left), grid.block):
            block = slice(start, start + grid.block)
            seen = left[block] if gone is None else np.where(gone[block], np.float32(0), left[block])
            fitted = grid.fit(np.ascontiguousarray(seen.T), self._importance[block])
            codes = np.empty((grid.block, len(rows)), np.uint8)
            for first in range(0, grid.block, BATCH):
                inner = slice(first, min(first + BATCH, grid.block))
                outer = slice(start + inner.start, start + inner.stop)
                codes[inner] = _round(left, self._factor, outer, _spread(grid, fitted, inner), grid, gone)
            packed.append(grid.pack(fitted, np.ascontiguousarray(codes.T)))
        return np.concatenate(packed, axis=1)


def gptq(weight: Floats, hessian: Floats, grid: Grid, options: GptqOptions | None = None) -> Bytes:
    """The bytes of one matrix, see `Gptq`."""
    return Gptq(hessian, options)(weight, grid)


def _spread(grid: Grid, fitted: Fitted, columns: slice | npt.NDArray[np.intp]) -> tuple[Floats, Floats]:
    """Scales and offsets of some columns, (columns, rows) each."""
    scales, offsets = (grid.spread(part, columns).T for part in (fitted.scales, fitted.offsets))
    return np.ascontiguousarray(scales), np.ascontiguousarray(offsets)


def _round(
    left: Floats, factor: Floats, batch: slice, fitted: tuple[Floats, Floats], grid: Grid,
    gone: npt.NDArray[np.bool_] | None,
) -> Bytes:  # fmt: skip
    """Codes of a batch of columns, (columns, rows); what they leave is spread over the columns behind, in place.

    left: the weights, (columns, rows); fitted: scales and offsets of the batch; gone: weights of all columns that were
    pruned
    """
    codes, errors = np.empty(fitted[0].shape, np.uint8), np.empty(fitted[0].shape, np.float32)
    for start in range(batch.start, batch.stop, INNER):
        inner = slice(start, min(start + INNER, batch.stop))
        own = slice(inner.start - batch.start, inner.stop - batch.start)
        for column in range(inner.start, inner.stop):
            number = column - batch.start
            scale, offset = fitted[0][number], fitted[1][number]
            wanted = left[column] if gone is None else np.where(gone[column], np.float32(0), left[column])
            codes[number] = grid.nearest(wanted, scale, offset)
            error = (left[column] - grid.values(codes[number], scale, offset)) / factor[column, column]
            left[column + 1 : inner.stop] -= factor[column, column + 1 : inner.stop, None] * error
            errors[number] = error
        _spread_on(left, factor, inner, slice(inner.stop, batch.stop), errors[own])
    _spread_on(left, factor, batch, slice(batch.stop, len(left)), errors)
    return codes


def _spread_on(left: Floats, factor: Floats, done: slice, behind: slice, errors: Floats) -> None:
    """Move columns behind by what the errors of those that are done, (columns, rows), leave for them."""
    if behind.start < behind.stop:
        by = torch.from_numpy(factor[done, behind]).T
        torch.from_numpy(left[behind]).addmm_(by, torch.from_numpy(errors), alpha=-1)
