"""Thresholds and p-values: exact counts, the conformal guarantee, the same verdict by either."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibrate import calibration_images_needed, lowest_rate, p_values, threshold_at
from models.errors import TooFewImages

RATES = st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9])
SCORES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=300)


@pytest.mark.parametrize(("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1), (0.001, 999)])
def test_images_needed_are_the_least_that_calibrate(rate: float, needed: int) -> None:
    assert calibration_images_needed(rate) == needed
    threshold_at(np.arange(needed), rate)
    with pytest.raises(TooFewImages):
        threshold_at(np.arange(needed - 1), rate)


def test_too_few_images_name_the_rate_that_they_allow() -> None:
    with pytest.raises(TooFewImages, match=r"needs 99 .* found 49; with 49, the lowest rate is 0\.02"):
        threshold_at(np.arange(49), 0.01)


@pytest.mark.parametrize(("n", "rate", "k"), [(99, 0.01, 99), (19, 0.05, 19), (100, 0.01, 100), (199, 0.01, 198)])
def test_threshold_is_the_kth_smallest_score(n: int, rate: float, k: int) -> None:
    shuffled = np.random.default_rng(0).permutation(np.arange(1, n + 1))
    assert threshold_at(shuffled, rate) == k


@given(SCORES, RATES, st.floats(-11, 11, width=32))
def test_score_above_threshold_is_p_value_at_most_the_rate(scores: list[float], rate: float, asked: float) -> None:
    if len(scores) < calibration_images_needed(rate):
        with pytest.raises(TooFewImages):
            threshold_at(scores, rate)
        return
    threshold = threshold_at(scores, rate)
    for score in (asked, *scores[:20], threshold, math.nextafter(threshold, math.inf)):
        assert (score > threshold) == (p_values(scores, [score])[0] <= rate)


def test_p_values_count_calibration_scores_at_least_as_high() -> None:
    calibration = np.array([3, 1, 2, 2], dtype=np.float32)
    np.testing.assert_array_equal(p_values(calibration, [0, 1, 2, 2.5, 3, 4]), np.array([5, 5, 4, 2, 2, 1]) / 5)
    assert p_values(calibration, np.zeros((2, 3))).shape == (2, 3)


def test_p_value_of_nan_is_nan() -> None:
    assert np.isnan(p_values([1.0, 2.0], [np.nan])[0])


def test_normals_raise_no_more_false_alarms_than_the_rate() -> None:
    rng, rate = np.random.default_rng(0), 0.05
    false_alarms = [rng.normal() > threshold_at(rng.normal(size=30), rate) for _ in range(20_000)]
    assert np.mean(false_alarms) < rate + 0.005


@pytest.mark.parametrize("n", [1, 3, 24, 99, 1000])
def test_lowest_rate_can_be_calibrated_with_so_many(n: int) -> None:
    assert calibration_images_needed(lowest_rate(n)) <= n


@pytest.mark.parametrize("rate", [0.0, 1.0, -0.1, math.nan])
def test_rate_outside_0_and_1_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match="false-alarm rate"):
        threshold_at([1.0], rate)


@pytest.mark.parametrize("scores", [[1.0, math.nan], [math.inf], [[1.0]]])
def test_scores_that_are_not_finite_numbers_are_refused(scores: list[float]) -> None:
    with pytest.raises(ValueError, match="calibration scores"):
        threshold_at(scores, 0.5)
