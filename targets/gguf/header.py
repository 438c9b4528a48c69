"""The header of a GGUF file: key/values and tensor descriptions, laid out before any weight is read.

Format: GGUF version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import itertools
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from targets.gguf.packed import Packed

if TYPE_CHECKING:
    from targets.gguf.keyvalue import KeyValue
    from targets.gguf.types import GgmlType

ALIGNMENT = 32
"""Bytes that tensor data is aligned to; the format's default, so no general.alignment key is written."""

_VERSION = 3
_LENGTH = struct.Struct("<Q").pack
_TYPE_IDS = {
    "UINT8": 0, "INT8": 1, "UINT16": 2, "INT16": 3, "UINT32": 4, "INT32": 5, "FLOAT32": 6, "BOOL": 7, "STRING": 8,
    "ARRAY": 9, "UINT64": 10, "INT64": 11, "FLOAT64": 12,
}  # fmt: skip
_PACK = {
    "UINT8": "B", "INT8": "b", "UINT16": "H", "INT16": "h", "UINT32": "I", "INT32": "i", "FLOAT32": "f", "BOOL": "?",
    "UINT64": "Q", "INT64": "q", "FLOAT64": "d",
}  # fmt: skip


@dataclass(frozen=True)
class Placed:
    """A tensor with its place in the file. offset: bytes from the start of the data section."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    offset: int
    n_bytes: int


def align(position: int) -> int:
    """The next multiple of ALIGNMENT."""
    return -(-position // ALIGNMENT) * ALIGNMENT


def place(tensors: list[tuple[str, tuple[int, ...], GgmlType]]) -> list[Placed]:
    """Give every tensor (name, torch-order shape, type) its offset, in the order given."""
    placed = []
    offset = 0
    for name, shape, kind in tensors:
        rows = 1
        for dim in shape[:-1]:
            rows *= dim
        n_bytes = rows * kind.row_bytes(shape[-1])
        placed.append(Placed(name, shape, kind, offset, n_bytes))
        offset = align(offset + n_bytes)
    return placed


def encode(metadata: list[KeyValue], tensors: list[Placed]) -> bytes:
    """The header's bytes, padded so that the data section starts right after it."""
    parts = [struct.pack("<4sIQQ", b"GGUF", _VERSION, len(tensors), len(metadata))]
    for entry in metadata:
        parts += [_string(entry.key), struct.pack("<I", _TYPE_IDS[entry.type]), _value(entry)]
    for tensor in tensors:
        dims = tensor.shape[::-1]
        parts += [
            _string(tensor.name),
            struct.pack(f"<I{len(dims)}Q", len(dims), *dims),
            struct.pack("<IQ", tensor.kind.id, tensor.offset),
        ]
    header = b"".join(parts)
    return header.ljust(align(len(header)), b"\0")


def _string(text: Any) -> bytes:  # noqa: ANN401 (str, or bytes for a token that is not UTF-8)
    data = text if isinstance(text, bytes) else str(text).encode("utf-8")
    return _LENGTH(len(data)) + data


def _value(entry: KeyValue) -> bytes:
    """A value without its type tag. Raises ValueError for a type the format lacks."""
    if entry.type == "STRING":
        return _string(entry.value)
    if entry.type != "ARRAY":
        return struct.pack(f"<{_PACK[entry.type]}", entry.value)
    if entry.subtype is None or entry.subtype == "ARRAY":
        raise ValueError(f"{entry.key}: an array needs the type of its elements")
    head = struct.pack("<IQ", _TYPE_IDS[entry.subtype], len(entry.value))
    if isinstance(entry.value, Packed):
        return head + entry.value.raw
    if entry.subtype == "STRING":
        data = [text if isinstance(text, bytes) else str(text).encode("utf-8") for text in entry.value]
        return head + b"".join(itertools.chain.from_iterable(zip(map(_LENGTH, map(len, data)), data, strict=True)))
    return head + struct.pack(f"<{len(entry.value)}{_PACK[entry.subtype]}", *entry.value)
