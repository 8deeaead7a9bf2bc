"""Drift: the tests against SciPy's, how rarely normals are said to drift, since when and why they do."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from models.calibration.thresholds import threshold_at
from models.drift.drift import (
    DISTANCE_BEGINS_BELOW,
    ENDS_ABOVE,
    IMAGES_MIN,
    SHARE_BEGINS_BELOW,
    Moved,
    ScoreComparison,
    cause_of,
    change_point,
    compare,
    look_moved,
    moved,
)
from models.drift.p_values import binomial_p_value, ks_distance, ks_p_value, share_p_value

values = st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40)
SAME = {name: Moved(100.0, 100.0, moved=False) for name in ("brightness", "contrast", "sharpness")}
DARKER = SAME | {"brightness": Moved(100.0, 60.0, moved=True)}


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@given(values, values)
def test_distance_is_that_of_scipy(a: list[float], b: list[float]) -> None:
    found = ks_distance(np.sort(np.asarray(a, float)), np.asarray(b, float))
    assert found == pytest.approx(stats.ks_2samp(a, b, method="exact").statistic, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6))
def test_p_value_of_a_distance_is_that_of_scipy_where_it_counts_every_path(n: int, m: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    a, b = generator.normal(size=n), generator.normal(generator.uniform(0, 2), size=m)
    exact = stats.ks_2samp(a, b, method="exact")
    found = ks_p_value(float(exact.statistic), n, m)
    assert found == pytest.approx(exact.pvalue, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize(("n", "m", "distance"), [(600, 800, 0.06), (900, 1000, 0.09), (2000, 200, 0.17)])
def test_p_value_for_large_samples_is_near_the_exact_one(n: int, m: int, distance: float) -> None:
    whole = round(distance * n * m) / (n * m)
    limit = stats.kstwo.sf(whole, round(n * m / (n + m)))
    assert ks_p_value(whole, n, m) == pytest.approx(limit, rel=0.25)


@settings(deadline=None)
@given(st.data())
def test_p_value_of_a_share_is_that_of_scipy(data: st.DataObject) -> None:
    n, images = data.draw(st.integers(1, 400)), data.draw(st.integers(1, 400))
    false_alarms, beyond = data.draw(st.integers(1, n)), data.draw(st.integers(0, images))
    expected = stats.betabinom.pmf(range(beyond, images + 1), images, false_alarms, n + 1 - false_alarms).sum()
    assert share_p_value(beyond, images, false_alarms, n) == pytest.approx(expected, rel=1e-6, abs=1e-300)


@pytest.mark.parametrize("p", [0.0, 1e-9, 0.2, 0.5, 1.0])
@pytest.mark.parametrize("k", [0, 1, 7, 20])
def test_binomial_tail_is_that_of_scipy(k: int, p: float) -> None:
    assert binomial_p_value(k, 20, p) == pytest.approx(stats.binom.sf(k - 1, 20, p), rel=1e-9, abs=1e-300)


def test_share_beyond_a_threshold_of_few_images_is_not_held_to_the_promised_rate_alone() -> None:
    """Eight of 200 at a promise of 0.01 are no drift by 99 calibration images, whose threshold may keep 0.03."""
    assert stats.binom.sf(7, 200, 0.01) < 0.002
    assert share_p_value(8, 200, 1, 99) > 0.03
    generator = np.random.default_rng(5)
    normals = generator.normal(size=(20_000, 299))
    beyond = (normals[:, 99:] > normals[:, :99].max(axis=1, keepdims=True)).sum(axis=1)
    assert np.mean(beyond >= 8) == pytest.approx(share_p_value(8, 200, 1, 99), rel=0.1)


@settings(deadline=None, max_examples=50)
@given(values, st.lists(st.floats(-5, 5, width=32), min_size=1, max_size=40), st.none() | st.floats(-5, 5))
def test_every_window_compares_and_every_series_has_a_change_point(
    reference: list[float], scores: list[float], threshold: float | None
) -> None:
    found = compare(reference, scores, threshold)
    assert (
        0 <= found.distance <= 1
        and 0 <= found.distance_p_value <= 1
        and 0 <= (found.beyond_p_value or 0) <= 1
        and found.images == len(scores)
    )
    assert (found.beyond is None) == (threshold is None)
    assert 0 <= change_point(reference, scores, threshold) < len(scores)
    assert cause_of(reference, scores, threshold, SAME) in ("defects", "unknown")
    assert cause_of(reference, scores, threshold, DARKER) in ("light", "unknown")


def test_drift_is_left_at_another_level_than_it_is_entered() -> None:
    far = ScoreComparison(200, 0.2, math.sqrt(DISTANCE_BEGINS_BELOW * ENDS_ABOVE), 3, 0.5)
    many = ScoreComparison(200, 0.1, 0.5, 12, math.sqrt(SHARE_BEGINS_BELOW * ENDS_ABOVE))
    for between in (far, many):
        assert between.drifts(already=True) and not between.drifts(already=False)
    assert many.exceeds(already=True) and not far.exceeds(already=True)


def alarms(calibration_images: int, window: int, rate: float, total: int, series: int, seed: int) -> int:
    """Return in how many of `series` of exchangeable normals drift is ever said, looked for at every tenth image.

    By the critical values of the two tests, which is quicker than their p-values and comes to the same.
    """
    generator = np.random.default_rng(seed)
    n, false_alarms = calibration_images, math.floor((calibration_images + 1) * rate + 1e-9)

    def critical(images: int) -> tuple[float, int]:
        distances = np.arange(1, n * images + 1) / (n * images)
        low, high = 0, len(distances) - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (
                (low, middle)
                if ks_p_value(distances[middle], n, images) < DISTANCE_BEGINS_BELOW
                else (middle + 1, high)
            )
        beyond = (k for k in range(images + 1) if share_p_value(k, images, false_alarms, n) < SHARE_BEGINS_BELOW)
        return float(distances[low]), next(beyond, images + 1)

    ends = range(IMAGES_MIN, total + 1, 10)
    limits = {images: critical(images) for images in {min(end, window) for end in ends}}
    below = np.arange(n) / n
    alarmed = 0
    for _ in range(series):
        calibration, scores = np.sort(generator.gamma(4, size=n)), generator.gamma(4, size=total)
        threshold = threshold_at(calibration, rate)
        cells = np.searchsorted(calibration, scores, "right")
        beyond = np.concatenate([[0], np.cumsum(scores > threshold)])
        for end in ends:
            begin = max(0, end - window)
            at = np.cumsum(np.bincount(cells[begin:end], minlength=n + 1))[:-1] / (end - begin)
            distance = max(np.abs(at - below).max(), np.abs(at - below - 1 / n).max())
            most, count = limits[end - begin]
            if distance >= most - 1e-12 or beyond[end] - beyond[begin] >= count:
                alarmed += 1
                assert compare(calibration, scores[begin:end], threshold).drifts(already=False)
                break
    return alarmed


@pytest.mark.parametrize(("images", "window", "rate"), [(199, 200, 0.01), (99, 100, 0.01), (60, 50, 0.05)])
def test_normals_like_those_of_the_calibration_are_said_to_drift_in_fewer_than_1_of_100_series(
    images: int, window: int, rate: float
) -> None:
    series = 200
    assert alarms(images, window, rate, total=10_000, series=series, seed=11) < series / 100


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("sign", [1, -1])
def test_shift_of_all_scores_is_found_within_a_window_and_dated(shift: float, sign: int) -> None:
    off = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        calibration = generator.normal(size=199)
        threshold = threshold_at(calibration, 0.01)
        scores = generator.normal(size=500)
        scores[300:] += sign * shift
        found = next(
            end
            for end in range(300, 501)
            if compare(calibration, scores[end - 200 : end], threshold).drifts(already=False)
        )
        assert found <= (370 if shift == 3 else 470)
        off.append(
            change_point(calibration, scores[max(0, found - 400) : found], threshold) + max(0, found - 400) - 300
        )
    assert np.median(np.abs(off)) <= (1 if shift == 3 else 6)
    assert np.quantile(np.abs(off), 0.9) <= (6 if shift == 3 else 40)


def test_defects_among_steady_normals_are_found_and_dated() -> None:
    off = []
    for seed in range(20):
        generator = np.random.default_rng(seed)
        calibration = generator.normal(size=199)
        threshold = threshold_at(calibration, 0.01)
        scores = generator.normal(size=700)
        bad = np.flatnonzero(generator.random(700) < 0.3)
        scores[bad[bad >= 300]] = 6.0
        found = next(
            end
            for end in range(300, 701)
            if compare(calibration, scores[end - 200 : end], threshold).drifts(already=False)
        )
        off.append(
            change_point(calibration, scores[found - 400 if found > 400 else 0 : found], threshold)
            + max(0, found - 400)
            - 300
        )
        assert found <= 450
    assert np.median(np.abs(off)) <= 6 and max(map(abs, off)) <= 60


@pytest.mark.parametrize("share", [0.15, 0.3, 0.45])
@pytest.mark.parametrize("hidden", [0.0, 0.5])
def test_defects_in_the_same_light_are_told_from_a_shift_of_all(share: float, hidden: float) -> None:
    """`hidden` is the share of the defects that score high, yet below the threshold."""
    right = light = unknown = 0
    for seed in range(50):
        generator = np.random.default_rng(seed)
        calibration, scores = generator.normal(size=199), generator.normal(size=150)
        threshold = threshold_at(calibration, 0.01)
        bad = generator.permutation(150)[: round(150 * share)]
        scores[bad] = np.where(generator.random(len(bad)) < hidden, threshold - 0.2, threshold + 2)
        right += cause_of(calibration, scores, threshold, SAME) == "defects"
        light += cause_of(calibration, generator.normal(2.0, size=150), threshold, DARKER) == "light"
        unknown += cause_of(calibration, generator.normal(2.0, size=150), threshold, SAME) == "unknown"
    assert right >= 48 and light == 50 and unknown >= 48


def test_light_that_moved_without_the_scores_is_not_the_cause_of_defects() -> None:
    generator = np.random.default_rng(0)
    calibration, scores = generator.normal(size=199), generator.normal(size=150)
    scores[:40] = 9
    assert cause_of(calibration, scores, threshold_at(calibration, 0.01), DARKER) == "unknown"


def test_nothing_is_told_of_defects_where_the_look_is_not_known() -> None:
    calibration = np.arange(1, 200)
    scores = np.concatenate([np.full(20, 500.0), np.arange(1, 200, 2)])
    assert cause_of(calibration, scores, 198.0, SAME | {"brightness": None}) == "unknown"
    assert cause_of(calibration, scores, 198.0, SAME) == "defects"
    assert cause_of(calibration, np.full(50, 500.0), 198.0, SAME) == "unknown"  # every image: no bulk to compare by


def test_look_moved_by_more_than_it_varies() -> None:
    generator = np.random.default_rng(1)
    before = generator.normal([120, 40, 9], [3, 2, 0.5], size=(200, 3))
    same, darker = generator.normal([121, 40, 9], [3, 2, 0.5], size=(60, 3)), before[:60] * [0.7, 1, 1]
    assert [one and one.moved for one in look_moved(before, same).values()] == [False, False, False]
    found = look_moved(before, darker)
    assert [one and one.moved for one in found.values()] == [True, False, False]
    assert found["brightness"] is not None and found["brightness"].after < found["brightness"].before


def test_look_that_never_varied_may_vary_by_a_grey_level() -> None:
    assert moved(np.full(50, 80.0), np.full(50, 81.4), 1.0) == Moved(80.0, 81.4, moved=False)
    assert moved(np.full(50, 80.0), np.full(50, 82.0), 1.0) == Moved(80.0, 82.0, moved=True)


def test_defects_on_a_third_of_the_parts_do_not_move_the_look() -> None:
    generator = np.random.default_rng(2)
    before = generator.normal([120, 40, 9], [3, 2, 0.5], size=(200, 3))
    after = generator.normal([120, 40, 9], [3, 2, 0.5], size=(90, 3))
    after[:30] *= [0.6, 1.5, 2]
    assert not any(one and one.moved for one in look_moved(before, after).values())


def test_too_few_images_of_known_look_tell_nothing() -> None:
    nothing = np.full((100, 3), np.nan)
    assert look_moved(nothing, np.ones((100, 3))) == dict.fromkeys(SAME)
    assert look_moved(np.ones((100, 3)), np.ones((IMAGES_MIN - 1, 3))) == dict.fromkeys(SAME)
    assert look_moved(np.empty((0, 3)), np.ones((100, 3))) == dict.fromkeys(SAME)
