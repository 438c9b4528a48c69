"""int8 rows beside one weight after the other, in plain Python's own arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from targets.groups import RowGrid, row_scales

WEIGHTS = np.random.default_rng(0).standard_normal((7, 40)).astype(np.float32)
WEIGHTS[2] = 0
WEIGHTS[3] = -np.abs(WEIGHTS[3])
WEIGHTS[4] *= np.float32(1e-38)  # a step of it is no normal number
GRID = RowGrid(40)


def by_hand(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed codes and scales: the largest weight of a row is 127 or -127; rows of next to nothing are zeros."""
    codes, scales = np.zeros(rows.shape, np.int64), np.ones(len(rows), np.float32)
    for number, row in enumerate(rows):
        largest = max(abs(float(weight)) for weight in row)
        if largest / 127 > 2.0**-126:
            scales[number] = np.float32(largest) / np.float32(127)
            codes[number] = [round(float(np.float32(weight) / scales[number])) for weight in row]
    return codes, scales


def test_codes_and_scales_are_those_of_plain_arithmetic() -> None:
    codes, scales = by_hand(WEIGHTS)
    tensors = GRID.tensors("w", GRID.rounded(WEIGHTS))
    assert {name: (part.dtype.name, part.shape) for name, part in tensors.items()} == {
        "w.codes8": ("uint8", (7, 40)), "w.scales": ("float32", (7, 1))
    }  # fmt: skip
    np.testing.assert_array_equal(tensors["w.codes8"].astype(np.int64) - 127, codes)
    np.testing.assert_array_equal(tensors["w.scales"][:, 0], scales)
    np.testing.assert_array_equal(row_scales(WEIGHTS), scales)
    values = codes.astype(np.float32) * scales[:, None]
    np.testing.assert_array_equal(GRID.dequantize(GRID.rounded(WEIGHTS)), values)
    assert np.abs(codes).max(axis=1).tolist() == [127, 127, 0, 127, 0, 127, 127]


def test_a_row_has_one_scale_however_its_columns_are_taken() -> None:
    fitted = GRID.fit(WEIGHTS)
    assert (GRID.block, fitted.scales.shape) == (40, (7, 1))
    for columns in (slice(3, 9), np.array([39, 0, 7])):
        scales, offsets = (GRID.spread(part, columns) for part in (fitted.scales, fitted.offsets))
        np.testing.assert_array_equal(scales, np.repeat(fitted.scales, scales.shape[1], axis=1))
        np.testing.assert_array_equal(offsets, np.float32(-127) * scales)


@pytest.mark.parametrize("factor", [1.5, -1.5])
def test_what_errors_have_moved_beyond_the_range_takes_its_end(factor: float) -> None:
    fitted = GRID.fit(WEIGHTS)
    scales, offsets = (GRID.spread(part, slice(None)) for part in (fitted.scales, fitted.offsets))
    codes = GRID.nearest(np.full_like(WEIGHTS, factor) * 127 * scales, scales, offsets)
    assert set(codes.reshape(-1).tolist()) == {254 if factor > 0 else 0}
