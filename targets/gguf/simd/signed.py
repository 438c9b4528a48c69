"""Q6_K: weight = scale * code, codes from -32 to 31, in sub-blocks of 16 (make_qx_quants with rmse_type 1)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place
from targets.gguf.simd.tiles import (
    BLOCK,
    EPS,
    importance_tiles,
    largest_of,
    nearest,
    of_largest,
    per_lane,
    signed_codes,
    tiles,
    untiled,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]

SIZE = 16


def quantize(values: F32, importance: F32 | None) -> tuple[U8, Flags]:
    """Blocks of Q6_K, shape (blocks, 210), and which of them ggml has to do itself; as `shifted.quantize`."""
    count = values.size // SIZE
    x = tiles(values, SIZE)
    scales = np.empty(len(x) * LANES, np.float32)
    more = () if importance is None else (importance_tiles(importance, values.shape, SIZE),)
    _search(weighted=importance is not None)(len(x), x, *more, scales)
    scale = scales[:count].reshape(-1, BLOCK // SIZE)
    nothing = np.abs(scale).max(1) < np.float32(EPS)
    inverse = np.float32(-128) / of_largest(scale)
    d = (np.float32(1) / inverse).astype(np.float16)
    ls = np.minimum(nearest(inverse * scale), 127).astype(np.int8)
    step = d.astype(np.float32) * ls
    codes = np.empty(x.shape, np.uint8)
    signed_codes(SIZE, -32)(len(x), x, per_lane(step), codes)
    out = _packed(untiled(codes, count), ls, d)
    out[nothing] = 0
    # Where nothing is left of a scale, the search's own codes stay.
    return out, ((step == 0) & ~nothing[:, None]).any(1)


@functools.cache
def _search(*, weighted: bool) -> Compiled:
    """Kernel: (tiles of values[, of their importance]) -> scale."""
    k = Kernel("search_signed", [SIZE, *([SIZE] if weighted else []), 1])

    def tile(x: Place, *rest: Place) -> None:
        scales, zero = rest[-1], k.constant(0)

        most, value = largest_of(k, x, SIZE)

        def sums(inverse: Floats) -> tuple[Floats, Floats]:
            def add(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
                code = (inverse * x[i]).rounded().clipped(-32, 31).floats()
                w = rest[0][i] if weighted else x[i] * x[i]
                return sum_lx + w * x[i] * code, sum_l2 + w * code * code

            found, squares = k.loop(0, SIZE, [zero, zero], add)
            return found, squares

        sum_lx, sum_l2 = sums(k.constant(-32) / value)
        scale = sum_l2.differs(0).choose(sum_lx / sum_l2, zero)

        def attempt(number: Index, scale: Floats, best: Floats) -> Sequence[Floats]:
            step = k.number(number) - 9
            sum_lx, sum_l2 = sums(-(step * 0.1 + 32) / value)
            better = step.differs(0) & (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
            found = sum_lx / sum_l2
            return better.choose(found, scale), better.choose(found * sum_lx, best)

        scale, _ = k.loop(0, 19, [scale, scale * sum_lx], attempt)
        scales[0] = (most < EPS).choose(zero, scale)

    return k.compiled(tile)


def _packed(codes: U8, scales: npt.NDArray[np.int8], d: npt.NDArray[np.float16]) -> U8:
    """The bytes of blocks (block_q6_K of ggml-common.h)."""
    q = codes.reshape(-1, 2, 4, 32)  # halves of a block, quarters of those
    low = (q[:, :, :2] & 15) | (q[:, :, 2:] & 15) << 4
    high = q >> 4
    high = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    parts = [low.reshape(len(q), -1), high.reshape(len(q), -1), scales.view(np.uint8), d.view(np.uint8)]
    return np.concatenate(parts, axis=1)
