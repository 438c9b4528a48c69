"""What every grid stores beside codes: numbers that may move, and scales that follow them as an engine computes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from support.grids import ALL, COLUMNS

from targets.pytorch.groups import to_bfloat16

if TYPE_CHECKING:
    from targets.grids import Grid

HELD = {
    "float16": lambda values: values.astype(np.float16).astype(np.float32),
    "bfloat16": to_bfloat16,
    "float32": lambda values: values,
}


@pytest.fixture(params=ALL)
def grid(request: pytest.FixtureRequest) -> Grid:
    """Every grid in turn."""
    return ALL[request.param]


@pytest.fixture
def weights() -> np.ndarray:
    """Rows that are nowhere near zero on average, and one of zeros."""
    found = np.random.default_rng(0).normal(0.02, 0.1, (5, COLUMNS)).astype(np.float32)
    found[2] = 0
    return found


def test_scales_are_what_the_stored_numbers_give(grid: Grid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    stored = grid.stored(fitted)
    scales = stored.steps[..., None] * stored.scale_by
    offsets = np.zeros_like(scales)
    if stored.step_by is not None:
        offsets += stored.steps[..., None] * stored.step_by
    if stored.shifts is not None and stored.shift_by is not None:
        offsets += stored.shifts[..., None] * stored.shift_by
    np.testing.assert_array_equal(scales.reshape(fitted.scales.shape), fitted.scales)
    np.testing.assert_array_equal(offsets.reshape(fitted.offsets.shape), fitted.offsets)
    assert HELD[stored.kind](stored.steps) == pytest.approx(stored.steps, rel=0, abs=0)


def test_moved_numbers_are_in_the_bytes(grid: Grid, weights: np.ndarray) -> None:
    fitted = grid.fit(weights)
    stored = grid.stored(fitted)
    held = HELD[stored.kind]
    steps = held(stored.steps * np.float32(1.3))
    shifts = None if stored.shifts is None else held(stored.shifts * np.float32(0.7))
    moved = grid.moved(fitted, steps, shifts)
    spread = [grid.spread(part, slice(None)) for part in (moved.scales, moved.offsets)]
    codes = grid.nearest(weights, *spread)
    packed = grid.pack(moved, codes)
    np.testing.assert_allclose(grid.dequantize(packed), grid.values(codes, *spread), rtol=1e-6, atol=1e-7)
    again = grid.stored(grid.fitted(packed))
    np.testing.assert_array_equal(again.steps, steps)
    if shifts is not None:
        np.testing.assert_array_equal(again.shifts, shifts)
        assert (shifts != stored.shifts).any()
    for part in ("scale_by", "step_by", "shift_by"):  # whole numbers are what they were
        np.testing.assert_array_equal(getattr(again, part), getattr(stored, part))
    assert again.kind == stored.kind
