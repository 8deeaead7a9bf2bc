"""Curves over all thresholds: ROC, precision against recall, and what each calibrated false-alarm rate would give.

Pure functions of scores and labels, with the conventions of `models.evaluation.metrics`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.calibration.thresholds import threshold_at
from models.errors import TooFewImages
from models.evaluation.metrics import Float64Array, Labels, Scores, at_threshold, checked, falling_steps

SWEEP_RATES = (0.001, 0.002, 0.003, 0.005, 0.007, 0.01, 0.015, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
"""False-alarm rates that a sweep looks at, as far as there are enough held-out images for them."""


@dataclass(frozen=True)
class Curve:
    """Points of a curve, float64 `(K,)` each, in the order of falling thresholds."""

    x: Float64Array
    y: Float64Array


@dataclass(frozen=True)
class SweepPoint:
    """What one calibrated false-alarm rate comes to on labelled images; None as in `models.evaluation.metrics`."""

    calibrated_rate: float
    threshold: float
    false_alarm_rate: float | None
    recall: float | None
    precision: float | None
    f1: float | None


def roc(scores: Scores, labels: Labels) -> Curve | None:
    """Return recall over the false-alarm rate, from (0, 0) to (1, 1); None without both labels.

    `scores` `(N,)` finite, `labels` `(N,)` of 0 and 1. Its area, by chords, is `metrics.image_auroc`.
    """
    scores, labels = checked(scores, labels)
    anomalies, normals = int(labels.sum()), int((labels == 0).sum())
    if not anomalies or not normals:
        return None
    true, called, _ = falling_steps(scores, labels)
    return Curve(x=np.concatenate(([0.0], (called - true) / normals)), y=np.concatenate(([0.0], true / anomalies)))


def precision_recall(scores: Scores, labels: Labels) -> Curve | None:
    """Return precision over recall, a point for each distinct score without interpolation; None without both labels.

    The area under its steps is `metrics.average_precision` (Davis and Goadrich, ICML 2006).
    """
    scores, labels = checked(scores, labels)
    anomalies = int(labels.sum())
    if anomalies in (0, len(labels)):
        return None
    true, called, _ = falling_steps(scores, labels)
    return Curve(x=true / anomalies, y=true / called)


def sweep(
    calibration_scores: npt.ArrayLike, scores: Scores, labels: Labels, rates: Sequence[float] = SWEEP_RATES
) -> list[SweepPoint]:
    """Return what each of `rates` comes to on `scores` and `labels`, by rising rate.

    A rate for which the `calibration_scores` `(n,)` of held-out normals are too few is left out.
    """
    points = []
    for rate in sorted(set(rates)):
        try:
            threshold = threshold_at(calibration_scores, rate)
        except TooFewImages:
            continue
        found = at_threshold(scores, labels, threshold)
        points.append(SweepPoint(rate, threshold, found.false_alarm_rate, found.recall, found.precision, found.f1))
    return points
