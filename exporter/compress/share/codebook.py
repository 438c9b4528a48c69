"""Codebooks by k-means, a matrix each: weights become one of a few values (Deep Compression, arXiv:1510.00149).

With the energy of the inputs, squared errors count by what the outputs feel of them (SqueezeLLM, arXiv:2306.07629, has
the loss's own curvature there).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]

ITERATIONS = 100


def kmeans(values: Floats, k: int, importance: Floats | None = None) -> Floats:
    """At most `k` centres of the values, rising, that no step of Lloyd's algorithm improves.

    values, importance: (n,). Begun evenly over the range, as the paper finds best. On a line a cluster is a range of
    the sorted values, and its mean a difference of running sums.
    """
    order = np.argsort(values, kind="stable")
    sorted_values = values[order].astype(np.float64)
    weights = np.ones(len(values)) if importance is None else importance[order].astype(np.float64)
    mass = np.concatenate(([0.0], np.cumsum(weights)))
    moment = np.concatenate(([0.0], np.cumsum(weights * sorted_values)))
    centres = np.linspace(sorted_values[0], sorted_values[-1], k)
    for _ in range(ITERATIONS):
        cuts = np.searchsorted(sorted_values, (centres[1:] + centres[:-1]) / 2, side="right")
        edges = np.concatenate(([0], cuts, [len(values)]))
        masses = np.diff(mass[edges])
        # A cluster that nothing is in, or that counts for nothing, stays where it is.
        moved = np.where(masses > 0, np.diff(moment[edges]) / np.where(masses > 0, masses, 1), centres)
        moved.sort()
        if np.array_equal(moved, centres):
            break
        centres = moved
    return centres.astype(np.float32)


def nearest_centres(values: Floats, centres: Floats) -> Floats:
    """Each value's nearest centre, in the shape of `values`. centres: rising"""
    found: Floats = centres[np.searchsorted((centres[1:] + centres[:-1]) / 2, values)]
    return found


def shared(weight: Floats, bits: int, energy: Floats | None = None) -> Floats:
    """The matrix with at most 2^bits values, (rows, columns). What was zero stays zero, and zero is one of the values.

    energy: of each column's input, (columns,)
    """
    kept = weight != 0
    values = weight[kept]
    if not len(values):
        return weight
    importance = None if energy is None else np.broadcast_to(energy, weight.shape)[kept]
    room = (1 << bits) - (0 if kept.all() else 1)
    found = np.zeros_like(weight)
    found[kept] = nearest_centres(values, kmeans(values, max(room, 1), importance))
    return found
