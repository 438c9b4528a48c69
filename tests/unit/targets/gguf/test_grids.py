"""Codes and scales of ggml's types, beside what gguf-py makes of the bytes."""

from __future__ import annotations

import numpy as np
import pytest
from support.grids import decoded

from targets.gguf.grids import GRIDS, Fitted, GgufGrid
from targets.gguf.kernels import quantize_rows

ROWS, COLUMNS = 6, 512
LEVELS = {"Q1_0": (-1, 1), "Q2_0": (-1, 0, 1, 2), "TQ1_0": (-1, 0, 1), "TQ2_0": (-1, 0, 1)}
"""What the codes stand for of types that have so few of them."""


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


def test_any_codes_dequantize_to_their_values_exactly(grid: GgufGrid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    codes = np.random.default_rng(1).integers(0, grid.largest + 1, weights.shape).astype(np.uint8)
    scales, offsets = (grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    found = decoded(grid.pack(fitted, codes), grid.name)
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
        theirs = decoded(quantize_rows(weights, grid.kind, given), grid.name)
        counts = np.ones(COLUMNS, np.float32) if given is None or not grid.coarse else given
        assert (counts * (ours - weights) ** 2).sum() <= (counts * (theirs - weights) ** 2).sum() * (1 + 1e-6)
        if not grid.coarse:  # whose scales are not ggml's
            assert (np.abs(ours - weights) <= np.abs(theirs - weights) + 1e-6).all()


@pytest.mark.parametrize("name", [name for name, grid in GRIDS.items() if grid.coarse])
def test_scales_of_few_codes_are_near_the_best(name: str, weights: np.ndarray) -> None:
    """Beside every scale of a fine raster; ggml's own, the largest weight, leaves several times the error."""
    grid = GRIDS[name]
    importance = np.random.default_rng(2).uniform(0.1, 3, COLUMNS).astype(np.float32)
    found = grid.dequantize(grid.pack(fitted := grid.fit(weights, importance), _nearest(grid, fitted, weights)))
    np.testing.assert_array_equal(found, grid.dequantize(grid.rounded(weights, importance)))
    block, counts = weights[0, : grid.block], importance[: grid.block]
    levels = LEVELS[name]
    raster = np.linspace(-np.abs(block).max(), np.abs(block).max(), 4001)[:, None, None]
    errors = ((np.square(raster * levels - block[None, :, None]) * counts[:, None]).min(-1)).sum(-1)
    ours = ((found[0, : grid.block] - block) ** 2 * counts).sum()
    assert errors.min() * (1 - 1e-3) <= ours <= errors.min() * 1.05
    theirs = decoded(quantize_rows(weights, grid.kind, None), grid.name)[0, : grid.block]
    assert ours < (0.7 if name in ("TQ1_0", "TQ2_0") else 1.0) * ((theirs - block) ** 2 * counts).sum()
    assert not found[2].any()


def _nearest(grid: GgufGrid, fitted: Fitted, weights: np.ndarray) -> np.ndarray:
    return grid.nearest(weights, *(grid.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets)))


@pytest.mark.parametrize("name", LEVELS)
def test_weights_that_were_trained_so_lose_nothing(name: str) -> None:
    """Weights that are few multiples of a scale: where ggml finds that scale, its bytes are ours."""
    grid, generator = GRIDS[name], np.random.default_rng(3)
    shape = (ROWS, COLUMNS // grid.block, grid.block)
    scales = generator.uniform(0.01, 1, (*shape[:2], 1)).astype(np.float16).astype(np.float32)
    exact = (generator.choice(LEVELS[name], shape) * scales).reshape(ROWS, COLUMNS)
    packed = grid.pack(fitted := grid.fit(exact), _nearest(grid, fitted, exact))
    np.testing.assert_array_equal(decoded(packed, grid.name), exact)
    if name != "Q2_0":  # where the largest weight is twice the scale
        np.testing.assert_array_equal(packed, quantize_rows(exact, grid.kind, None).reshape(ROWS, -1))


def test_codes_that_reach_farther_to_one_side_are_turned_to_where_the_weights_do() -> None:
    grid = GRIDS["Q2_0"]
    weights = np.tile(np.array([-2, -1, 0, 1], np.float32), (1, 16))
    fitted = grid.fit(weights)
    assert fitted.scales.tolist() == [[-1.0]]
    np.testing.assert_array_equal(decoded(grid.pack(fitted, _nearest(grid, fitted, weights)), "Q2_0"), weights)


def test_importance_moves_the_error_to_where_it_counts_less(weights: np.ndarray) -> None:
    importance = np.where(np.arange(COLUMNS) % 2, 100.0, 0.01).astype(np.float32)
    for grid in (GRIDS["Q4_K"], GRIDS["Q4_0"], GRIDS["IQ4_NL"]):
        errors = []
        for given in (None, importance):
            found = decoded(quantize_rows(weights, grid.kind, given), grid.name)
            errors.append(((found - weights) ** 2 * importance).sum())
        assert errors[1] < 0.9 * errors[0]
