"""How sure a metric is: confidence intervals of the metrics of one model, and of the differences between two.

Resamples images with a seed, normals and anomalies apart so that each resample has as many of both. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from models.evaluation.metrics import Counts, Float64Array, Labels, Scores, at_threshold, checked
from models.evaluation.pixel_histograms import ResampledPixels

RESAMPLES = 1000
LEVEL = 0.95
SEED = 0
_QUANTILES = ((1 - LEVEL) / 2, (1 + LEVEL) / 2)
_NORMAL_QUANTILE = 1.959963984540054  # of a standard normal at (1 + LEVEL) / 2
_RESAMPLES_AT_ONCE = 100

IMAGE_METRICS = (
    "precision", "recall", "f1", "accuracy", "false_alarm_rate", "image_auroc", "average_precision", "best_f1",
)  # fmt: skip
PIXEL_METRICS = ("pixel_auroc", "aupro")

Weights = npt.NDArray[np.uint16]


@dataclass(frozen=True)
class Interval:
    """The 95 % confidence interval of a metric, or of a difference between two models."""

    low: float
    high: float


@dataclass(frozen=True)
class ScoredVersion:
    """What one model makes of the images: scores `(N,)`, its threshold, its maps' histograms where there are any."""

    scores: Scores
    threshold: float
    pixels: ResampledPixels | None = None


def intervals(
    judged: ScoredVersion,
    labels: Labels,
    known: Mapping[str, float | None],
    *,
    seed: int = SEED,
    resamples: int = RESAMPLES,
) -> dict[str, Interval | None]:
    """Return the interval of each metric whose value in `known` is not None; None for the others.

    Recall and the false-alarm rate are shares of independent images and have Wilson's interval (JASA 22, 1927,
    209-212), which holds at 0 and 1 too. The others have the percentile interval of a bootstrap stratified by label
    (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, section 13.3). None where no resample differs: how
    far the metric could lie elsewhere is then unknown.
    """
    scores, labels = checked(judged.scores, labels)
    found = _resampled([judged], labels, seed, resamples)[0]
    counts = at_threshold(scores, labels, judged.threshold)
    result = _bootstrapped(found, known, _coarse(judged), 0.0)
    if known.get("recall") is not None:
        result["recall"] = wilson(counts.true_positives, counts.true_positives + counts.false_negatives)
    if known.get("false_alarm_rate") is not None:
        result["false_alarm_rate"] = wilson(counts.false_positives, counts.false_positives + counts.true_negatives)
    return result


def difference_intervals(
    first: ScoredVersion,
    second: ScoredVersion,
    labels: Labels,
    differences: Mapping[str, float | None],
) -> dict[str, Interval | None]:
    """Return the interval of each metric of `second` less that of `first`; None where `differences` has None.

    A paired bootstrap: both models are judged on the same images in each resample, so that what makes images
    hard for both cancels. `labels` `(N,)` belong to the scores of both. None where no resample differs.
    """
    _, labels = checked(first.scores, labels)
    before, after = _resampled([first, second], labels, SEED, RESAMPLES)
    return _bootstrapped(_less(after, before), differences, _less(_coarse(second), _coarse(first)), -1.0)


def wilson(successes: int, trials: int) -> Interval | None:
    """Return Wilson's score interval of a share; None without trials."""
    if not trials:
        return None
    z2 = _NORMAL_QUANTILE**2
    share = successes / trials
    centre = (share + z2 / (2 * trials)) / (1 + z2 / trials)
    half = _NORMAL_QUANTILE / (1 + z2 / trials) * math.sqrt(share * (1 - share) / trials + z2 / (4 * trials**2))
    # At 0 and at 1 the bound is the share itself, but for float error.
    return Interval(0.0 if successes == 0 else centre - half, 1.0 if successes == trials else centre + half)


def _resampled(judged: list[ScoredVersion], labels: Counts, seed: int, resamples: int) -> list[dict[str, Float64Array]]:
    """Return for each model the metrics of each resample, `(resamples,)`; the resamples are the same for all."""
    parts: list[list[dict[str, Float64Array]]] = [[] for _ in judged]
    measures = [_measure(one, labels) for one in judged]
    rng = np.random.default_rng(seed)
    for start in range(0, resamples, _RESAMPLES_AT_ONCE):
        weights = _stratified(labels, min(_RESAMPLES_AT_ONCE, resamples - start), rng)
        for part, one, measure in zip(parts, judged, measures, strict=True):
            values = measure(weights)
            if one.pixels is not None:
                values |= one.pixels.resampled(weights)
            part.append(values)
    return [{name: np.concatenate([each[name] for each in part]) for name in part[0]} for part in parts]


