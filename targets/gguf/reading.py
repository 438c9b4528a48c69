"""A GGUF file as a source: its tensors as `ModelFacts`, its metadata as `KeyValue`s that can be written again.

gguf-py's reader takes seconds for a vocabulary of 50,000 and trusts the file's counts; this one takes a fraction
of that, reads the header only, and checks every count and offset against the file's size before it follows it. What it
keeps is at most a small multiple of the header, and a header's length and counts have limits that no model comes near.
The layout: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md (version 3; 2 is the same for our purpose).
"""

from __future__ import annotations

import itertools
import mmap
import struct
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from runtime.errors import ModelError
from targets.facts import ModelFacts, TensorFact, several, shown
from targets.gguf.keyvalue import KeyValue
from targets.gguf.packed import PackedNumbers, PackedTexts, decoded
from targets.gguf.parts import part_name, part_of
from targets.gguf.types import TYPES, GgmlType

if TYPE_CHECKING:
    from pathlib import Path

_AGAIN = "download or copy the file again"
_MAX_DIMS = 4
_MAX_ELEMENTS = 2**63
_DEFAULT_ALIGNMENT = 32
# Bytes of the shortest key/value (key length, one character, type, one byte) and tensor entry (name length,
# n_dims, type, offset): what a claimed count needs at least.
_MIN_KEY_VALUE = 8 + 1 + 4 + 1
_MIN_TENSOR = 8 + 4 + 4 + 8
# A header of today's largest vocabularies takes 20 MB, with a tokenizer.json inside 60 MB; 70 keys, 2,000 tensors.
MAX_HEADER = 1 << 28
MAX_KEYS, MAX_TENSORS = 1 << 16, 1 << 17
MAX_TEXT, MAX_NAME = 1 << 26, (1 << 16) - 1
"""Bytes of a text, and of the name of a key (the format's own limit) or tensor."""

_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_STRING, _ARRAY = 8, 9
# Value types by their number in the file: gguf's name and struct's letter.
_SCALARS = {
    0: ("UINT8", "B"), 1: ("INT8", "b"), 2: ("UINT16", "H"), 3: ("INT16", "h"), 4: ("UINT32", "I"),
    5: ("INT32", "i"), 6: ("FLOAT32", "f"), 7: ("BOOL", "?"), 10: ("UINT64", "Q"), 11: ("INT64", "q"),
    12: ("FLOAT64", "d"),
}  # fmt: skip

# Types that a file can hold and packlight does not write. Source: ggml-common.h, as targets/gguf/types.py.
_READ_ONLY = (
    GgmlType("Q8_1", 9, 32, 2 * 4 + 32),  # gguf-py's figure, with float32 scales; never stored in a model
    GgmlType("Q8_K", 15, 256, 4 + 256 + 32),
    GgmlType("I8", 24, 1, 1),
    GgmlType("I16", 25, 1, 2),
    GgmlType("I32", 26, 1, 4),
    GgmlType("I64", 27, 1, 8),
    GgmlType("F64", 28, 1, 8),
)
READABLE_TYPES: dict[int, GgmlType] = {entry.id: entry for entry in (*TYPES.values(), *_READ_ONLY)}


@dataclass(frozen=True)
class _Header:
    """A parsed header; the facts' offsets are absolute and inside the file."""

    metadata: list[KeyValue]
    tensors: list[TensorFact]


def read_gguf_facts(path: Path, requested: str) -> ModelFacts:
    """The facts of a GGUF file: shapes in torch order, ggml type names, absolute offsets. Raises ModelError.

    Of a model in several files, as llama-gguf-split writes them, the first names all, and the others lie beside it.
    """
    header = _read(path)
    tensors, name = header.tensors, path.stem
    n_parts = _split_key(header, "count", 1)
    if n_parts > 1:
        name, tensors = _of_all_parts(path, header, n_parts)
    if not tensors:
        raise ModelError(f"{path}: holds no tensor, only metadata; name a GGUF file with weights")
    return ModelFacts("gguf", path, name, requested, {}, {fact.name: fact for fact in tensors})


def read_gguf_tensors(path: Path) -> list[TensorFact]:
    """The tensors of this one file, by offset, whether it is a whole model or a part of one. Raises ModelError."""
    return _read(path).tensors


def read_gguf_metadata(path: Path) -> list[KeyValue]:
    """Every key/value of a GGUF file, in its order, with the types to write it again. Raises ModelError.

    Arrays are `Packed`. Text that is not UTF-8 (some vocabularies have such pieces) stays bytes, so that a copy is
    exact.
    """
    return _read(path).metadata


def _read(path: Path) -> _Header:
    """Parse the header of a file that may be anything."""
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for ever
            raise ModelError(f"{path}: is not a regular file; name a .gguf file")
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                hint = "is a Git LFS pointer; run 'git lfs pull'" if magic == b"vers" else "is not a GGUF file"
                raise ModelError(f"{path}: {hint}; name a .gguf file or a Hugging Face model directory")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Parser(path, data).header()
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror}); name a .gguf file") from error


