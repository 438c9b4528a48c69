"""Codes of blocks as they lie, and how the types put them into bytes (ggml-common.h), in one kernel.

A block is sixteen vectors of sixteen codes.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import WIDTH, Compiled, Floats, Ints, Kernel, Place, Singles, joined
from targets.gguf.simd.tiles import BLOCK

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Codes = Sequence[Ints]
    Layout = Callable[..., None]
    """Codes, and places for vectors of bytes."""

VECTORS = BLOCK // WIDTH


def pack_two(codes: Codes, out: Place) -> None:
    """Four codes of two bits to a byte, 32 places from one another (Q2_K, the lower bits of Q3_K)."""
    for half in range(2):
        for v in range(2):
            out[2 * half + v] = joined([codes[8 * half + v + 2 * n] << 2 * n for n in range(4)])


def pack_three(codes: Codes, high: Place, low: Place) -> None:
    """The upper bit of eight codes to a byte, then as `pack_two`."""
    for v in range(2):
        high[v] = joined([(codes[2 * n + v] >> 2) << n for n in range(8)])
    pack_two([code & 3 for code in codes], low)


def pack_four(codes: Codes, out: Place) -> None:
    """Two codes of four bits to a byte, 32 places from each other (Q4_K, the lower bits of Q5_K)."""
    for pair in range(4):
        for v in range(2):
            out[2 * pair + v] = codes[4 * pair + v] | codes[4 * pair + 2 + v] << 4


def pack_five(codes: Codes, high: Place, low: Place) -> None:
    """The upper bit of eight codes to a byte, then as `pack_four`."""
    for v in range(2):
        high[v] = joined([(codes[2 * n + v] >> 4) << n for n in range(8)])
    pack_four([code & 15 for code in codes], low)


def pack_six(codes: Codes, low: Place, high: Place) -> None:
    """The lower bits of two codes to a byte, 64 places from each other; the upper ones of four, 32 places (Q6_K)."""
    for half in range(2):
        for v in range(2):
            four = [codes[8 * half + v + 2 * n] for n in range(4)]
            for first in range(2):
                low[4 * half + 2 * first + v] = four[first] & 15 | (four[first + 2] & 15) << 4
            high[2 * half + v] = joined([(code >> 4) << 2 * n for n, code in enumerate(four)])


SHIFTED: dict[int, tuple[Layout, tuple[int, ...]]] = {
    2: (pack_two, (4,)), 4: (pack_four, (8,)), 5: (pack_five, (2, 8)),
}  # fmt: skip
SIGNED: dict[int, tuple[Layout, tuple[int, ...]]] = {3: (pack_three, (2, 4)), 6: (pack_six, (8, 4))}
"""By the bits of a code: how they are packed, and vectors of bytes at each place."""


def shifted_codes(values: F32, scale: F32, minimum: F32, bits: int) -> list[U8]:
    """Codes of scale * code - minimum, packed, (blocks, bytes) for each place; zero where there is no scale.

    scale, minimum: (blocks, parts)
    """
    return _run(_shifted(bits, scale.shape[1]), values, len(scale), SHIFTED[bits][1], scale, minimum)


def signed_codes(values: F32, scale: F32, bits: int) -> list[U8]:
    """Codes of scale * (code - 2**(bits - 1)), packed, as `shifted_codes`; the least code where there is no scale."""
    return _run(_signed(bits, scale.shape[1]), values, len(scale), SIGNED[bits][1], scale)


def _run(kernel: Compiled, values: F32, blocks: int, vectors: Sequence[int], *scales: F32) -> list[U8]:
    found = [np.empty((blocks, count * WIDTH), np.uint8) for count in vectors]
    kernel(blocks, values, *map(np.ascontiguousarray, scales), *found)
    return found


@functools.cache
def _shifted(bits: int, parts: int) -> Compiled:
    """Kernel, a tile is a block: (values, scale, minimum) -> packed codes."""
    layout, vectors = SHIFTED[bits]
    k = Kernel("code_shifted", [VECTORS, Singles(parts), Singles(parts), *(-count for count in vectors)], WIDTH)

    def block(x: Place, scales: Place, minima: Place, *out: Place) -> None:
        def code(value: Floats, part: int) -> Ints:
            scale = scales[part]
            found = scale.same(0).choose(k.constant(0), (value + minima[part]) / scale)
            return found.rounded().clipped(0, 2**bits - 1)

        layout([code(x[v], v * parts // VECTORS) for v in range(VECTORS)], *out)

    return k.compiled(block)


@functools.cache
def _signed(bits: int, parts: int) -> Compiled:
    """Kernel, a tile is a block: (values, scale) -> packed codes."""
    layout, vectors = SIGNED[bits]
    least = -(2 ** (bits - 1))
    k = Kernel("code_signed", [VECTORS, Singles(parts), *(-count for count in vectors)], WIDTH)

    def block(x: Place, scales: Place, *out: Place) -> None:
        def code(value: Floats, part: int) -> Ints:
            scale = scales[part]
            found = scale.same(0).choose(k.constant(least), value / scale)
            return found.rounded().clipped(least, -least - 1).plus(-least)

        layout([code(x[v], v * parts // VECTORS) for v in range(VECTORS)], *out)

    return k.compiled(block)
