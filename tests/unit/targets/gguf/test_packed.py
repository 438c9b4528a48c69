"""Arrays that stay as they lie in the file are sequences like any other."""

from __future__ import annotations

import struct
from array import array

import pytest

from targets.gguf.packed import PackedNumbers, PackedTexts

TEXTS = PackedTexts(
    b"".join(struct.pack("<Q", len(raw)) + raw for raw in (b"a", b"", b"\xff", "Ġé".encode())),
    array("I", [0, 9, 17, 26]),
)
NUMBERS = PackedNumbers(struct.pack("<3h", 1, -2, 300), "h")


def test_numbers() -> None:
    assert list(NUMBERS) == [1, -2, 300]
    assert (len(NUMBERS), NUMBERS[0], NUMBERS[-1], NUMBERS[1:]) == (3, 1, 300, [-2, 300])
    assert NUMBERS == [1, -2, 300]
    assert PackedNumbers(struct.pack("<3i", 1, -2, 300), "i") == NUMBERS
    assert NUMBERS != [1, -2]
    assert NUMBERS != [1, -2, 301]
    assert PackedNumbers(struct.pack("<3h", 1, -2, 300), "H") != NUMBERS
    assert -2 in NUMBERS
    assert list(PackedNumbers(b"\0\1", "?")) == [False, True]
    assert not PackedNumbers(b"", "B")


def test_texts() -> None:
    assert list(TEXTS) == ["a", "", b"\xff", "Ġé"]
    assert (len(TEXTS), TEXTS[0], TEXTS[-1], TEXTS[1:3]) == (4, "a", "Ġé", ["", b"\xff"])
    assert TEXTS == ["a", "", b"\xff", "Ġé"]
    assert TEXTS != "aĠé"
    assert TEXTS.index("Ġé") == 3


@pytest.mark.parametrize("index", [4, -5, 1 << 40])
def test_an_index_out_of_range(index: int) -> None:
    with pytest.raises(IndexError):
        TEXTS[index]


def test_no_hash_and_a_short_repr() -> None:
    with pytest.raises(TypeError):
        hash(NUMBERS)
    assert repr(PackedNumbers(bytes(1000), "B")) == "PackedNumbers(1000 elements)"
