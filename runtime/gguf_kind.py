"""What a GGUF file is for, from the first key/values of its header: decoders are told from encoders.

A file that packlight has written says so in its manifest; this is for those of others. Format: docs/gguf.md of ggml.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

ENCODERS = (
    "bert",
    "nomic-bert",
    "nomic-bert-moe",
    "modern-bert",
    "neo-bert",
    "jina-bert-v2",
    "jina-bert-v3",
    "eurobert",
)
"""Values of general.architecture whose graphs in llama.cpp generate nothing."""
PAIRS = ("t5",)
"""Those whose graphs are an encoder and a decoder in one."""
POOLINGS = {"none": 0, "mean": 1, "cls": 2, "last": 3, "rank": 4}
"""Values of `{architecture}.pooling_type` (`llama_pooling_type` of llama.cpp); rank is a classifier's head."""

_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_LONGEST_KEY, _LONGEST_TEXT, _MOST_KEYS, _MOST_TEXTS = 1 << 16, 1 << 20, 1 << 12, 1 << 21


def task_of_file(path: Path) -> str | None:
    """The task of a file; None for a decoder's alone, and for one that cannot be read: its engine says why."""
    try:
        with path.open("rb") as file:
            arch, pooling = _kind(file)
    except (OSError, ValueError, struct.error):
        return None
    return task_of_kind(arch, pooling)


def task_of_kind(arch: object, pooling: object) -> str | None:
    """The task by general.architecture and pooling_type; None for a decoder's alone."""
    if arch in PAIRS:
        return "text2text-generation"
    if arch not in ENCODERS:
        return None
    return "text-classification" if pooling == POOLINGS["rank"] else "feature-extraction"


def _kind(file: BinaryIO) -> tuple[str, int | None]:
    """general.architecture, and of an encoder its pooling_type. Raises ValueError for what is no header."""
    magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
    if magic != b"GGUF" or version not in (2, 3):
        raise ValueError("is no GGUF file of these versions")
    arch = ""
    for _ in range(min(count, _MOST_KEYS)):
        key = _text(file, _LONGEST_KEY)
        (kind,) = struct.unpack("<I", file.read(4))
        value = _value(file, kind)
        if key == "general.architecture":
            arch = str(value)
            if arch not in ENCODERS:
                return arch, None
        elif key == f"{arch}.pooling_type":
            return arch, value if isinstance(value, int) else None
    return arch, None


def _text(file: BinaryIO, longest: int) -> str:
    (size,) = struct.unpack("<Q", file.read(8))
    if size > longest:
        raise ValueError("a text is too long")
    data = file.read(size)
    if len(data) != size:
        raise ValueError("it ends too early")
    return data.decode("utf-8", "replace")


def _value(file: BinaryIO, kind: int) -> str | int | float | None:
    """A value; None for an array, which is passed over."""
    if kind == _STRING:
        return _text(file, _LONGEST_TEXT)
    if kind != _ARRAY:
        return _number(file, kind)
    inner, count = struct.unpack("<IQ", file.read(12))
    if inner in _NUMBERS:
        file.seek(count * struct.calcsize(f"<{_NUMBERS[inner]}"), 1)
        return None
    if inner != _STRING or count > _MOST_TEXTS:
        raise ValueError("an array of another kind")
    for _ in range(count):
        _text(file, _LONGEST_TEXT)
    return None


def _number(file: BinaryIO, kind: int) -> int | float:
    if kind not in _NUMBERS:
        raise ValueError("a value of an unknown kind")
    form = f"<{_NUMBERS[kind]}"
    value: int | float = struct.unpack(form, file.read(struct.calcsize(form)))[0]
    return value
