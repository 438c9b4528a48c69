"""A model in several GGUF files, named and cut as llama-gguf-split does.

Source of the names: llama_split_path of llama.cpp's src/llama.cpp; of the cuts and the split.* keys: split_strategy of
tools/gguf-split/gguf-split.cpp; of what is asked of them: src/llama-model-loader.cpp.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from targets.gguf.keyvalue import KeyValue

if TYPE_CHECKING:
    from pathlib import Path

    from targets.gguf.types import GgmlType

    Described = tuple[str, tuple[int, ...], GgmlType]
    """A tensor before it has a place: name, shape in torch order, type."""

MOST_PARTS = (1 << 16) - 1
"""split.no and split.count are numbers of 16 bits."""
_PART = re.compile(r"(.+)-([0-9]{5})-of-([0-9]{5})\.gguf")


@dataclass(frozen=True)
class PartName:
    """The name of a part, taken apart. number: from 0, one less than the name says"""

    stem: str
    number: int
    count: int


def part_name(stem: str, number: int, count: int) -> str:
    """The file name of a part. number: from 0"""
    return f"{stem}-{number + 1:05d}-of-{count:05d}.gguf"


def part_of(path: Path) -> PartName | None:
    """What the name of a file says of it, where it is that of a part."""
    match = _PART.fullmatch(path.name)
    return PartName(match[1], int(match[2]) - 1, int(match[3])) if match else None


def split_keys(number: int, count: int, n_tensors: int) -> list[KeyValue]:
    """What every part says of itself, in llama-gguf-split's order. number: from 0; n_tensors: of all parts together"""
    return [
        KeyValue("split.no", number, "UINT16"),
        KeyValue("split.tensors.count", n_tensors, "INT32"),
        KeyValue("split.count", count, "UINT16"),
    ]


def cut(sizes: list[int], most: int) -> list[slice]:
    """Which tensors go into which part: in their order, as many as fit.

    sizes: of the tensors' data in bytes, padding included; most: bytes of a part's tensors, its header not counted
    A tensor that is larger than that has a part to itself.
    """
    starts, filled = [0], 0
    for index, size in enumerate(sizes):
        if filled and filled + size > most:
            starts.append(index)
            filled = 0
        filled += size
    return [slice(start, stop) for start, stop in zip(starts, [*starts[1:], len(sizes)], strict=True)]
