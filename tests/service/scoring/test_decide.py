import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.calibration.thresholds import AtBestF1, AtFalseAlarmRate, AtFixedScore
from models.errors import NoAnomalyScores, TooFewImages
from service.root import ANOMALY, NORMAL
from service.scoring.decide import ScoreNotFinite, ThresholdDecider

SCORES = st.lists(st.floats(0, 1000, width=32), min_size=99, max_size=300)


def test_score_above_the_threshold_is_an_anomaly_and_at_it_is_not() -> None:
    decider = ThresholdDecider(np.arange(1, 100, dtype=np.float32), AtFalseAlarmRate(0.05))
    assert decider.decide(decider.threshold).verdict == NORMAL
    assert decider.decide(math.nextafter(decider.threshold, math.inf)).verdict == ANOMALY


@given(SCORES, st.floats(-10, 2000, width=32), st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.3]))
def test_verdict_and_p_value_agree(calibration: list[float], score: float, rate: float) -> None:
    decision = ThresholdDecider(np.sort(np.asarray(calibration, dtype=np.float32)), AtFalseAlarmRate(rate)).decide(
        score
    )
    assert (decision.verdict == ANOMALY) == (decision.p_value <= rate + 1e-9)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_gets_no_verdict(score: float) -> None:
    decider = ThresholdDecider(np.arange(1, 100, dtype=np.float32), AtFalseAlarmRate(0.05))
    with pytest.raises(ScoreNotFinite, match="finite"):
        decider.decide(score)


def test_too_few_calibration_scores_for_the_rate_are_refused() -> None:
    with pytest.raises(TooFewImages):
        ThresholdDecider(np.arange(10, dtype=np.float32), AtFalseAlarmRate(0.01))


def test_policy_that_needs_known_anomalies_is_refused_without_them() -> None:
    with pytest.raises(NoAnomalyScores, match="'f1': needs scores of known anomalies"):
        ThresholdDecider(np.arange(10, dtype=np.float32), AtBestF1())


@given(
    SCORES, st.floats(-10, 2000, width=32), st.sampled_from([0.01, 0.02, 0.05, 0.1]), st.sampled_from([1.5, 2, 3, 20])
)
def test_normal_verdict_is_uncertain_exactly_by_its_p_value(
    calibration: list[float], score: float, rate: float, factor: float
) -> None:
    scores = np.sort(np.asarray(calibration, dtype=np.float32))
    decider = ThresholdDecider(scores, AtFalseAlarmRate(rate), uncertain_band=factor)
    decision = decider.decide(score)
    if decision.verdict == NORMAL and decider.band_half_width:
        kept = (1 + int((scores > decider.threshold).sum())) / (len(scores) + 1)
        if factor * kept < 1:
            assert decision.uncertain == (decision.p_value <= factor * kept + 1e-9)
        else:
            assert decision.uncertain == (score > scores[0])


@given(SCORES, st.floats(-10, 2000, width=32), st.floats(1, 50))
def test_band_changes_no_verdict_and_uncertainty_tells_what_is_in_it(
    calibration: list[float], score: float, factor: float
) -> None:
    scores, policy = np.sort(np.asarray(calibration, dtype=np.float32)), AtFalseAlarmRate(0.05)
    decider = ThresholdDecider(scores, policy, uncertain_band=factor)
    decision, plain = decider.decide(score), ThresholdDecider(scores, policy).decide(score)
    assert (decision.verdict, decision.p_value) == (plain.verdict, plain.p_value)
    assert (plain.uncertain, plain.uncertainty) == (False, None)
    if decision.uncertainty is None:
        assert not decision.uncertain and decider.band_half_width == 0
    else:
        assert 0 <= decision.uncertainty <= 1 and decision.uncertain == (decision.uncertainty > 0.5)


def test_band_reaches_as_far_above_the_threshold_as_below_it() -> None:
    decider = ThresholdDecider(np.arange(1, 100, dtype=np.float32), AtFalseAlarmRate(0.01), uncertain_band=3.0)
    assert (decider.threshold, decider.band_half_width) == (99.0, 2.0)
    told = {score: decider.decide(score) for score in (96.0, 97.0, 97.5, 99.0, 100.0, 100.9, 101.0, 150.0)}
    assert [score for score, one in told.items() if one.uncertain] == [97.5, 99.0, 100.0, 100.9]
    assert (told[99.0].uncertainty, told[100.0].uncertainty, told[101.0].uncertainty) == (
        1.0,
        pytest.approx(2 / 3),
        0.5,
    )
    assert told[150.0].verdict == told[100.0].verdict == ANOMALY and told[150.0].p_value == told[100.0].p_value


def test_band_of_an_exponential_tail_holds_the_scores_between_three_times_the_rate_and_a_third_of_it() -> None:
    n, rate = 100_000, 0.01
    quantiles = -np.log1p(-(np.arange(n) + 0.5) / n).astype(np.float32)
    decider = ThresholdDecider(quantiles, AtFalseAlarmRate(rate), uncertain_band=3.0)
    upper = decider.threshold + decider.band_half_width
    assert np.mean(quantiles > upper) == pytest.approx(rate / 3, rel=0.02)


@pytest.mark.parametrize(("threshold", "half_width"), [(150.0, 53.0), (0.0, 0.0)])
def test_gap_between_the_normals_and_a_threshold_above_them_all_is_uncertain(threshold, half_width) -> None:
    decider = ThresholdDecider(np.arange(1, 100, dtype=np.float32), AtFixedScore(threshold), uncertain_band=3.0)
    assert decider.band_half_width == half_width
