"""IQ3_XXS and IQ3_S: weight = sign * scale * (2 * code + 1), codes on a grid in fours (quantize_row_iq3_*_impl)."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.grid import GROUP, LEVELS, Search, grid
from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Ints, Kernel, Mask, Place, Repeated, Singles, joined
from targets.gguf.simd.tiles import (
    BLOCK,
    importance_tiles,
    nearest,
    per_lane,
    sigma_squared,
    turned,
    untiled,
    whole_tiles,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]

SIZE, PARTS, GROUPS = 32, 8, 8
"""Weights of a sub-block, sub-blocks of a block, groups of a sub-block."""
EIGHTS = SIZE // 8
TOP = 2 * LEVELS - 1


@dataclass(frozen=True)
class Kind:
    """What is different between the two.

    reach: of the scales that are tried, to both sides of the middle one
    even: signs of eight weights multiply to plus, and only seven of them are stored
    nothing: values below it count as zero; factor: that the stored scale is multiplied by
    """

    name: str
    reach: int
    even: bool
    nothing: float
    factor: float


KINDS = {"IQ3_XXS": Kind("IQ3_XXS", 15, True, 1e-8, 1.0125), "IQ3_S": Kind("IQ3_S", 9, False, 0.0, 1.033)}


def quantize(values: F32, importance: F32 | None, name: str) -> tuple[U8, Flags]:
    """Blocks of IQ3_XXS or IQ3_S, shape (blocks, bytes), and those that are ggml's; as `shifted.quantize`."""
    kind, known, count = KINDS[name], grid(name), values.size // SIZE
    tiles, x = whole_tiles(values, SIZE)
    scales, codes = np.empty(tiles * LANES, np.float32), np.empty((tiles, SIZE, LANES), np.uint8)
    signs = np.empty((tiles, EIGHTS, LANES), np.uint8)
    tables = known.chunks, known.first, known.neighbours
    if importance is None:
        _search(kind, weighted=False)(tiles, x, *tables, scales, codes, signs)
    else:
        weights = importance_tiles(importance, SIZE)
        sigma = per_lane(np.repeat(sigma_squared(values, BLOCK, 2.0), PARTS))
        _search(kind, weighted=True)(tiles, x, weights, sigma, *tables, scales, codes, signs, repeated=len(weights))
    scale = scales[:count].reshape(-1, PARTS)
    fours = untiled(codes, count).reshape(-1, GROUP).astype(np.uint16)
    index = known.index[(fours << (3 * np.arange(GROUP, dtype=np.uint16))).sum(1)].reshape(-1, PARTS, GROUPS)
    by_eight = untiled(signs, count).reshape(-1, PARTS, EIGHTS)
    odd = ~(scale >= 0).all(1) | (index < 0).any((1, 2))
    if not kind.even:
        odd |= (scale == 0).any(1)  # where a sub-block is skipped there, what follows moves up
    step = scale.max(1) / np.float32(31)
    inverse = np.float32(1) / step
    ls = np.clip(nearest(np.float32(0.5) * (inverse[:, None] * scale - np.float32(1))), 0, 15).astype(np.uint8)
    d = (step * np.float32(kind.factor)).astype(np.float16)
    return (_packed_even if kind.even else _packed)(d, index, by_eight, ls), odd


def _packed_even(d: npt.NDArray[np.float16], index: npt.NDArray[np.int32], signs: U8, scales: U8) -> U8:
    """The bytes of blocks of IQ3_XXS (block_iq3_xxs of ggml-common.h): four times seven signs and a scale a word."""
    sevens = signs.astype(np.uint32) << (7 * np.arange(EIGHTS, dtype=np.uint32))
    words = np.bitwise_or.reduce(sevens, 2) | scales.astype(np.uint32) << np.uint32(28)
    low = index.reshape(len(d), -1).astype(np.uint8)
    return np.concatenate([d[:, None].view(np.uint8), low, words.astype("<u4").view(np.uint8)], axis=1)


