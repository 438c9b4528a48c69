"""Files of importance matrices: llama-imatrix's own, ours in both forms, and damaged ones."""

from __future__ import annotations

import contextlib
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime.errors import ModelError
from targets.gguf.imatrix import ImportanceMatrix, Sums, read_imatrix, write_imatrix

GOLDEN = Path(__file__).parents[3] / "golden"
MATRIX = ImportanceMatrix(
    {
        "blk.0.attn_q.weight": Sums(np.array([[8, 2, 0, 1]], np.float32), np.array([4])),
        "blk.0.ffn_up_exps.weight": Sums(np.array([[3, 6], [0, 0], [10, 5]], np.float32), np.array([3, 0, 5])),
    },
    ("text.txt",), 2, 4,
)  # fmt: skip


def test_means_by_hand() -> None:
    assert MATRIX.sums["blk.0.attn_q.weight"].means().tolist() == [[2.0, 0.5, 0.0, 0.25]]
    # an expert that was never asked counts all columns alike
    assert MATRIX.sums["blk.0.ffn_up_exps.weight"].means().tolist() == [[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]


@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_what_is_written_is_read_again(form: str, tmp_path: Path) -> None:
    write_imatrix(tmp_path / "file", MATRIX, form)
    found = read_imatrix(tmp_path / "file")
    assert (found.datasets, found.chunks) == (("text.txt",), 2)
    assert found.sums.keys() == MATRIX.sums.keys()
    for name, sums in found.sums.items():
        assert sums.means().reshape(-1).tolist() == MATRIX.sums[name].means().reshape(-1).tolist()
    if form == "gguf":
        assert found.chunk_tokens == 4
        assert found.sums["blk.0.ffn_up_exps.weight"].counts.tolist() == [3, 0, 5]


def test_the_older_form_by_hand(tmp_path: Path) -> None:
    def text(value: str) -> bytes:
        return struct.pack("<i", len(value)) + value.encode()

    write_imatrix(tmp_path / "file", MATRIX, "dat")
    # calls: the most inputs of a matrix in pieces of 4, rounded up; values: means times that
    assert (tmp_path / "file").read_bytes() == (
        struct.pack("<i", 2)
        + text("blk.0.attn_q.weight") + struct.pack("<2i4f", 1, 4, 2.0, 0.5, 0.0, 0.25)
        + text("blk.0.ffn_up_exps.weight") + struct.pack("<2i6f", 2, 6, 2.0, 4.0, 2.0, 2.0, 4.0, 2.0)
        + struct.pack("<i", 2) + text("text.txt")
    )  # fmt: skip


def test_gguf_py_reads_the_newer_form(tmp_path: Path) -> None:
    write_imatrix(tmp_path / "file.gguf", MATRIX)
    reader = gguf.GGUFReader(tmp_path / "file.gguf")
    assert {name: field.contents() for name, field in reader.fields.items() if name.startswith("imatrix")} == {
        "imatrix.datasets": ["text.txt"], "imatrix.chunk_count": 2, "imatrix.chunk_size": 4,
    }  # fmt: skip
    found = {tensor.name: tensor.data for tensor in reader.tensors}
    assert found["blk.0.ffn_up_exps.weight.in_sum2"].tolist() == [[3, 6], [0, 0], [10, 5]]
    assert found["blk.0.ffn_up_exps.weight.counts"].tolist() == [[3], [0], [5]]


def test_a_matrix_that_was_never_used_is_left_out_of_the_older_form(tmp_path: Path) -> None:
    unseen = Sums(np.zeros((2, 4), np.float32), np.zeros(2, np.int64))
    write_imatrix(tmp_path / "file", ImportanceMatrix({**MATRIX.sums, "blk.1.x.weight": unseen}), "dat")
    assert read_imatrix(tmp_path / "file").sums.keys() == MATRIX.sums.keys()


def test_both_forms_of_llama_imatrix_say_the_same() -> None:
    newer, older = (read_imatrix(GOLDEN / f"golden-imatrix.{form}") for form in ("gguf", "dat"))
    names = {f"attn_{part}" for part in ("q", "k", "v", "output")} | {f"ffn_{part}" for part in ("gate", "up", "down")}
    assert newer.sums.keys() == older.sums.keys() == {f"blk.{i}.{name}.weight" for i in range(3) for name in names}
    assert (newer.datasets, newer.chunks, newer.chunk_tokens) == (("golden.txt",), 5, 64)
    assert (older.datasets, older.chunks) == (("golden.txt",), 5)
    for name, sums in newer.sums.items():
        assert sums.counts.tolist() == [320]
        assert sums.squares.shape == (1, 288 if "ffn_down" in name else 256)
        np.testing.assert_allclose(older.sums[name].means(), sums.means(), rtol=1e-6)


def test_what_is_no_importance_matrix_says_so(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="is a GGUF file and no importance matrix"):
        read_imatrix(GOLDEN / "golden-q4_k_m.gguf")
    (tmp_path / "text").write_text("not a matrix at all, only words")
    with pytest.raises(ModelError, match="is no importance matrix"):
        read_imatrix(tmp_path / "text")
    with pytest.raises(ModelError, match="cannot be read"):
        read_imatrix(tmp_path / "nothing")


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("form", ["gguf", "dat"])
def test_values_that_are_no_numbers_are_refused(value: float, form: str, tmp_path: Path) -> None:
    bad = Sums(np.array([[1, value]], np.float32), np.array([1]))
    write_imatrix(tmp_path / "file", ImportanceMatrix({"blk.0.attn_q.weight": bad}, ("t",)), form)
    with pytest.raises(ModelError, match=r"blk\.0\.attn_q\.weight holds NaN or infinite"):
        read_imatrix(tmp_path / "file")


@pytest.mark.parametrize("form", ["gguf", "dat"])
@given(data=st.data())
def test_damage_is_an_error_or_another_matrix_never_a_crash(
    form: str, data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "file"
    write_imatrix(path, MATRIX, form)
    raw = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))])
    with contextlib.suppress(ModelError):
        assert all(np.isfinite(sums.squares).all() for sums in read_imatrix(path).sums.values())
