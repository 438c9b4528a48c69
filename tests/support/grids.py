"""Every quantization grid that the targets have, by a name of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from targets.gguf.grids import GRIDS
from targets.groups import RowGrid
from targets.onnx.blockgrid import CompressionGrid
from targets.onnx.blocks import BlockGrid
from targets.pytorch.groups import GroupGrid

if TYPE_CHECKING:
    from targets.grids import Grid

COLUMNS = 512
"""Of the rows that all of them take."""
# Any: mypy sees no protocol in a dictionary of different classes.
_BY_NAME: dict[str, Any] = {
    **GRIDS,
    "int4": CompressionGrid(BlockGrid(4, 32)),
    "int8": CompressionGrid(BlockGrid(8, 32, symmetric=True)),
    "row": RowGrid(COLUMNS),
    "group": GroupGrid(32),
    "shifted": GroupGrid(32, shifted=True),
}
ALL: dict[str, Grid] = _BY_NAME