def _packed(d: npt.NDArray[np.float16], index: npt.NDArray[np.int32], signs: U8, scales: U8) -> U8:
    """The bytes of blocks of IQ3_S (block_iq3_s)."""
    low = index.reshape(len(d), -1).astype(np.uint8)
    high = np.bitwise_or.reduce((index >> 8).astype(np.uint8) << np.arange(GROUPS, dtype=np.uint8), 2)
    pairs = scales[:, 0::2] | scales[:, 1::2] << np.uint8(4)
    return np.concatenate([d[:, None].view(np.uint8), low, high, signs.reshape(len(d), -1), pairs], axis=1)


@functools.cache
def _search(kind: Kind, *, weighted: bool) -> Compiled:
    """Kernel: (values as they lie[, tiles of importance, sigma2], tables) -> scale, codes, signs of eight in a byte."""
    rest: list[int | Singles | Repeated] = [Singles(0), Singles(0), Singles(0), 1, -SIZE, -EIGHTS]
    k = Kernel("search_grid", [SIZE, Repeated(SIZE), 1, *rest] if weighted else [SIZE, *rest])
    rooms = _Rooms(k)

    def tile(values: Place, *rest: Place) -> None:
        x = turned(k, values, SIZE)
        tables, (scales, out, signs) = rest[-6:-3], rest[-3:]

        def weigh(i: Index) -> Sequence[Floats]:
            square = x[i] * x[i]
            rooms.weights[i] = rest[0][i] * k.sqrt(rest[1][0] + square) if weighted else square
            rooms.roots[i] = k.sqrt(rooms.weights[i])
            rooms.best[i] = k.constant(0)
            return ()

        k.loop(0, SIZE, [], weigh)
        bits = [_sizes(k, rooms, x, eight, even=kind.even) for eight in range(EIGHTS)]
        (most,) = k.loop(1, SIZE, [rooms.sizes[0]], rooms.larger)
        nothing = most < kind.nothing if kind.nothing else most.same(0)
        search = Search(k, (tables[0], tables[1], tables[2]), GROUPS)
        scales[0] = nothing.choose(k.constant(0), _Fit(k, rooms, kind, search)(most))

        def store(i: Index) -> Sequence[Floats]:
            out[i] = nothing.choose(k.constant(0), rooms.best[i]).rounded()
            return ()

        k.loop(0, SIZE, [], store)
        for eight, found in enumerate(bits):
            signs[eight] = nothing.choose(k.constant(0), (found & 127 if kind.even else found).floats()).rounded()

    return k.compiled(tile)


class _Rooms:
    """Of a tile: weights and their roots, sizes of values, codes that are tried and the best, what goes with groups."""

    def __init__(self, k: Kernel) -> None:
        self.weights, self.roots, self.sizes, self.tried, self.best = (k.room(SIZE) for _ in range(5))
        self.numbers, self.on_grid, self.best_on_grid = (k.room(GROUPS) for _ in range(3))
        self.scale = k.room(1)

    def larger(self, i: Index, most: Floats) -> Sequence[Floats]:
        """Of a loop: the largest."""
        return ((most > self.sizes[i]).choose(most, self.sizes[i]),)


def _sizes(k: Kernel, rooms: _Rooms, x: Place, eight: int, *, even: bool) -> Ints:
    """Sizes of eight values into their room; the bits of those that are negative.

    even: their number is made even, by the sign of the value that counts least
    """
    places = range(8 * eight, 8 * eight + 8)
    negative = [~(x[i] >= 0) for i in places]
    sizes = [mask.choose(-x[i], x[i]) for i, mask in zip(places, negative, strict=True)]
    bits = [mask.bit(number) for number, mask in enumerate(negative)]
    if even:
        weighed = [rooms.weights[i] * x[i] * x[i] for i in places]
        least, which = weighed[0], k.constant(0)
        for number, one in enumerate(weighed[1:], 1):
            less = one < least
            least, which = less.choose(one, least), less.choose(k.constant(number), which)
        total = functools.reduce(operator.add, [mask.bit(0).floats() for mask in negative])
        uneven = (total.rounded() & 1).floats() > 0
        flips = [uneven & which.same(number) for number in range(8)]
        sizes = [flip.choose(-size, size) for flip, size in zip(flips, sizes, strict=True)]
        bits = [bit ^ flip.bit(number) for number, (bit, flip) in enumerate(zip(bits, flips, strict=True))]
    for i, size in zip(places, sizes, strict=True):
        rooms.sizes[i] = size
    return joined(bits)


