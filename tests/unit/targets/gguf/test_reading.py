from __future__ import annotations

import math
import random
import struct
from typing import TYPE_CHECKING, Any

import gguf
import numpy as np
import pytest

from runtime.errors import ModelError
from targets.gguf.keyvalue import KeyValue
from targets.gguf.reading import READABLE_TYPES, read_gguf_facts, read_gguf_metadata

if TYPE_CHECKING:
    from pathlib import Path

VALUES = [
    KeyValue("u8", 255, "UINT8"),
    KeyValue("i8", -128, "INT8"),
    KeyValue("u16", 65535, "UINT16"),
    KeyValue("i16", -32768, "INT16"),
    KeyValue("u32", 2**32 - 1, "UINT32"),
    KeyValue("i32", -(2**31), "INT32"),
    KeyValue("u64", 2**64 - 1, "UINT64"),
    KeyValue("i64", -(2**63), "INT64"),
    KeyValue("f32", 0.10000000149011612, "FLOAT32"),
    KeyValue("f64", 0.1, "FLOAT64"),
    KeyValue("yes", True, "BOOL"),
    KeyValue("no", False, "BOOL"),
    KeyValue("text", "Ġ é 🙂", "STRING"),
    KeyValue("empty", "", "STRING"),
    KeyValue("tokens", ["a", "", "Ġthe"], "ARRAY", "STRING"),
    KeyValue("types", [1, 3, -6], "ARRAY", "INT32"),
    KeyValue("scores", [-1.5, 0.25], "ARRAY", "FLOAT32"),
    KeyValue("flags", [True, False], "ARRAY", "BOOL"),
    KeyValue("bytes", [0, 255], "ARRAY", "UINT8"),
]


