"""Decide: from an anomaly score to a verdict, against scores of normal pictures. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from models.calibrate import p_values, threshold_at
from models.detector import Float32Array

NORMAL = "normal"
ANOMALY = "anomaly"


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and what it rests on; `p_value` is the conformal one, see `models.calibrate`."""

    verdict: str
    score: float
    threshold: float
    p_value: float


class ScoreNotFinite(Exception):
    """The detector gave NaN or infinity: there is no verdict, least of all `normal`."""


class Judge:
    """Decides at one false-alarm rate, for one detector.

    Raises TooFewImages when the calibration scores are too few for the rate.
    """

    def __init__(self, calibration_scores: Float32Array, false_alarm_rate: float) -> None:
        self._calibration_scores = calibration_scores
        self.threshold = threshold_at(calibration_scores, false_alarm_rate)

    def decide(self, score: float) -> Decision:
        """Return the verdict for `score`; higher is more anomalous. Raises ScoreNotFinite."""
        if not math.isfinite(score):
            raise ScoreNotFinite(f"expected a finite anomaly score; found {score}")
        p_value = float(p_values(self._calibration_scores, np.asarray([score], dtype=np.float32))[0])
        verdict = ANOMALY if score > self.threshold else NORMAL
        return Decision(verdict, score, self.threshold, p_value)
