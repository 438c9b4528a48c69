"""Ranges for fixed 8-bit codes, on histograms small enough to count by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from targets.onnx.linear import activation_grid
from targets.onnx.ranges import BINS, Histogram, rounding_divergence, rounding_noise


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32).reshape(1, -1)


def whole(**bins: float) -> Histogram:
    """A histogram of bins of width 1 from -1024 to 1024; `b1000=3.0` counts 3 values in -24..-23."""
    histogram = Histogram(-1024.0, 1024.0)
    for bin_, count in bins.items():
        histogram.counts[int(bin_[1:])] = count
    return histogram


def test_widen_takes_the_extremes_and_zero() -> None:
    histogram = Histogram()
    histogram.widen(floats(1.0, 3.0))
    assert histogram.range("minmax") == (0.0, 3.0)
    histogram.widen(floats(-1.5, 0.5))
    assert histogram.range("minmax") == (-1.5, 3.0)


def test_count_puts_values_into_bins_between_the_extremes() -> None:
    histogram = Histogram(-1024.0, 1024.0)
    histogram.count(floats(-1024.0, -24.5, 0.0, 0.5, 1024.0))
    histogram.count(floats(0.75))
    found = {int(bin_): int(histogram.counts[bin_]) for bin_ in np.flatnonzero(histogram.counts)}
    assert found == {0: 1, 999: 1, 1024: 3, 2047: 1}


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy"])
def test_nothing_but_zeros_is_an_empty_range(method: str) -> None:
    histogram = Histogram()
    histogram.widen(floats(0.0, 0.0))
    histogram.count(floats(0.0, 0.0))
    assert histogram.range(method) == (0.0, 0.0)


def bulk(first: int, last: int, each: float) -> dict[str, float]:
    return {f"b{bin_}": each for bin_ in range(first, last)}


def test_percentile_cuts_what_is_rarer_than_its_tails() -> None:
    # one of a million values at each end; five of a million would stay
    histogram = whole(b0=1, b2047=1, **bulk(1000, 1100, 10_000))
    assert histogram.range("percentile") == (-24.0, 76.0)
    assert histogram.range("minmax") == (-1024.0, 1024.0)
    assert whole(b0=10, b2047=1, **bulk(1000, 1100, 10_000)).range("percentile") == (-1024.0, 76.0)
    assert whole(b0=1, b2047=10, **bulk(1000, 1100, 10_000)).range("percentile") == (-24.0, 1024.0)


def test_percentile_keeps_zero_inside() -> None:
    assert whole(b0=1, **bulk(1500, 1600, 10_000)).range("percentile") == (0.0, 576.0)
    assert whole(b2047=1, **bulk(500, 600, 10_000)).range("percentile") == (-524.0, 0.0)


def test_entropy_keeps_all_of_a_uniform_distribution() -> None:
    assert whole(**bulk(0, BINS, 5.0)).range("entropy") == (-1024.0, 1024.0)


def test_entropy_cuts_a_far_outlier() -> None:
    """256 bins, every second three times as full: any wider range would make equal what is not."""
    peak = {f"b{bin_}": 300.0 if bin_ % 2 else 100.0 for bin_ in range(1024 - 128, 1024 + 128)}
    assert whole(b2047=1, **peak).range("entropy") == (-128.0, 128.0)
    # ... unless there is as much out there as in the middle
    low, high = whole(b2047=60_000, **peak).range("entropy")
    assert (low, high) == (-1024.0, 1024.0)


def test_divergence_is_zero_where_rounding_keeps_the_distribution() -> None:
    counts = np.random.default_rng(0).integers(0, 50, 256).astype(float)
    assert rounding_divergence(counts, 0, 256) == pytest.approx(0.0, abs=1e-12)
    assert rounding_divergence(np.repeat(counts, 2), 0, 512) == pytest.approx(0.0, abs=1e-12)
    # a level spreads over the bins that hold anything, not over empty ones
    holes = np.stack([counts, np.zeros(256)], axis=1).reshape(-1)
    assert rounding_divergence(holes, 0, 512) == pytest.approx(0.0, abs=1e-12)


def test_divergence_by_hand() -> None:
    # pairs of 3 and 1 become 2 and 2
    counts = np.tile([3.0, 1.0], 256)
    assert rounding_divergence(counts, 0, 512) == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    # one value heaped on each edge of 256 bins of one value
    counts = np.ones(258)
    expected = 2 * (2 / 258) * math.log((2 / 258) * 256) + 254 / 258 * math.log(256 / 258)
    assert rounding_divergence(counts, 1, 257) == pytest.approx(expected)


def test_noise_by_hand() -> None:
    # codes are 0..255 themselves: 3.25 becomes 3, and 300 is cut to 255
    values = np.array([[3.25, 4.0], [300.0, 0.0]], np.float32)
    first, second = 0.25**2 / (3.25**2 + 4.0**2), 45.0**2 / 300.0**2
    assert rounding_noise(values[:1], 0.0, 255.0) == pytest.approx(first)
    assert rounding_noise(values, 0.0, 255.0) == pytest.approx((first + second) / 2)
    # a padding row of zeros loses nothing and does not count
    assert rounding_noise(np.array([[3.25, 4.0], [0.0, 0.0]], np.float32), 0.0, 255.0) == pytest.approx(first)
    assert rounding_noise(np.zeros((2, 3), np.float32), 0.0, 255.0) == 0.0
    # with a zero point: -1.25 becomes -1
    assert rounding_noise(floats(-1.25, 2.0), -55.0, 200.0) == pytest.approx(0.25**2 / (1.25**2 + 4.0))


@pytest.mark.parametrize(
    ("low", "high", "scale", "zero"),
    [
        (-1.0, 3.0, 4 / 255, 64),
        (1.0, 3.0, 3 / 255, 0),
        (-3.0, -1.0, 3 / 255, 255),
        (0.0, 0.0, 1.0, 0),
        (-55.0, 200.0, 1.0, 55),
        (-1e-30, 1.0, 1 / 255, 0),
    ],
)
def test_activation_grid_has_a_code_for_zero(low: float, high: float, scale: float, zero: int) -> None:
    found = activation_grid(low, high)
    assert found == (pytest.approx(scale), zero)
    # both ends are within half a step of a code
    assert -zero * found[0] <= low + found[0] / 2 or low > 0
    assert (255 - zero) * found[0] >= high - found[0] / 2
