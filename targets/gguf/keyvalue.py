"""One key/value of a GGUF header, with its type spelled out so that nothing is guessed from the value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KeyValue:
    """A metadata entry. `type` and `subtype` are names of gguf.GGUFValueType.

    type: "UINT8" … "UINT64", "INT8" … "INT64", "FLOAT32", "FLOAT64", "BOOL", "STRING" or "ARRAY"
    subtype: the element type of an ARRAY, else None
    value: of an ARRAY a list, or `targets.gguf.packed.Packed` where it was read from a file
    """

    key: str
    value: Any
    type: str
    subtype: str | None = None


def string(key: str, value: str) -> KeyValue:
    """A STRING entry."""
    return KeyValue(key, value, "STRING")


def uint32(key: str, value: int) -> KeyValue:
    """A UINT32 entry."""
    return KeyValue(key, int(value), "UINT32")


def float32(key: str, value: float) -> KeyValue:
    """A FLOAT32 entry."""
    return KeyValue(key, float(value), "FLOAT32")


def boolean(key: str, value: bool) -> KeyValue:
    """A BOOL entry."""
    return KeyValue(key, bool(value), "BOOL")


def array(key: str, values: list[Any], subtype: str) -> KeyValue:
    """An ARRAY entry of one element type."""
    return KeyValue(key, values, "ARRAY", subtype)
