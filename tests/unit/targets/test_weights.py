"""Rows from disk as float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest

from runtime.errors import ModelError
from targets.facts import TensorFact
from targets.weights import WeightReader, row_chunks

if TYPE_CHECKING:
    from pathlib import Path


def fact(path: Path, dtype: str, shape: tuple[int, ...], n_bytes: int, offset: int = 0) -> TensorFact:
    return TensorFact("w", shape, dtype, path, offset, n_bytes)


def test_every_float_type_decodes_to_the_values_it_stands_for(tmp_path: Path) -> None:
    path = tmp_path / "x"
    # 1.5, -2, 3, 0.25 in bfloat16: the upper halves of their float32 bits
    path.write_bytes(np.array([0x3FC0, 0xC000, 0x4040, 0x3E80], "<u2").tobytes())
    with WeightReader() as reader:
        assert reader.read_rows(fact(path, "BF16", (2, 2), 8), 0, 2).tolist() == [[1.5, -2.0], [3.0, 0.25]]
        assert reader.read_rows(fact(path, "BF16", (2, 2), 8), 1, 2).tolist() == [[3.0, 0.25]]
    path.write_bytes(b"pad" + np.array([1.5, -2.0], "<f2").tobytes())
    with WeightReader() as reader:
        assert reader.read_rows(fact(path, "F16", (1, 2), 4, offset=3), 0, 1).tolist() == [[1.5, -2.0]]
    path.write_bytes(np.array([1.5, -2.0], "<f4").tobytes())
    with WeightReader() as reader:
        assert reader.read_rows(fact(path, "F32", (2,), 8), 0, 1).tolist() == [[1.5, -2.0]]


def test_a_matrix_of_matrices_is_read_by_its_last_dimension(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(np.arange(12, dtype="<f4").tobytes())
    with WeightReader() as reader:
        assert reader.read_rows(fact(path, "F32", (2, 3, 2), 48), 3, 5).tolist() == [[6, 7], [8, 9]]


def test_a_short_file_says_so(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(bytes(6))
    with WeightReader() as reader, pytest.raises(ModelError, match="ends inside tensor w; download"):
        reader.read_rows(fact(path, "F32", (2,), 8), 0, 1)


def test_a_missing_file_says_so(tmp_path: Path) -> None:
    with WeightReader() as reader, pytest.raises(ModelError, match="cannot be read"):
        reader.read_rows(fact(tmp_path / "none", "F32", (2,), 8), 0, 1)


def test_nan_in_half_precision_is_found(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(np.array([[0, 0], [0, 0x7F80]], "<u2").tobytes())
    with WeightReader() as reader, pytest.raises(ModelError, match=r"tensor w holds NaN or infinite .*row 1"):
        reader.read_rows(fact(path, "BF16", (2, 2), 8), 0, 2)


def test_chunks_cover_every_row_once() -> None:
    assert list(row_chunks(5, 10, 20)) == [(0, 2), (2, 4), (4, 5)]
    assert list(row_chunks(2, 100, 1)) == [(0, 1), (1, 2)]
    assert list(row_chunks(3, 10, 10**6)) == [(0, 3)]
