"""Q3_K: weight = scale * code, codes from -4 to 3, in sub-blocks of 16 (make_q3_quants, make_qx_quants)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place, Repeated
from targets.gguf.simd.packing import signed_codes
from targets.gguf.simd.signed import PARTS, SIZE, fit_signed
from targets.gguf.simd.tiles import (
    BLOCK,
    EPS,
    importance_tiles,
    largest_of,
    nearest,
    of_largest,
    per_lane,
    sigma_squared,
    tiles,
    turned,
    untiled,
    whole_tiles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    F16 = npt.NDArray[np.float16]
    Flags = npt.NDArray[np.bool_]

NOTHING = -0.0
"""The scale of a sub-block of zeros, whose codes are the least one; another that comes out as zero is positive."""
STEPS = 32
"""Codes of scales go from -STEPS to STEPS - 1."""


def quantize(values: F32, importance: F32 | None) -> tuple[U8, Flags]:
    """Blocks of Q3_K, shape (blocks, 110), and which of them ggml has to do itself; as `shifted.quantize`."""
    count, x = whole_tiles(values, SIZE)
    found = [np.empty(count * LANES, np.float32) for _ in range(1 if importance is None else 2)]
    if importance is None:
        _search()(count, x, *found)
    else:
        sigma = per_lane(np.repeat(sigma_squared(values, BLOCK, 2.0), PARTS))
        weights = importance_tiles(importance, SIZE)
        _weighted()(count, x, weights, sigma, *found, repeated=len(weights))
    scale, *sums = (one[: values.size // SIZE].reshape(-1, PARTS) for one in found)
    ls, d = _fitted(scale, *sums) if sums else _largest(scale)
    step = d.astype(np.float32)[:, None] * (ls.astype(np.float32) - STEPS)
    zeros = (scale == 0) & np.signbit(scale)
    # Where nothing is left of a scale, the search's own codes stay; of zeros they are the least.
    return _packed(signed_codes(x, step, 3), ls, d), ((step == 0) & ~zeros).any(1)


def _largest(scale: F32) -> tuple[U8, F16]:
    """Codes of scales and their step: the largest one gets the largest code."""
    largest = of_largest(scale)
    inverse = np.float32(-STEPS) / largest
    codes = np.clip(nearest(inverse * scale).astype(np.int8), -STEPS, STEPS - 1) + STEPS
    d = np.where(largest != 0, np.float32(1) / inverse, np.float32(0)).astype(np.float16)
    return np.where(largest != 0, codes, 0).astype(np.uint8), d[:, 0]


def _fitted(scale: F32, weights: F32) -> tuple[U8, F16]:
    """As `_largest`, with the step that fits them best."""
    x, w = tiles(scale, PARTS), tiles(weights, PARTS)
    codes, steps = np.empty(x.shape, np.uint8), np.empty(len(x) * LANES, np.float32)
    _steps()(len(x), x, w, codes, steps)
    return untiled(codes, len(scale)), steps[: len(scale)].astype(np.float16)


@functools.cache
def _weighted() -> Compiled:
    """Kernel: (values as they lie, tiles of importance, sigma2 of every sub-block) -> scale, sum of the weights."""
    k = Kernel("search_three_weighted", [SIZE, Repeated(SIZE), 1, 1, 1])
    weights = k.room(SIZE)

    def tile(values: Place, importance: Place, sigma: Place, scales: Place, sums: Place) -> None:
        x = turned(k, values, SIZE)

        def weigh(i: Index, total: Floats) -> Sequence[Floats]:
            weights[i] = importance[i] * k.sqrt(sigma[0] + x[i] * x[i])
            return (total + weights[i],)

        (sums[0],) = k.loop(0, SIZE, [k.constant(0)], weigh)
        scale, _, none = fit_signed(k, x, lambda i: weights[i], SIZE, 4)
        scales[0] = none.choose(k.constant(NOTHING), scale + 0.0)

    return k.compiled(tile)


@functools.cache
def _steps() -> Compiled:
    """Kernel: (tiles of scales, weights) -> their codes from zero up, and their step."""
    k = Kernel("steps_three", [PARTS, PARTS, -PARTS, 1])

    def tile(x: Place, weights: Place, out: Place, steps: Place) -> None:
        step, inverse, none = fit_signed(k, x, lambda i: weights[i], PARTS, STEPS)
        steps[0] = none.choose(k.constant(0), step)

        def store(i: Index) -> Sequence[Floats]:
            value = none.choose(k.constant(-STEPS), inverse * x[i])
            out[i] = value.rounded().clipped(-STEPS, STEPS - 1).plus(STEPS)
            return ()

        k.loop(0, PARTS, [], store)

    return k.compiled(tile)


@functools.cache
def _search() -> Compiled:
    """Kernel: (values as they lie) -> scale: codes are moved, one after the other, while the fit gets better."""
    k = Kernel("search_three", [SIZE, 1])
    codes = k.room(SIZE)

    def tile(values: Place, scales: Place) -> None:
        x, zero = turned(k, values, SIZE), k.constant(0)
        most, value = largest_of(k, x, SIZE)
        inverse = k.constant(-4) / value

        def sums(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
            code = (inverse * x[i]).whole().within(-4, 3)
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


def _packed(codes: list[U8], scales: U8, d: F16) -> U8:
    """The bytes of blocks (block_q3_K of ggml-common.h): high bits, low bits, scales of six bits, their step."""
    first = (scales[:, :8] & 15) | (scales[:, 8:] & 15) << 4
    fours = (scales >> 4).reshape(-1, 4, 4)
    second = fours[:, 0] | fours[:, 1] << 2 | fours[:, 2] << 4 | fours[:, 3] << 6
    return np.concatenate([*codes, first, second, d[:, None].view(np.uint8)], axis=1)