def _split_key(header: _Header, which: str, default: int) -> int:
    """A number of split.*, which llama-gguf-split writes; the default where it is not there or no number."""
    value = next((entry.value for entry in header.metadata if entry.key == f"split.{which}"), default)
    return value if isinstance(value, int) else default


def _of_all_parts(first: Path, header: _Header, n_parts: int) -> tuple[str, list[TensorFact]]:
    """The model's name, and the tensors of all its parts. Raises ModelError."""
    number, named = _split_key(header, "no", 0), part_of(first)
    if named is None:
        usual = part_name("NAME", number, n_parts)
        raise ModelError(f"{first}: is one of {n_parts} parts of a model; give it the name that it had: {usual}")
    if number or (named.number, named.count) != (0, n_parts):
        beginning = part_name(named.stem, 0, n_parts)
        raise ModelError(f"{first}: is part {number + 1} of {n_parts} of a model; name the first, {beginning}")
    facts = {fact.name: fact for fact in header.tensors}
    n_read = len(header.tensors)
    for number in range(1, n_parts):
        path = first.with_name(part_name(named.stem, number, n_parts))
        if not path.exists():
            raise ModelError(f"{path}: is missing, part {number + 1} of {n_parts} of the model; {_AGAIN}")
        part = _read(path)
        if (_split_key(part, "no", -1), _split_key(part, "count", -1)) != (number, n_parts):
            raise ModelError(f"{path}: is not part {number + 1} of {n_parts}, as its name says; {_AGAIN}")
        n_read += len(part.tensors)
        facts |= {fact.name: fact for fact in part.tensors}
    expected = _split_key(header, "tensors.count", n_read)
    if not len(facts) == n_read == expected:
        what = f"its {n_parts} parts hold {n_read} tensors, {len(facts)} of different names, and not {expected}"
        raise ModelError(f"{first}: {what}; {_AGAIN}")
    return named.stem, list(facts.values())


