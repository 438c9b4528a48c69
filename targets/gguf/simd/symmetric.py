"""Q4_0 and Q5_0 with importance: weight = scale * code in blocks of 32 (make_qx_quants, rmse_type 1)."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from targets.gguf.simd.lanes import LANES, WIDTH, Compiled, Floats, Index, Ints, Kernel, Place, Repeated, Singles
from targets.gguf.simd.signed import fit_signed
from targets.gguf.simd.tiles import importance_tiles, per_lane, sum_of_squares, turned, whole_tiles

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy.typing as npt

    F32 = npt.NDArray[np.float32]
    U8 = npt.NDArray[np.uint8]
    Flags = npt.NDArray[np.bool_]

SIZE = 32
NOTHING = 0.0
"""What values that all count as zero are multiplied by; their codes are the least one."""


def quantize(values: F32, importance: F32 | None, bits: int) -> tuple[U8, Flags]:
    """Blocks of Q4_0 or Q5_0, shape (blocks, bytes); none is left to ggml. As `shifted.quantize`, with importance only.

    Raises ValueError without importance.
    """
    if importance is None:
        raise ValueError("without importance it is ggml's work")
    blocks, columns = values.size // SIZE, values.shape[1]
    tiles, x = whole_tiles(values, SIZE)
    scale, inverse = (np.empty(tiles * LANES, np.float32) for _ in range(2))
    # What a weight counts beside its importance is of the whole row here.
    sigma = per_lane(np.repeat(sum_of_squares(values, columns) / np.float32(columns), columns // SIZE))
    weights = importance_tiles(importance, SIZE)
    _search(bits)(tiles, x, weights, sigma, scale, inverse, repeated=len(weights))
    low, high = np.empty((blocks, SIZE // 2), np.uint8), np.empty((blocks, SIZE), np.uint8)
    _coding(bits)(blocks, x, inverse, low, high)
    # block_q4_0, block_q5_0 of ggml-common.h
    fifth = [np.packbits(high, 1, "little")] if bits > 4 else []
    out = np.concatenate([scale[:blocks, None].astype(np.float16).view(np.uint8), *fifth, low], axis=1)
    return out, np.zeros(blocks, np.bool_)


@functools.cache
def _search(bits: int) -> Compiled:
    """Kernel: (values as they lie, tiles of importance, sigma2 of each block) -> scale, what makes codes of values."""
    k = Kernel("search_symmetric", [SIZE, Repeated(SIZE), 1, 1, 1])
    weights = k.room(SIZE)

    def tile(values: Place, importance: Place, sigma: Place, scales: Place, inverses: Place) -> None:
        x = turned(k, values, SIZE)

        def weigh(i: Index) -> Sequence[Floats]:
            weights[i] = importance[i] * k.sqrt(sigma[0] + x[i] * x[i])
            return ()

        k.loop(0, SIZE, [], weigh)
        scale, inverse, none = fit_signed(k, x, lambda i: weights[i], SIZE, 2 ** (bits - 1))
        scales[0], inverses[0] = none.choose(k.constant(0), scale), none.choose(k.constant(NOTHING), inverse)

    return k.compiled(tile)


@functools.cache
def _coding(bits: int) -> Compiled:
    """Kernel, a tile is a block: (values, what makes codes of them) -> lower bits in pairs 16 places apart, fifth."""
    least = -(2 ** (bits - 1))
    k = Kernel("code_symmetric", [SIZE // WIDTH, Singles(1), -SIZE // WIDTH // 2, -SIZE // WIDTH], WIDTH)

    def block(x: Place, inverse: Place, low: Place, high: Place) -> None:
        def code(value: Floats) -> Ints:
            by = inverse[0]
            found = by.same(NOTHING).choose(k.constant(least), by * value)
            return found.rounded().clipped(least, -least - 1).plus(-least)

        codes = [code(x[0]), code(x[1])]
        low[0] = codes[0] & 15 | (codes[1] & 15) << 4
        for number in range(2):
            high[number] = codes[number] >> 4

    return k.compiled(block)
