"""Confidence intervals: that they hold what they promise, resample the way they say, and know what is unknown."""

from pathlib import Path

import numpy as np
import pytest

from models.evaluation.bootstrap import (
    Interval,
    ScoredVersion,
    _measure,
    _stratified,
    difference_intervals,
    intervals,
    wilson,
)
from models.evaluation.metrics import PixelHistograms, at_threshold, average_precision, best_f1, image_auroc
from models.evaluation.pixel_histograms import ImageHistograms

THRESHOLD = 1.0


def drawn(seed: int, normals: int = 60, anomalies: int = 40, shift: float = 1.5):
    rng = np.random.default_rng(seed)
    labels = np.repeat([0, 1], [normals, anomalies])
    return np.round(rng.normal(labels * shift, 1.0), 1), labels


def metrics_of(scores, labels):
    counts = at_threshold(scores, labels, THRESHOLD)
    best = best_f1(scores, labels)
    return {
        "precision": counts.precision,
        "recall": counts.recall,
        "f1": counts.f1,
        "accuracy": counts.accuracy,
        "false_alarm_rate": counts.false_alarm_rate,
        "image_auroc": image_auroc(scores, labels),
        "average_precision": average_precision(scores, labels),
        "best_f1": best.f1 if best else None,
    }


def test_a_resample_has_the_metrics_of_the_images_repeated_that_often():
    scores, labels = drawn(0, 25, 15)
    weights = _stratified(labels, 20, np.random.default_rng(1))
    found = _measure(ScoredVersion(scores, THRESHOLD), labels)(weights)
    for row, weight in enumerate(weights):
        expected = metrics_of(np.repeat(scores, weight), np.repeat(labels, weight))
        for name, value in expected.items():
            assert found[name][row] == pytest.approx(value), name


def test_each_resample_has_as_many_normals_and_anomalies_as_there_are():
    _, labels = drawn(0, 7, 3)
    weights = _stratified(labels, 50, np.random.default_rng(0))
    assert (weights[:, labels == 0].sum(axis=1) == 7).all()
    assert (weights[:, labels == 1].sum(axis=1) == 3).all()


def test_interval_of_auroc_holds_the_true_value_about_as_often_as_it_says():
    from statistics import NormalDist

    truth = NormalDist().cdf(1.5 / np.sqrt(2))
    held = 0
    for seed in range(200):
        scores, labels = drawn(seed)
        found = intervals(ScoredVersion(scores, THRESHOLD), labels, {"image_auroc": 1.0}, seed=seed, resamples=300)
        interval = found["image_auroc"]
        held += interval.low <= truth <= interval.high
    assert 0.90 <= held / 200 <= 0.99


def test_the_same_seed_gives_the_same_intervals():
    scores, labels = drawn(0)
    known = metrics_of(scores, labels)
    first, again, other = (intervals(ScoredVersion(scores, THRESHOLD), labels, known, seed=seed) for seed in (3, 3, 4))
    assert first == again != other
    assert all(interval.low <= known[name] <= interval.high for name, interval in first.items())


def test_an_unknown_metric_has_no_interval():
    labels = np.zeros(10, np.int64)
    scores = np.arange(10.0)
    found = intervals(
        ScoredVersion(scores, 7.0), labels, {"false_alarm_rate": 0.2, "accuracy": 0.8, "image_auroc": None}
    )
    assert found["image_auroc"] is None and found["recall"] is None and found["f1"] is None
    assert found["accuracy"].low < 0.8 < found["accuracy"].high
    assert found["false_alarm_rate"].low < 0.2 < found["false_alarm_rate"].high


def test_where_no_resample_differs_the_interval_is_unknown_and_a_share_has_one_all_the_same():
    scores, labels = np.array([1.0, 2, 3, 10, 11]), np.array([0, 0, 0, 1, 1])
    found = intervals(ScoredVersion(scores, 5.0), labels, metrics_of(scores, labels))
    assert found["image_auroc"] is None
    assert found["recall"] == Interval(pytest.approx(0.3424, abs=1e-4), 1.0)
    assert found["false_alarm_rate"] == Interval(0.0, pytest.approx(0.5615, abs=1e-4))


