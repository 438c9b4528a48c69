"""Every quantization grid that the targets have, by a name of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import gguf
import numpy as np

from targets.gguf.grids import GRIDS
from targets.gguf.types import TYPES
from targets.groups import RowGrid
from targets.onnx.blockgrid import CompressionGrid
from targets.onnx.blocks import BlockGrid
from targets.pytorch.groups import GroupGrid

if TYPE_CHECKING:
    import numpy.typing as npt

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


def decoded(packed: npt.NDArray[np.uint8], name: str) -> npt.NDArray[np.float32]:
    """By gguf-py; Q1_0 and Q2_0, which it does not know, by the layout of ggml-common.h."""
    if name not in ("Q1_0", "Q2_0"):
        return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[name])
    kind = TYPES[name]
    blocks = packed.reshape(len(packed), -1, kind.block_bytes)
    scales = np.ascontiguousarray(blocks[..., :2]).view("<f2").astype(np.float32)
    bits = np.unpackbits(blocks[..., 2:], axis=-1, bitorder="little").astype(np.float32)
    codes = 2 * bits - 1 if name == "Q1_0" else bits[..., 0::2] + 2 * bits[..., 1::2] - 1
    return (scales * codes).reshape(len(packed), -1)
