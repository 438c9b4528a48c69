"""Which weights go, by their scores: the lowest of a matrix, of every row, or of every group of neighbours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]


def lowest(scores: Floats, sparsity: float) -> Mask:
    """The share of all scores that is lowest, True where a weight goes; of equal ones those that come first."""
    mask = np.zeros(scores.size, np.bool_)
    mask[np.argsort(scores, axis=None, kind="stable")[: round(sparsity * scores.size)]] = True
    return mask.reshape(scores.shape)


def lowest_of_rows(scores: Floats, sparsity: float) -> Mask:
    """As `lowest`, of every row by itself, shape (rows, columns)."""
    mask = np.zeros(scores.shape, np.bool_)
    order = np.argsort(scores, axis=1, kind="stable")[:, : round(sparsity * scores.shape[1])]
    np.put_along_axis(mask, order, values=True, axis=1)
    return mask


def lowest_of_groups(scores: Floats, kept: int, of: int) -> Mask:
    """Of every `of` neighbours of a row all but the `kept` highest, shape (rows, columns), columns whole groups."""
    groups = scores.reshape(len(scores), -1, of)
    mask = np.zeros(groups.shape, np.bool_)
    order = np.argsort(groups, axis=2, kind="stable")[:, :, : of - kept]
    np.put_along_axis(mask, order, values=True, axis=2)
    return mask.reshape(scores.shape)
