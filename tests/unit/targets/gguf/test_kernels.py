"""ggml's kernels through ctypes: every type's round trip, decoded by gguf-py's independent NumPy code."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.grids import decoded

from targets.gguf.kernels import quantize_rows
from targets.gguf.types import IMPORTANCE_TYPES, TYPES

# Largest error over the largest weight of a row, for bell-shaped weights: about half a step of the coarsest block. Of
# thousands of rows the worst one is at four fifths of these or below (IQ1_M 1.30, IQ3_XXS 0.54, Q2_K 0.42).
TOLERANCE = {
    "F32": 0.0, "F16": 5e-4, "BF16": 4e-3, "Q8_0": 6e-3, "Q6_K": 0.04, "Q5_K": 0.05, "Q5_1": 0.04, "Q5_0": 0.07,
    "Q4_K": 0.1, "Q4_1": 0.08, "Q4_0": 0.14, "IQ4_NL": 0.14, "IQ4_XS": 0.14, "Q3_K": 0.27, "Q2_K": 0.5,
    "TQ1_0": 0.51, "TQ2_0": 0.51, "IQ3_S": 0.5, "IQ3_XXS": 0.65, "IQ2_S": 0.7, "IQ2_XS": 0.8, "IQ2_XXS": 0.8,
    "IQ1_M": 1.5, "IQ1_S": 1.5, "MXFP4": 0.26, "NVFP4": 0.2, "Q2_0": 0.51, "Q1_0": 1.0,
}  # fmt: skip


@pytest.mark.parametrize("name", TYPES)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 5), blocks=st.integers(1, 3), scale=st.sampled_from([0.05, 1.0])
)
def test_round_trip(name: str, seed: int, rows: int, blocks: int, scale: float) -> None:
    kind = TYPES[name]
    columns = blocks * max(kind.block_size, 32)
    values = (np.random.default_rng(seed).standard_normal((rows, columns)) * scale).astype(np.float32)
    encoded = quantize_rows(values, kind, np.ones(columns, np.float32) if name in IMPORTANCE_TYPES else None)
    assert encoded.shape == (rows, kind.row_bytes(columns))
    worst = (np.abs(decoded(encoded, name) - values).max(axis=1) / np.abs(values).max(axis=1)).max()
    assert worst <= TOLERANCE[name]


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_bytes_equal_gguf_pys_own_encoder(name: str) -> None:
    values = np.random.default_rng(7).standard_normal((4, 96)).astype(np.float32)
    assert np.array_equal(
        quantize_rows(values, TYPES[name]), gguf.quants.quantize(values, gguf.GGMLQuantizationType[name])
    )


def test_rows_are_independent_so_chunks_can_be_cut_anywhere() -> None:
    values = np.random.default_rng(1).standard_normal((6, 512)).astype(np.float32)
    for name in ("Q4_K", "Q6_K", "IQ4_XS", "Q3_K"):
        whole = quantize_rows(values, TYPES[name])
        parts = np.concatenate([quantize_rows(values[:1], TYPES[name]), quantize_rows(values[1:], TYPES[name])])
        assert np.array_equal(whole, parts)


def test_a_strided_view_is_encoded_as_its_values() -> None:
    values = np.random.default_rng(1).standard_normal((4, 128)).astype(np.float32)
    assert np.array_equal(quantize_rows(values[::2], TYPES["Q8_0"]), quantize_rows(values, TYPES["Q8_0"])[::2])


def test_a_row_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="does not divide"):
        quantize_rows(np.zeros((1, 100), np.float32), TYPES["Q8_0"])


@pytest.mark.parametrize(("name", "value"), [("F16", 1e5), ("Q8_0", 1e38), ("Q4_K", 1e38)])
def test_a_value_that_the_type_cannot_hold_is_refused(name: str, value: float) -> None:
    values = np.zeros((1, 256), np.float32)
    values[0, 3] = value
    with pytest.raises(OverflowError, match=f"too large for {name}"):
        quantize_rows(values, TYPES[name])