def test_wilsons_interval_is_that_of_the_textbook():
    assert wilson(0, 0) is None
    # Newcombe, Statistics in Medicine 17, 1998, 857-872, table I: 81 of 263 and 15 of 148.
    assert wilson(81, 263) == Interval(pytest.approx(0.2553, abs=5e-5), pytest.approx(0.3662, abs=5e-5))
    assert wilson(15, 148) == Interval(pytest.approx(0.0624, abs=5e-5), pytest.approx(0.1605, abs=5e-5))


def test_the_difference_of_two_models_is_known_better_than_either():
    scores, labels = drawn(0)
    better = scores + 0.3 * labels
    first, second = ScoredVersion(scores, THRESHOLD), ScoredVersion(better, THRESHOLD)
    gain = image_auroc(better, labels) - image_auroc(scores, labels)
    (difference,) = [difference_intervals(first, second, labels, {"image_auroc": gain})["image_auroc"]]
    alone = intervals(first, labels, {"image_auroc": 1.0})["image_auroc"]
    assert 0 < difference.low < gain < difference.high
    assert difference.high - difference.low < (alone.high - alone.low) / 2
    back = difference_intervals(second, first, labels, {"image_auroc": -gain})["image_auroc"]
    assert (back.low, back.high) == (pytest.approx(-difference.high), pytest.approx(-difference.low))


def test_a_model_compared_with_itself_differs_in_no_resample():
    scores, labels = drawn(0)
    one = ScoredVersion(scores, THRESHOLD)
    assert set(difference_intervals(one, one, labels, {"image_auroc": 0.0, "f1": 0.0}).values()) == {None}


@pytest.fixture
def maps():
    """Maps of 12 x 20 with a defect in half of them, seen more or less well."""
    rng = np.random.default_rng(5)
    found = []
    for index in range(16):
        anomaly_map = rng.gamma(2.0, 1.0, (12, 20)).astype(np.float32)
        mask = None
        if index % 2:
            mask = np.zeros((12, 20), bool)
            mask[2:5, 3 : 6 + index // 4] = True
            mask[8:10, 15:18] = index % 4 == 1
            anomaly_map[mask] += rng.uniform(0, 4)
        found.append((Path(f"{index}.png"), anomaly_map, mask))
    return found


def test_resampled_pixels_have_the_metrics_of_the_maps_repeated_that_often(maps):
    histograms = ImageHistograms()
    for path, anomaly_map, mask in maps:
        histograms.add(path, anomaly_map, mask)
    weights = np.random.default_rng(0).integers(0, 4, (5, len(maps)))
    found = histograms.of([path for path, _, _ in maps]).resampled(weights)
    for row, weight in enumerate(weights):
        fine = PixelHistograms()
        for times, (_, anomaly_map, mask) in zip(weight, maps, strict=True):
            for _ in range(times):
                fine.add(anomaly_map, mask)
        assert found["pixel_auroc"][row] == pytest.approx(fine.auroc().value, abs=0.002)
        assert found["aupro"][row] == pytest.approx(fine.aupro().value, abs=0.01)


def test_pixel_metrics_have_intervals_around_their_value(maps):
    histograms, fine = ImageHistograms(), PixelHistograms()
    for path, anomaly_map, mask in maps:
        histograms.add(path, anomaly_map, mask)
        fine.add(anomaly_map, mask)
    labels = np.array([mask is not None for _, _, mask in maps], np.int64)
    judged = ScoredVersion(np.arange(16.0), 7.0, histograms.of([path for path, _, _ in maps]))
    found = intervals(judged, labels, {"pixel_auroc": fine.auroc().value, "aupro": fine.aupro().value})
    assert found["pixel_auroc"].low < fine.auroc().value < found["pixel_auroc"].high
    assert found["aupro"].low < fine.aupro().value < found["aupro"].high


def test_images_whose_maps_were_not_counted_do_not_count(maps):
    histograms = ImageHistograms()
    for path, anomaly_map, mask in maps[:8]:
        histograms.add(path, anomaly_map, mask)
    paths = [path for path, _, _ in maps]
    every = histograms.of(paths).resampled(np.ones((1, 16), np.int64))
    assert every["aupro"] == histograms.of(paths[:8]).resampled(np.ones((1, 8), np.int64))["aupro"]
    assert histograms.of(paths[8:]) is None
