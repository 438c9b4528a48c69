"""The grids of IQ3_XXS and IQ3_S: which groups of four codes there are, and which stand for those that there are not.

ggml takes for a group off the grid one of its neighbours: the points of the grid at the least distances
(iq3xs_init_impl of ggml-quants.c). The grids themselves are gguf-py's.
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

GROUP, LEVELS = 4, 8
"""Codes of a group, and how many there are of each."""
POINTS = LEVELS**GROUP
DISTANCES = {"IQ3_XXS": 2, "IQ3_S": 3}
"""So many different distances count as the least."""
_F32, _I64 = ir.FloatType(), ir.IntType(64)


@dataclass(frozen=True)
class Grid:
    """index: by the number of a group of codes its place on the grid, -1 where it is not

    chunks, first: how many chunks of WIDTH neighbours a group off the grid has, and the first of them
    neighbours: 2 * code + 1 of each, (chunks, GROUP, WIDTH); the last chunk is filled up with its last neighbour
    """

    index: npt.NDArray[np.int32]
    chunks: F32
    first: F32
    neighbours: F32


@functools.cache
def grid(name: str) -> Grid:
    """The grid of a type."""
    import gguf.quants

    kind: Any = getattr(gguf.quants, name)
    kind.init_grid()
    codes = np.searchsorted(np.asarray(kind.grid_map, np.float32), kind.grid.reshape(-1, GROUP))
    shifts = 3 * np.arange(GROUP)
    index = np.full(POINTS, -1, np.int32)
    index[(codes << shifts).sum(1)] = np.arange(len(codes), dtype=np.int32)
    points = (np.arange(POINTS)[:, None] >> shifts) & (LEVELS - 1)
    distances = (4 * (points[:, None] - codes) ** 2).sum(2)
    order = np.argsort(distances, axis=1, kind="stable")  # equal ones by their place on the grid
    ranked = np.take_along_axis(distances, order, 1)
    steps = (np.diff(ranked, axis=1, prepend=ranked[:, :1]) > 0).cumsum(1)
    counts = np.where(index < 0, (steps < DISTANCES[name]).sum(1), 0)
    chunks = -(-counts // WIDTH)
    first = np.concatenate([[0], chunks.cumsum()[:-1]])
    found = np.zeros((chunks.sum() + 1, WIDTH), np.int64)  # one more: nothing beyond is read, whatever is compared
    for point in np.flatnonzero(chunks):
        own = order[point, : counts[point]]
        filled = np.concatenate([own, np.repeat(own[-1:], chunks[point] * WIDTH - len(own))])
        found[first[point] : first[point] + chunks[point]] = filled.reshape(-1, WIDTH)
    neighbours = (2 * codes[found] + 1).transpose(0, 2, 1)
    as_floats = [np.ascontiguousarray(one, np.float32) for one in (chunks, first, neighbours)]
    return Grid(index, *as_floats)


class Search:
    """In a kernel: puts the nearest neighbour in the place of every group off the grid (iq3_find_best_neighbour).

    tables: places of a grid's chunks, first and neighbours; groups: of a tile
    """

    def __init__(self, kernel: Kernel, tables: tuple[Place, Place, Place], groups: int) -> None:
        self.k, self.builder, self.groups = kernel, kernel.builder, groups
        self.chunks, self.first, self.neighbours = (table.pointer for table in tables)

    def __call__(self, number: Place, x: Place, weights: Place, scale: Place, codes: Place, on_grid: Place) -> None:
        """Change `codes` and `on_grid` of groups off the grid.

        number: of the group, as a float, a vector each; x, weights, codes: GROUP vectors each; scale: a vector
        """
        k, builder = self.k, self.builder
        lanes = ir.Constant(_I64, k.lanes)

        def one(index: Any) -> tuple[()]:  # noqa: ANN401 - a value of llvmlite
            which = builder.fptoui(self._load(number.pointer, index), _I64)
            chunks = builder.fptoui(self._load(self.chunks, which), _I64)
            with builder.if_then(builder.icmp_unsigned(">", chunks, ir.Constant(_I64, 0))):
                lane = builder.urem(index, lanes)
                group = builder.mul(builder.sub(index, lane), ir.Constant(_I64, GROUP))
                at = [builder.add(group, builder.add(lane, ir.Constant(_I64, i * k.lanes))) for i in range(GROUP)]
                first = builder.fptoui(self._load(self.first, which), _I64)
                values = [(self._spread(x.pointer, place), self._spread(weights.pointer, place)) for place in at]
                best = self._best(first, chunks, values, self._spread(scale.pointer, lane))
                for i, place in enumerate(at):
                    level = self._load(self.neighbours, builder.add(best, ir.Constant(_I64, i * WIDTH)))
                    code = builder.fmul(builder.fsub(level, ir.Constant(_F32, 1.0)), ir.Constant(_F32, 0.5))
                    builder.store(code, builder.gep(codes.pointer, [place], source_etype=_F32), align=4)
                flag = builder.gep(on_grid.pointer, [index], source_etype=_F32)
                builder.store(ir.Constant(_F32, 0.0), flag, align=4)
            return ()

        k.loop(0, self.groups * k.lanes, [], one)

    def _best(self, first: Any, chunks: Any, values: list[tuple[Floats, Floats]], scale: Floats) -> Any:  # noqa: ANN401
        """Where the first level of the best neighbour lies."""
        builder, kind = self.builder, ir.VectorType(_F32, WIDTH)

        def chunk(number: Any, least: Floats, best: Floats) -> tuple[Floats, Floats]:  # noqa: ANN401
            start = builder.mul(builder.add(first, number), ir.Constant(_I64, GROUP * WIDTH))
            total: Floats | None = None
            for i, (x, weight) in enumerate(values):
                place = builder.add(start, ir.Constant(_I64, i * WIDTH))
                pointer = builder.gep(self.neighbours, [place], source_etype=_F32)
                off = scale * Floats(builder, builder.load(pointer, typ=kind, align=4)) - x
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
