"""The grids of IQ2 and IQ3: which groups of codes there are, and which stand for those that there are not.

ggml takes for a group off the grid one of its neighbours: the points of the grid at the least distances
(iq2xs_init_impl, iq3xs_init_impl of ggml-quants.c). The grids themselves are gguf-py's.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from llvmlite import ir

from targets.gguf.simd.lanes import WIDTH, Floats

if TYPE_CHECKING:
    import numpy.typing as npt

    from targets.gguf.simd.lanes import Kernel, Place

    F32 = npt.NDArray[np.float32]
    Ints = npt.NDArray[np.int32]

DISTANCES = {"IQ2_XXS": 2, "IQ2_XS": 2, "IQ2_S": 1, "IQ3_XXS": 2, "IQ3_S": 3}
"""So many different distances count as the least."""
_F32, _I64, _I8 = ir.FloatType(), ir.IntType(64), ir.IntType(8)


@dataclass(frozen=True)
class Form:
    """Groups of `codes` codes, each of `levels` values, that `bits` bits hold."""

    codes: int
    levels: int
    bits: int

    @property
    def shifts(self) -> Ints:
        """Of each code in a group's number."""
        return self.bits * np.arange(self.codes, dtype=np.int32)

    def points(self) -> Ints:
        """All groups, (points, codes)."""
        return np.indices([self.levels] * self.codes, np.int32).reshape(self.codes, -1).T


THREES, TWOS = Form(4, 8, 3), Form(8, 3, 2)


@dataclass(frozen=True)
class Grid:
    """index: by the number of a group its place on the grid, -1 where it is not

    chunks, first: how many chunks of WIDTH neighbours a group off the grid has, and the first of them, as floats
    neighbours: 2 * code + 1 of each, (chunks, codes, WIDTH); the last chunk is filled up with its last neighbour
    """

    form: Form
    index: Ints
    chunks: F32
    first: F32
    neighbours: npt.NDArray[np.int8]


