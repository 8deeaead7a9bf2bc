"""Turns the scores of held-out normal images, and of known anomalies, into a threshold and into p-values.

Pure arithmetic, of split conformal prediction where normals alone decide. A rate is taken as the decimal number that
it prints as, so that 0.05 of 20 is 1 and float error moves no verdict. By every policy an image is an anomaly if and
only if its score is above the threshold; p-values are of the normals, whatever the policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

import numpy as np
import numpy.typing as npt

from models.errors import NoAnomalyScores, TooFewImages

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class AtFalseAlarmRate:
    """At most this share of normal images is called an anomaly: `threshold_at`."""

    false_alarm_rate: float
    name: Literal["false_alarm_rate"] = "false_alarm_rate"


@dataclass(frozen=True, slots=True)
class AtBestF1:
    """The highest F1 on known scores: `threshold_for_f1`."""

    prevalence: float | None = None
    name: Literal["f1"] = "f1"


@dataclass(frozen=True, slots=True)
class AtLeastCost:
    """The least expected cost: `threshold_for_cost`."""

    cost_of_miss: float
    cost_of_false_alarm: float
    prevalence: float
    name: Literal["cost"] = "cost"


@dataclass(frozen=True, slots=True)
class AtFixedScore:
    """This score, whatever the calibration says."""

    threshold: float
    name: Literal["fixed"] = "fixed"


Policy = AtFalseAlarmRate | AtBestF1 | AtLeastCost | AtFixedScore


def threshold_by(policy: Policy, normal_scores: npt.ArrayLike, anomaly_scores: npt.ArrayLike = ()) -> float:
    """Return the score above which an image is an anomaly by `policy`.

    Raises TooFewImages if the normals are too few for a false-alarm rate, NoAnomalyScores if `policy` needs
    known anomalies and there are none, ValueError for what is no number.
    """
    if isinstance(policy, AtFalseAlarmRate):
        return threshold_at(normal_scores, policy.false_alarm_rate)
    if isinstance(policy, AtBestF1):
        return threshold_for_f1(normal_scores, anomaly_scores, policy.prevalence)
    if isinstance(policy, AtLeastCost):
        return threshold_for_cost(normal_scores, anomaly_scores, policy)
    if not math.isfinite(policy.threshold):
        raise ValueError(f"fixed threshold: expected a finite number; found {policy.threshold!r}")
    return float(policy.threshold)


def threshold_at(calibration_scores: npt.ArrayLike, false_alarm_rate: float) -> float:
    """Return the score above which an image is an anomaly, from the scores `(n,)` of held-out normals.

    It is the k-th smallest score with k = ceil((n + 1)(1 - rate)): for a normal image exchangeable with the
    held-out ones, P(score > threshold) ≤ rate (Lei et al., Distribution-Free Predictive Inference for
    Regression, JASA 2018, section 2). Raises TooFewImages if k > n, ValueError if a score is not finite.
    """
    scores = _sorted_finite(calibration_scores)
    n = len(scores)
    false_alarms = _false_alarms(n, false_alarm_rate)  # n + 1 - k
    if false_alarms < 1:
        needed = calibration_images_needed(false_alarm_rate)
        raise TooFewImages(
            f"calibration at a false-alarm rate of {false_alarm_rate:g}: needs {needed} held-out normal "
            f"images, found {n}; with {n}, the lowest rate is {lowest_rate(n):g}"
        )
    return float(scores[n - false_alarms])


def threshold_for_f1(
    normal_scores: npt.ArrayLike, anomaly_scores: npt.ArrayLike, prevalence: float | None = None
) -> float:
    """Return the threshold with the highest F1, from scores `(n,)` of normals and `(m,)` of known anomalies.

    With R(t) the share of the anomalies above t, F(t) that of the normals and q the prevalence, the share of
    anomalies among the images to come, F1(t) = 2 q R / (q R + (1 - q) F + q), which is 2 TP / (2 TP + FP + FN)
    (van Rijsbergen 1979) per image. `prevalence` None takes q = m / (n + m), so that F1 is that of the scores
    given. Thresholds between the same two neighbouring scores do the same; the middle is taken. Of several
    equally good the lowest is, which misses the fewest. Raises NoAnomalyScores if m is 0.
    """

    def f1(false_alarms: Float64Array, recall: Float64Array, share: float) -> Float64Array:
        return 2 * share * recall / (share * recall + (1 - share) * false_alarms + share)

    return _best(normal_scores, anomaly_scores, prevalence, f1, "f1")


def threshold_for_cost(normal_scores: npt.ArrayLike, anomaly_scores: npt.ArrayLike, policy: AtLeastCost) -> float:
    """Return the threshold of least expected cost, from scores `(n,)` of normals and `(m,)` of known anomalies.

    With R(t) the share of the anomalies above t, F(t) that of the normals and q the prevalence, the expected
    cost per image is q (1 - R) cost_of_miss + (1 - q) F cost_of_false_alarm (Elkan, The Foundations of
    Cost-Sensitive Learning, IJCAI 2001). Ties as in `threshold_for_f1`. Raises NoAnomalyScores if m is 0, ValueError
    for a cost that is not positive.
    """
    miss, alarm = policy.cost_of_miss, policy.cost_of_false_alarm
    for name, cost in (("cost of a miss", miss), ("cost of a false alarm", alarm)):
        if not (math.isfinite(cost) and cost > 0):
            raise ValueError(f"{name}: expected a finite number above 0; found {cost!r}")

    def saved(false_alarms: Float64Array, recall: Float64Array, share: float) -> Float64Array:
        return -(share * (1 - recall) * miss + (1 - share) * false_alarms * alarm)

    return _best(normal_scores, anomaly_scores, policy.prevalence, saved, "cost")


def wider_threshold(calibration_scores: npt.ArrayLike, threshold: float, factor: float) -> float:
    """Return the threshold at `factor` (≥ 1) times the false-alarm rate that `threshold` keeps; at most `threshold`.

    `threshold` keeps the rate r = (1 + #{calibration scores > threshold}) / (n + 1), the highest p-value above it.
    A score is above what is returned if and only if its p-value is at most factor * r, or it is above `threshold`.
    Where factor * r reaches 1 it is the lowest calibration score.
    """
    scores = _sorted_finite(calibration_scores)
    above = len(scores) - int(np.searchsorted(scores, threshold, side="right"))
    false_alarms = math.floor(Fraction(repr(float(factor))) * (1 + above))
    return min(float(threshold), float(scores[max(0, len(scores) - false_alarms)]))


def p_values(calibration_scores: npt.ArrayLike, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return for each of `scores` its conformal p-value, float64 of the same shape, in (0, 1].

    p = (1 + #{calibration scores ≥ s}) / (n + 1) (Vovk et al., Algorithmic Learning in a Random World, 2005,
    eq. 2.20). p ≤ rate exactly where score > `threshold_at(calibration_scores, rate)`. NaN gives NaN.
    """
    calibration = _sorted_finite(calibration_scores)
    asked = np.asarray(scores, dtype=np.float64)
    at_least = len(calibration) - np.searchsorted(calibration, asked, side="left")
    p = (1.0 + at_least) / (len(calibration) + 1)
    return np.where(np.isnan(asked), np.nan, p)


def calibration_images_needed(false_alarm_rate: float) -> int:
    """Return the least n with ceil((n + 1)(1 - rate)) ≤ n: 99 at a rate of 0.01, 19 at 0.05."""
    needed = math.ceil(1 / decimal(false_alarm_rate)) - 1
    return needed - 1 if needed > 1 and _false_alarms(needed - 1, false_alarm_rate) else needed


def _false_alarms(n: int, false_alarm_rate: float) -> int:
    """Return the most of n + 1 that are no more than the rate's share: those m whose m / (n + 1), as float, is ≤ rate.

    As written, a rate such as 0.3333333333333333 is a little less than the third that it stands for.
    """
    found = math.floor((n + 1) * decimal(false_alarm_rate))
    return found + 1 if (found + 1) / (n + 1) <= false_alarm_rate else found


def lowest_rate(calibration_images: int) -> float:
    """Return the lowest false-alarm rate that so many held-out images allow, rounded up to 4 decimals."""
    return min(math.ceil(Fraction(10_000, calibration_images + 1)) / 10_000, 0.9999)


def _best(
    normal_scores: npt.ArrayLike,
    anomaly_scores: npt.ArrayLike,
    prevalence: float | None,
    gain: Callable[[Float64Array, Float64Array, float], Float64Array],
    policy: str,
) -> float:
    """Return the threshold at which `gain(false alarms, recall, prevalence)` is highest; of equal ones the lowest."""
    normals, anomalies = _sorted_finite(normal_scores), _sorted_finite(anomaly_scores, "scores of known anomalies")
    if not len(anomalies):
        raise NoAnomalyScores(
            f"threshold policy {policy!r}: needs scores of known anomalies; the model's calibration has none"
        )
    if not len(normals):
        raise TooFewImages(f"threshold policy {policy!r}: needs scores of held-out normal images, found 0")
    share = len(anomalies) / (len(normals) + len(anomalies)) if prevalence is None else float(prevalence)
    if not 0 < share < 1:
        raise ValueError(f"prevalence of anomalies: expected more than 0 and less than 1; found {prevalence!r}")
    # From each distinct score up to the next the verdicts are the same; below the lowest all are anomalies.
    known = np.unique(np.concatenate([normals, anomalies]))
    lower = np.concatenate([[np.nextafter(known[0], -np.inf)], known])
    false_alarms = 1 - np.searchsorted(normals, lower, side="right") / len(normals)
    recall = 1 - np.searchsorted(anomalies, lower, side="right") / len(anomalies)
    gains = gain(false_alarms, recall, share)
    # Gains that differ by rounding alone are equal.
    best = int(np.flatnonzero(gains >= gains.max() - 1e-12 * max(1.0, float(np.abs(gains).max())))[0])
    if best in (0, len(lower) - 1):
        return float(lower[best])
    middle = float(lower[best] + (lower[best + 1] - lower[best]) / 2)
    return middle if middle < lower[best + 1] else float(lower[best])


def decimal(rate: float) -> Fraction:
    value = float(rate)
    if not 0 < value < 1:
        raise ValueError(f"false-alarm rate: expected more than 0 and less than 1; found {rate!r}")
    return Fraction(repr(value))


def _sorted_finite(scores: npt.ArrayLike, what: str = "calibration scores") -> Float64Array:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"{what}: expected finite numbers of shape (n,); found shape {values.shape}")
    return np.sort(values)
