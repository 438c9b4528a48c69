"""The four-bit grids of the PyTorch formats, beside which they have `targets.groups.RowGrid`.

Scales and shifts are values that bfloat16 holds, as the engines store them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from targets.groups import FittedGroups, GroupedGrid
from targets.onnx.blocks import BlockGrid
from targets.pytorch.presets import GROUP

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PositiveGrid(BlockGrid):
    """A symmetric grid of codes -8 to 7 whose scales are positive, as XNNPACK wants them."""

    def _range(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        largest = np.float32(self.largest - self.middle)
        return np.maximum(-low / np.float32(self.middle), high / largest), np.full_like(low, self.middle)


SHIFTED = BlockGrid(bits=4, size=GROUP, half_scales=False)
POSITIVE = PositiveGrid(bits=4, size=GROUP, symmetric=True, half_scales=False)


@dataclass(frozen=True)
class GroupGrid(GroupedGrid):
    """Four bits in groups, scales and shifts searched for the least squared error.

    size: weights of a group; shifted: groups have a shift
    """

    bits: int = field(default=4, init=False)
    shifted: bool = False

    @property
    def name(self) -> str:
        """ "int4 group 32"."""
        return f"int4 group {self.size}{'' if self.shifted else ' symmetric'}"

    @property
    def middle(self) -> int:
        """See `GroupedGrid`."""
        return 8

    @property
    def largest(self) -> int:
        """See `GroupedGrid`."""
        return 15

    @property
    def group_bytes(self) -> int:
        """See `GroupedGrid`. Both are bfloat16."""
        return 2 * (1 + self.shifted)

    @property
    def kind(self) -> Literal["bfloat16"]:
        """See `GroupedGrid`."""
        return "bfloat16"

    def fit(self, rows: Floats, importance: Floats | None = None) -> FittedGroups:
        """Scales and shifts of least squared error."""
        with np.errstate(over="ignore"):
            found = self._fit(rows, importance)
        if not (np.isfinite(found.scales).all() and np.isfinite(found.shifts).all()):
            raise OverflowError("a scale is too large for bfloat16")
        return found

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at its nearest code."""
        fitted = self.fit(rows, importance)
        blocks = rows.reshape(len(rows), -1, self.size)
        return self.pack(fitted, self._searched.round(blocks, fitted.scales, fitted.zeros).reshape(rows.shape))

    @property
    def _searched(self) -> BlockGrid:
        """The grid whose search finds scales of four bits."""
        return SHIFTED if self.shifted else POSITIVE

    def _fit(self, rows: Floats, importance: Floats | None) -> FittedGroups:
        blocks = rows.reshape(len(rows), -1, self.size)
        weighed = None if importance is None else importance.reshape(1, -1, self.size)
        scales, zeros = self._searched.fit(blocks, weighed)
        if not self.shifted:
            # XNNPACK wants positive scales, of a group of zeros too.
            scales = np.where(scales <= 0, np.float32(1), scales)
        scales = to_bfloat16(scales)
        shifts = to_bfloat16((np.float32(self.middle) - zeros) * scales)
        return FittedGroups(scales, shifts, zeros, self.middle)


def to_bfloat16(values: Floats) -> Floats:
    """The nearest values that bfloat16 holds, ties to even, as float32."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    kept = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return np.where(np.isfinite(values), kept.view(np.float32), values)
