"""The types of an artifact's tensors as a grid, layers down and kinds of matrices across."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from exporter.report.figures import Table

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from targets.stored_tensors import StoredTensor

SHADES = (2.99, 3.99, 4.99, 5.99, 7.99)
"""Bits per weight up to which each of the lighter shades goes; the darkest is for all above."""


@dataclass(frozen=True)
class Cell:
    """One matrix: its type in few letters, all of it in words, and its shade, from 0 for the fewest bits."""

    text: str
    said: str
    shade: int


@dataclass(frozen=True)
class TensorMap:
    """What a file stores.

    kinds: of the matrices in layers, across; layers: (number, a cell or None for each kind)
    outside: (name, cell) of the matrices outside the layers; types: (type, tensors, bits, bytes) summed; table: every
    tensor
    """

    kinds: tuple[str, ...]
    layers: tuple[tuple[int, tuple[Cell | None, ...]], ...]
    outside: tuple[tuple[str, Cell], ...]
    types: Table
    table: Table


def tensor_map(tensors: Sequence[StoredTensor]) -> TensorMap | None:
    """The map of a file; None for a file of vectors alone. Vectors are in its tables only."""
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    if not matrices:
        return None
    inside = {(tensor.layer, tensor.kind): tensor for tensor in matrices if tensor.layer is not None}
    # In the file's order of the first layer that has each: a reader finds attention before what follows it.
    kinds = tuple(dict.fromkeys(kind for _, kind in sorted(inside, key=lambda key: key[0] or 0)))
    layers = tuple(
        (layer, tuple(_cell(inside.get((layer, kind))) for kind in kinds))
        for layer in sorted({layer for layer, _ in inside if layer is not None})
    )
    outside = tuple((tensor.name, cell_of(tensor)) for tensor in matrices if tensor.layer is None)
    rows = ((t.name, t.type, " x ".join(map(str, t.shape)), f"{t.bits_per_weight:.2f}", f"{t.n_bytes:,}")
            for t in tensors)  # fmt: skip
    return TensorMap(
        kinds, layers, outside, Table(("type", "tensors", "bits per weight", "bytes"), tuple(_types(tensors))),
        Table(("tensor", "type", "shape", "bits per weight", "bytes"), tuple(rows)),
    )  # fmt: skip


def cell_of(tensor: StoredTensor) -> Cell:
    """The cell of a matrix."""
    bits = tensor.bits_per_weight
    shade = sum(bits > limit for limit in SHADES)
    return Cell(tensor.type.split()[0], f"{tensor.name}: {tensor.type}, {bits:.2f} bits, {tensor.n_bytes:,} B", shade)


def _cell(tensor: StoredTensor | None) -> Cell | None:
    return None if tensor is None else cell_of(tensor)


def _types(tensors: Iterable[StoredTensor]) -> list[tuple[str, str, str, str]]:
    """A row for each type, the one of the most bytes first."""
    sums: dict[str, list[int]] = {}
    for tensor in tensors:
        known = sums.setdefault(tensor.type, [0, 0, 0])
        for at, more in enumerate((1, tensor.n_weights, tensor.n_bytes)):
            known[at] += more
    ordered = sorted(sums.items(), key=lambda item: -item[1][2])
    return [
        (kind, str(count), f"{8 * n_bytes / max(weights, 1):.2f}", f"{n_bytes:,}")
        for kind, (count, weights, n_bytes) in ordered
    ]
