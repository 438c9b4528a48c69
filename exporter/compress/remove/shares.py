"""How many units each layer keeps where their number is given for all together: as many as their loss is worth.

The loss of a layer's width is the estimate that types of quantization are chosen by, `quantize.allocate`: with errors e
of the matrix that reads the units, after its repair, and gradients g at its outputs, half the sum over outputs i of
E[g_i^2] E[(e x)_i^2], here with the inputs' whole second moments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from exporter.compress.quantize.allocate import Choice

if TYPE_CHECKING:
    import numpy.typing as npt

    from exporter.compress.remove.parts import Part

    Floats = npt.NDArray[np.float32]

TRIED = 8
"""Widths of a layer that are tried, from one block to all of it."""


def curve(
    part: Part, ranks: Floats, moments: Floats, felt: Floats, multiple: int, *, repair: bool
) -> list[Choice[int]]:
    """Widths that a layer may get, and the KL divergence that each is expected to cost.

    ranks: of the units, the best the highest, (units,); moments: E[x x'] of the reader's inputs, (columns, columns)
    felt: E[g_i^2] at its outputs, (rows,); multiple: units of a block, which divides those of the layer
    """
    order, blocks = np.argsort(-ranks, kind="stable"), part.units // multiple
    weight = part.reader.weight.detach().numpy()
    found = []
    for kept in sorted({max(1, round(blocks * tried / TRIED)) for tried in range(1, TRIED)} - {blocks}):
        columns = part.columns(np.sort(order[: kept * multiple]))
        error = weight.copy()
        error[:, columns] -= part.left(columns, moments if repair else None)
        lost = np.einsum("ij,ij->i", error @ moments, error)
        found.append(Choice(kept * multiple, kept * multiple, float(felt @ lost) / 2))
    return [*found, Choice(part.units, part.units, 0.0)]