class _Parser:
    """Reads a mapped file from front to back; everything that it is about to follow is checked first."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 4

    def header(self) -> _Header:
        """The whole header. Raises ModelError."""
        try:
            version, n_tensors, n_values = self.number(_U32), self.number(_U64), self.number(_U64)
            if version not in (2, 3):
                swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in (2, 3)
                what = "big-endian GGUF" if swapped else f"GGUF version {version}"
                raise self.error(f"is {what}, only little-endian versions 2 and 3 are read", "convert it again")
            left = self.size - self.at
            if n_tensors * _MIN_TENSOR + n_values * _MIN_KEY_VALUE > left:
                raise self.error(f"claims {n_tensors} tensors and {n_values} keys, more than its {left} bytes can hold")
            if n_tensors > MAX_TENSORS or n_values > MAX_KEYS:
                what = f"claims {n_tensors} tensors and {n_values} keys, more than {MAX_TENSORS} and {MAX_KEYS}"
                raise self.error(what, "no model has so many; name another file")
            metadata = self.metadata(n_values)
            return _Header(metadata, self.tensors(n_tensors, _alignment(self, metadata)))
        except struct.error as error:
            raise self.error(f"is truncated inside its header, at byte {self.size}") from error

    def error(self, what: str, fix: str = _AGAIN) -> ModelError:
        """A ModelError about this file."""
        return ModelError(f"{self.path}: {what}; {fix}")

    def number(self, layout: struct.Struct) -> Any:  # noqa: ANN401 (as struct has it)
        """One number. Raises struct.error at the file's end."""
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def raw(self, n_bytes: int) -> bytes:
        """So many bytes, which the file has. Raises ModelError where they would make the header too long."""
        end = self.at + n_bytes
        if end > MAX_HEADER:
            raise self.error(f"has a header of more than {MAX_HEADER} bytes", "no model has one; name another file")
        raw = self.data[self.at : end]
        self.at = end
        return raw

    def text(self, most: int | None = None) -> bytes:
        """One string of at most so many bytes, or MAX_TEXT."""
        length, most = self.number(_U64), MAX_TEXT if most is None else most
        if self.at + length > self.size:
            raise self.error(f"claims a string of {length} bytes at byte {self.at - 8}, past its end")
        if length > most:
            raise self.error(f"has a string of {length} bytes at byte {self.at - 8}, more than {most}")
        return self.raw(length)

    def texts(self, key: str, count: int) -> PackedTexts:
        """The elements of an array of strings."""
        if count * 8 > self.size - self.at:
            raise self.error(f"key {shown(key)} claims {count} strings, more than the file can hold")
        start, at = self.at, self.at
        limit = min(self.size, start + MAX_HEADER)
        starts, length_at = array("I"), _U64.unpack_from
        for _ in range(count):
            starts.append(at - start)
            (length,) = length_at(self.data, at)
            at += 8 + length
            if at > limit:
                break
        if at > self.size:
            raise self.error(f"claims a string of {length} bytes at byte {at - length - 8}, past its end")
        return PackedTexts(self.raw(at - start), starts)

    def name(self, what: str) -> str:
        """The name of a key or tensor."""
        raw = self.text(MAX_NAME)
        try:
            name = raw.decode()
        except UnicodeDecodeError:
            name = ""
        if not name or not name.isprintable():
            raise self.error(f"has a {what} with a damaged name, {shown(raw)}")
        return name

    def metadata(self, count: int) -> list[KeyValue]:
        """All key/values."""
        entries: dict[str, KeyValue] = {}
        for _ in range(count):
            key = self.name("key")
            if key in entries:
                raise self.error(f"has the key {shown(key)} twice")
            entries[key] = self.value(key)
        return list(entries.values())

    def value(self, key: str) -> KeyValue:
        """What follows a key: its type and value."""
        kind = self.number(_U32)
        if kind == _STRING:
            return KeyValue(key, decoded(self.text()), "STRING")
        if kind in _SCALARS:
            name, letter = _SCALARS[kind]
            return KeyValue(key, self.number(struct.Struct(f"<{letter}")), name)
        if kind != _ARRAY:
            raise self.error(f"key {shown(key)} has the unknown value type {kind}")
        kind, count = self.number(_U32), self.number(_U64)
        if kind == _STRING:
            return KeyValue(key, self.texts(key, count), "ARRAY", "STRING")
        if kind not in _SCALARS:
            raise self.error(f"key {shown(key)} is an array of the unknown or nested type {kind}")
        name, letter = _SCALARS[kind]
        n_bytes = count * struct.calcsize(f"<{letter}")
        if n_bytes > self.size - self.at:
            raise self.error(f"key {shown(key)} claims {count} values, more than the file can hold")
        return KeyValue(key, PackedNumbers(self.raw(n_bytes), letter), "ARRAY", name)

    def tensors(self, count: int, alignment: int) -> list[TensorFact]:
        """All tensor entries, by offset. They may not overlap nor leave the file."""
        entries: dict[str, tuple[tuple[int, ...], GgmlType, int, int]] = {}
        for _ in range(count):
            name = self.name("tensor")
            if name in entries:
                raise self.error(f"has the tensor {shown(name)} twice")
            entries[name] = self.tensor(name, alignment)
        start = -(-self.at // alignment) * alignment
        facts = [
            TensorFact(name, shape, kind.name, self.path, start + offset, n_bytes)
            for name, (shape, kind, offset, n_bytes) in entries.items()
        ]
        facts.sort(key=lambda fact: (fact.offset, fact.n_bytes))
        end = max((fact.offset + fact.n_bytes for fact in facts), default=0)
        if end > self.size:
            raise self.error(f"is truncated, has {self.size} of the {end} bytes that its header describes")
        if overlaps := [
            f"{shown(after.name)} and {shown(before.name)}"
            for before, after in itertools.pairwise(facts)
            if after.offset < before.offset + before.n_bytes
        ]:
            raise self.error(f"tensors overlap: {several(overlaps)}")
        return facts

    def tensor(self, name: str, alignment: int) -> tuple[tuple[int, ...], GgmlType, int, int]:
        """One tensor entry after its name: shape in torch order, type, offset in the data, bytes."""
        n_dims = self.number(_U32)
        if not 1 <= n_dims <= _MAX_DIMS:
            raise self.error(f"tensor {shown(name)} claims {n_dims} dimensions, not 1 to {_MAX_DIMS}")
        dims = [self.number(_U64) for _ in range(n_dims)]
        type_id, offset = self.number(_U32), self.number(_U64)
        if type_id not in READABLE_TYPES:
            raise self.error(
                f"tensor {shown(name)} has the unknown type {type_id}", "convert it with a current llama.cpp"
            )
        kind, row, count = READABLE_TYPES[type_id], dims[0] if dims else 1, 1
        for dim in dims:
            count *= dim
        if not 0 < count < _MAX_ELEMENTS or not kind.fits(row):
            raise self.error(f"tensor {shown(name)} of type {kind.name} cannot have the dimensions {dims}")
        if offset % alignment:
            raise self.error(f"tensor {shown(name)} starts at {offset}, not a multiple of {alignment}")
        return tuple(reversed(dims)), kind, offset, count // kind.block_size * kind.block_bytes


def _alignment(parser: _Parser, metadata: list[KeyValue]) -> int:
    """What tensor offsets are a multiple of."""
    entry = next((entry for entry in metadata if entry.key == "general.alignment"), None)
    if entry is None:
        return _DEFAULT_ALIGNMENT
    value = entry.value
    if entry.type != "UINT32" or value == 0 or value & (value - 1):
        raise parser.error(f"general.alignment is {shown(value)}, not a power of two")
    return int(value)