def _stratified(labels: Counts, count: int, rng: np.random.Generator) -> Weights:
    """Return how often each image is in each resample, `(count, N)`, drawn apart for each label."""
    weights = np.zeros((count, len(labels)), np.uint16)
    for label in (0, 1):
        places = np.flatnonzero(labels == label)
        if len(places):
            weights[:, places] = rng.multinomial(len(places), np.full(len(places), 1 / len(places)), size=count)
    return weights


def _measure(judged: ScoredVersion, labels: Counts) -> Callable[[Weights], dict[str, Float64Array]]:
    """Return a function from weights `(B, N)` to the image metrics of each resample, `(B,)`, NaN where undefined."""
    scores = np.asarray(judged.scores, dtype=np.float64)
    order = np.argsort(-scores, kind="stable")
    ordered = scores[order]
    last = np.append(np.flatnonzero(np.diff(ordered)), len(ordered) - 1)
    above = int(np.sum(ordered > judged.threshold))
    anomaly = labels[order] == 1
    both = anomaly.any() and not anomaly.all()

    def measure(weights: Weights) -> dict[str, Float64Array]:
        sorted_weights = weights[:, order].astype(np.int64)
        positives = np.cumsum(np.where(anomaly, sorted_weights, 0), axis=1)
        negatives = np.cumsum(np.where(anomaly, 0, sorted_weights), axis=1)
        anomalies, normals = positives[:, -1].astype(float), negatives[:, -1].astype(float)
        true = positives[:, above - 1].astype(float) if above else np.zeros(len(weights))
        false = negatives[:, above - 1].astype(float) if above else np.zeros(len(weights))
        nan = np.full(len(weights), np.nan)
        with np.errstate(invalid="ignore", divide="ignore"):
            values = {
                "recall": true / anomalies,
                "false_alarm_rate": false / normals,
                "accuracy": (true + normals - false) / (anomalies + normals),
            }
            if not both:
                return values | {name: nan for name in IMAGE_METRICS if name not in values}
            tp, fp = positives[:, last], negatives[:, last]
            new_tp = np.diff(tp, axis=1, prepend=0)
            # Anomalies of a score beat the normals below it, and half of those with the same score.
            beaten = normals[:, None] - (fp + np.concatenate([np.zeros((len(fp), 1)), fp[:, :-1]], axis=1)) / 2
            precision_here = np.where(tp > 0, tp / np.maximum(tp + fp, 1), 0.0)
            return values | {
                "precision": true / (true + false),
                "f1": 2 * true / (true + false + anomalies),
                "image_auroc": np.sum(new_tp * beaten, axis=1) / (anomalies * normals),
                "average_precision": np.sum(new_tp * precision_here, axis=1) / anomalies,
                "best_f1": np.max(2 * tp / (tp + fp + anomalies[:, None]), axis=1),
            }

    return measure


def _less(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    return {name: after[name] - value for name, value in before.items() if name in after}


def _bootstrapped(
    found: Mapping[str, Float64Array], known: Mapping[str, float | None], coarse: Mapping[str, float], least: float
) -> dict[str, Interval | None]:
    """Return the percentile intervals of `found`; pixel metrics moved from `coarse` to `known`, from `least` to 1."""
    result = {}
    for name, values in found.items():
        value = known.get(name)
        if value is not None and name in PIXEL_METRICS:
            values = np.clip(values + (value - coarse[name]), least, 1.0)
        result[name] = None if value is None else _percentiles(values)
    return result


def _percentiles(values: Float64Array) -> Interval | None:
    known = values[np.isfinite(values)]
    if not len(known):
        return None
    low, high = (float(value) for value in np.quantile(known, _QUANTILES))
    return Interval(low, high) if high > low else None


def _coarse(judged: ScoredVersion) -> dict[str, float]:
    """Return the pixel metrics as the coarse histograms have them, by which resamples are moved to the fine ones."""
    if judged.pixels is None:
        return {}
    every = judged.pixels.resampled(np.ones((1, len(judged.scores)), np.uint16))
    return {name: float(values[0]) for name, values in every.items()}


def as_document(found: Mapping[str, Interval | None]) -> dict[str, Any]:
    """Return `found` as JSON has it: `[low, high]` or None for each metric."""
    return {name: None if interval is None else [interval.low, interval.high] for name, interval in found.items()}
