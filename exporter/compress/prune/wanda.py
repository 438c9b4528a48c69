"""Wanda: a weight counts by its size and by the norm of the input that it meets (https://arxiv.org/abs/2306.11695)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]


def wanda_scores(weight: Floats, hessian: Floats) -> Floats:
    """|w_ij| * ||x_j||, to be compared within a row, shape of `weight`, (rows, columns).

    hessian: the sum of x x' over inputs x, (columns, columns)
    """
    scores: Floats = np.abs(weight) * np.sqrt(hessian.diagonal())
    return scores