@functools.cache
def grid(name: str) -> Grid:
    """The grid of a type."""
    import gguf.quants

    kind: Any = getattr(gguf.quants, name)
    kind.init_grid()
    form = THREES if name.startswith("IQ3") else TWOS
    codes = np.searchsorted(np.asarray(kind.grid_map, np.float32), kind.grid.reshape(-1, form.codes)).astype(np.int32)
    index = np.full(1 << form.bits * form.codes, -1, np.int32)
    index[(codes << form.shifts).sum(1)] = np.arange(len(codes), dtype=np.int32)
    points = form.points()
    numbers = (points << form.shifts).sum(1)
    points, numbers = points[index[numbers] < 0], numbers[index[numbers] < 0]
    owner, near = _nearest(points, codes, DISTANCES[name])
    counts = np.bincount(owner, minlength=len(points))
    chunks, first = np.zeros((2, len(index)), np.float32)
    own_chunks = -(-counts // WIDTH)
    chunks[numbers] = own_chunks
    first[numbers] = begins = np.concatenate([[0], own_chunks.cumsum()[:-1]])
    found = np.zeros(((own_chunks.sum() + 1) * WIDTH), np.int64)  # one more: nothing beyond is read, whatever compares
    starts = np.concatenate([[0], counts.cumsum()[:-1]])
    found[np.repeat(begins * WIDTH - starts, counts) + np.arange(len(near))] = near
    spare = own_chunks * WIDTH - counts
    filled = np.repeat(begins * WIDTH + counts - (spare.cumsum() - spare), spare) + np.arange(spare.sum())
    found[filled] = np.repeat(near[starts + counts - 1], spare)
    neighbours = (2 * codes[found.reshape(-1, WIDTH)] + 1).transpose(0, 2, 1).astype(np.int8)
    return Grid(form, index, chunks, first, np.ascontiguousarray(neighbours))


def _nearest(points: Ints, codes: Ints, distances: int) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Pairs of a point and a neighbour on the grid, by point; of each the nearer first, then by their place."""
    pairs = []
    for start in range(0, len(points), 128):  # memory stays small
        squares = ((points[start : start + 128, None] - codes) ** 2).sum(2)
        bound = squares.min(1)
        for _ in range(distances - 1):
            bound = np.where(squares > bound[:, None], squares, np.iinfo(np.int32).max).min(1)
        owner, near = np.nonzero(squares <= bound[:, None])
        order = np.lexsort((near, squares[owner, near], owner))
        pairs.append((owner[order] + start, near[order]))
    owners, nears = zip(*pairs, strict=True)
    return np.concatenate(owners), np.concatenate(nears)


class Search:
    """In a kernel: puts the nearest neighbour in the place of every group off the grid (iq3_find_best_neighbour).

    tables: places of a grid's chunks, first and neighbours; groups: of a tile; codes: of a group
    """

    def __init__(self, kernel: Kernel, tables: tuple[Place, Place, Place], groups: int, codes: int) -> None:
        self.k, self.builder, self.groups, self.codes = kernel, kernel.builder, groups, codes
        self.chunks, self.first, self.neighbours = (table.pointer for table in tables)

    def __call__(self, number: Place, x: Place, weights: Place, scale: Place, codes: Place, on_grid: Place) -> None:
        """Change `codes` and `on_grid` of groups off the grid.

        number: of the group, as a float, a vector each; x, weights, codes: a vector for each code; scale: a vector
        """
        k, builder = self.k, self.builder
        lanes = ir.Constant(_I64, k.lanes)

        def one(index: Any) -> tuple[()]:  # noqa: ANN401 - a value of llvmlite
            which = builder.fptoui(self._load(number.pointer, index), _I64)
            chunks = builder.fptoui(self._load(self.chunks, which), _I64)
            with builder.if_then(builder.icmp_unsigned(">", chunks, ir.Constant(_I64, 0))):
                lane = builder.urem(index, lanes)
                group = builder.mul(builder.sub(index, lane), ir.Constant(_I64, self.codes))
                at = [builder.add(group, builder.add(lane, ir.Constant(_I64, i * k.lanes))) for i in range(self.codes)]
                first = builder.fptoui(self._load(self.first, which), _I64)
                values = [(self._spread(x.pointer, place), self._spread(weights.pointer, place)) for place in at]
                best = self._best(first, chunks, values, self._spread(scale.pointer, lane))
                for place in at:
                    pointer = builder.gep(self.neighbours, [best], source_etype=_I8)
                    best = builder.add(best, ir.Constant(_I64, WIDTH))
                    level = builder.sitofp(builder.load(pointer, typ=_I8), _F32)
                    code = builder.fmul(builder.fsub(level, ir.Constant(_F32, 1.0)), ir.Constant(_F32, 0.5))
                    builder.store(code, builder.gep(codes.pointer, [place], source_etype=_F32), align=4)
                flag = builder.gep(on_grid.pointer, [index], source_etype=_F32)
                builder.store(ir.Constant(_F32, 0.0), flag, align=4)
            return ()

        k.loop(0, self.groups * k.lanes, [], one)

    def _best(self, first: Any, chunks: Any, values: list[tuple[Floats, Floats]], scale: Floats) -> Any:  # noqa: ANN401
        """Where the first level of the best neighbour lies."""
        builder = self.builder
        levels, floats = ir.VectorType(_I8, WIDTH), ir.VectorType(_F32, WIDTH)

        def chunk(number: Any, least: Floats, best: Floats) -> tuple[Floats, Floats]:  # noqa: ANN401
            start = builder.mul(builder.add(first, number), ir.Constant(_I64, self.codes * WIDTH))
            total: Floats | None = None
            for i, (x, weight) in enumerate(values):
                place = builder.add(start, ir.Constant(_I64, i * WIDTH))
                pointer = builder.gep(self.neighbours, [place], source_etype=_I8)
                level = builder.sitofp(builder.load(pointer, typ=levels, align=1), floats)
                off = scale * Floats(builder, level) - x
                part = weight * off * off
                total = part if total is None else total + part
            assert total is not None
            smallest = self._smallest(total)
            same = total.same(Floats(builder, self.k.spread(smallest, WIDTH)))
            bits = builder.zext(builder.bitcast(same.value, ir.IntType(WIDTH)), _I64)
            lane = builder.cttz(bits, ir.Constant(ir.IntType(1), 0))
            better = builder.fcmp_ordered("<", smallest, least.value)
            found = builder.select(better, builder.add(start, lane), best.value)
            return Floats(builder, builder.select(better, smallest, least.value)), Floats(builder, found)

        largest = ir.Constant(_F32, float(np.finfo(np.float32).max))
        start = [Floats(builder, largest), Floats(builder, ir.Constant(_I64, 0))]
        return self.k.loop(0, chunks, start, chunk)[1].value

    def _smallest(self, values: Floats) -> Any:  # noqa: ANN401 - a value of llvmlite
        """The smallest of a vector's lanes."""
        width = WIDTH // 2
        while width:
            lanes = [(lane + width) % WIDTH for lane in range(WIDTH)]
            other = Floats(self.builder, self.k.shuffled(values.value, values.value, lanes))
            values = (values < other).choose(values, other)
            width //= 2
        return self.builder.extract_element(values.value, ir.Constant(ir.IntType(32), 0))

    def _load(self, pointer: Any, index: Any) -> Any:  # noqa: ANN401 - values of llvmlite
        return self.builder.load(self.builder.gep(pointer, [index], source_etype=_F32), typ=_F32, align=4)

    def _spread(self, pointer: Any, index: Any) -> Floats:  # noqa: ANN401 - values of llvmlite
        return Floats(self.builder, self.k.spread(self._load(pointer, index), WIDTH))
