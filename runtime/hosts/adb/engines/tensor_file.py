"""A tensor of one value as ONNX's TensorProto (protobuf): dims 1, data_type 2, name 8, raw_data 9."""

from __future__ import annotations

import math
import struct

FLOAT, INT64, FLOAT16 = 1, 7, 10
"""TensorProto.DataType."""
_FORMATS = {FLOAT: "<f", INT64: "<q", FLOAT16: "<e"}
_LENGTH_DELIMITED = 2


def tensor_file(name: str, kind: int, shape: tuple[int, ...], value: float) -> bytes:
    """The file of a tensor that holds `value` everywhere. kind: one of the three above"""
    element = struct.pack(_FORMATS[kind], value if kind != INT64 else int(value))
    dims = b"".join(_field(1, 0) + _varint(size) for size in shape)
    raw = element * math.prod(shape)
    return dims + _field(2, 0) + _varint(kind) + _bytes(8, name.encode()) + _bytes(9, raw)


def _bytes(number: int, data: bytes) -> bytes:
    return _field(number, _LENGTH_DELIMITED) + _varint(len(data)) + data


def _field(number: int, wire: int) -> bytes:
    return _varint(number << 3 | wire)


def _varint(value: int) -> bytes:
    written = b""
    while value > 0x7F:
        written += bytes([value & 0x7F | 0x80])
        value >>= 7
    return written + bytes([value])
