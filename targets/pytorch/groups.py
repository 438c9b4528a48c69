"""The grids of the PyTorch formats: codes in groups along a row, `targets.grids.Grid`.

A weight is (code - middle) * scale + shift, the shift only where the grid has one. Packed, a group is its codes (a byte
each), its scale and its shift as float32; a row is its groups. `tensors` takes them apart as `targets.pytorch.ongrid`
reads them. Scales and shifts of four bits are values that bfloat16 holds, as the engines store them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.onnx.blocks import BlockGrid
from targets.pytorch.presets import GROUP

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

INT8_LARGEST = 127
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class PositiveGrid(BlockGrid):
    """A symmetric grid of codes -8 to 7 whose scales are positive, as XNNPACK wants them."""

    def _range(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        largest = np.float32(self.largest - self.middle)
        return np.maximum(-low / np.float32(self.middle), high / largest), np.full_like(low, self.middle)


SHIFTED = BlockGrid(bits=4, size=GROUP, half_scales=False)
POSITIVE = PositiveGrid(bits=4, size=GROUP, symmetric=True, half_scales=False)


@dataclass(frozen=True)
class FittedGroups:
    """Of rows, each (rows, groups): scales; shifts; zeros, the codes that were searched for the value 0."""

    scales: Floats
    shifts: Floats
    zeros: Floats
    middle: int

    @property
    def offsets(self) -> Floats:
        """The value of code 0."""
        made: Floats = self.shifts - np.float32(self.middle) * self.scales
        return made


@dataclass(frozen=True)
class Parts:
    """Rows taken apart: codes (rows, columns), uint8; scales and shifts (rows, groups), float32."""

    codes: Bytes
    scales: Floats
    shifts: Floats


@dataclass(frozen=True)
class GroupGrid:
    """See `targets.grids.Grid`. Columns are whole groups.

    bits: 4 or 8; size: weights of a group, at 8 bits a whole row; shifted: groups have a shift
    """

    bits: int
    size: int
    shifted: bool = False

    @property
    def name(self) -> str:
        """ "int4 group 32", "int8 row"."""
        return "int8 row" if self.bits == 8 else f"int4 group {self.size}{'' if self.shifted else ' symmetric'}"

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.size

    @property
    def middle(self) -> int:
        """The code that is the shift alone."""
        return INT8_LARGEST if self.bits == 8 else 8

    @property
    def largest(self) -> int:
        """The largest code: of 8 bits -128 is left out."""
        return 2 * INT8_LARGEST if self.bits == 8 else 15

    def n_bytes(self, rows: int, columns: int) -> int:
        """Of a matrix in an engine's file: at 8 bits scales are float32, at 4 scales and shifts bfloat16."""
        each = 4 if self.bits == 8 else 2 * (1 + self.shifted)
        return rows * (columns * self.bits // 8 + columns // self.size * each)

    def fit(self, rows: Floats, importance: Floats | None = None) -> FittedGroups:
        """Scales and shifts: of 8 bits by the largest weight, of 4 those of least squared error."""
        with np.errstate(over="ignore"):
            found = self._fit_rows(rows) if self.bits == 8 else self._fit_groups(rows, importance)
        if not (np.isfinite(found.scales).all() and np.isfinite(found.shifts).all()):
            raise OverflowError("a scale is too large for bfloat16")
        return found

    def fitted(self, packed: Bytes) -> FittedGroups:
        """The scales in packed rows."""
        parts = self.parts(packed)
        return FittedGroups(parts.scales, parts.shifts, np.full_like(parts.scales, self.middle), self.middle)

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at its nearest code."""
        fitted = self.fit(rows, importance)
        blocks = rows.reshape(len(rows), -1, self.size)
        if self.bits == 8:
            codes = (np.rint(blocks / fitted.scales[..., None]) + np.float32(self.middle)).astype(np.uint8)
        else:
            codes = self._searched.round(blocks, fitted.scales, fitted.zeros)
        return self.pack(fitted, codes.reshape(rows.shape))

    def spread(self, per_scale: Floats, columns: slice | npt.NDArray[np.intp]) -> Floats:
        """Of (rows, groups) those of some columns, (rows, columns)."""
        count = per_scale.shape[1] * self.size
        found: Floats = per_scale[:, np.arange(count)[columns] // self.size]
        return found

    def nearest(self, weights: Floats, scales: Floats, offsets: Floats) -> Bytes:
        """The nearest code; all three of one shape."""
        steps = np.divide(weights - offsets, scales, out=np.zeros_like(weights), where=scales != 0)
        codes: Bytes = np.clip(np.rint(steps), 0, self.largest).astype(np.uint8)
        return codes

    def values(self, codes: Bytes, scales: Floats, offsets: Floats) -> Floats:
        """The weights of codes; all three of one shape."""
        made: Floats = codes * scales + offsets
        return made

    def pack(self, fitted: Any, codes: Bytes) -> Bytes:  # noqa: ANN401 - `FittedGroups`
        """Packed rows. codes: (rows, columns)."""
        return self.packed(Parts(codes, fitted.scales, fitted.shifts))

    def packed(self, parts: Parts) -> Bytes:
        """What `parts` takes apart."""
        rows, groups = parts.scales.shape
        floats = (parts.scales, parts.shifts) if self.shifted else (parts.scales,)
        found = [parts.codes.reshape(rows, groups, self.size)]
        found += [
            np.ascontiguousarray(part, np.float32).view(np.uint8).reshape(rows, groups, _FLOAT_BYTES) for part in floats
        ]
        packed: Bytes = np.concatenate(found, axis=2)
        return packed.reshape(rows, -1)

    def parts(self, packed: Bytes) -> Parts:
        """Codes, scales and shifts of packed rows."""
        each = packed.reshape(len(packed), -1, self.size + _FLOAT_BYTES * (1 + self.shifted))
        floats = np.ascontiguousarray(each[..., self.size :]).view(np.float32)
        shifts = floats[..., 1].copy() if self.shifted else np.zeros_like(floats[..., 0])
        codes = np.ascontiguousarray(each[..., : self.size]).reshape(len(packed), -1)
        return Parts(codes, floats[..., 0].copy(), shifts)

    def dequantize(self, packed: Bytes) -> Floats:
        """The weights in packed rows, (rows, columns)."""
        parts = self.parts(packed)
        steps = parts.codes.reshape(len(packed), -1, self.size).astype(np.float32) - np.float32(self.middle)
        steps *= parts.scales[..., None]
        if self.shifted:
            steps += parts.shifts[..., None]
        return steps.reshape(len(packed), -1)

    def tensors(self, name: str, packed: Bytes) -> dict[str, npt.NDArray[np.generic]]:
        """What the side file holds of a matrix."""
        parts = self.parts(packed)
        found: dict[str, npt.NDArray[np.generic]] = {
            f"{name}.codes{self.bits}": parts.codes,
            f"{name}.scales": parts.scales,
        }
        return {**found, f"{name}.shifts": parts.shifts} if self.shifted else found

    @property
    def _searched(self) -> BlockGrid:
        """The grid whose search finds scales of four bits."""
        return SHIFTED if self.shifted else POSITIVE

    def _fit_rows(self, rows: Floats) -> FittedGroups:
        # With 8 bits the range is what counts; clipping would gain nothing.
        scales = np.abs(rows).reshape(len(rows), -1, self.size).max(axis=2) / np.float32(INT8_LARGEST)
        scales = np.where(scales == 0, np.float32(1), scales).astype(np.float32)
        return FittedGroups(scales, np.zeros_like(scales), np.full_like(scales, self.middle), self.middle)

    def _fit_groups(self, rows: Floats, importance: Floats | None) -> FittedGroups:
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
