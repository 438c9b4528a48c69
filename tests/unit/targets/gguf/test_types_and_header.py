"""Size arithmetic and the header's bytes."""

from __future__ import annotations

import struct

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from targets.gguf import header
from targets.gguf.keyvalue import KeyValue, array, boolean, float32, string, uint32
from targets.gguf.types import TYPES


@pytest.mark.parametrize("name", sorted(TYPES.keys() - {"Q2_0"}))
def test_sizes_are_those_of_gguf_py(name: str) -> None:
    kind = TYPES[name]
    assert kind.id == gguf.GGMLQuantizationType[name].value
    assert (kind.block_size, kind.block_bytes) == gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]


def test_a_type_that_gguf_py_does_not_know_by_hand() -> None:
    # block_q2_0 of ggml-common.h: a float16, and 64 codes of two bits
    assert (TYPES["Q2_0"].id, TYPES["Q2_0"].block_size, TYPES["Q2_0"].block_bytes) == (42, 64, 18)


def test_bits_per_weight_by_hand() -> None:
    assert TYPES["Q8_0"].bits_per_weight == 8.5
    assert TYPES["Q4_K"].bits_per_weight == 4.5
    assert TYPES["Q6_K"].bits_per_weight == 6.5625
    assert TYPES["IQ2_XXS"].bits_per_weight == 2.0625
    assert TYPES["IQ1_S"].bits_per_weight == 1.5625
    assert TYPES["MXFP4"].bits_per_weight == 4.25


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="576 weights does not divide into Q4_K blocks of 256"):
        TYPES["Q4_K"].row_bytes(576)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 8), st.sampled_from(sorted(TYPES))), min_size=1, max_size=12)
)
def test_tensors_are_placed_aligned_without_gaps_or_overlap(entries: list[tuple[int, int, str]]) -> None:
    tensors = [
        (f"t{i}", (rows, blocks * TYPES[kind].block_size), TYPES[kind])
        for i, (rows, blocks, kind) in enumerate(entries)
    ]
    placed = header.place(tensors)
    end = 0
    for entry, (rows, blocks, kind) in zip(placed, entries, strict=True):
        assert entry.n_bytes == rows * blocks * TYPES[kind].block_bytes
        assert entry.offset % header.ALIGNMENT == 0
        assert 0 <= entry.offset - end < header.ALIGNMENT
        end = entry.offset + entry.n_bytes


def test_the_header_of_one_tensor_by_hand() -> None:
    placed = header.place([("w", (2, 4), TYPES["F32"])])
    expected = (
        b"GGUF" + struct.pack("<IQQ", 3, 1, 1)
        + struct.pack("<Q", 3) + b"a.b" + struct.pack("<II", 4, 7)
        + struct.pack("<Q", 1) + b"w" + struct.pack("<I", 2) + struct.pack("<QQ", 4, 2) + struct.pack("<IQ", 0, 0)
    )  # fmt: skip
    encoded = header.encode([uint32("a.b", 7)], placed)
    assert encoded == expected + bytes(-len(expected) % 32)


def test_gguf_py_reads_what_is_written(tmp_path: object) -> None:
    metadata = [
        string("general.architecture", "llama"),
        string("s", "naïve 😀"),
        uint32("u", 2**32 - 1),
        float32("f", 0.5),
        boolean("b", True),
        array("tokens", ["a", b"\xff", "ü"], "STRING"),
        array("scores", [0.5, -1.0], "FLOAT32"),
        array("types", [1, 3, 6], "INT32"),
        KeyValue("wide", -5, "INT64"),
    ]
    placed = header.place([("a.weight", (3, 32), TYPES["Q8_0"]), ("b", (5,), TYPES["F32"])])
    data = bytearray(header.align(placed[1].offset + placed[1].n_bytes))
    data[placed[1].offset : placed[1].offset + 20] = np.arange(5, dtype="<f4").tobytes()
    path = tmp_path / "x.gguf"  # type: ignore[operator]  # a Path
    path.write_bytes(header.encode(metadata, placed) + data)
    reader = gguf.GGUFReader(path)
    assert reader.fields["s"].contents() == "naïve 😀"
    assert reader.fields["u"].contents() == 2**32 - 1
    assert reader.fields["b"].contents() is True
    assert reader.fields["scores"].contents() == [0.5, -1.0]
    assert reader.fields["types"].contents() == [1, 3, 6]
    assert reader.fields["wide"].contents() == -5
    assert bytes(reader.fields["tokens"].parts[reader.fields["tokens"].data[1]]) == b"\xff"
    assert [(t.name, list(t.shape), t.tensor_type.name) for t in reader.tensors] == [
        ("a.weight", [32, 3], "Q8_0"),
        ("b", [5], "F32"),
    ]
    assert reader.tensors[1].data.tolist() == [0, 1, 2, 3, 4]


def test_an_array_without_a_type_is_refused() -> None:
    with pytest.raises(ValueError, match="needs the type of its elements"):
        header.encode([KeyValue("k", [1], "ARRAY")], [])
