"""IQ4_NL and IQ4_XS as ggml quantizes them, with and without an importance matrix (quantize_row_iq4_nl_impl)."""

from __future__ import annotations

import functools
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, WIDTH, Compiled, Floats, Index, Ints, Kernel, Place, Repeated, Singles
from targets.gguf.simd.tiles import (
    BLOCK,
    EPS,
    importance_tiles,
    largest_of,
    nearest,
    of_largest,
    per_lane,
    sigma_squared,
    turned,
    whole_tiles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]

SIZE = 32
LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
"""What the sixteen codes are worth (kvalues_iq4nl)."""
TRIES = 7


@functools.cache
def thresholds() -> tuple[float, ...]:
    """The least float32 that goes to each level and not to the one below.

    ggml compares x - below < above - x, each difference rounded. Both sides are monotone in x, so one number says it.
    """
    found = []
    for below, above in pairwise(map(np.float32, LEVELS)):
        least, most = below, above  # goes below, goes above
        while (middle := np.float32((float(least) + float(most)) / 2)) not in (least, most):
            if middle - below < above - middle:
                least = middle
            else:
                most = middle
        found.append(float(most))
    return tuple(found)


def _level(k: Kernel, x: Floats) -> Floats:
    """What the nearest code is worth."""
    found, zero = k.constant(LEVELS[0]), k.constant(0)
    for bound, (below, above) in zip(thresholds(), pairwise(LEVELS), strict=True):
        found = found + (x >= bound).choose(k.constant(above - below), zero)
    return found


def quantize(values: F32, importance: F32 | None, *, grouped: bool) -> tuple[U8, npt.NDArray[np.bool_]]:
    """Blocks of IQ4_XS (grouped) or IQ4_NL, shape (blocks, bytes); none is left to ggml. As `shifted.quantize`."""
    block = BLOCK if grouped else SIZE
    count = values.size // SIZE
    tiles, x = whole_tiles(values, SIZE)
    scales = np.empty(tiles * LANES, np.float32)
    if importance is None:
        _search(weighted=False)(tiles, x, scales)
    else:
        weights = importance_tiles(importance, SIZE)
        sigma = per_lane(np.repeat(sigma_squared(values, block, 2.0), block // SIZE))
        _search(weighted=True)(tiles, x, weights, sigma, scales, repeated=len(weights))
    scale = scales[:count].reshape(-1, block // SIZE)
    zero, one = np.float32(0), np.float32(1)
    if grouped:
        d = -of_largest(scale) / np.float32(32)
        ls = np.clip(nearest(np.where(d != 0, one / d, zero) * scale), -32, 31)
        step = d * ls.astype(np.float32)
    else:
        d, step = scale, scale
    inverse = np.where(step != 0, one / step, zero)
    stored = d.astype(np.float16)
    packed = np.empty((len(scale), block // 2), np.uint8)
    _coding()(count, x, np.ascontiguousarray(inverse), packed)
    none = np.zeros(len(scale), np.bool_)
    if not grouped:
        return np.concatenate([stored.view(np.uint8), packed], axis=1), none
    shifted = (ls + 32).astype(np.uint16)
    high = np.bitwise_or.reduce((shifted >> 4) << np.arange(0, 16, 2, dtype=np.uint16), 1)
    low = ((shifted[:, 0::2] & 15) | (shifted[:, 1::2] & 15) << 4).astype(np.uint8)
    return np.concatenate([stored.view(np.uint8), high[:, None].view(np.uint8), low, packed], axis=1), none


@functools.cache
def _search(*, weighted: bool) -> Compiled:
    """Kernel: (values as they lie[, tiles of importance, sigma2 of every sub-block]) -> scale of every sub-block."""
    k = Kernel("_search", [SIZE, Repeated(SIZE), 1, 1] if weighted else [SIZE, 1])
    weights = k.room(SIZE)

    def tile(values: Place, *rest: Place) -> None:
        x, scales, zero = turned(k, values, SIZE), rest[-1], k.constant(0)

        def weigh(i: Index) -> Sequence[Floats]:
            square = x[i] * x[i]
            weights[i] = rest[0][i] * k.sqrt(rest[1][0] + square) if weighted else square
            return ()

        k.loop(0, SIZE, [], weigh)
        most, value = largest_of(k, x, SIZE)

        def sums(inverse: Floats) -> tuple[Floats, Floats]:
            def add(i: Index, sum_qx: Floats, sum_q2: Floats) -> Sequence[Floats]:
                q = _level(k, inverse * x[i])
                w = weights[i] * q
                return sum_qx + w * x[i], sum_q2 + w * q

            found, squares = k.loop(0, SIZE, [zero, zero], add)
            return found, squares

        sum_qx, sum_q2 = sums(k.constant(1) / (-value / LEVELS[0]))
        scale = (sum_q2 > 0).choose(sum_qx / sum_q2, zero)

        def attempt(number: Index, scale: Floats, best: Floats) -> Sequence[Floats]:
            sum_qx, sum_q2 = sums((k.number(number) + (LEVELS[0] - TRIES)) / value)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            found = sum_qx / sum_q2
            return better.choose(found, scale), better.choose(found * sum_qx, best)

        scale, _ = k.loop(0, 2 * TRIES + 1, [scale, scale * sum_qx], attempt)
        scales[0] = (most < EPS).choose(zero, scale)

    return k.compiled(tile)


@functools.cache
def _coding() -> Compiled:
    """Kernel, a tile is a sub-block: (values, what they are multiplied by) -> codes, in pairs 16 places apart."""
    k = Kernel("_coding", [SIZE // WIDTH, Singles(1), -SIZE // WIDTH // 2], WIDTH)

    def tile(x: Place, inverse: Place, out: Place) -> None:
        def code(value: Floats) -> Ints:
            scaled, found = inverse[0] * value, k.constant(0)
            for bound in thresholds():
                found = found + (scaled >= bound).choose(k.constant(1), k.constant(0))
            return found.rounded()

        out[0] = code(x[0]) | code(x[1]) << 4

    return k.compiled(tile)
