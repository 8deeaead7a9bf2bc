"""Thresholds and p-values: exact counts, the conformal guarantee, the same verdict by either."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from models.calibration.thresholds import (
    AtBestF1,
    AtFalseAlarmRate,
    AtFixedScore,
    AtLeastCost,
    calibration_images_needed,
    lowest_rate,
    p_values,
    threshold_at,
    threshold_by,
    threshold_for_cost,
    threshold_for_f1,
    wider_threshold,
)
from models.errors import NoAnomalyScores, TooFewImages

RATES = st.sampled_from([0.001, 0.01, 0.02, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 1 / 3, 0.5, 0.7, 0.9])
SCORES = st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=300)


@pytest.mark.parametrize(
    ("rate", "needed"), [(0.01, 99), (0.05, 19), (0.1, 9), (0.3, 3), (0.5, 1), (0.001, 999), (1 / 3, 2)]
)
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


@example([0.0] * 10 + [1.0], 1 / 3, 0.0)
@example([0.0, 1.0], 1 / 3, 0.0)
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


# --- policies that weigh known anomalies -----------------------------------------------------------------------

FEW = st.lists(st.integers(0, 12).map(float), min_size=1, max_size=25)
PREVALENCES = st.one_of(st.none(), st.floats(0.01, 0.99))


def f1_of(normals, anomalies, threshold: float, prevalence: float | None) -> float:
    share = len(anomalies) / (len(normals) + len(anomalies)) if prevalence is None else prevalence
    hits = share * np.mean(np.asarray(anomalies) > threshold)
    false = (1 - share) * np.mean(np.asarray(normals) > threshold)
    return 2 * hits / (2 * hits + false + share - hits)


def cost_of(normals, anomalies, threshold: float, miss: float, alarm: float, share: float) -> float:
    missed = np.mean(np.asarray(anomalies) <= threshold)
    return share * missed * miss + (1 - share) * np.mean(np.asarray(normals) > threshold) * alarm


@given(FEW, FEW, PREVALENCES)
def test_no_threshold_has_a_higher_f1(normals: list[float], anomalies: list[float], prevalence: float | None) -> None:
    found = f1_of(normals, anomalies, threshold_for_f1(normals, anomalies, prevalence), prevalence)
    for other in np.arange(-0.5, 13, 0.25):
        assert f1_of(normals, anomalies, other, prevalence) <= found + 1e-9


@given(FEW, FEW, st.floats(0.1, 100), st.floats(0.1, 100), st.floats(0.01, 0.99))
def test_no_threshold_costs_less(
    normals: list[float], anomalies: list[float], miss: float, alarm: float, share: float
) -> None:
    threshold = threshold_for_cost(normals, anomalies, AtLeastCost(miss, alarm, share))
    found = cost_of(normals, anomalies, threshold, miss, alarm, share)
    for other in np.arange(-0.5, 13, 0.25):
        assert cost_of(normals, anomalies, other, miss, alarm, share) >= found - 1e-9


def test_threshold_is_in_the_middle_of_the_gap_and_of_equally_good_ones_the_lowest() -> None:
    assert threshold_for_f1([1, 2, 3], [7, 8]) == 5.0
    # At 3 one normal is called an anomaly; at 6 one anomaly is missed: both cost the same.
    equal = AtLeastCost(3.0, 3.0, prevalence=0.5)
    assert threshold_for_cost([1, 2, 5], [4, 7, 8], equal) == 3.0


def test_neighbouring_floats_are_parted() -> None:
    low = 1.0
    high = math.nextafter(low, 2)
    threshold = threshold_for_f1([low], [high])
    assert low <= threshold < high


@pytest.mark.parametrize(("miss", "alarm", "called"), [(1e9, 1.0, 6), (1.0, 1e9, 0)])
def test_costs_may_call_everything_or_nothing_an_anomaly(miss: float, alarm: float, called: int) -> None:
    scores = [[1.0, 4.0, 9.0], [1.0, 2.0, 5.0]]
    threshold = threshold_for_cost(*scores, AtLeastCost(miss, alarm, 0.5))
    assert sum(score > threshold for part in scores for score in part) == called


def test_rarer_anomalies_raise_the_threshold() -> None:
    rng = np.random.default_rng(0)
    normals, anomalies = rng.normal(0, 1, 300), rng.normal(2, 1, 300)
    thresholds = [threshold_for_f1(normals, anomalies, share) for share in (0.5, 0.1, 0.01)]
    assert thresholds == sorted(thresholds) and thresholds[0] < thresholds[2]


@pytest.mark.parametrize("policy", [AtBestF1(), AtBestF1(0.1), AtLeastCost(1.0, 1.0, 0.1)], ids=str)
def test_policy_without_known_anomalies_is_refused_by_its_name(policy) -> None:
    with pytest.raises(NoAnomalyScores, match=f"'{policy.name}': needs scores of known anomalies"):
        threshold_by(policy, np.arange(100.0), [])


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (AtLeastCost(0.0, 1.0, 0.1), "cost of a miss"),
        (AtLeastCost(1.0, math.inf, 0.1), "cost of a false alarm"),
        (AtLeastCost(1.0, 1.0, 1.0), "prevalence"),
        (AtBestF1(0.0), "prevalence"),
        (AtFixedScore(math.nan), "fixed threshold"),
    ],
    ids=str,
)
def test_policy_with_a_figure_that_cannot_be_is_refused(policy, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        threshold_by(policy, np.arange(100.0), [200.0])


def test_anomaly_scores_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="scores of known anomalies"):
        threshold_for_f1([1.0], [math.nan])


def test_each_policy_gives_its_own_threshold() -> None:
    normals, anomalies = np.arange(1.0, 100.0), np.array([150.0, 160.0])
    assert threshold_by(AtFalseAlarmRate(0.05), normals) == threshold_at(normals, 0.05)
    assert threshold_by(AtBestF1(), normals, anomalies) == 124.5
    assert threshold_by(AtLeastCost(5.0, 1.0, 0.1), normals, anomalies) == 124.5
    assert threshold_by(AtFixedScore(7), normals) == 7.0


@given(SCORES, st.floats(-11, 11, width=32), st.floats(-11, 11, width=32), st.floats(1, 20))
def test_above_the_wider_threshold_the_p_value_is_at_most_so_many_times_the_rate(
    scores: list[float], threshold: float, asked: float, factor: float
) -> None:
    wider = wider_threshold(scores, threshold, factor)
    rate = (1 + sum(score > threshold for score in scores)) / (len(scores) + 1)
    assert wider <= threshold
    if math.floor(factor * rate * (len(scores) + 1) + 1e-9) <= len(scores) and asked <= threshold:
        assert (asked > wider) == (p_values(scores, [asked])[0] <= factor * rate + 1e-9)
