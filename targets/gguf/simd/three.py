"""Q3_K: weight = scale * code, codes from -4 to 3, in sub-blocks of 16 (make_q3_quants of ggml-quants.c)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place
from targets.gguf.simd.tiles import BLOCK, EPS, largest_of, nearest, of_largest, per_lane, signed_codes, tiles, untiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]

SIZE, PARTS = 16, 16
"""Weights of a sub-block, and sub-blocks of a block."""
NOTHING = -0.0
"""The scale of a sub-block of zeros, whose codes are the least one; another that comes out as zero is positive."""


def quantize(values: F32, importance: F32 | None) -> tuple[U8, Flags]:
    """Blocks of Q3_K, shape (blocks, 110), and which of them ggml has to do itself; importance: None."""
    if importance is not None:
        raise ValueError("Q3_K with importance is ggml's work")
    count = values.size // SIZE
    x = tiles(values, SIZE)
    scales = np.empty(len(x) * LANES, np.float32)
    _search()(len(x), x, scales)
    scale = scales[:count].reshape(-1, PARTS)
    largest = of_largest(scale)
    inverse = np.float32(-32) / largest
    whole = np.where(largest != 0, np.clip(nearest(inverse * scale).astype(np.int8), -32, 31) + 32, 0)
    ls = whole.astype(np.uint8)
    d = np.where(largest != 0, np.float32(1) / inverse, np.float32(0)).astype(np.float16)
    step = d.astype(np.float32) * (whole - 32).astype(np.float32)
    codes = np.empty(x.shape, np.uint8)
    signed_codes(SIZE, -4)(len(x), x, per_lane(step), codes)
    by_block = untiled(codes, count).reshape(-1, PARTS, SIZE)
    without, zeros = step == 0, (scale == 0) & np.signbit(scale)
    by_block[without] = 0
    # Where nothing is left of a scale, the search's own codes stay; of zeros they are the least.
    return _packed(by_block.reshape(-1, BLOCK), ls, d), (without & ~zeros).any(1)


@functools.cache
def _search() -> Compiled:
    """Kernel: (tiles of values) -> scale: codes are moved, one after the other, while the fit gets better."""
    k = Kernel("search_three", [SIZE, 1])
    codes = k.room(SIZE)

    def tile(x: Place, scales: Place) -> None:
        zero = k.constant(0)

        most, value = largest_of(k, x, SIZE)
        inverse = k.constant(-4) / value

        def sums(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
            code = (inverse * x[i]).rounded().clipped(-4, 3).floats()
            codes[i] = code
            w = x[i] * x[i]
            return sum_lx + w * x[i] * code, sum_l2 + w * code * code

        def improve(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
            w, code = x[i] * x[i], codes[i]
            lx, l2 = sum_lx - w * x[i] * code, sum_l2 - w * code * code
            new = (x[i] * l2 / lx).rounded().clipped(-4, 3).floats()
            more_lx, more_l2 = lx + w * x[i] * new, l2 + w * new * new
            better = (lx > 0) & new.differs(code) & (more_l2 > 0)
            better = better & (more_lx * more_lx * sum_l2 > sum_lx * sum_lx * more_l2)
            codes[i] = better.choose(new, code)
            return better.choose(more_lx, sum_lx), better.choose(more_l2, sum_l2)

        found = k.loop(0, SIZE, [zero, zero], sums)
        for _ in range(5):  # a turn that changes nothing is the last one there, and changes nothing here
            found = k.loop(0, SIZE, found, improve)
        sum_lx, sum_l2 = found
        scale = (sum_l2 > 0).choose(sum_lx / sum_l2, zero)
        scales[0] = (most < EPS).choose(k.constant(NOTHING), scale + 0.0)

    return k.compiled(tile)


def _packed(codes: U8, scales: U8, d: npt.NDArray[np.float16]) -> U8:
    """The bytes of blocks (block_q3_K of ggml-common.h): high bits, low bits, scales of six bits, their step."""
    eighths = codes.reshape(len(codes), 8, 32)
    high = np.bitwise_or.reduce((eighths >> 2) << np.arange(8, dtype=np.uint8)[:, None], 1)
    quarters = (codes & np.uint8(3)).reshape(-1, 2, 4, 32)
    low = quarters[:, :, 0] | quarters[:, :, 1] << 2 | quarters[:, :, 2] << 4 | quarters[:, :, 3] << 6
    first = (scales[:, :8] & 15) | (scales[:, 8:] & 15) << 4
    fours = (scales >> 4).reshape(-1, 4, 4)
    second = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    return np.concatenate([high, low.reshape(len(codes), -1), first, second, d.view(np.uint8)], axis=1)
