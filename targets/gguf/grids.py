"""ggml's block types as grids: scales chosen apart from codes, and codes put into the type's own bytes.

`fit` lets ggml itself choose scales and minima for given weights; `nearest` and `values` go from a weight to its code
under them and back, in ggml's own arithmetic; `pack` writes codes into the bytes. So a method that chooses its codes by
more than rounding (GPTQ) still writes blocks that every llama.cpp reads, and ggml dequantizes them to `values`.

Source of the layouts: the structs of ggml-common.h and the dequantize_row functions of ggml-quants.c.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from targets import few_bits
from targets.gguf.kernels import quantize_rows
from targets.gguf.types import TYPES, GgmlType
from targets.grids import Stored

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    Floats = npt.NDArray[np.float32]
    Bytes = npt.NDArray[np.uint8]

LEVELS = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
"""What the codes of IQ4_NL and IQ4_XS stand for."""


TERNARY = np.array([-1, 0, 1], np.float32)
"""What the codes of TQ1_0 and TQ2_0 stand for."""
_COARSE = 4
"""Codes; with no more of them a grid is for weights that were trained to it."""
_SEARCHES = 8
"""Rounds of choosing codes and scale in turn, of which none makes the error larger."""


@dataclass(frozen=True)
class Fitted:
    """Scales of rows: weight = scale * (code - zero) + offset.

    raw: the type's bytes with codes that `pack` replaces, (rows, blocks, bytes of a block)
    scales, offsets: (rows, columns / weights of a scale), float32
    """

    raw: Bytes
    scales: Floats
    offsets: Floats


@dataclass(frozen=True)
class GgufGrid:
    """A block type as a grid.

    bits: of a code; zero: the code of no weight; shared: weights that share a scale; levels: what codes stand for where
        they are not evenly spaced
    scales: raw blocks -> scales and offsets; put: (raw blocks, codes) writes the codes into the blocks
    halves: the bytes of a block where its float16 stand: of scales and, where there is a second, of minima
    """

    kind: GgmlType
    bits: int
    zero: int
    shared: int
    scales: Callable[[Bytes], tuple[Floats, Floats]]
    put: Callable[[Bytes, Bytes], None]
    halves: tuple[int, ...]
    levels: Floats | None = None

    @property
    def coarse(self) -> bool:
        """Whether codes are a few multiples of one scale and no more: of use for weights that were trained so."""
        return self.levels is not None and len(self.levels) <= _COARSE

    @property
    def name(self) -> str:
        """ggml's name of the type."""
        return self.kind.name

    @property
    def block(self) -> int:
        """Weights that are fitted together."""
        return self.kind.block_size

    @property
    def largest(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1 if self.levels is None else len(self.levels) - 1

    def fit(self, rows: Floats, importance: Floats | None = None) -> Fitted:
        """Scales for `rows`, shape (n, columns), columns whole blocks.

        importance: what the squared error in each column counts, shape (columns,); None counts all alike.
        Raises OverflowError for weights too large for the type.
        """
        fitted = self.fitted(quantize_rows(rows, self.kind, importance))
        if self.coarse:
            # ggml's scale is the largest weight, under which nearly all others would be zero.
            return self.moved(fitted, self._searched(rows.reshape(*fitted.raw.shape[:2], -1), importance), None)
        return fitted

    def _searched(self, blocks: Floats, importance: Floats | None) -> Floats:
        """Scales, (rows, blocks), of small squared error: from the mean magnitude on (BitNet b1.58's), codes in turn.

        blocks: (rows, blocks, weights of a block). Where codes reach farther to one side, so may the weights.
        """
        assert self.levels is not None
        counts = np.ones((1, *blocks.shape[1:]), np.float32)
        if importance is not None:
            counts = importance.reshape(counts.shape)
        found = np.zeros(blocks.shape[:2], np.float32)
        least = np.full(blocks.shape[:2], np.inf, np.float32)
        for sign in (1, -1) if self.levels[0] != -self.levels[-1] else (1,):
            scales = sign * np.abs(blocks).mean(-1)
            for _ in range(_SEARCHES):
                taken = self._taken(blocks, scales)
                energy = (counts * taken * taken).sum(-1)
                scales = np.divide((counts * taken * blocks).sum(-1), energy, out=scales, where=energy > 0)
            scales = scales.astype(np.float16).astype(np.float32)
            error = (counts * np.square(scales[..., None] * self._taken(blocks, scales) - blocks)).sum(-1)
            found, least = np.where(error < least, scales, found), np.minimum(error, least)
        return found

    def _taken(self, blocks: Floats, scales: Floats) -> Floats:
        """What the nearest codes stand for; see `_searched`."""
        assert self.levels is not None
        wide = np.broadcast_to(scales[..., None], blocks.shape)
        found: Floats = self.levels[self.nearest(blocks, wide, np.zeros_like(blocks))]
        return found

    def fitted(self, packed: Bytes) -> Fitted:
        """The scales in the bytes of rows, (rows, bytes of a row)."""
        raw = packed.reshape(len(packed), -1, self.kind.block_bytes)
        scales, offsets = self.scales(raw)
        return Fitted(raw, scales.reshape(len(raw), -1), offsets.reshape(len(raw), -1))

    def stored(self, fitted: Any) -> Stored:  # noqa: ANN401 - a `Fitted` of this grid
        """See `targets.grids.Grid`. A block's float16; what a k-quant multiplies them by are whole numbers."""
        found = [_half(fitted.raw, place)[..., 0] for place in self.halves]
        ones = np.broadcast_to(np.float32(1), found[0].shape)
        scale_by, shift_by = self.scales(self._with(fitted.raw, [ones] * len(found)))
        if len(found) == 1:
            return Stored("float16", found[0], None, scale_by, None, None)
        return Stored("float16", found[0], found[1], scale_by, None, shift_by)

    def moved(self, fitted: Any, steps: Floats, shifts: Floats | None) -> Fitted:  # noqa: ANN401 - as above
        """See `targets.grids.Grid`."""
        raw = self._with(fitted.raw, [steps] if shifts is None else [steps, shifts])
        return self.fitted(raw.reshape(len(raw), -1))

    def _with(self, raw: Bytes, numbers: Sequence[Floats]) -> Bytes:
        """Blocks with these float16 in them, (rows, blocks) each."""
        made = raw.copy()
        for place, values in zip(self.halves, numbers, strict=True):
            made[..., place : place + 2] = values.astype("<f2")[..., None].view(np.uint8)
        return made

    def rounded(self, rows: Floats, importance: Floats | None = None) -> Bytes:
        """The bytes of rows as ggml rounds them; of a coarse grid, at the nearest codes under the scales of `fit`."""
        if not self.coarse:
            return quantize_rows(rows, self.kind, importance).reshape(len(rows), -1)
        fitted = self.fit(rows, importance)
        scales, offsets = (self.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
        return self.pack(fitted, self.nearest(rows, scales, offsets))

    def nearest(self, weights: Floats, scales: Floats, offsets: Floats) -> Bytes:
        """The code whose value is nearest; all three of one shape."""
        steps = np.divide(weights - offsets, scales, out=np.zeros_like(weights), where=scales != 0)
        if self.levels is not None:
            found = np.searchsorted((self.levels[1:] + self.levels[:-1]) / 2, steps)
        else:
            found = np.clip(np.rint(steps) + self.zero, 0, self.largest)
        codes: Bytes = found.astype(np.uint8)
        return codes

    def values(self, codes: Bytes, scales: Floats, offsets: Floats) -> Floats:
        """What ggml makes of the codes, all three of one shape."""
        steps = codes.astype(np.float32) - self.zero if self.levels is None else self.levels[codes]
        made: Floats = scales * steps + offsets
        return made

    def spread(self, per_scale: Floats, columns: slice | npt.NDArray[np.intp]) -> Floats:
        """Of (rows, scales) those of some columns, (rows, columns)."""
        count = per_scale.shape[1] * self.shared
        found: Floats = per_scale[:, np.arange(count)[columns] // self.shared]
        return found

    def pack(self, fitted: Any, codes: Bytes) -> Bytes:  # noqa: ANN401 - a `Fitted` of this grid
        """The bytes of rows, shape (rows, bytes of a row). codes: (rows, columns)."""
        raw: Bytes = fitted.raw.copy()
        self.put(raw, codes.reshape(*raw.shape[:2], self.block))
        return raw.reshape(len(raw), -1)

    def dequantize(self, packed: Bytes) -> Floats:
        """The weights in the bytes of rows, (rows, columns), by gguf-py where it knows the type."""
        if self.name in few_bits.LEVELS:
            return few_bits.decoded(self.name, packed)
        import gguf

        found = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[self.name])
        return np.ascontiguousarray(found, np.float32)

    def tensors(self, name: str, packed: Bytes) -> dict[str, npt.NDArray[np.generic]]:
        """What the side file holds of a matrix, as `targets.gguf.ongrid` reads it."""
        return {f"{name}.{self.name}": packed}


def _half(raw: Bytes, start: int) -> Floats:
    """The float16 at byte `start` of every block, as float32, (rows, blocks, 1)."""
    made: Floats = np.ascontiguousarray(raw[..., start : start + 2]).view("<f2").astype(np.float32)
    return made


def _plain(raw: Bytes) -> tuple[Floats, Floats]:
    """A scale for each block, no offset."""
    scales = _half(raw, 0)
    return scales, np.zeros_like(scales)


def _with_minimum(raw: Bytes) -> tuple[Floats, Floats]:
    """A scale and a minimum for each block."""
    return _half(raw, 0), _half(raw, 2)


def _six_bits(packed: Bytes) -> tuple[Floats, Floats]:
    """Eight scales and eight minima of six bits in the 12 bytes of Q4_K and Q5_K."""
    first, second, third = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate((first & 63, (third & 15) | ((first >> 6) << 4)), -1)
    minima = np.concatenate((second & 63, (third >> 4) | ((second >> 6) << 4)), -1)
    return scales.astype(np.float32), minima.astype(np.float32)


def _q4_k(raw: Bytes) -> tuple[Floats, Floats]:
    scales, minima = _six_bits(raw[..., 4:16])
    return _half(raw, 0) * scales, -(_half(raw, 2) * minima)


def _q2_k(raw: Bytes) -> tuple[Floats, Floats]:
    packed = raw[..., 0:16]
    scales, minima = (packed & 15).astype(np.float32), (packed >> 4).astype(np.float32)
    return _half(raw, 80) * scales, -(_half(raw, 82) * minima)


def _q3_k(raw: Bytes) -> tuple[Floats, Floats]:
    packed = raw[..., 96:108]
    low = np.concatenate((packed[..., 0:8] & 15, packed[..., 0:8] >> 4), -1)
    shifts = np.repeat(np.arange(0, 8, 2, dtype=np.uint8), 4)
    high = (np.tile(packed[..., 8:12], 4) >> shifts) & 3
    scales = (low | (high << 4)).astype(np.float32) - 32
    made = _half(raw, 108) * scales
    return made, np.zeros_like(made)


def _q6_k(raw: Bytes) -> tuple[Floats, Floats]:
    made = _half(raw, 208) * raw[..., 192:208].view(np.int8).astype(np.float32)
    return made, np.zeros_like(made)


def _iq4_xs(raw: Bytes) -> tuple[Floats, Floats]:
    high = np.ascontiguousarray(raw[..., 2:4]).view("<u2") >> np.arange(0, 16, 2, dtype=np.uint16) & 3
    packed = raw[..., 4:8]
    low = np.stack((packed & 15, packed >> 4), -1).reshape(*raw.shape[:-1], 8)
    made = _half(raw, 0) * ((low | (high.astype(np.uint8) << 4)).astype(np.float32) - 32)
    return made, np.zeros_like(made)


def _nibbles(start: int) -> Callable[[Bytes, Bytes], None]:
    """32 codes of four bits in 16 bytes: the first half of the block in the lower ones."""

    def put(raw: Bytes, codes: Bytes) -> None:
        raw[..., start : start + 16] = (codes[..., :16] & 15) | (codes[..., 16:] << 4)

    return put


def _fives(start: int) -> Callable[[Bytes, Bytes], None]:
    """As `_nibbles`, behind 32 bits, the fifth of each code."""
    nibbles = _nibbles(start + 4)

    def put(raw: Bytes, codes: Bytes) -> None:
        raw[..., start : start + 4] = np.packbits(codes >> 4, axis=-1, bitorder="little")
        nibbles(raw, codes & np.uint8(15))

    return put


def _put_q8_0(raw: Bytes, codes: Bytes) -> None:
    raw[..., 2:34] = codes ^ 128  # two's complement of code - 128


def _put_pairs(start: int) -> Callable[[Bytes, Bytes], None]:
    """256 codes of four bits: of every 64 the first 32 in the lower bits of 32 bytes."""

    def put(raw: Bytes, codes: Bytes) -> None:
        halves = codes.reshape(*codes.shape[:-1], 4, 2, 32) & 15
        raw[..., start : start + 128] = (halves[..., 0, :] | (halves[..., 1, :] << 4)).reshape(*codes.shape[:-1], 128)

    return put


def _put_q5_k(raw: Bytes, codes: Bytes) -> None:
    _put_pairs(48)(raw, codes)
    high = (codes >> 4).reshape(*codes.shape[:-1], 8, 32)
    raw[..., 16:48] = np.packbits(np.moveaxis(high, -2, -1), axis=-1, bitorder="little")[..., 0]


def _put_crumbs(raw: Bytes, codes: Bytes, start: int) -> None:
    """256 codes of two bits: of every 128, four groups of 32 lie above each other in 32 bytes."""
    groups = (codes & 3).reshape(*codes.shape[:-1], 2, 4, 32)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    made = np.bitwise_or.reduce(groups << shifts, axis=-2)
    raw[..., start : start + 64] = made.reshape(*codes.shape[:-1], 64)


def _put_q2_k(raw: Bytes, codes: Bytes) -> None:
    _put_crumbs(raw, codes, 16)


def _put_q3_k(raw: Bytes, codes: Bytes) -> None:
    _put_crumbs(raw, codes, 32)
    high = (codes >> 2).reshape(*codes.shape[:-1], 8, 32)
    raw[..., 0:32] = np.packbits(np.moveaxis(high, -2, -1), axis=-1, bitorder="little")[..., 0]


def _put_q6_k(raw: Bytes, codes: Bytes) -> None:
    groups = codes.reshape(*codes.shape[:-1], 2, 4, 32)
    low, high = groups & 15, groups >> 4
    raw[..., 0:128] = np.stack(
        (low[..., 0, :] | (low[..., 2, :] << 4), low[..., 1, :] | (low[..., 3, :] << 4)), -2
    ).reshape(*codes.shape[:-1], 128)
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    raw[..., 128:192] = np.bitwise_or.reduce(high << shifts, axis=-2).reshape(*codes.shape[:-1], 64)


def _put_iq4_xs(raw: Bytes, codes: Bytes) -> None:
    halves = codes.reshape(*codes.shape[:-1], 8, 2, 16)
    raw[..., 8:136] = (halves[..., 0, :] | (halves[..., 1, :] << 4)).reshape(*codes.shape[:-1], 128)


def _put_tq2_0(raw: Bytes, codes: Bytes) -> None:
    _put_crumbs(raw, codes, 0)


def _trits(codes: Bytes) -> Bytes:
    """Five codes, along the axis before the last one, in a byte: a number in base 3 as a fraction of 243."""
    number = np.tensordot(codes.astype(np.uint16), np.array([81, 27, 9, 3, 1], np.uint16), axes=([-2], [0]))
    packed: Bytes = ((number * 256 + 242) // 243).astype(np.uint8)
    return packed


def _put_tq1_0(raw: Bytes, codes: Bytes) -> None:
    """160 codes in 32 bytes, 80 in 16, and 16 in four bytes that hold four each."""
    blocks = codes.shape[:-1]
    raw[..., 0:32] = _trits(codes[..., :160].reshape(*blocks, 5, 32))
    raw[..., 32:48] = _trits(codes[..., 160:240].reshape(*blocks, 5, 16))
    last = codes[..., 240:].reshape(*blocks, 4, 4)
    raw[..., 48:52] = _trits(np.concatenate((last, np.zeros_like(last[..., :1, :])), -2))


def _at_the_end(raw: Bytes) -> tuple[Floats, Floats]:
    """As `_plain`, the scale in the block's last bytes."""
    return _plain(raw[..., -2:])


_ALL = (
    GgufGrid(TYPES["Q4_0"], 4, 8, 32, _plain, _nibbles(2), (0,)),
    GgufGrid(TYPES["Q4_1"], 4, 0, 32, _with_minimum, _nibbles(4), (0, 2)),
    GgufGrid(TYPES["Q5_0"], 5, 16, 32, _plain, _fives(2), (0,)),
    GgufGrid(TYPES["Q5_1"], 5, 0, 32, _with_minimum, _fives(4), (0, 2)),
    GgufGrid(TYPES["Q8_0"], 8, 128, 32, _plain, _put_q8_0, (0,)),
    GgufGrid(TYPES["Q2_K"], 2, 0, 16, _q2_k, _put_q2_k, (80, 82)),
    GgufGrid(TYPES["Q3_K"], 3, 4, 16, _q3_k, _put_q3_k, (108,)),
    GgufGrid(TYPES["Q4_K"], 4, 0, 32, _q4_k, _put_pairs(16), (0, 2)),
    GgufGrid(TYPES["Q5_K"], 5, 0, 32, _q4_k, _put_q5_k, (0, 2)),
    GgufGrid(TYPES["Q6_K"], 6, 32, 16, _q6_k, _put_q6_k, (208,)),
    GgufGrid(TYPES["IQ4_NL"], 4, 0, 32, _plain, _nibbles(2), (0,), LEVELS),
    GgufGrid(TYPES["IQ4_XS"], 4, 0, 32, _iq4_xs, _put_iq4_xs, (0,), LEVELS),
    GgufGrid(TYPES["Q1_0"], 1, 0, 128, _plain, partial(few_bits.put, "Q1_0"), (0,), few_bits.LEVELS["Q1_0"]),
    GgufGrid(TYPES["Q2_0"], 2, 1, 64, _plain, partial(few_bits.put, "Q2_0"), (0,), few_bits.LEVELS["Q2_0"]),
    GgufGrid(TYPES["TQ1_0"], 2, 1, 256, _at_the_end, _put_tq1_0, (52,), TERNARY),
    GgufGrid(TYPES["TQ2_0"], 2, 1, 256, _at_the_end, _put_tq2_0, (64,), TERNARY),
)  # fmt: skip

GRIDS: dict[str, GgufGrid] = {grid.name: grid for grid in _ALL}
