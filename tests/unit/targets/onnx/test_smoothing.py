from __future__ import annotations

import numpy as np
import pytest

from targets.onnx.calibration import smoothing_factors


def test_factors_are_the_roots_of_the_peaks_over_the_median() -> None:
    factors = smoothing_factors(np.array([1, 1, 1, 16, 0.25], np.float32))
    assert factors is not None
    np.testing.assert_allclose(factors, [1, 1, 1, 4, 0.5])


def test_a_feature_that_was_hardly_seen_is_not_blown_up() -> None:
    factors = smoothing_factors(np.array([1, 1, 1, 100, 0], np.float32))
    assert factors is not None
    assert factors[-1] == pytest.approx(0.1)


@pytest.mark.parametrize("peaks", [[1, 1, 1, 7.9], [0, 0, 0, 5], [0, 0]])
def test_even_features_and_dead_inputs_need_none(peaks: list[float]) -> None:
    assert smoothing_factors(np.array(peaks, np.float32)) is None
