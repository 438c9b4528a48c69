"""Blocks beside each other: a tile has the same place of LANES blocks in one vector."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, Compiled, Floats, Index, Kernel, Place

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


def importance_tiles(importance: F32, shape: tuple[int, ...], size: int) -> F32:
    """As `tiles`, of (columns,) that hold for every row of (rows, columns)."""
    return tiles(np.ascontiguousarray(np.broadcast_to(importance, shape)), size)


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


@functools.cache
def signed_codes(size: int, least: int) -> Compiled:
    """Kernel: (tiles of values, scale) -> codes from `least` to -least - 1, a byte each, from zero up."""
    k = Kernel("signed_codes", [size, 1, -size])

    def tile(x: Place, scales: Place, out: Place) -> None:
        scale = scales[0]

        def store(i: Index) -> Sequence[Floats]:
            out[i] = (x[i] / scale).rounded().clipped(least, -least - 1).plus(-least)
            return ()

        k.loop(0, size, [], store)

    return k.compiled(tile)


def sigma_squared(values: F32, block: int) -> F32:
    """Twice the mean square of every block."""
    whole = tiles(values, block)
    found = np.empty(len(whole) * LANES, np.float32)
    _sum_of_squares(block)(len(whole), whole, found)
    return found[: values.size // block] * np.float32(2.0 / block)


@functools.cache
def _sum_of_squares(size: int) -> Compiled:
    """Kernel: (tiles of values) -> the sum of their squares, one after the other."""
    k = Kernel("sum_of_squares", [size, 1])

    def tile(x: Place, out: Place) -> None:
        (out[0],) = k.loop(0, size, [k.constant(0)], lambda i, s: [s + x[i] * x[i]])

    return k.compiled(tile)
