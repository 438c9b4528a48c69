"""Blocks of one and of two bits that ggml has and gguf-py does not decode: a float16 scale, then codes, low bits first.

Q1_0: 128 weights, each the scale or its opposite. Q2_0: 64 weights, -1, 0, 1 or 2 times the scale.
Source: dequantize_row_q1_0 and dequantize_row_q2_0 of ggml-quants.c.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]
    Floats = npt.NDArray[np.float32]

LEVELS: dict[str, Floats] = {
    "Q1_0": np.array([-1, 1], np.float32),
    "Q2_0": np.array([-1, 0, 1, 2], np.float32),
}
"""What codes stand for, by ggml's names of the types."""
SCALE = 2
"""Bytes of a block's scale, in front of its codes."""
_BLOCK_BYTES = 18


def decoded(kind: str, raw: Bytes) -> Floats:
    """The weights in whole blocks of a type of `LEVELS`, (…, bytes); found: (…, weights)."""
    blocks = raw.reshape(*raw.shape[:-1], -1, _BLOCK_BYTES)
    scales = np.ascontiguousarray(blocks[..., :SCALE]).view("<f2").astype(np.float32)
    codes = np.unpackbits(blocks[..., SCALE:], axis=-1, bitorder="little")
    if kind == "Q2_0":
        codes = codes[..., 0::2] + 2 * codes[..., 1::2]
    found: Floats = (scales * LEVELS[kind][codes]).reshape(*raw.shape[:-1], -1)
    return found


def put(kind: str, raw: Bytes, codes: Bytes) -> None:
    """Write codes, (…, blocks, weights of one), into blocks, (…, blocks, bytes of one)."""
    bits = codes if kind == "Q1_0" else np.stack((codes & 1, codes >> 1), -1).reshape(*codes.shape[:-1], -1)
    raw[..., SCALE:] = np.packbits(bits, axis=-1, bitorder="little")
