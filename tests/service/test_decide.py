import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.errors import TooFewImages
from service.decide import ANOMALY, NORMAL, Judge, ScoreNotFinite

SCORES = st.lists(st.floats(0, 1000, width=32), min_size=99, max_size=300)


def test_score_above_the_threshold_is_an_anomaly_and_at_it_is_not() -> None:
    judge = Judge(np.arange(1, 100, dtype=np.float32), 0.05)
    assert judge.decide(judge.threshold).verdict == NORMAL
    assert judge.decide(math.nextafter(judge.threshold, math.inf)).verdict == ANOMALY


@given(SCORES, st.floats(-10, 2000, width=32), st.sampled_from([0.01, 0.02, 0.05, 0.1, 0.3]))
def test_verdict_and_p_value_agree(calibration: list[float], score: float, rate: float) -> None:
    decision = Judge(np.sort(np.asarray(calibration, dtype=np.float32)), rate).decide(score)
    assert (decision.verdict == ANOMALY) == (decision.p_value <= rate + 1e-9)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
def test_score_that_is_not_finite_gets_no_verdict(score: float) -> None:
    judge = Judge(np.arange(1, 100, dtype=np.float32), 0.05)
    with pytest.raises(ScoreNotFinite, match="finite"):
        judge.decide(score)


def test_too_few_calibration_scores_for_the_rate_are_refused() -> None:
    with pytest.raises(TooFewImages):
        Judge(np.arange(10, dtype=np.float32), 0.01)
