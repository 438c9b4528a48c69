"""IQ2 and IQ3: weight = sign * scale * (2 * code + 1), groups of codes on a grid (quantize_row_iq2_*, _iq3_*_impl)."""

from __future__ import annotations

import functools
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.grid import THREES, TWOS, Form, Search, grid
from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Ints, Kernel, Mask, Place, Repeated, Singles, joined
from targets.gguf.simd.lattice_packing import PACKED
from targets.gguf.simd.steps import fit_steps
from targets.gguf.simd.tiles import (
    BLOCK,
    EPS,
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


@dataclass(frozen=True)
class Kind:
    """What is different between the types.

    size: weights of a sub-block
    reach, step: of the scales that are tried, to both sides of the middle one
    even: signs of eight weights multiply to plus, and only seven of them are stored
    again: which groups get codes by the scale that was found: "off" the grid, "all" where one is off it, or "always"
    nothing: values below it count as zero; factor: that the stored scale is multiplied by
    sigma: what the mean square of a block counts in the weights; plain: and what without importance
    fitted: what is tried begins at a step that is fitted without a grid
    """

    form: Form
    size: int
    reach: int
    step: float
    even: bool
    again: str
    nothing: float
    factor: float = 1.0
    sigma: float = 1.0
    plain: float = 0.0
    fitted: bool = False

    @property
    def groups(self) -> int:
        """Of a sub-block."""
        return self.size // self.form.codes

    @property
    def top(self) -> int:
        """The largest level."""
        return 2 * self.form.levels - 1


KINDS = {
    "IQ2_XXS": Kind(TWOS, 32, 6, 0.1, True, "always", EPS, fitted=True),
    "IQ2_XS": Kind(TWOS, 16, 9, 0.1, True, "off", EPS),
    "IQ2_S": Kind(TWOS, 16, 9, 0.1, False, "off", 1e-8, 0.9875, 2.0, 0.25),
    "IQ3_XXS": Kind(THREES, 32, 15, 0.2, True, "off", 1e-8, 1.0125, 2.0),
    "IQ3_S": Kind(THREES, 32, 9, 0.2, False, "all", 0.0, 1.033, 2.0),
}


def quantize(values: F32, importance: F32 | None, name: str) -> tuple[U8, Flags]:
    """Blocks of a type, shape (blocks, bytes), and those that are ggml's; as `shifted.quantize`."""
    kind, known = KINDS[name], grid(name)
    count, parts, eights = values.size // kind.size, BLOCK // kind.size, kind.size // 8
    tiles, x = whole_tiles(values, kind.size)
    scales, codes = np.empty(tiles * LANES, np.float32), np.empty((tiles, kind.size, LANES), np.uint8)
    signs = np.empty((tiles, eights, LANES), np.uint8)
    found = known.chunks, known.first, known.neighbours, scales, codes, signs
    sigma = per_lane(np.repeat(sigma_squared(values, BLOCK, kind.sigma), parts))
    if importance is None:
        _search(name, weighted=False)(tiles, x, sigma, *found)
    else:
        weights = importance_tiles(importance, kind.size)
        _search(name, weighted=True)(tiles, x, sigma, weights, *found, repeated=len(weights))
    scale = scales[:count].reshape(-1, parts)
    numbers = untiled(codes, count).reshape(-1, kind.form.codes).astype(np.int32) << kind.form.shifts
    index = known.index[numbers.sum(1)].reshape(-1, parts, kind.groups)
    odd = ~(scale >= 0).all(1) | (index < 0).any((1, 2))
    if name == "IQ3_S":
        odd |= (scale == 0).any(1)  # where a sub-block is skipped there, what follows moves up
    step = scale.max(1) / np.float32(31)
    inverse = np.float32(1) / step
    ls = np.clip(nearest(np.float32(0.5) * (inverse[:, None] * scale - np.float32(1))), 0, 15).astype(np.uint8)
    d = (step * np.float32(kind.factor)).astype(np.float16)
    return PACKED[name](d, index, untiled(signs, count).reshape(-1, parts, eights), ls), odd


@functools.cache
def _search(name: str, *, weighted: bool) -> Compiled:
    """Kernel: (values as they lie, sigma2[, tiles of importance], tables) -> scale, codes, signs of eight in a byte."""
    kind = KINDS[name]
    size, eights = kind.size, kind.size // 8
    rest: list[int | Singles | Repeated] = [Singles(0), Singles(0), Singles(0), 1, -size, -eights]
    k = Kernel("search_grid", [size, 1, Repeated(size), *rest] if weighted else [size, 1, *rest])
    rooms = _Rooms(k, kind)

    def tile(values: Place, sigma: Place, *rest: Place) -> None:
        x = turned(k, values, size)
        tables, (scales, out, signs) = rest[-6:-3], rest[-3:]

        def weigh(i: Index) -> Sequence[Floats]:
            square = x[i] * x[i]
            plain = sigma[0] * kind.plain + square if kind.plain else square
            rooms.weights[i] = rest[0][i] * k.sqrt(sigma[0] + square) if weighted else plain
            rooms.roots[i] = k.sqrt(rooms.weights[i])
            rooms.best[i] = k.constant(0)
            return ()

        k.loop(0, size, [], weigh)
        bits = [_sizes(k, rooms, x, eight, even=kind.even) for eight in range(eights)]
        (most,) = k.loop(1, size, [rooms.sizes[0]], rooms.larger)
        nothing = most < kind.nothing if kind.nothing else most.same(0)
        middle, scale = most, most / kind.top
        if kind.fitted:
            scale, _ = fit_steps(k, rooms.sizes, rooms.weights, rooms.tried, size, kind.form.levels + 1)
            middle = scale * kind.form.levels
            nothing = nothing | ~(middle > 0)
        search = Search(k, (tables[0], tables[1], tables[2]), kind.groups, kind.form.codes)
        scales[0] = nothing.choose(k.constant(0), _Fit(k, rooms, kind, search)(middle, scale))

        def store(i: Index) -> Sequence[Floats]:
            out[i] = nothing.choose(k.constant(0), rooms.best[i]).rounded()
            return ()

        k.loop(0, size, [], store)
        for eight, found in enumerate(bits):
            signs[eight] = nothing.choose(k.constant(0), (found & 127 if kind.even else found).floats()).rounded()

    return k.compiled(tile)


class _Rooms:
    """Of a tile: weights and their roots, sizes of values, codes that are tried and the best, what goes with groups."""

    def __init__(self, k: Kernel, kind: Kind) -> None:
        self.weights, self.roots, self.sizes, self.tried, self.best = (k.room(kind.size) for _ in range(5))
        self.numbers, self.on_grid, self.best_on_grid = (k.room(kind.groups) for _ in range(3))
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

    def __call__(self, most: Floats, scale: Floats) -> Floats:
        """The best scale; its codes are in rooms.best.

        most: the largest value, for the scales that are tried; scale: where none of these is better than nothing
        """
        k, rooms, kind = self.k, self.rooms, self.kind
        zero, one = k.constant(0), k.constant(1)
        for group in range(kind.groups):
            rooms.best_on_grid[group] = one if kind.again == "off" else zero

        def attempt(number: Index, scale: Floats, best: Floats) -> Sequence[Floats]:
            inverse = ((k.number(number) - kind.reach) * kind.step + kind.top) / most
            self._codes(inverse, one / inverse)
            sum_qx, sum_q2 = self._sums(rooms.tried)
            better = (sum_q2 > 0) & (sum_qx * sum_qx > best * sum_q2)
            self._keep(better, rooms.best, rooms.tried, kind.size)
            self._keep(better, rooms.best_on_grid, rooms.on_grid, kind.groups)
            found = sum_qx / sum_q2
            return better.choose(found, scale), better.choose(found * sum_qx, best)

        scale, _ = k.loop(0, 2 * kind.reach + 1, [scale, zero], attempt)
        again = scale > 0  # with the scale itself instead of one that was tried
        if kind.again != "always":
            on_grid = functools.reduce(operator.mul, [rooms.best_on_grid[group] for group in range(kind.groups)])
            again = again & on_grid.same(0)
        self._codes(one / scale, scale)
        for group in range(kind.groups):
            changed = again & rooms.best_on_grid[group].same(0) if kind.again == "off" else again
            first = kind.form.codes * group
            self._keep(changed, rooms.best.from_(first), rooms.tried.from_(first), kind.form.codes)
        sum_qx, sum_q2 = self._sums(rooms.best)
        return (again & (sum_q2 > 0)).choose(sum_qx / sum_q2, scale)

    def _codes(self, inverse: Floats, scale: Floats) -> None:
        """Those of a scale into rooms.tried, on the grid."""
        k, rooms, form = self.k, self.rooms, self.kind.form

        def of_group(group: Index) -> Sequence[Floats]:
            first = k.builder.mul(group, group.type(form.codes))
            found = []
            for i in range(form.codes):
                place = k.builder.add(first, group.type(i))
                code = ((inverse * rooms.sizes[place] - 1) * 0.5).rounded().clipped(0, form.levels - 1)
                rooms.tried[place] = code.floats()
                found.append(code << form.bits * i)
            rooms.numbers[group] = joined(found).floats()
            rooms.on_grid[group] = k.constant(1)
            return ()

        k.loop(0, self.kind.groups, [], of_group)
        rooms.scale[0] = scale
        self.search(rooms.numbers, rooms.sizes, rooms.roots, rooms.scale, rooms.tried, rooms.on_grid)

    def _sums(self, codes: Place) -> list[Floats]:
        rooms = self.rooms

        def add(i: Index, sum_qx: Floats, sum_q2: Floats) -> Sequence[Floats]:
            w, q = rooms.weights[i], codes[i] * 2 + 1
            return sum_qx + w * rooms.sizes[i] * q, sum_q2 + w * q * q

        return self.k.loop(0, self.kind.size, [self.k.constant(0), self.k.constant(0)], add)

    def _keep(self, where: Mask, room: Place, tried: Place, count: int) -> None:
        def one(i: Index) -> Sequence[Floats]:
            room[i] = where.choose(tried[i], room[i])
            return ()

        self.k.loop(0, count, [], one)
