"""Bytes that are of one kind put together: the first of every block, then the second of every block, and so on.

A quantized block has its scale in front of its codes, a float its exponent above its fraction: in planes, zstd sees all
scales' high bytes in a row, whose few values it codes in few bits (the shuffle of Blosc, and of Masui et al.,
https://arxiv.org/abs/1503.00638).
"""

from __future__ import annotations

import numpy as np


def to_planes(content: bytes, stride: int) -> bytes:
    """Blocks of `stride` bytes as planes; `content` is whole blocks."""
    if stride == 1:
        return content
    return np.frombuffer(content, np.uint8).reshape(-1, stride).T.tobytes()


def from_planes(content: bytes, stride: int) -> bytes:
    """The blocks again."""
    if stride == 1:
        return content
    return np.frombuffer(content, np.uint8).reshape(stride, -1).T.tobytes()
