"""Mistakes: keeps the worst ones of an evaluation with their maps, in bounded memory, while images go by."""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from itertools import count

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
    """The missed anomalies with the lowest scores and the false alarms with the highest, `most` of each."""

    def __init__(self, threshold: float, most: int = WORST) -> None:
        self._threshold = threshold
        self._most = most
        self._order = count()
        # The mildest of the worst is first, to give way.
        self._missed: list[tuple[float, int, Mistake]] = []
        self._alarms: list[tuple[float, int, Mistake]] = []

    def offer(self, sample: Sample, scored: ScoredFile) -> None:
        """Keep the image if it is one of the worst mistakes so far."""
        alarm = scored.score > self._threshold
        if alarm == (sample.label == 1):
            return
        heap, badness = (self._alarms, scored.score) if alarm else (self._missed, -scored.score)
        if len(heap) == self._most and badness <= heap[0][0]:
            return
        # A copy, since the map is a part of a batch's, which would stay with it.
        entry = (badness, -next(self._order), Mistake(sample, scored.score, np.array(scored.map)))
        if len(heap) < self._most:
            heapq.heappush(heap, entry)
        else:
            heapq.heapreplace(heap, entry)

    @property
    def missed(self) -> list[Mistake]:
        """Anomalies that were called normal, the lowest score first."""
        return [mistake for _, _, mistake in sorted(self._missed, key=lambda entry: entry[:2], reverse=True)]

    @property
    def false_alarms(self) -> list[Mistake]:
        """Normal images that were called anomalies, the highest score first."""
        return [mistake for _, _, mistake in sorted(self._alarms, key=lambda entry: entry[:2], reverse=True)]
