"""Weight = scale * code, codes from -most to most - 1: the search of make_qx_quants (rmse_type 1), and Q6_K."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Mask, Place, Repeated
from targets.gguf.simd.packing import signed_codes
from targets.gguf.simd.tiles import EPS, importance_tiles, largest_of, nearest, of_largest, turned, whole_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]

SIZE, PARTS = 16, 16
"""Weights of a sub-block, and sub-blocks of a block."""


def quantize(values: F32, importance: F32 | None) -> tuple[U8, Flags]:
    """Blocks of Q6_K, shape (blocks, 210), and which of them ggml has to do itself; as `shifted.quantize`."""
    tiles, x = whole_tiles(values, SIZE)
    scales = np.empty(tiles * LANES, np.float32)
    more = () if importance is None else (importance_tiles(importance, SIZE),)
    _search(weighted=importance is not None)(tiles, x, *more, scales, repeated=len(more[0]) if more else 1)
    scale = scales[: values.size // SIZE].reshape(-1, PARTS)
    nothing = np.abs(scale).max(1) < np.float32(EPS)
    inverse = np.float32(-128) / of_largest(scale)
    d = (np.float32(1) / inverse).astype(np.float16)
    ls = np.minimum(nearest(inverse * scale), 127).astype(np.int8)
    step = d.astype(np.float32) * ls
    # block_q6_K of ggml-common.h
    out = np.concatenate([*signed_codes(x, step, 6), ls.view(np.uint8), d.view(np.uint8)], axis=1)
    out[nothing] = 0
    # Where nothing is left of a scale, the search's own codes stay.
    return out, ((step == 0) & ~nothing[:, None]).any(1)


@functools.cache
def _search(*, weighted: bool) -> Compiled:
    """Kernel: (values as they lie[, tiles of importance]) -> scale."""
    k = Kernel("search_signed", [SIZE, *([Repeated(SIZE)] if weighted else []), 1])

    def tile(values: Place, *rest: Place) -> None:
        x = turned(k, values, SIZE)
        scale, _, none = fit_signed(k, x, lambda i: rest[0][i] if weighted else x[i] * x[i], SIZE, 32)
        rest[-1][0] = none.choose(k.constant(0), scale)

    return k.compiled(tile)


def fit_signed(
    k: Kernel, x: Place, weight: Callable[[Index], Floats], size: int, top: int
) -> tuple[Floats, Floats, Mask]:
    """In a kernel: the scale of `size` values, what they are multiplied by for its codes, and where all count as zero.

    Codes go from -top to top - 1.
    """
    zero = k.constant(0)
    most, value = largest_of(k, x, size)

    def sums(inverse: Floats) -> tuple[Floats, Floats]:
        def add(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
            code = (inverse * x[i]).whole().within(-top, top - 1)  # about `top` at most
            w = weight(i)
            return sum_lx + w * x[i] * code, sum_l2 + w * code * code

        found, squares = k.loop(0, size, [zero, zero], add)
        return found, squares

    first = k.constant(-top) / value
    sum_lx, sum_l2 = sums(first)
    scale = sum_l2.differs(0).choose(sum_lx / sum_l2, zero)

    def attempt(number: Index, scale: Floats, best: Floats, inverse: Floats) -> Sequence[Floats]:
        step = k.number(number) - 9
        tried = -(step * 0.1 + top) / value
        sum_lx, sum_l2 = sums(tried)
        better = step.differs(0) & (sum_l2 > 0) & (sum_lx * sum_lx > best * sum_l2)
        found = sum_lx / sum_l2
        return better.choose(found, scale), better.choose(found * sum_lx, best), better.choose(tried, inverse)

    scale, _, inverse = k.loop(0, 19, [scale, scale * sum_lx, first], attempt)
    return scale, inverse, most < EPS
