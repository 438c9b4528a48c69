"""Grids of codes in groups along a row, `targets.grids.Grid`, and the one that several formats have: int8 rows.

A weight is (code - middle) * scale + shift, the shift only where the grid has one. Packed, a group is its codes (a byte
each), its scale and its shift as float32; a row is its groups. `tensors` takes them apart as a side file holds them.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from targets.grids import Stored

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

INT8_LARGEST = 127
_FLOAT_BYTES = 4


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
class GroupedGrid(ABC):
    """See `targets.grids.Grid`. Columns are whole groups.

    bits: of a code; size: weights of a group; shifted: groups have a shift
    """

    bits: int
    size: int
    shifted: bool

    @property
    @abstractmethod
    def name(self) -> str:
        """For people: "int8 row"."""

    @property
    @abstractmethod
    def middle(self) -> int:
        """The code that is the shift alone."""

    @property
    @abstractmethod
    def largest(self) -> int:
        """The largest code."""

    @property
    @abstractmethod
    def group_bytes(self) -> int:
        """Of a group's scale and shift in an engine's file."""

    @abstractmethod
    def fit(self, rows: Floats, importance: Floats | None = None) -> FittedGroups:
        """Scales and shifts. Raises OverflowError for weights too large for the grid."""

    @abstractmethod
    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at its nearest code."""

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.size

    def n_bytes(self, rows: int, columns: int) -> int:
        """Of a matrix in an engine's file."""
        return rows * (columns * self.bits // 8 + columns // self.size * self.group_bytes)

    def fitted(self, packed: Bytes) -> FittedGroups:
        """The scales in packed rows."""
        parts = self.parts(packed)
        return FittedGroups(parts.scales, parts.shifts, np.full_like(parts.scales, self.middle), self.middle)

    @property
    @abstractmethod
    def kind(self) -> Literal["bfloat16", "float32"]:
        """The type of scales and shifts in an engine's file."""

    def stored(self, fitted: Any) -> Stored:  # noqa: ANN401 - `FittedGroups`
        """See `targets.grids.Grid`."""
        ones = np.ones((*fitted.scales.shape, 1), np.float32)
        shifts, by = (fitted.shifts, ones) if self.shifted else (None, None)
        return Stored(self.kind, fitted.scales, shifts, ones, np.float32(-self.middle) * ones, by)

    def moved(self, fitted: Any, steps: Floats, shifts: Floats | None) -> FittedGroups:  # noqa: ANN401 - as above
        """See `targets.grids.Grid`."""
        return FittedGroups(steps, fitted.shifts if shifts is None else shifts, fitted.zeros, self.middle)

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
        return self.weights(self.parts(packed))

    def weights(self, parts: Parts) -> Floats:
        """The weights in rows taken apart, (rows, columns)."""
        steps = parts.codes.reshape(len(parts.codes), -1, self.size).astype(np.float32) - np.float32(self.middle)
        steps *= parts.scales[..., None]
        if self.shifted:
            steps += parts.shifts[..., None]
        return steps.reshape(parts.codes.shape)

    def tensors(self, name: str, packed: Bytes) -> dict[str, npt.NDArray[np.generic]]:
        """What the side file holds of a matrix."""
        parts = self.parts(packed)
        found: dict[str, npt.NDArray[np.generic]] = {
            f"{name}.codes{self.bits}": parts.codes,
            f"{name}.scales": parts.scales,
        }
        return {**found, f"{name}.shifts": parts.shifts} if self.shifted else found


@dataclass(frozen=True)
class RowGrid(GroupedGrid):
    """int8 with one float32 scale a row and no zero point: an output channel of a linear layer is a row.

    size: columns of a row. Codes are 0 to 254 and mean -127 to 127: of int8 -128 is left out.
    """

    bits: int = field(default=8, init=False)
    shifted: bool = field(default=False, init=False)

    @property
    def name(self) -> str:
        """See `GroupedGrid`."""
        return "int8 row"

    @property
    def middle(self) -> int:
        """See `GroupedGrid`."""
        return INT8_LARGEST

    @property
    def largest(self) -> int:
        """See `GroupedGrid`."""
        return 2 * INT8_LARGEST

    @property
    def group_bytes(self) -> int:
        """See `GroupedGrid`."""
        return _FLOAT_BYTES

    @property
    def kind(self) -> Literal["float32"]:
        """See `GroupedGrid`."""
        return "float32"

    def fit(self, rows: Floats, importance: Floats | None = None) -> FittedGroups:  # noqa: ARG002
        """Scales by the largest weight: with 8 bits the range is what counts, clipping would gain nothing."""
        scales = row_scales(rows.reshape(-1, self.size)).reshape(len(rows), -1)
        return FittedGroups(scales, np.zeros_like(scales), np.full_like(scales, self.middle), self.middle)

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at its nearest code."""
        fitted = self.fit(rows, importance)
        steps = np.rint(rows.reshape(len(rows), -1, self.size) / fitted.scales[..., None])
        return self.pack(fitted, (steps + np.float32(self.middle)).astype(np.uint8).reshape(rows.shape))


def row_scales(rows: Floats) -> Floats:
    """The step of each row that its largest weight is 127 of, (rows,); 1 for rows of zeros."""
    steps = np.abs(rows).max(axis=1) / np.float32(INT8_LARGEST)
    # Below the normal numbers a step is so coarse that the largest weight could be 130 of it.
    return np.where(steps >= np.finfo(np.float32).tiny, steps, np.float32(1)).astype(np.float32)
