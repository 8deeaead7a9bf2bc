"""Decide: from an anomaly score to a verdict, against scores of normal images, and whether it is uncertain. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.calibration.thresholds import Policy, p_values, threshold_by, wider_threshold
from models.detector import Float32Array
from service.root import ANOMALY, NORMAL


@dataclass(frozen=True, slots=True)
class Decision:
    """A verdict and what it rests on; `p_value` is the conformal one, see `models.calibration.thresholds`.

    `uncertainty` is 1 / (1 + d), where d is the distance of the score from the threshold in half-widths of the
    uncertain band: 1 at the threshold, 0.5 at the band's edges, towards 0 far off; None where there is no band.
    """

    verdict: str
    score: float
    threshold: float
    p_value: float
    uncertain: bool = False
    uncertainty: float | None = None


class ScoreNotFinite(Exception):
    """The detector gave NaN or infinity: there is no verdict, least of all `normal`."""


class ThresholdDecider:
    """Decides by one threshold policy, for one detector.

    `uncertain_band` is a factor on the false-alarm rate; 1 is no band. Raises TooFewImages when the calibration
    scores are too few for the policy, NoAnomalyScores when it needs known anomalies and there are none.
    """

    def __init__(
        self,
        calibration_scores: Float32Array,
        policy: Policy,
        anomaly_scores: npt.ArrayLike = (),
        *,
        uncertain_band: float = 1.0,
    ) -> None:
        self._calibration_scores = calibration_scores
        self.policy = policy
        self.threshold = threshold_by(policy, calibration_scores, anomaly_scores)
        self.band_half_width = _band_half_width(calibration_scores, self.threshold, uncertain_band)

    def decide(self, score: float) -> Decision:
        """Return the verdict for `score`; higher is more anomalous. Raises ScoreNotFinite."""
        if not math.isfinite(score):
            raise ScoreNotFinite(f"expected a finite anomaly score; found {score}")
        p_value = float(p_values(self._calibration_scores, np.asarray([score], dtype=np.float32))[0])
        verdict = ANOMALY if score > self.threshold else NORMAL
        if not self.band_half_width:
            return Decision(verdict, score, self.threshold, p_value)
        distance = abs(score - self.threshold) / self.band_half_width
        return Decision(verdict, score, self.threshold, p_value, distance < 1, 1 / (1 + distance))


def _band_half_width(calibration_scores: Float32Array, threshold: float, factor: float) -> float:
    """Return how far from `threshold` a score is uncertain, in units of the score; 0 is not at all.

    With r the false-alarm rate that `threshold` keeps, the band's lower edge is the threshold at `factor` times r:
    a normal verdict is uncertain if its p-value is at most factor * r. The upper edge is as far above the
    threshold. It cannot be read off the calibration scores, since no p-value is below 1 / (n + 1), the p-value of
    most anomalies; where the scores' tail is exponential, it is the threshold at r / factor.
    """
    if factor <= 1:
        return 0.0
    return threshold - wider_threshold(calibration_scores, threshold, factor)
