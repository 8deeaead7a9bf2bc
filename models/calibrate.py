"""Turns the scores of held-out normal pictures into a threshold and into p-values.

Pure arithmetic of split conformal prediction; who the held-out pictures are is decided in training, and what
follows from a verdict in the service. A rate is taken as the decimal number that it prints as, so that 0.05
of 20 is 1 and float error moves no verdict.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from models.errors import TooFewImages


def threshold_at(calibration_scores: npt.ArrayLike, false_alarm_rate: float) -> float:
    """Return the score above which a picture is an anomaly, from the scores `(n,)` of held-out normals.

    It is the k-th smallest score with k = ceil((n + 1)(1 - rate)): for a normal picture exchangeable with the
    held-out ones, P(score > threshold) ≤ rate (Lei et al., Distribution-Free Predictive Inference for
    Regression, JASA 2018, section 2). Raises TooFewImages if k > n, ValueError if a score is not finite.
    """
    scores = _sorted_finite(calibration_scores)
    n = len(scores)
    false_alarms = math.floor((n + 1) * _decimal(false_alarm_rate))  # n + 1 - k
    if false_alarms < 1:
        needed = calibration_images_needed(false_alarm_rate)
        raise TooFewImages(
            f"calibration at a false-alarm rate of {false_alarm_rate:g}: needs {needed} held-out normal "
            f"pictures, found {n}; with {n}, the lowest rate is {lowest_rate(n):g}"
        )
    return float(scores[n - false_alarms])


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
    return math.ceil(1 / _decimal(false_alarm_rate)) - 1


def lowest_rate(calibration_images: int) -> float:
    """Return the lowest false-alarm rate that so many held-out pictures allow, rounded up to 4 decimals."""
    return min(math.ceil(Fraction(10_000, calibration_images + 1)) / 10_000, 0.9999)


def _decimal(rate: float) -> Fraction:
    value = float(rate)
    if not 0 < value < 1:
        raise ValueError(f"false-alarm rate: expected more than 0 and less than 1; found {rate!r}")
    return Fraction(repr(value))


def _sorted_finite(scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
    values = np.asarray(scores, dtype=np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError(f"calibration scores: expected finite numbers of shape (n,); found shape {values.shape}")
    return np.sort(values)
