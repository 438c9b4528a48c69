"""Blocks beside each other: a tile has the same place of LANES blocks in one vector."""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, WIDTH, Compiled, Floats, Index, Kernel, Place

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]

BLOCK = 256
"""Weights of a block of the k-quants."""
EPS = 1e-15
"""GROUP_MAX_EPS of ggml: what is smaller counts as zero."""


def tiles(values: F32, size: int) -> F32:
    """Sub-blocks of `size` values, LANES beside each other, shape (tiles, size, LANES); zeros fill up the last one."""
    blocks = values.reshape(-1, size)
    if short := -len(blocks) % LANES:
        blocks = np.concatenate([blocks, np.zeros((short, size), np.float32)])
    return np.ascontiguousarray(blocks.reshape(-1, LANES, size).transpose(0, 2, 1))


def whole_tiles(values: F32, size: int) -> tuple[int, F32]:
    """Tiles of sub-blocks of `size` values, and the values as they lie; zeros fill up the last tile."""
    flat = values.reshape(-1)
    if short := -flat.size % (LANES * size):
        flat = np.concatenate([flat, np.zeros(short, np.float32)])
    return flat.size // (LANES * size), flat


def importance_tiles(importance: F32, size: int) -> F32:
    """As `tiles`, of (columns,) that hold for every row: as many as there are until a row begins with a tile again."""
    return tiles(np.tile(importance, math.lcm(len(importance), LANES * size) // len(importance)), size)


def turned(k: Kernel, natural: Place, size: int) -> Place:
    """In a kernel: sub-blocks that lie one behind the other, as a tile."""
    found, width = k.room(size), size // WIDTH
    for part in range(width):
        for place, value in enumerate(columns(k, natural, width, part)):
            found[part * WIDTH + place] = value
    return found


def columns(k: Kernel, natural: Place, width: int, part: Index | int) -> list[Floats]:
    """In a kernel: of sub-blocks that lie one behind the other, `width` times WIDTH values each, one piece turned."""
    values = natural.narrow()
    groups = [
        k.turned([values.from_((first + block) * width)[part] for block in range(WIDTH)])
        for first in range(0, k.lanes, WIDTH)
    ]
    return [k.beside(parts) for parts in zip(*groups, strict=True)]


def untiled(codes: U8, count: int) -> U8:
    """Codes by sub-block, shape (count, size), from those of tiles, (tiles, size, LANES)."""
    return codes.transpose(0, 2, 1).reshape(-1, codes.shape[1])[:count]


def per_lane(values: F32) -> F32:
    """One for each lane of all tiles; ones fill up the last."""
    flat = values.reshape(-1)
    return np.concatenate([flat, np.ones(-len(flat) % LANES, np.float32)])


def nearest(values: F32) -> npt.NDArray[np.int32]:
    """ggml's nearest_int."""
    bits = (values + np.float32(12582912.0)).view(np.int32)
    return (bits & 0x007FFFFF) - 0x00400000


def of_largest(values: F32) -> F32:
    """Of every row the first value of the largest size, shape (rows, 1)."""
    return np.take_along_axis(values, np.abs(values).argmax(1)[:, None], 1)


def largest_of(k: Kernel, x: Place, size: int) -> tuple[Floats, Floats]:
    """In a kernel: the largest size of a sub-block's values, and the first value that has it."""

    def larger(i: Index, most: Floats, value: Floats) -> Sequence[Floats]:
        found = k.abs(x[i])
        more = found > most
        return more.choose(found, most), more.choose(x[i], value)

    most, value = k.loop(0, size, [k.constant(0), k.constant(0)], larger)
    return most, value


def sigma_squared(values: F32, block: int, times: float) -> F32:
    """The mean square of every block, `times` it; the size of a block is a power of two."""
    return sum_of_squares(values, block) * np.float32(times / block)


def sum_of_squares(values: F32, size: int) -> F32:
    """Of every `size` values, one added after the other."""
    count, whole = whole_tiles(values, size)
    found = np.empty(count * LANES, np.float32)
    _sum_of_squares(size)(count, whole, found)
    return found[: values.size // size]


@functools.cache
def _sum_of_squares(size: int) -> Compiled:
    """Kernel: (values as they lie) -> the sum of the squares of each block, one added after the other."""
    k = Kernel("sum_of_squares", [size, 1])
    width = size // WIDTH

    def tile(x: Place, out: Place) -> None:
        def add(part: Index, total: Floats) -> Sequence[Floats]:
            for value in columns(k, x, width, part):
                total = total + value * value
            return (total,)

        (out[0],) = k.loop(0, width, [k.constant(0)], add)

    return k.compiled(tile)
