"""Codes and scales of ggml's types, beside what gguf-py makes of the bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from targets.gguf.grids import GRIDS, GgufGrid
from targets.gguf.kernels import quantize_rows

ROWS, COLUMNS = 6, 512


@pytest.fixture(params=GRIDS)
def grid(request: pytest.FixtureRequest) -> GgufGrid:
    """Every grid in turn."""
    return GRIDS[request.param]


@pytest.fixture
def weights() -> np.ndarray:
    """Rows with outliers, and one of zeros."""
    found = np.random.default_rng(0).standard_t(4, (ROWS, COLUMNS)).astype(np.float32)
    found[2] = 0
    return found


def decoded(packed: np.ndarray, grid: GgufGrid) -> np.ndarray:
    """By gguf-py."""
    return gguf.quants.dequantize(packed, gguf.GGMLQuantizationType[grid.name])


def test_any_codes_dequantize_to_their_values_exactly(grid: GgufGrid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    codes = np.random.default_rng(1).integers(0, 1 << grid.bits, weights.shape).astype(np.uint8)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    found = decoded(grid.pack(fitted, codes), grid)
    np.testing.assert_array_equal(found, grid.values(codes, scales, offsets))
    assert len(np.unique(found[0])) > 1


def test_the_nearest_code_is_the_nearest(grid: GgufGrid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    codes = grid.nearest(weights, scales, offsets)
    error = np.abs(grid.values(codes, scales, offsets) - weights)
    for code in range(1 << grid.bits):
        other = np.abs(grid.values(np.full_like(codes, code), scales, offsets) - weights)
        assert (error <= other + 1e-6).all()


def test_rounding_is_at_least_as_near_as_ggmls_own(grid: GgufGrid, weights: np.ndarray) -> None:
    # ggml chooses scales and codes together; under its scales no code is nearer than the nearest.
    importance = np.random.default_rng(2).uniform(0.1, 3, COLUMNS).astype(np.float32)
    for given in (None, importance):
        fitted = grid.fit(weights, given)
        scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
        ours = grid.values(grid.nearest(weights, scales, offsets), scales, offsets)
        theirs = decoded(quantize_rows(weights, grid.kind, given), grid)
        assert ((ours - weights) ** 2).sum() <= ((theirs - weights) ** 2).sum() * (1 + 1e-6)
        assert (np.abs(ours - weights) <= np.abs(theirs - weights) + 1e-6).all()


def test_importance_moves_the_error_to_where_it_counts_less(weights: np.ndarray) -> None:
    importance = np.where(np.arange(COLUMNS) % 2, 100.0, 0.01).astype(np.float32)
    for grid in (GRIDS["Q4_K"], GRIDS["Q4_0"], GRIDS["IQ4_NL"]):
        errors = []
        for given in (None, importance):
            found = decoded(quantize_rows(weights, grid.kind, given), grid)
            errors.append(((found - weights) ** 2 * importance).sum())
        assert errors[1] < 0.9 * errors[0]
