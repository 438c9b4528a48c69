"""A few bits for each of a block's scales or minima, and the step that they are multiplied by."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Mask, Place
from targets.gguf.simd.tiles import EPS, nearest, tiles, untiled

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    F16 = npt.NDArray[np.float16]

SIX_BITS = 63


def plain_steps(values: F32, top: int) -> tuple[U8, F16]:
    """Codes (blocks, parts) and steps (blocks,): the largest value gets the largest code, `top`."""
    zero = np.float32(0)
    most = np.maximum(values.max(1), zero)
    inverse = np.where(most > 0, np.float32(top) / most, zero)[:, None]
    step = (most / np.float32(top)).astype(np.float16)
    # What is negative wraps around in a byte, as it does there; six bits are held to their largest.
    codes = nearest(inverse * values).astype(np.uint8)
    return np.minimum(codes, np.uint8(top)) if top == SIX_BITS else codes, step


def fitted_steps(values: F32, weights: F32, top: int) -> tuple[U8, F16]:
    """As `plain_steps`, with the step that fits them best; see make_qp_quants. Codes may be over `top`."""
    size = values.shape[1]
    x, w = tiles(values, size), tiles(weights, size)
    codes, steps = np.empty(x.shape, np.uint8), np.empty(len(x) * LANES, np.float32)
    _search(size, top)(len(x), x, w, codes, steps)
    return untiled(codes, len(values)), steps[: len(values)].astype(np.float16)


@functools.cache
def _search(size: int, top: int) -> Compiled:
    """Kernel: (tiles of values, weights) -> codes and step."""
    k = Kernel("search_steps", [size, size, -size, 1])
    codes = k.room(size)

    def tile(x: Place, weights: Place, out: Place, steps: Place) -> None:
        steps[0], nothing = fit_steps(k, x, weights, codes, size, top)

        def store(i: Index) -> Sequence[Floats]:
            out[i] = nothing.choose(k.constant(0), codes[i]).rounded()
            return ()

        k.loop(0, size, [], store)

    return k.compiled(tile)


def fit_steps(k: Kernel, x: Place, weights: Place, codes: Place, size: int, top: int) -> tuple[Floats, Mask]:
    """In a kernel: the step of `size` values, and where all count as zero; their codes from zero to `top` into a room.

    make_qp_quants of ggml-quants.c.
    """
    zero = k.constant(0)
    (most,) = k.loop(0, size, [zero], lambda i, most: [(most > x[i]).choose(most, x[i])])
    inverse = _inverse(k, x, weights, most, size, top)

    def sums(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
        code = (inverse * x[i]).rounded().at_most(top)
        codes[i] = code.as_byte().floats()
        number, w = code.floats(), weights[i]
        return sum_lx + w * x[i] * number, sum_l2 + w * number * number

    def improve(i: Index, sum_lx: Floats, sum_l2: Floats) -> Sequence[Floats]:
        w, code = weights[i], codes[i]
        lx, l2 = sum_lx - w * x[i] * code, sum_l2 - w * code * code
        whole = (x[i] * l2 / lx).rounded().at_most(top)
        new = whole.floats()
        more_lx, more_l2 = lx + w * x[i] * new, l2 + w * new * new
        better = (lx > 0) & (l2 > 0) & new.differs(code)
        better = better & (more_lx * more_lx * sum_l2 > sum_lx * sum_lx * more_l2)
        codes[i] = better.choose(whole.as_byte().floats(), code)
        return better.choose(more_lx, sum_lx), better.choose(more_l2, sum_l2)

    found = k.loop(0, size, [zero, zero], sums)
    for _ in range(5):  # a turn that changes nothing is the last one there, and changes nothing here
        found = k.loop(0, size, found, improve)
    sum_lx, sum_l2 = found
    nothing = most < EPS
    return (sum_l2 > 0).choose(nothing.choose(zero, sum_lx / sum_l2), zero), nothing


def _inverse(k: Kernel, x: Place, weights: Place, most: Floats, size: int, top: int) -> Floats:
    """What values are multiplied by for their codes: of nine steps the one with the least error."""

    def error_of(inverse: Floats, *, first: bool) -> Floats:
        step = k.constant(1) / inverse

        def add(i: Index, error: Floats) -> Sequence[Floats]:
            code = (inverse * x[i]).rounded()
            code = code.as_byte() if first else code.at_most(top)
            off = x[i] - step * code.floats()
            return (error + weights[i] * off * off,)

        (found,) = k.loop(0, size, [k.constant(0)], add)
        return found

    def attempt(number: Index, inverse: Floats, error: Floats) -> Sequence[Floats]:
        by = k.number(number) - 4
        tried = (by * 0.1 + top) / most
        new = error_of(tried, first=False)
        better = by.differs(0) & (new < error)
        return better.choose(tried, inverse), better.choose(new, error)

    inverse = k.constant(top) / most
    inverse, _ = k.loop(0, 9, [inverse, error_of(inverse, first=True)], attempt)
    return inverse
