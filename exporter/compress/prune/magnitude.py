"""By magnitude: the smallest weights go, of every matrix or of all together (https://arxiv.org/abs/1506.02626)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.prune.masks import lowest, lowest_of_groups

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Mask = npt.NDArray[np.bool_]


def smallest(weight: Floats, sparsity: float, pattern: tuple[int, int] | None = None) -> Mask:
    """The share `sparsity` of a matrix's weights that is smallest, True where a weight goes, shape of `weight`.

    pattern: (N, M), N of every M neighbours of a row stay, in place of the sparsity
    """
    size = np.abs(weight)
    return lowest(size, round(sparsity * size.size)) if pattern is None else lowest_of_groups(size, *pattern)


def smallest_of_all(weights: Mapping[str, Floats], sparsity: float) -> dict[str, Mask]:
    """As `smallest`, of all matrices under one threshold, by name: some lose more than their share, others less."""
    sizes = np.concatenate([np.abs(weight).reshape(-1) for weight in weights.values()])
    mask = lowest(sizes, round(sparsity * sizes.size))
    cuts = np.cumsum([weight.size for weight in weights.values()])[:-1]
    return {name: part.reshape(weights[name].shape) for name, part in zip(weights, np.split(mask, cuts), strict=True)}
