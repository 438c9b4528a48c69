"""Q4_K and Q5_K: weight = scale * code - minimum, in sub-blocks of 32 (make_qkx2_quants, make_qkx3_quants)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place
from targets.gguf.simd.steps import TOP, fitted_steps, plain_steps
from targets.gguf.simd.tiles import BLOCK, importance_tiles, per_lane, sigma_squared, tiles, untiled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    F16 = npt.NDArray[np.float16]
    Flags = npt.NDArray[np.bool_]

FLAT = -0.0
"""The scale of a sub-block without any spread: all of its codes are zero."""
SIZE, PARTS = 32, 8
"""Weights of a sub-block, and sub-blocks of a block."""


@dataclass(frozen=True)
class Search:
    """most: the largest code; start, step, steps: of the scales that are tried"""

    most: int
    start: float
    step: float
    steps: int


PLAIN = {4: Search(15, -1.0, 0.1, 20), 5: Search(31, -0.5, 0.1, 15)}
WEIGHTED = {4: Search(15, -0.9, 0.05, 36), 5: Search(31, -0.9, 0.05, 36)}
"""By the bits of a code."""


def quantize(values: F32, importance: F32 | None, bits: int) -> tuple[U8, Flags]:
    """Blocks of Q4_K or Q5_K, shape (blocks, bytes), and which of them ggml has to do itself.

    values: (rows, columns), columns whole blocks; importance: (columns,)
    """
    count = values.size // SIZE
    x = tiles(values, SIZE)
    found = [np.empty(len(x) * LANES, np.float32) for _ in range(2 if importance is None else 3)]
    if importance is None:
        _plain(PLAIN[bits])(len(x), x, *found)
    else:
        sigma = per_lane(np.repeat(sigma_squared(values, BLOCK), PARTS))
        _weighted(WEIGHTED[bits])(len(x), x, importance_tiles(importance, values.shape, SIZE), sigma, *found)
    scale, minimum, *sums = (one[:count].reshape(-1, PARTS) for one in found)
    (ls, d), (lm, dmin) = (fitted_steps(one, *sums) if sums else plain_steps(one) for one in (scale, minimum))
    beyond = ((ls > TOP) | (lm > TOP)).any(1)
    ls, lm = ls & np.uint8(TOP), lm & np.uint8(TOP)
    by_block, without = _codes(x, _times(d, ls), _times(dmin, lm), PLAIN[bits].most)
    # Where nothing is left of a scale, the search's own codes stay; without any spread they are zeros.
    spread = (scale != 0) | ~np.signbit(scale)
    return _packed(by_block, (ls, d), (lm, dmin), bits), beyond | (without & spread).any(1)


@functools.cache
def _plain(search: Search) -> Compiled:
    """Kernel: (tiles of values) -> scale, minimum."""
    k = Kernel("search_shifted", [SIZE, 1, 1])

    def tile(x: Place, scales: Place, minima: Place) -> None:
        (squares,) = k.loop(0, SIZE, [k.constant(0)], lambda i, s: [s + x[i] * x[i]])
        mean = k.sqrt(squares / SIZE)

        def codes(i: Index, scale: Floats, least: Floats) -> Floats:
            return (scale * (x[i] - least)).rounded().clipped(0, search.most).floats()

        scales[0], minima[0], _ = fit(x, lambda i: mean + k.abs(x[i]), codes)

    fit = _Fit(k, search)
    return k.compiled(tile)


@functools.cache
def _weighted(search: Search) -> Compiled:
    """Kernel: (tiles of values, their importance, sigma2 of every sub-block) -> scale, minimum, sum of the weights."""
    k = Kernel("search_shifted", [SIZE, SIZE, 1, 1, 1, 1])

    def tile(x: Place, importance: Place, sigma: Place, scales: Place, minima: Place, sums: Place) -> None:
        def codes(i: Index, scale: Floats, least: Floats) -> Floats:
            value = scale * (x[i] - least)
            code = (value < search.most).choose(value, k.constant(search.most)).rounded().floats()
            return (value > 0).choose(code, k.constant(0))

        scales[0], minima[0], sums[0] = fit(x, lambda i: importance[i] * k.sqrt(sigma[0] + x[i] * x[i]), codes)

    fit = _Fit(k, search)
    return k.compiled(tile)


class _Fit:
    """The search in a kernel: every scale that is tried gets the line that fits its codes best."""

    def __init__(self, kernel: Kernel, search: Search) -> None:
        self.k, self.search = kernel, search
        self.weights, self.tried = kernel.room(SIZE), kernel.room(SIZE)

    def __call__(
        self, x: Place, weight: Callable[[Index | int], Floats], codes: Callable[[Index, Floats, Floats], Floats]
    ) -> tuple[Floats, Floats, Floats]:
        """Scale, minimum and sum of the weights. codes: those of a scale and a least value, as they are tried"""
        k, search = self.k, self.search
        self.weights[0] = weight(0)
        least, most, sum_w, sum_x = k.loop(
            1, SIZE, [x[0], x[0], self.weights[0], self.weights[0] * x[0]], self._first(x, weight)
        )
        zero = k.constant(0)
        least = (least > 0).choose(zero, least)
        flat = least >= most
        inverse = k.constant(search.most) / (most - least)
        scale = k.constant(1) / inverse

        def first_codes(i: Index) -> Floats:
            return (inverse * (x[i] - least)).rounded().clipped(0, search.most).floats()

        def attempt(number: Index, scale: Floats, low: Floats, error: Floats) -> Sequence[Floats]:
            inverse = (k.number(number) * search.step + search.start + search.most) / (most - low)

            def add(i: Index, sum_l: Floats, sum_l2: Floats, sum_xl: Floats) -> Sequence[Floats]:
                code = codes(i, inverse, low)
                self.tried[i] = code
                w = self.weights[i] * code
                return sum_l + w, sum_l2 + w * code, sum_xl + w * x[i]

            sum_l, sum_l2, sum_xl = k.loop(0, SIZE, [zero, zero, zero], add)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            above = new_low > 0
            new_scale, new_low = above.choose(sum_xl / sum_l2, new_scale), above.choose(zero, new_low)
            new_error = self._error(x, lambda i: self.tried[i], new_scale, new_low)
            better = (determinant > 0) & (new_error < error)
            return better.choose(new_scale, scale), better.choose(new_low, low), better.choose(new_error, error)

        start = [scale, least, self._error(x, first_codes, scale, least)]
        scale, low, _ = k.loop(0, search.steps + 1, start, attempt)
        # FLAT is a negative zero, a scale that came out as nothing a positive one.
        return flat.choose(k.constant(FLAT), scale + 0.0), -flat.choose(least, low), sum_w

    def _first(self, x: Place, weight: Callable[[Index | int], Floats]) -> Callable[..., Sequence[Floats]]:
        def body(i: Index, least: Floats, most: Floats, sum_w: Floats, sum_x: Floats) -> Sequence[Floats]:
            value, w = x[i], weight(i)
            self.weights[i] = w
            least = (value < least).choose(value, least)
            return least, (value > most).choose(value, most), sum_w + w, sum_x + w * value

        return body

    def _error(self, x: Place, read: Callable[[Index], Floats], scale: Floats, least: Floats) -> Floats:
        """Weighted squares of what a scale and a least value leave."""

        def add(i: Index, error: Floats) -> Sequence[Floats]:
            off = scale * read(i) + least - x[i]
            return (error + self.weights[i] * (off * off),)

        (found,) = self.k.loop(0, SIZE, [self.k.constant(0)], add)
        return found


@functools.cache
def _coding(most: int) -> Compiled:
    """Kernel: (tiles of values, scale, minimum) -> codes, a byte each."""
    k = Kernel("code_shifted", [SIZE, 1, 1, -SIZE])

    def tile(x: Place, scales: Place, minima: Place, out: Place) -> None:
        scale, minimum = scales[0], minima[0]

        def store(i: Index) -> Sequence[Floats]:
            out[i] = ((x[i] + minimum) / scale).rounded().clipped(0, most)
            return ()

        k.loop(0, SIZE, [], store)

    return k.compiled(tile)


def _times(step: F16, codes: U8) -> F32:
    """In single precision, as ggml computes it."""
    return step.astype(np.float32)[:, None] * codes


def _codes(x: F32, scale: F32, minimum: F32, most: int) -> tuple[U8, Flags]:
    """Codes by block, (blocks, PARTS, SIZE), and which sub-blocks have no scale: zeros there."""
    codes = np.empty(x.shape, np.uint8)
    _coding(most)(len(x), x, per_lane(scale), per_lane(minimum), codes)
    by_block = untiled(codes, scale.size).reshape(*scale.shape, SIZE)
    without = scale == 0
    by_block[without] = 0
    return by_block, without


def _packed(codes: U8, scales: tuple[U8, F16], minima: tuple[U8, F16], bits: int) -> U8:
    """The bytes of blocks (block_q4_K, block_q5_K of ggml-common.h)."""
    (ls, d), (lm, dmin) = scales, minima
    parts = [
        d[:, None].view(np.uint8),
        dmin[:, None].view(np.uint8),
        ls[:, :4] | (ls[:, 4:] >> 4) << 6,
        lm[:, :4] | (lm[:, 4:] >> 4) << 6,
        (ls[:, 4:] & 15) | (lm[:, 4:] & 15) << 4,
    ]
    if bits == 5:
        fifth = (codes >> 4) << np.arange(PARTS, dtype=np.uint8)[:, None]
        parts.append(np.bitwise_or.reduce(fifth, 1))
        codes = codes & np.uint8(15)
    parts.append((codes[:, 0::2] | codes[:, 1::2] << 4).reshape(len(ls), -1))
    return np.concatenate(parts, axis=1)
