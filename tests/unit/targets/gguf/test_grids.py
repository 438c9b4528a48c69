"""Codes and scales of ggml's types, beside what gguf-py makes of the bytes."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from targets.gguf.grids import GRIDS, Fitted, GgufGrid
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
    codes = np.random.default_rng(1).integers(0, grid.largest + 1, weights.shape).astype(np.uint8)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    found = decoded(grid.pack(fitted, codes), grid)
    np.testing.assert_array_equal(found, grid.values(codes, scales, offsets))
    assert len(np.unique(found[0])) > 1


def test_the_nearest_code_is_the_nearest(grid: GgufGrid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    codes = grid.nearest(weights, scales, offsets)
    error = np.abs(grid.values(codes, scales, offsets) - weights)
    for code in range(grid.largest + 1):
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
        if not grid.ternary:  # whose scales are not ggml's
            assert (np.abs(ours - weights) <= np.abs(theirs - weights) + 1e-6).all()


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_scales_are_near_the_best(name: str, weights: np.ndarray) -> None:
    """Beside every scale of a fine raster; ggml's own, the largest weight, leaves several times the error."""
    grid = GRIDS[name]
    importance = np.random.default_rng(2).uniform(0.1, 3, COLUMNS).astype(np.float32)
    found = grid.dequantize(grid.pack(fitted := grid.fit(weights, importance), _nearest(grid, fitted, weights)))
    block, counts = weights[0, :256], importance[:256]
    raster = np.linspace(0, np.abs(block).max(), 2000)[:, None]
    errors = ((np.clip(np.rint(block / np.maximum(raster, 1e-9)), -1, 1) * raster - block) ** 2 * counts).sum(1)
    ours = ((found[0, :256] - block) ** 2 * counts).sum()
    assert errors.min() * (1 - 1e-3) <= ours <= errors.min() * 1.05
    theirs = decoded(quantize_rows(weights, grid.kind, None), grid)[0, :256]
    assert ours < 0.7 * ((theirs - block) ** 2 * counts).sum()
    assert not found[2].any()


def _nearest(grid: GgufGrid, fitted: Fitted, weights: np.ndarray) -> np.ndarray:
    return grid.nearest(weights, *(grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets)))


@pytest.mark.parametrize("name", ["TQ1_0", "TQ2_0"])
def test_ternary_weights_round_as_ggml_rounds_them(name: str) -> None:
    """Weights that are -1, 0 or 1 of a scale: ggml's bytes are ours, and nothing is lost."""
    grid, generator = GRIDS[name], np.random.default_rng(3)
    scales = generator.uniform(0.01, 1, (ROWS, COLUMNS // 256, 1)).astype(np.float16).astype(np.float32)
    exact = (generator.integers(-1, 2, (ROWS, COLUMNS // 256, 256)) * scales).reshape(ROWS, COLUMNS)
    packed = grid.pack(fitted := grid.fit(exact), _nearest(grid, fitted, exact))
    np.testing.assert_array_equal(decoded(packed, grid), exact)
    np.testing.assert_array_equal(packed, grid.rounded(exact))


def test_importance_moves_the_error_to_where_it_counts_less(weights: np.ndarray) -> None:
    importance = np.where(np.arange(COLUMNS) % 2, 100.0, 0.01).astype(np.float32)
    for grid in (GRIDS["Q4_K"], GRIDS["Q4_0"], GRIDS["IQ4_NL"]):
        errors = []
        for given in (None, importance):
            found = decoded(quantize_rows(weights, grid.kind, given), grid)
            errors.append(((found - weights) ** 2 * importance).sum())
        assert errors[1] < 0.9 * errors[0]
