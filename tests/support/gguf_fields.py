"""GGUF files as lists of their fields, so that a test can damage one and know which: small valid ones to begin with."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import gguf

from targets.gguf.reading import READABLE_TYPES

ARRAY, STRING = 9, 8


@dataclass(slots=True)
class Atom:
    """A field. what: "integer" is a length, count, type, offset or number that the reader follows; else "bytes"."""

    what: str
    layout: str
    value: int | bytes

    def copy(self) -> Atom:
        """One that can be changed; `dataclasses.replace` takes most of a run's time."""
        return Atom(self.what, self.layout, self.value)

    def encoded(self) -> bytes:
        """Its bytes, an integer cut to its width."""
        if isinstance(self.value, bytes):
            return self.value
        size = struct.calcsize(self.layout)
        return (self.value % (1 << 8 * size)).to_bytes(size, "little")


@dataclass
class File:
    """A GGUF file as its fields: a head, entries that can be doubled and swapped whole, and data."""

    head: list[Atom]
    values: list[list[Atom]] = field(default_factory=list)
    tensors: list[list[Atom]] = field(default_factory=list)
    data: bytes = b""
    alignment: int = 32

    def atoms(self) -> list[Atom]:
        """Every field in the file's order."""
        return [*self.head, *(atom for entry in (*self.values, *self.tensors) for atom in entry)]

    def encoded(self) -> bytes:
        """The file."""
        head = b"".join(atom.encoded() for atom in self.atoms())
        return head.ljust(-(-len(head) // self.alignment) * self.alignment, b"\0") + self.data

    def copy(self) -> File:
        """One that can be changed."""

        def entries(of: list[list[Atom]]) -> list[list[Atom]]:
            return [[atom.copy() for atom in entry] for entry in of]

        return File([atom.copy() for atom in self.head], entries(self.values), entries(self.tensors),
                    self.data, self.alignment)  # fmt: skip


def u32(value: int) -> Atom:
    """A count of dimensions, a type."""
    return Atom("integer", "<I", value)


def u64(value: int) -> Atom:
    """A length, a count, a dimension, an offset."""
    return Atom("integer", "<Q", value)


def text(value: str | bytes) -> list[Atom]:
    """A string with its length."""
    raw = value if isinstance(value, bytes) else value.encode()
    return [u64(len(raw)), Atom("bytes", "", raw)]


def scalar(key: str, kind: int, layout: str, value: float) -> list[Atom]:
    """A key and one number."""
    is_whole = isinstance(value, int) and layout not in ("<f", "<d")
    atom = Atom("integer", layout, int(value)) if is_whole else Atom("bytes", "", struct.pack(layout, value))
    return [*text(key), u32(kind), atom]


def string(key: str, value: str | bytes) -> list[Atom]:
    """A key and a text."""
    return [*text(key), u32(STRING), *text(value)]


def strings(key: str, values: list[str | bytes]) -> list[Atom]:
    """A key and an array of texts."""
    pieces = [atom for value in values for atom in text(value)]
    return [*text(key), u32(ARRAY), u32(STRING), u64(len(values)), *pieces]


def numbers(key: str, kind: int, layout: str, values: list[int] | list[float]) -> list[Atom]:
    """A key and an array of numbers."""
    packed = struct.pack(f"<{len(values)}{layout[1:]}", *values)
    return [*text(key), u32(ARRAY), u32(kind), u64(len(values)), Atom("bytes", "", packed)]


def build(
    values: list[list[Atom]], tensors: list[tuple[str, list[int], int]], version: int = 3, alignment: int = 32
) -> File:
    """A valid file. tensors: name, dimensions as the file has them (the row first), type"""
    head = [Atom("bytes", "", b"GGUF"), u32(version), u64(len(tensors)), u64(len(values))]
    entries, offset = [], 0
    for name, dims, kind in tensors:
        entries.append([*text(name), u32(len(dims)), *map(u64, dims), u32(kind), u64(offset)])
        size = READABLE_TYPES[kind]
        n_elements = 1
        for dim in dims:
            n_elements *= dim
        offset = -(-(offset + n_elements // size.block_size * size.block_bytes) // alignment) * alignment
    return File(head, [list(entry) for entry in values], entries, bytes(offset), alignment)


def seeds() -> list[File]:
    """Small valid files: numbers of every type, a vocabulary, tensors of many types, a model, a part of one."""
    every = [
        scalar("u8", 0, "<B", 255), scalar("i8", 1, "<b", 127), scalar("u16", 2, "<H", 65535),
        scalar("i16", 3, "<h", 1), scalar("u32", 4, "<I", 2**32 - 1), scalar("i32", 5, "<i", 2**31 - 1),
        scalar("f32", 6, "<f", 0.5),
        scalar("yes", 7, "<?", True), scalar("u64", 10, "<Q", 2**64 - 1), scalar("i64", 11, "<q", 5),
        scalar("f64", 12, "<d", 0.1), string("text", "Ġ é 🙂"), string("empty", ""),
        numbers("ints", 5, "<i", [1, 2, 3]), numbers("flags", 7, "<?", [1, 0]), numbers("none", 0, "<B", []),
    ]  # fmt: skip
    tokens: list[str | bytes] = [f"tok{number}" for number in range(40)]
    tokens[7] = b"\xff\xfe"
    vocabulary = [
        string("general.architecture", "llama"), strings("tokenizer.ggml.tokens", tokens),
        numbers("tokenizer.ggml.scores", 6, "<f", [0.0] * 40), numbers("tokenizer.ggml.token_type", 5, "<i", [1] * 40),
        strings("tokenizer.ggml.merges", ["a b", "c d"]), scalar("general.alignment", 4, "<I", 64),
    ]  # fmt: skip
    known = {kind.value for kind in gguf.GGMLQuantizationType}  # so that gguf-py can be asked
    kinds = [(f"t{n}", [kind.block_size * 2, 2], n) for n, kind in READABLE_TYPES.items() if n in known]
    part = [
        *model_keys(), scalar("split.no", 2, "<H", 0), scalar("split.tensors.count", 5, "<i", 3),
        scalar("split.count", 2, "<H", 1),
    ]  # fmt: skip
    return [
        build(every, [("norm.weight", [5], 0)]),
        build(vocabulary, [("a", [4, 3], 0), ("b", [32, 2], 8)], alignment=64),
        build([string("general.architecture", "x")], kinds),
        build(model_keys(), MODEL_TENSORS),
        build(part, [("cube", [4, 3, 2], 1), ("deep", [2, 2, 2, 2], 0), ("wide", [256], 12)], version=2),
    ]


def model_keys() -> list[list[Atom]]:
    """Of a llama of one layer that packlight quantizes again."""
    return [
        string("general.architecture", "llama"), string("general.name", "Tiny"),
        scalar("llama.block_count", 4, "<I", 1), scalar("llama.context_length", 4, "<I", 64),
        scalar("llama.embedding_length", 4, "<I", 32),
        scalar("llama.feed_forward_length", 4, "<I", 32), scalar("llama.attention.head_count", 4, "<I", 2),
        numbers("llama.attention.head_count_kv", 5, "<i", [2]), scalar("llama.vocab_size", 4, "<I", 8),
        strings("tokenizer.ggml.tokens", [f"t{number}" for number in range(8)]),
        scalar("tokenizer.ggml.eos_token_id", 4, "<I", 2), string("tokenizer.chat_template", "{{ x }}"),
        scalar("general.file_type", 4, "<I", 0),
    ]  # fmt: skip


MODEL_TENSORS = [
    ("token_embd.weight", [32, 8], 0), ("output_norm.weight", [32], 0), ("blk.0.attn_norm.weight", [32], 0),
    ("blk.0.attn_q.weight", [32, 32], 0), ("blk.0.attn_k.weight", [32, 32], 0), ("blk.0.attn_v.weight", [32, 32], 0),
    ("blk.0.attn_output.weight", [32, 32], 0), ("blk.0.ffn_norm.weight", [32], 0), ("blk.0.ffn_up.weight", [32, 32], 0),
    ("blk.0.ffn_gate.weight", [32, 32], 0), ("blk.0.ffn_down.weight", [32, 32], 0),
]  # fmt: skip
