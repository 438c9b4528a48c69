"""Q2_K, Q4_K and Q5_K: weight = scale * code - minimum (make_qkx2_quants, make_qkx3_quants)."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place, Repeated
from targets.gguf.simd.packing import shifted_codes
from targets.gguf.simd.steps import fitted_steps, plain_steps
from targets.gguf.simd.tiles import BLOCK, importance_tiles, per_lane, sigma_squared, turned, whole_tiles

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    F16 = npt.NDArray[np.float16]
    Flags = npt.NDArray[np.bool_]

FARTHEST = 2.0**22
"""What is below it is rounded as ggml does it in one addition and one subtraction."""
UNKNOWN = float("inf")
"""The scale of a sub-block in which something went beyond, by a minimum that came close to the largest value."""
FLAT = -0.0
"""The scale of a sub-block without any spread: all of its codes are zero."""


@dataclass(frozen=True)
class Search:
    """How scale and minimum of a sub-block are found.

    size: weights of it; most: the largest code; start, step, steps: of the scales that are tried
    sizes: errors count by their size, and not by their square
    """

    size: int
    most: int
    start: float
    step: float
    steps: int
    sizes: bool = False


PLAIN = {
    2: Search(16, 3, -0.5, 0.1, 15, sizes=True),
    4: Search(32, 15, -1.0, 0.1, 20),
    5: Search(32, 31, -0.5, 0.1, 15),
}
WEIGHTED = {2: Search(16, 3, -0.9, 0.05, 36), 4: Search(32, 15, -0.9, 0.05, 36), 5: Search(32, 31, -0.9, 0.05, 36)}
"""By the bits of a code."""
TOP = {2: 15, 4: 63, 5: 63}
"""The largest code of a scale or minimum."""
SIGMA = {2: 1.0, 4: 2.0, 5: 2.0}
"""What the mean square of a block counts in the weights."""


def quantize(values: F32, importance: F32 | None, bits: int) -> tuple[U8, Flags]:
    """Blocks of Q2_K, Q4_K or Q5_K, shape (blocks, bytes), and which of them ggml has to do itself.

    values: (rows, columns), columns whole blocks; importance: (columns,)
    """
    search = (PLAIN if importance is None else WEIGHTED)[bits]
    parts, top = BLOCK // search.size, TOP[bits]
    count, x = whole_tiles(values, search.size)
    found = [np.empty(count * LANES, np.float32) for _ in range(2 if importance is None else 3)]
    if importance is None:
        _plain(search)(count, x, *found)
    else:
        sigma = per_lane(np.repeat(sigma_squared(values, BLOCK, SIGMA[bits]), parts))
        weights = importance_tiles(importance, search.size)
        _weighted(search)(count, x, weights, sigma, *found, repeated=len(weights))
    scale, minimum, *sums = (one[: values.size // search.size].reshape(-1, parts) for one in found)
    (ls, d), (lm, dmin) = (
        fitted_steps(one, sums[0], top) if sums else plain_steps(one, top) for one in (scale, minimum)
    )
    odd = scale == UNKNOWN
    if bits == 2:
        both = ls | lm << np.uint8(4)  # what is beyond four bits gets into the other one there
        ls, lm = both & np.uint8(top), both >> np.uint8(4)
    else:
        odd |= (ls > top) | (lm > top)
        ls, lm = ls & np.uint8(top), lm & np.uint8(top)
    scales, minima = _times(d, ls), _times(dmin, lm)
    codes = shifted_codes(x, scales, minima, bits)
    # Where nothing is left of a scale, the search's own codes stay; without any spread they are zeros.
    spread = (scale != 0) | ~np.signbit(scale)
    return _packed(codes, (ls, d), (lm, dmin), bits), (odd | (scales == 0) & spread).any(1)


@functools.cache
def _plain(search: Search) -> Compiled:
    """Kernel: (values as they lie) -> scale, minimum."""
    size = search.size
    k = Kernel("search_shifted", [size, 1, 1])

    def tile(values: Place, scales: Place, minima: Place) -> None:
        x = turned(k, values, size)

        def codes(i: Index, scale: Floats, least: Floats) -> Floats:
            return (scale * (x[i] - least)).whole().within(0, search.most)

        if search.sizes:
            scales[0], minima[0], _ = fit(x, lambda i: k.abs(x[i]), codes)
            return
        (squares,) = k.loop(0, size, [k.constant(0)], lambda i, s: [s + x[i] * x[i]])
        mean = k.sqrt(squares / size)
        scales[0], minima[0], _ = fit(x, lambda i: mean + k.abs(x[i]), codes)

    fit = _Fit(k, search, bounded=False)
    return k.compiled(tile)


@functools.cache
def _weighted(search: Search) -> Compiled:
    """Kernel: (values as they lie, tiles of importance, sigma2 of each sub-block) -> scale, minimum, sum of weights."""
    size = search.size
    k = Kernel("search_shifted", [size, Repeated(size), 1, 1, 1, 1])

    def tile(values: Place, importance: Place, sigma: Place, scales: Place, minima: Place, sums: Place) -> None:
        x = turned(k, values, size)

        def codes(i: Index, scale: Floats, least: Floats) -> Floats:
            value = scale * (x[i] - least)
            value = (value > 0).choose(value, k.constant(0))
            return (value < search.most).choose(value, k.constant(search.most)).whole()

        scales[0], minima[0], sums[0] = fit(x, lambda i: importance[i] * k.sqrt(sigma[0] + x[i] * x[i]), codes)

    fit = _Fit(k, search, bounded=True)
    return k.compiled(tile)


class _Fit:
    """The search in a kernel: every scale that is tried gets the line that fits its codes best."""

    def __init__(self, kernel: Kernel, search: Search, *, bounded: bool) -> None:
        """bounded: what becomes a code is held between zero and the largest one before it is rounded"""
        self.k, self.search, self.bounded = kernel, search, bounded
        self.size = search.size
        self.weights, self.tried = kernel.room(self.size), kernel.room(self.size)

    def __call__(
        self, x: Place, weight: Callable[[Index | int], Floats], codes: Callable[[Index, Floats, Floats], Floats]
    ) -> tuple[Floats, Floats, Floats]:
        """Scale, minimum and sum of the weights. codes: those of a scale and a least value, as they are tried"""
        k, search = self.k, self.search
        self.weights[0] = weight(0)
        lowest, most, sum_w, sum_x = k.loop(
            1, self.size, [x[0], x[0], self.weights[0], self.weights[0] * x[0]], self._first(x, weight)
        )
        zero = k.constant(0)
        least = (lowest > 0).choose(zero, lowest)
        flat = least >= most
        inverse = k.constant(search.most) / (most - least)
        scale = k.constant(1) / inverse

        def first_codes(i: Index) -> Floats:
            return (inverse * (x[i] - least)).whole().within(0, search.most)

        def attempt(number: Index, scale: Floats, low: Floats, error: Floats, far: Floats) -> Sequence[Floats]:
            inverse = (k.number(number) * search.step + search.start + search.most) / (most - low)
            # The least value and the largest one go farthest.
            far = far + k.abs(inverse * (lowest - low)) + k.abs(inverse * (most - low))

            def add(i: Index, sum_l: Floats, sum_l2: Floats, sum_xl: Floats) -> Sequence[Floats]:
                code = codes(i, inverse, low)
                self.tried[i] = code
                w = self.weights[i] * code
                return sum_l + w, sum_l2 + w * code, sum_xl + w * x[i]

            sum_l, sum_l2, sum_xl = k.loop(0, self.size, [zero, zero, zero], add)
            determinant = sum_w * sum_l2 - sum_l * sum_l
            new_scale = (sum_w * sum_xl - sum_x * sum_l) / determinant
            new_low = (sum_l2 * sum_x - sum_l * sum_xl) / determinant
            above = new_low > 0
            new_scale, new_low = above.choose(sum_xl / sum_l2, new_scale), above.choose(zero, new_low)
            new_error = self._error(x, lambda i: self.tried[i], new_scale, new_low)
            better = (determinant > 0) & (new_error < error)
            found = better.choose(new_scale, scale), better.choose(new_low, low), better.choose(new_error, error)
            return *found, far

        start = [scale, least, self._error(x, first_codes, scale, least), zero]
        scale, low, _, far = k.loop(0, search.steps + 1, start, attempt)
        if not self.bounded:
            scale = (far < FARTHEST).choose(scale, k.constant(UNKNOWN))
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
        """Weighted sizes or squares of what a scale and a least value leave."""

        def add(i: Index, error: Floats) -> Sequence[Floats]:
            off = scale * read(i) + least - x[i]
            return (error + self.weights[i] * (self.k.abs(off) if self.search.sizes else off * off),)

        (found,) = self.k.loop(0, self.size, [self.k.constant(0)], add)
        return found


def _times(step: F16, codes: U8) -> F32:
    """In single precision, as ggml computes it."""
    return step.astype(np.float32)[:, None] * codes


def _packed(codes: list[U8], scales: tuple[U8, F16], minima: tuple[U8, F16], bits: int) -> U8:
    """The bytes of blocks (block_q2_K, block_q4_K, block_q5_K of ggml-common.h)."""
    (ls, d), (lm, dmin) = scales, minima
    steps = [d[:, None].view(np.uint8), dmin[:, None].view(np.uint8)]
    if bits == 2:
        return np.concatenate([ls | lm << 4, *codes, *steps], axis=1)
    six = [
        ls[:, :4] | (ls[:, 4:] >> 4) << 6,
        lm[:, :4] | (lm[:, 4:] >> 4) << 6,
        (ls[:, 4:] & 15) | (lm[:, 4:] & 15) << 4,
    ]
    return np.concatenate([*steps, *six, *codes], axis=1)
