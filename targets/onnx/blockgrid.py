"""`BlockGrid` as methods of compression see it: `targets.grids.Grid`, and what a side file holds of it.

Packed, a block is its codes (a byte each), its scale as float16, and its zero point (a byte) unless it is symmetric;
a row is its blocks. `tensors` takes them apart as `targets.onnx.ongrid` reads them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from targets.grids import Stored
from targets.onnx.blocks import Codes

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.onnx.blocks import BlockGrid

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class FittedBlocks:
    """Scales and zero points of rows, (rows, blocks) each; a weight is scale * code + offset."""

    scales: Floats
    zeros: Floats

    @property
    def offsets(self) -> Floats:
        """The value of code 0."""
        made: Floats = -self.zeros * self.scales
        return made


@dataclass(frozen=True)
class CompressionGrid:
    """See `targets.grids.Grid`. Columns are whole blocks."""

    grid: BlockGrid

    @property
    def name(self) -> str:
        """ "int4 block 32"."""
        return self.grid.name

    @property
    def block(self) -> int:
        """Weights that share a scale."""
        return self.grid.size

    @property
    def largest(self) -> int:
        """The largest code."""
        return self.grid.largest

    def fit(self, rows: Floats, importance: Floats | None = None) -> FittedBlocks:
        """Scales and zero points of least squared error."""
        size = self.grid.size
        blocks = rows.reshape(len(rows), -1, size)
        scales, zeros = self.grid.fit(blocks, None if importance is None else importance.reshape(1, -1, size))
        if not np.isfinite(scales).all():
            raise OverflowError("a scale is too large for float16")
        return FittedBlocks(scales, zeros)

    def fitted(self, packed: Bytes) -> FittedBlocks:
        """The scales in packed rows."""
        _, scales, zeros = self._parts(packed)
        middle = np.full_like(scales, self.grid.middle)
        return FittedBlocks(scales, middle if zeros is None else zeros.astype(np.float32))

    def stored(self, fitted: Any) -> Stored:  # noqa: ANN401 - a `FittedBlocks`
        """See `targets.grids.Grid`. Zero points are whole numbers and stay."""
        ones = np.ones((*fitted.scales.shape, 1), np.float32)
        return Stored("float16", fitted.scales, None, ones, -fitted.zeros[..., None], None)

    def moved(self, fitted: Any, steps: Floats, shifts: Floats | None) -> FittedBlocks:  # noqa: ANN401, ARG002
        """See `targets.grids.Grid`. fitted: a `FittedBlocks`; shifts: there are none."""
        return FittedBlocks(steps, fitted.zeros)

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """Packed rows, every weight at its nearest code."""
        fitted = self.fit(rows, importance)
        codes = self.grid.round(rows.reshape(len(rows), -1, self.grid.size), fitted.scales, fitted.zeros)
        return self.pack(fitted, codes.reshape(rows.shape))

    def spread(self, per_scale: Floats, columns: slice | npt.NDArray[np.intp]) -> Floats:
        """Of (rows, blocks) those of some columns, (rows, columns)."""
        count = per_scale.shape[1] * self.grid.size
        found: Floats = per_scale[:, np.arange(count)[columns] // self.grid.size]
        return found

    def nearest(self, weights: Floats, scales: Floats, offsets: Floats) -> Bytes:
        """The nearest code; all three of one shape."""
        steps = np.divide(weights - offsets, scales, out=np.zeros_like(weights), where=scales != 0)
        codes: Bytes = np.clip(np.rint(steps), 0, self.grid.largest).astype(np.uint8)
        return codes

    def values(self, codes: Bytes, scales: Floats, offsets: Floats) -> Floats:
        """The weights of codes; all three of one shape."""
        made: Floats = codes * scales + offsets
        return made

    def pack(self, fitted: Any, codes: Bytes) -> Bytes:  # noqa: ANN401 - a `FittedBlocks`
        """Packed rows. codes: (rows, columns)."""
        rows, blocks = fitted.scales.shape
        scales = np.ascontiguousarray(fitted.scales, np.float16).view(np.uint8).reshape(rows, blocks, 2)
        parts = [codes.reshape(rows, blocks, self.grid.size), scales]
        if not self.grid.symmetric:
            parts.append(fitted.zeros.astype(np.uint8)[..., None])
        packed: Bytes = np.concatenate(parts, axis=2)
        return packed.reshape(rows, -1)

    def dequantize(self, packed: Bytes) -> Floats:
        """The weights in packed rows, (rows, columns)."""
        codes, scales, zeros = self._parts(packed)
        blocks = codes.reshape(len(codes), -1, self.grid.size)
        return self.grid.dequantize(Codes(blocks, scales, zeros), codes.shape[1])

    def tensors(self, name: str, packed: Bytes) -> dict[str, npt.NDArray[np.generic]]:
        """What the side file holds of a matrix."""
        codes, scales, zeros = self._parts(packed)
        found: dict[str, npt.NDArray[np.generic]] = {
            f"{name}.codes{self.grid.bits}": np.ascontiguousarray(codes),
            f"{name}.scales": scales.astype(np.float16),
        }
        return found if zeros is None else {**found, f"{name}.zero_points": np.ascontiguousarray(zeros)}

    def _parts(self, packed: Bytes) -> tuple[Bytes, Floats, Bytes | None]:
        """Codes (rows, columns), scales and zero points (rows, blocks)."""
        size = self.grid.size
        each = packed.reshape(len(packed), -1, size + (2 if self.grid.symmetric else 3))
        scales = np.ascontiguousarray(each[..., size : size + 2]).view(np.float16)[..., 0].astype(np.float32)
        codes = np.ascontiguousarray(each[..., :size]).reshape(len(packed), -1)
        return codes, scales, None if self.grid.symmetric else np.ascontiguousarray(each[..., size + 2])
