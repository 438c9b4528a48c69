"""Which weights go, by their scores: the lowest of a matrix, of every row, or of every group of neighbours.

Of equal scores at the edge those go that come first, so that the count is exact and every run gives the same.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]


def lowest(scores: Floats, count: int) -> Mask:
    """The `count` lowest of all scores, True where a weight goes, shape of `scores`."""
    flat = scores.reshape(-1)
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    edge = np.partition(flat, count - 1)[count - 1]
    mask: Mask = flat < edge
    mask[np.flatnonzero(flat == edge)[: count - np.count_nonzero(mask)]] = True
    return mask.reshape(scores.shape)


def lowest_of_rows(scores: Floats, count: int) -> Mask:
    """The `count` lowest of every row, shape (rows, columns)."""
    if count == 0:
        return np.zeros(scores.shape, np.bool_)
    edges = np.partition(scores, count - 1, axis=1)[:, count - 1 : count]
    below, equal = scores < edges, scores == edges
    room = count - np.count_nonzero(below, axis=1, keepdims=True)
    mask: Mask = below | (equal & (np.cumsum(equal, axis=1, dtype=np.int32) <= room))
    return mask


def lowest_of_groups(scores: Floats, kept: int, of: int) -> Mask:
    """Of every `of` neighbours of a row all but the `kept` highest, shape (rows, columns), columns whole groups."""
    return lowest_of_rows(scores.reshape(-1, of), of - kept).reshape(scores.shape)
