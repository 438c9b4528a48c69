"""The bytes of blocks of IQ2 and IQ3 (block_iq2_* and block_iq3_* of ggml-common.h).

Of each block: its step, shape (blocks,); the places of groups on the grid, (blocks, parts, groups); a byte of signs for
every eight weights, (blocks, parts, eights); a code of four bits for the scale of each part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy.typing as npt

    F16 = npt.NDArray[np.float16]
    U8 = npt.NDArray[np.uint8]
    Ints = npt.NDArray[np.int32]
    Packer = Callable[[F16, Ints, U8, U8], U8]


def _iq2_xxs(d: F16, index: Ints, signs: U8, scales: U8) -> U8:
    words = np.stack([index.astype(np.uint8).view(np.uint32)[..., 0], _word(signs, scales)], axis=2)
    return _joined(d, words)


def _iq2_xs(d: F16, index: Ints, signs: U8, scales: U8) -> U8:
    return _joined(d, (index | signs.astype(np.int32) << 9).astype(np.uint16), _pairs(scales))


def _iq2_s(d: F16, index: Ints, signs: U8, scales: U8) -> U8:
    upper = (index >> 8).reshape(len(d), -1, 4) << np.arange(0, 8, 2, dtype=np.int32)
    return _joined(d, index.astype(np.uint8), signs, np.bitwise_or.reduce(upper, 2).astype(np.uint8), _pairs(scales))


def _iq3_xxs(d: F16, index: Ints, signs: U8, scales: U8) -> U8:
    return _joined(d, index.astype(np.uint8), _word(signs, scales))


def _iq3_s(d: F16, index: Ints, signs: U8, scales: U8) -> U8:
    upper = np.bitwise_or.reduce((index >> 8) << np.arange(8, dtype=np.int32), 2)
    return _joined(d, index.astype(np.uint8), upper.astype(np.uint8), signs, _pairs(scales))


def _word(signs: U8, scales: U8) -> npt.NDArray[np.uint32]:
    """Four times seven signs and a scale, (blocks, parts)."""
    sevens = signs.astype(np.uint32) << (7 * np.arange(4, dtype=np.uint32))
    signs_of_all: npt.NDArray[np.uint32] = np.bitwise_or.reduce(sevens, 2)
    return signs_of_all | scales.astype(np.uint32) << np.uint32(28)


def _pairs(scales: U8) -> U8:
    return scales[:, 0::2] | scales[:, 1::2] << np.uint8(4)


def _joined(d: F16, *parts: npt.NDArray[np.generic]) -> U8:
    found = [np.ascontiguousarray(part).reshape(len(d), -1).view(np.uint8) for part in (d, *parts)]
    return np.concatenate(found, axis=1)


PACKED: dict[str, Packer] = {
    "IQ2_XXS": _iq2_xxs, "IQ2_XS": _iq2_xs, "IQ2_S": _iq2_s, "IQ3_XXS": _iq3_xxs, "IQ3_S": _iq3_s,
}  # fmt: skip