class _Fit:
    """The search for a sub-block's scale, with the codes that go with it."""

    def __init__(self, k: Kernel, rooms: _Rooms, kind: Kind, search: Search) -> None:
        self.k, self.rooms, self.kind, self.search = k, rooms, kind, search

    def __call__(self, most: Floats) -> Floats:
        """The best scale; its codes are in rooms.best. most: the largest value"""
        k, rooms, kind = self.k, self.rooms, self.kind
        zero, one = k.constant(0), k.constant(1)
        for group in range(GROUPS):
            rooms.best_on_grid[group] = one if kind.even else zero

        def attempt(number: Index, scale: Floats, best: Floats) -> Sequence[Floats]:
            inverse = ((k.number(number) - kind.reach) * 0.2 + TOP) / most
            self._codes(inverse, one / inverse)
            sum_qx, sum_q2 = self._sums(rooms.tried)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            for room, tried, count in ((rooms.best, rooms.tried, SIZE), (rooms.best_on_grid, rooms.on_grid, GROUPS)):
                self._keep(better, room, tried, count)
            found = sum_qx / sum_q2
            return better.choose(found, scale), better.choose(found * sum_qx, best)

        scale, _ = k.loop(0, 2 * kind.reach + 1, [most / TOP, zero], attempt)
        on_grid = functools.reduce(operator.mul, [rooms.best_on_grid[group] for group in range(GROUPS)])
        again = on_grid.same(0) & (scale > 0)  # with the scale itself instead of one that was tried
        self._codes(one / scale, scale)
        for group in range(GROUPS):
            changed = again & rooms.best_on_grid[group].same(0) if kind.even else again
            first = GROUP * group
            self._keep(changed, rooms.best.from_(first), rooms.tried.from_(first), GROUP)
        sum_qx, sum_q2 = self._sums(rooms.best)
        return (again & (sum_q2 > 0)).choose(sum_qx / sum_q2, scale)

    def _codes(self, inverse: Floats, scale: Floats) -> None:
        """Those of a scale into rooms.tried, on the grid."""
        k, rooms = self.k, self.rooms

        def of_group(group: Index) -> Sequence[Floats]:
            first = k.builder.mul(group, group.type(GROUP))
            found = []
            for i in range(GROUP):
                place = k.builder.add(first, group.type(i))
                code = ((inverse * rooms.sizes[place] - 1) * 0.5).rounded().clipped(0, LEVELS - 1)
                rooms.tried[place] = code.floats()
                found.append(code << 3 * i)
            rooms.numbers[group] = joined(found).floats()
            rooms.on_grid[group] = k.constant(1)
            return ()

        k.loop(0, GROUPS, [], of_group)
        rooms.scale[0] = scale
        self.search(rooms.numbers, rooms.sizes, rooms.roots, rooms.scale, rooms.tried, rooms.on_grid)

    def _sums(self, codes: Place) -> list[Floats]:
        rooms = self.rooms

        def add(i: Index, sum_qx: Floats, sum_q2: Floats) -> Sequence[Floats]:
            w, q = rooms.weights[i], codes[i] * 2 + 1
            return sum_qx + w * rooms.sizes[i] * q, sum_q2 + w * q * q

        return self.k.loop(0, SIZE, [self.k.constant(0), self.k.constant(0)], add)

    def _keep(self, where: Mask, room: Place, tried: Place, count: int) -> None:
        def one(i: Index) -> Sequence[Floats]:
            room[i] = where.choose(tried[i], room[i])
            return ()

        self.k.loop(0, count, [], one)
