"""Wanda: a weight counts by its size and by the norm of the input that it meets (https://arxiv.org/abs/2306.11695)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.prune.masks import lowest_of_groups, lowest_of_rows

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]


def wanda(weight: Floats, hessian: Floats, sparsity: float, pattern: tuple[int, int] | None = None) -> Mask:
    """The weights of every row with the lowest |w_ij| * ||x_j||, True where one goes, (rows, columns).

    hessian: the sum of x x' over inputs x, (columns, columns), of which the diagonal counts; sparsity: of every row
    pattern: (N, M), N of every M neighbours of a row stay, in place of the sparsity
    """
    scores: Floats = np.abs(weight) * np.sqrt(hessian.diagonal())
    if pattern is not None:
        return lowest_of_groups(scores, *pattern)
    return lowest_of_rows(scores, round(sparsity * scores.shape[1]))
