"""Keeps the worst mistakes of an evaluation with their maps, in bounded memory."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from models.data.datasets import Sample
from models.detector import Float32Array
from models.evaluation.evaluate import ScoredFile

WORST = 6


@dataclass(frozen=True)
class Mistake:
    """An image whose verdict is not its label: its score, its anomaly map float32 `(h, w)`."""

    sample: Sample
    score: float
    map: Float32Array


class WorstMistakes:
    """The missed anomalies with the lowest scores and the false alarms with the highest, `most` of each, worst first;
    of equal scores the one offered first.
    """

    def __init__(self, threshold: float, most: int = WORST) -> None:
        self._threshold = threshold
        self._most = most
        self.missed: list[Mistake] = []
        self.false_alarms: list[Mistake] = []

    def offer(self, sample: Sample, scored: ScoredFile) -> None:
        """Keep the image if it is one of the worst mistakes so far."""
        alarm = scored.score > self._threshold
        if alarm == (sample.label == 1):
            return
        kept = self.false_alarms if alarm else self.missed
        # A copy, since the map is a part of its batch's, which would stay in memory with it.
        kept.append(Mistake(sample, scored.score, np.array(scored.map)))
        kept.sort(key=lambda mistake: mistake.score, reverse=alarm)
        del kept[self._most :]