def write_gguf(path: Path, values: list[KeyValue] = VALUES, *, tensors: bool = True) -> Path:
    writer = gguf.GGUFWriter(path, "llama")
    for entry in values:
        subtype = gguf.GGUFValueType[entry.subtype] if entry.subtype else None
        writer.add_key_value(entry.key, entry.value, gguf.GGUFValueType[entry.type], subtype)
    if tensors:
        writer.add_tensor("norm.weight", np.arange(5, dtype=np.float32))
        packed = np.arange(3 * 2 * 34, dtype=np.uint8).reshape(3, 68)
        writer.add_tensor("table.weight", packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        writer.add_tensor("cube", np.zeros((2, 3, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(path: Path) -> str:
    with pytest.raises(ModelError) as caught:
        read_gguf_facts(path, "asked")
    assert str(caught.value).isprintable()
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value)


def test_facts(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "Tiny.Q8_0.gguf")
    facts = read_gguf_facts(path, "asked")
    assert (facts.source, facts.path, facts.name, facts.config) == ("gguf", path, "Tiny.Q8_0", {})
    assert {name: (fact.shape, fact.dtype, fact.n_bytes) for name, fact in facts.tensors.items()} == {
        "norm.weight": ((5,), "F32", 20),
        "table.weight": ((3, 64), "Q8_0", 3 * 2 * 34),
        "cube": ((2, 3, 4), "F16", 48),
    }
    content = path.read_bytes()
    norm, table = facts.tensors["norm.weight"], facts.tensors["table.weight"]
    assert content[norm.offset :][:20] == np.arange(5, dtype=np.float32).tobytes()
    assert content[table.offset :][:204] == bytes(range(204))


def test_metadata_is_read_with_its_types_and_writes_back_to_the_same_bytes(tmp_path: Path) -> None:
    first = write_gguf(tmp_path / "a.gguf")
    entries = read_gguf_metadata(first)
    assert entries == [KeyValue("general.architecture", "llama", "STRING"), *VALUES]
    again = write_gguf(tmp_path / "b.gguf", entries[1:])
    assert again.read_bytes() == first.read_bytes()


def test_text_that_is_not_utf8_stays_bytes(tmp_path: Path) -> None:
    values = [KeyValue("tokens", ["ok", b"\xff\xfe"], "ARRAY", "STRING")]
    assert read_gguf_metadata(write_gguf(tmp_path / "x.gguf", values))[1:] == values


def test_empty_arrays_and_version_2(tmp_path: Path) -> None:
    raw = header(1) + key("none") + struct.pack("<IIQ", 9, 8, 0)
    (tmp_path / "x.gguf").write_bytes(raw.replace(struct.pack("<I", 3), struct.pack("<I", 2), 1))
    assert read_gguf_metadata(tmp_path / "x.gguf") == [KeyValue("none", [], "ARRAY", "STRING")]


def test_types_agree_with_ggufs_own_table() -> None:
    ours = {number: (entry.name, entry.block_size, entry.block_bytes) for number, entry in READABLE_TYPES.items()}
    assert ours.pop(42)[0] == "Q2_0"  # newer than gguf-py
    assert ours == {
        int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items() if int(kind) in READABLE_TYPES
    }
    assert len(READABLE_TYPES) >= 34


def test_alignment(tmp_path: Path) -> None:
    table = key("general.alignment") + struct.pack("<II", 4, 128) + tensor("t", [2], 0, 128)
    content = header(1, 1) + table
    start = math.ceil(len(content) / 128) * 128
    (tmp_path / "x.gguf").write_bytes(content.ljust(start + 128, b"\0") + b"12345678")
    assert read_gguf_facts(tmp_path / "x.gguf", "").tensors["t"].offset == start + 128


def header(n_values: int, n_tensors: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_values)


def key(name: str | bytes) -> bytes:
    raw = name if isinstance(name, bytes) else name.encode()
    return struct.pack("<Q", len(raw)) + raw


def tensor(name: str, dims: list[int], kind: int, offset: int) -> bytes:
    return key(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def data(*tensors: bytes, n_bytes: int = 256) -> bytes:
    content = header(0, len(tensors)) + b"".join(tensors)
    return content.ljust(-(-len(content) // 32) * 32, b"\0") + bytes(n_bytes)


BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is not a GGUF file"),
    "other": (b"PK\3\4", "is not a GGUF file"),
    "lfs": (b"version https://git-lfs", "is a Git LFS pointer"),
    "only magic": (b"GGUF", "is truncated inside its header, at byte 4"),
    "version 1": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "is GGUF version 1"),
    "big-endian": (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "is big-endian GGUF"),
    "counts": (header(2**60, 2**60), "more than its 0 bytes can hold"),
    "no tensor": (header(0), "holds no tensor, only metadata"),
    "key length": (header(1) + struct.pack("<Q", 2**63) + bytes(20), "claims a string of 9223372036854775808 bytes"),
    "key name": (header(1) + key(b"\xff") + bytes(20), "has a key with a damaged name"),
    "key type": (header(1) + key("k") + struct.pack("<II", 13, 0), "key k has the unknown value type 13"),
    "repeated key": (header(2) + 2 * (key("k") + struct.pack("<IB", 0, 1)), "has the key k twice"),
    "array length": (header(1) + key("k") + struct.pack("<IIQ", 9, 4, 2**62), "04 values, more than the file"),
    "array of strings": (header(1) + key("k") + struct.pack("<IIQ", 9, 8, 2**61), "52 strings, more than the file"),
    "array of arrays": (header(1) + key("k") + struct.pack("<IIQ", 9, 9, 1), "array of the unknown or nested type 9"),
    "alignment": (header(1) + key("general.alignment") + struct.pack("<II", 4, 24), "general.alignment is 24, not a"),
    "cut in a value": (header(1) + key("k") + struct.pack("<IB", 10, 0), "is truncated inside its header"),
    "dims": (data(tensor("t", [1] * 5, 0, 0)), "tensor t claims 5 dimensions"),
    "huge dims": (data(tensor("t", [2**63, 2**63], 0, 0)), "tensor t of type F32 cannot have the dimensions"),
    "part of a block": (data(tensor("t", [33], 8, 0)), "tensor t of type Q8_0 cannot have the dimensions [33]"),
    "removed type": (data(tensor("t", [32], 31, 0)), "tensor t has the unknown type 31"),
    "offset": (data(tensor("t", [2], 0, 8)), "tensor t starts at 8, not a multiple of 32"),
    "twice": (data(tensor("t", [2], 0, 0), tensor("t", [2], 0, 32)), "has the tensor t twice"),
    "overlap": (data(tensor("t", [16], 0, 0), tensor("u", [2], 0, 32)), "tensors overlap: u and t"),
    "truncated": (data(tensor("t", [64], 0, 32)), "is truncated, has 320 of the 352 bytes"),
    "split": (header(1, 1) + key("split.count") + struct.pack("<IH", 2, 3) + tensor("t", [1], 0, 0) + bytes(64),
              "is one of 3 parts of a model; give it the name that it had: NAME-00001-of-00003.gguf"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_file(tmp_path: Path, case: str) -> None:
    content, words = BAD_FILES[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    assert words in refusal(path)


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "cannot be read (No such file or directory)" in refusal(tmp_path / "nowhere.gguf")
    assert "is not a regular file" in refusal(tmp_path)


def test_mutated_files_raise_nothing_but_model_errors(tmp_path: Path) -> None:
    content = write_gguf(tmp_path / "good.gguf").read_bytes()
    rng, path, messages = random.Random(11), tmp_path / "x.gguf", []
    fields: list[Any] = [0, 1, 9, 31, 255, 2**31, 2**32 - 1]
    for number in range(2000):
        changed = bytearray(content)
        at = rng.randrange(len(changed))
        if number % 3 == 0:
            changed[at] = rng.randrange(256)
        elif number % 3 == 1:
            changed[at : at + 4] = struct.pack("<I", rng.choice(fields))
        else:
            del changed[at : at + rng.choice([1, 7, len(changed)])]
        path.write_bytes(changed)
        try:
            facts = read_gguf_facts(path, "")
        except ModelError as error:
            messages.append(str(error))
        else:
            assert all(fact.offset + fact.n_bytes <= len(changed) for fact in facts.tensors.values())
    assert len(messages) > 1000
    assert all(message.isprintable() for message in messages)
