"""Curves over all thresholds, held against scikit-learn and against the areas of `models.evaluation.metrics`."""

import numpy as np
import pytest
from sklearn.metrics import precision_recall_curve, roc_curve

from models.evaluation.curves import precision_recall, roc, sweep
from models.evaluation.metrics import average_precision, image_auroc


@pytest.fixture
def scored():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 200)
    return np.round(rng.normal(labels, 1.0), 1), labels  # rounded, so that many scores are equal


def test_roc_goes_through_the_points_of_scikit_learn_and_has_the_area_of_the_metric(scored):
    curve = roc(*scored)
    false, true, _ = roc_curve(scored[1], scored[0], drop_intermediate=False)
    np.testing.assert_allclose(curve.x, false)
    np.testing.assert_allclose(curve.y, true)
    assert np.trapezoid(curve.y, curve.x) == pytest.approx(image_auroc(*scored))


def test_precision_recall_goes_through_the_points_of_scikit_learn_and_has_the_area_of_the_metric(scored):
    curve = precision_recall(*scored)
    precision, recall, _ = precision_recall_curve(scored[1], scored[0])
    np.testing.assert_allclose(curve.x, recall[:-1][::-1])
    np.testing.assert_allclose(curve.y, precision[:-1][::-1])
    assert np.sum(np.diff(curve.x, prepend=0) * curve.y) == pytest.approx(average_precision(*scored))


@pytest.mark.parametrize("labels", [[0, 0], [1, 1]])
def test_without_both_labels_there_is_no_curve(labels):
    assert roc(np.array([1.0, 2.0]), np.array(labels)) is None
    assert precision_recall(np.array([1.0, 2.0]), np.array(labels)) is None


def test_sweep_takes_each_threshold_from_the_calibration_and_counts_at_it():
    scores, labels = np.array([50.0, 85.0, 95.0, 99.5, 70.0]), np.array([0, 0, 0, 1, 1])
    points = sweep(range(1, 100), scores, labels, rates=(0.1, 0.01, 0.1))
    assert [(point.calibrated_rate, point.threshold) for point in points] == [(0.01, 99), (0.1, 90)]
    assert (points[0].false_alarm_rate, points[0].recall, points[0].precision) == (0, 0.5, 1)
    assert points[1].false_alarm_rate == pytest.approx(1 / 3)
    assert points[1].f1 == pytest.approx(0.5)


def test_sweep_leaves_out_rates_that_the_calibration_is_too_small_for():
    rates = [point.calibrated_rate for point in sweep(range(19), np.array([1.0]), np.array([0]))]
    assert rates == [0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5]


def test_sweep_over_normals_alone_knows_no_recall():
    (point,) = sweep(range(19), np.array([1.0]), np.array([0]), rates=(0.05,))
    assert (point.false_alarm_rate, point.recall, point.precision, point.f1) == (0, None, None, None)
