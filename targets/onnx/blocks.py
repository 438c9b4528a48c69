"""The grids of `com.microsoft.MatMulNBits` and `GatherBlockQuantized`: unsigned codes in blocks along a row.

A block of `size` weights of one row has one scale and one zero point: weight = (code - zero point) * scale. Bytes of a
row: codes, the lower ones in the lower bits of a byte; scales; zero points, packed as the codes are. Source: ONNX
Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

Number = TypeVar("Number", np.float32, np.uint8)
SHRINKS = (1.0, 0.96, 0.92, 0.88, 0.84, 0.80, 0.76, 0.70)
"""Shares of a block's range that are tried as the range of its codes: what lies beyond is clipped."""
_TINY = np.float32(1e-30)


@dataclass(frozen=True)
class Codes:
    """Rows on a grid.

    codes: shape (rows, blocks, size), uint8; the end of a row that does not fill its last block is zero points
    scales: shape (rows, blocks), float32, each a value that the grid's scale type holds
    zero_points: shape (rows, blocks), uint8; None where the grid is symmetric
    """

    codes: Bytes
    scales: Floats
    zero_points: Bytes | None


@dataclass(frozen=True)
class BlockGrid:
    """A grid of blocks.

    bits: of a code, 4 or 8; size: weights of a block, a power of two of at least 16
    symmetric: the zero point is the middle code and is not stored
    half_scales: scales are stored as float16
    """

    bits: int
    size: int
    symmetric: bool = False
    half_scales: bool = True

    @property
    def name(self) -> str:
        """For people and manifests: "int4 block 32"."""
        return f"int{self.bits} block {self.size}{' symmetric' if self.symmetric else ''}"

    @property
    def middle(self) -> int:
        """The zero point of a symmetric grid."""
        return 1 << (self.bits - 1)

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def n_blocks(self, columns: int) -> int:
        """Blocks of a row."""
        return -(-columns // self.size)

    def row_bytes(self, columns: int) -> tuple[int, int, int]:
        """Bytes of a row: codes, scales, zero points."""
        blocks = self.n_blocks(columns)
        zero_points = 0 if self.symmetric else (blocks * self.bits + 7) // 8
        return blocks * self.size * self.bits // 8, blocks * (2 if self.half_scales else 4), zero_points

    def quantize(self, rows: Floats, importance: Floats | None = None) -> Codes:
        """Round `rows`, shape (n, columns), to the grid, scales chosen for the least squared error.

        importance: what the squared error in each column counts, shape (columns,), for example the mean square of the
        activation that meets it; None counts all alike.

        Rows whose weights lie on the grid already, with a block's extremes at the ends of the codes, keep their values.
        """
        blocks = _in_blocks(rows, self.size)
        scales, zero_points = self.fit(
            blocks, None if importance is None else _in_blocks(importance[None, :], self.size)
        )
        return Codes(
            self.round(blocks, scales, zero_points),
            scales,
            None if self.symmetric else zero_points.astype(np.uint8),
        )

    def fit(self, blocks: Floats, importance: Floats | None = None) -> tuple[Floats, Floats]:
        """Scales and zero points, each (rows, blocks), float32, for weights of shape (rows, blocks, size).

        importance: of each weight's squared error, shape (1, blocks, size), or None

        Every share of the range in SHRINKS is tried; under the codes that it gives the best scale is known in closed
        form (least squares), and what it leaves of the error decides.
        """
        # Zero has a code of its own in every block: what is pruned stays exactly zero.
        low = np.minimum(blocks.min(axis=-1), 0.0)
        high = np.maximum(blocks.max(axis=-1), 0.0)
        best: Floats | None = None
        scales = zero_points = np.zeros_like(low)
        # With 8 bits the range is what counts; clipping would gain nothing.
        for share in SHRINKS if self.bits < 8 else SHRINKS[:1]:
            trial, zeros = self._range(low * np.float32(share), high * np.float32(share))
            steps = self._steps(blocks, trial, zeros)
            weighted = steps if importance is None else steps * importance
            cross = np.einsum("rbs,rbs->rb", blocks, weighted)
            square = np.einsum("rbs,rbs->rb", steps, weighted)
            refined = cross / np.maximum(square, _TINY)
            gain = cross * refined
            if best is None:
                best, scales, zero_points = gain, refined, zeros
                continue
            better = gain > best * np.float32(1 + 1e-6)
            best = np.where(better, gain, best)
            scales = np.where(better, refined, scales)
            zero_points = np.where(better, zeros, zero_points)
        return self._storable(scales), zero_points

    def _range(self, low: Floats, high: Floats) -> tuple[Floats, Floats]:
        """Scale and zero point that spread the codes over low..high (low <= 0 <= high)."""
        if self.symmetric:
            # The lowest code has one step more than the highest: the larger side takes it, by the scale's sign.
            widest: Floats = np.where(-low >= high, low, high)
            return widest / np.float32(-self.middle), np.full_like(low, self.middle)
        scale = (high - low) / np.float32(self.largest)
        zeros: Floats = np.rint(-low / np.where(scale == 0, np.float32(1), scale))
        return scale, zeros.clip(0, self.largest)

    def _storable(self, scales: Floats) -> Floats:
        """The nearest values that the scale type holds."""
        if not self.half_scales:
            return scales
        with np.errstate(over="ignore"):
            half = scales.astype(np.float16)
        return half.astype(np.float32)

    def _steps(self, blocks: Floats, scales: Floats, zero_points: Floats) -> Floats:
        """Codes minus zero points, as float32."""
        inverse = np.divide(1.0, scales, out=np.zeros_like(scales), where=scales != 0)
        steps = blocks * inverse[..., None]
        np.rint(steps, out=steps)
        zeros = zero_points[..., None]
        np.clip(steps, -zeros, np.float32(self.largest) - zeros, out=steps)
        return steps

    def round(self, blocks: Floats, scales: Floats, zero_points: Floats) -> Bytes:
        """The nearest codes under given scales and zero points, uint8, shaped as `blocks`."""
        return (self._steps(blocks, scales, zero_points) + zero_points[..., None]).astype(np.uint8)

    def dequantize(self, codes: Codes, columns: int) -> Floats:
        """The weights that an engine computes with, shape (rows, columns)."""
        zeros = np.float32(self.middle) if codes.zero_points is None else codes.zero_points[..., None]
        values: Floats = (codes.codes.astype(np.float32) - zeros) * codes.scales[..., None]
        return values.reshape(len(values), -1)[:, :columns]

    def cut(self, rows: Codes) -> Codes:
        """Rows of one block and the middle code 127, as `targets.groups.RowGrid` has them, in blocks of this grid.

        The weights are the very same: each block takes the row's scale, and codes move up by one to this grid's middle.
        Raises ValueError for a grid that cannot hold them.
        """
        if self.bits != 8 or not self.symmetric or self.half_scales:
            raise ValueError(f"{self.name} does not hold int8 rows with float32 scales")
        blocks = _padded(rows.codes[:, 0] + np.uint8(1), self.size, self.middle).reshape(len(rows.codes), -1, self.size)
        return Codes(blocks, np.repeat(rows.scales, blocks.shape[1], axis=1), None)

    def pack(self, codes: Codes) -> tuple[npt.NDArray[np.generic], ...]:
        """The bytes of the operators' inputs: codes (rows, blocks, size * bits / 8), scales, and zero points if any.

        Raises OverflowError where a scale is too large for its type.
        """
        if not np.isfinite(codes.scales).all():
            raise OverflowError("a scale is too large for float16")
        packed = [
            _pack(codes.codes, self.bits),
            codes.scales.astype(np.float16 if self.half_scales else np.float32),
        ]
        if codes.zero_points is not None:
            packed.append(_pack(_padded(codes.zero_points, 8 // self.bits, self.middle), self.bits))
        return tuple(packed)


def _in_blocks(rows: Floats, size: int) -> Floats:
    """Rows cut into blocks; the last one is filled up with zeros."""
    return _padded(rows, size, 0).reshape(len(rows), -1, size)


def _padded(rows: npt.NDArray[Number], multiple: int, value: int) -> npt.NDArray[Number]:
    """Rows whose length is a multiple of `multiple`."""
    missing = -rows.shape[-1] % multiple
    return np.pad(rows, ((0, 0), (0, missing)), constant_values=value) if missing else rows


def _pack(codes: Bytes, bits: int) -> Bytes:
    """Codes of `bits` bits packed along the last axis, the first in the lowest bits."""
    if bits == 8:
        return np.ascontiguousarray(codes)
    packed: Bytes = codes[..., 0::2] | (codes[..., 1::2] << np.uint8(4))
    return packed
