"""What a header says that its file is for."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from runtime.gguf_kind import task_of_file
from targets.gguf.header import encode
from targets.gguf.keyvalue import KeyValue, array, boolean, float32, string, uint32

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "golden-q4_k_m.gguf"


def write(path: Path, *entries: KeyValue) -> Path:
    path.write_bytes(encode(list(entries), []))
    return path


BERT = string("general.architecture", "bert")


@pytest.mark.parametrize(
    ("entries", "task"),
    [
        ((BERT, uint32("bert.pooling_type", 1)), "feature-extraction"),
        ((BERT, uint32("bert.pooling_type", 4)), "text-classification"),
        ((BERT,), "feature-extraction"),
        ((string("general.architecture", "llama"), uint32("llama.pooling_type", 4)), None),
        ((), None),
    ],
)
def test_by_architecture_and_pooling(entries: tuple[KeyValue, ...], task: str | None, tmp_path: Path) -> None:
    assert task_of_file(write(tmp_path / "m.gguf", *entries)) == task


def test_values_of_every_kind_are_passed_over(tmp_path: Path) -> None:
    before = (
        array("a", ["x", "yy", ""], "STRING"), array("b", [1, 2, 3], "UINT8"), array("c", [1.0], "FLOAT32"),
        array("f", [True, False], "BOOL"), float32("d", 1.5), boolean("e", True), string("g", "é"),
    )  # fmt: skip
    written = write(tmp_path / "m.gguf", *before, BERT, *before, uint32("bert.pooling_type", 4))
    assert task_of_file(written) == "text-classification"


def test_a_decoder_and_what_is_no_file(tmp_path: Path) -> None:
    assert task_of_file(GOLDEN) is None
    assert task_of_file(tmp_path / "missing.gguf") is None


def test_a_damaged_header_is_not_known(tmp_path: Path) -> None:
    whole = write(tmp_path / "m.gguf", array("a", ["x"] * 9, "STRING"), BERT, uint32("bert.pooling_type", 4))
    data = whole.read_bytes()
    for length in range(len(data) - 40):
        whole.write_bytes(data[:length])
        assert task_of_file(whole) in (None, "feature-extraction")
    whole.write_bytes(struct.pack("<4sIQQQ", b"GGUF", 3, 0, 2**63, 2**63))
    assert task_of_file(whole) is None
    # an array that claims more texts than any vocabulary has
    whole.write_bytes(data[:24] + struct.pack("<Q1sIIQ", 1, b"a", 9, 8, 2**60))
    assert task_of_file(whole) is None
