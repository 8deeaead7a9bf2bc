"""The results of an evaluation, as values that the terminal, the JSON document and the page all show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from models.calibration.thresholds import AtFalseAlarmRate, Policy
from models.evaluation.bootstrap import Interval, ScoredVersion, difference_intervals, intervals
from models.evaluation.curves import SweepPoint, sweep
from models.evaluation.evaluate import Evaluation, ImageScore, Metrics, metrics_of
from models.evaluation.metrics import AtThreshold, Counts, Float64Array, at_threshold
from models.evaluation.pixel_histograms import ImageHistograms
from models.registry import ModelVersion
from service.evaluation.worst_mistakes import WorstMistakes
from service.root import ANOMALY, NORMAL
from service.storage.energy_sample import EnergySample
from service.storage.versions import VersionRow

UNKNOWN = "–"
TITLES = {
    "image_auroc": "image AUROC",
    "average_precision": "average precision",
    "f1": "F1",
    "precision": "precision",
    "recall": "recall",
    "accuracy": "accuracy",
    "false_alarm_rate": "false alarms",
    "best_f1": "best F1",
    "pixel_auroc": "pixel AUROC",
    "aupro": "AUPRO",
}
"""The metrics that people are shown, in the page's order."""


@dataclass(frozen=True)
class EvaluatedVersion:
    """One version on the images of one object: its metrics, its energy, and what confidence intervals need."""

    version: ModelVersion
    row: VersionRow
    policy: Policy
    result: Evaluation
    energy: EnergySample | None
    histograms: ImageHistograms
    mistakes: WorstMistakes
    remarks: Mapping[Path, str] = field(default_factory=dict)
    """What a person should know of how images were read, by their paths."""

    @property
    def name(self) -> str:
        """Product and version."""
        return f"{self.version.product}/{self.version.version}"

    @property
    def rate(self) -> float | None:
        """The false-alarm rate that the threshold was calibrated for; None where another policy sets it."""
        return self.policy.false_alarm_rate if isinstance(self.policy, AtFalseAlarmRate) else None

    @property
    def promise(self) -> str:
        """What sets the threshold, in words."""
        return f"at a false-alarm rate of {self.rate:g}" if self.rate is not None else f"by policy {self.policy.name}"

    @property
    def scores(self) -> Float64Array:
        """The scores `(N,)`."""
        return _scores_of(self.result.scores)

    @property
    def labels(self) -> Counts:
        """The labels `(N,)`."""
        return labels_of(self.result.scores)

    @property
    def counts(self) -> AtThreshold:
        """Verdicts against labels."""
        return at_threshold(self.scores, self.labels, self.result.threshold)

    @cached_property
    def intervals(self) -> dict[str, Interval | None]:
        """The 95 % confidence interval of each metric; None where it is unknown."""
        return intervals(self.scored_version(self.result.scores), self.labels, asdict(self.result.metrics))

    @cached_property
    def sweep(self) -> list[SweepPoint]:
        """What other false-alarm rates would have given."""
        return sweep(self.version.calibration_scores, self.scores, self.labels)

    def scored_version(self, images: Sequence[ImageScore]) -> ScoredVersion:
        """Return what resampling needs of `images`, some or all of those scored."""
        return ScoredVersion(
            scores=_scores_of(images),
            threshold=self.result.threshold,
            pixels=self.histograms.of([image.sample.path for image in images]),
        )

    def per_1000_images(self, total: float | None) -> float | None:
        """Return `total` per 1,000 images; None where it is unknown."""
        return None if total is None or not self.result.images else 1000 * total / self.result.images


@dataclass(frozen=True)
class VerdictChange:
    """An image whose verdict changes from one version to the other."""

    path: Path
    label: str
    scores: tuple[float, float]
    verdicts: tuple[str, str]

    @property
    def improves(self) -> bool:
        """Whether the verdict of the other version is the right one."""
        return self.verdicts[1] == self.label


@dataclass(frozen=True)
class VersionComparison:
    """Another version beside the one evaluated, on the `images` images that both could score."""

    other: EvaluatedVersion
    images: int
    metrics: tuple[Metrics, Metrics]
    differences: Mapping[str, float | None]
    intervals: Mapping[str, Interval | None]
    changes: tuple[VerdictChange, ...]


@dataclass(frozen=True)
class Evaluated:
    """One object: its name, the version evaluated, and the comparison where one was asked for."""

    object: str
    evaluated_version: EvaluatedVersion
    comparison: VersionComparison | None = None


@dataclass(frozen=True)
class LearningPoint:
    """A version trained on `images` normal images; where there is none, `error` says why and the rest is None."""

    images: int
    trained: int | None = None
    calibrated: int | None = None
    metrics: Metrics | None = None
    threshold: float | None = None
    seconds: float | None = None
    training_wh: float | None = None
    energy_source: str | None = None
    error: str | None = None


def compare(first: EvaluatedVersion, second: EvaluatedVersion) -> VersionComparison:
    """Return `second` beside `first`; differences are `second` minus `first`.

    Where only one of them scored an image, image metrics are of those that both scored, and pixel metrics unknown.
    """
    scored = {image.sample: image for image in second.result.scores}
    before = [image for image in first.result.scores if image.sample in scored]
    after = [scored[image.sample] for image in before]
    if len(before) == first.result.images == second.result.images:
        metrics = first.result.metrics, second.result.metrics
    else:
        metrics = metrics_of(before, first.result.threshold), metrics_of(after, second.result.threshold)
    old, new = asdict(metrics[0]), asdict(metrics[1])
    # Thresholds of different versions have no common unit, and binning errors are not metrics.
    names = [name for name in old if name != "best_f1_threshold" and not name.endswith("_error")]
    differences = {
        name: None if old[name] is None or new[name] is None else float(new[name] - old[name]) for name in names
    }
    known: dict[str, Interval | None] = dict.fromkeys(differences)
    if before:
        versions = first.scored_version(before), second.scored_version(after)
        known = difference_intervals(*versions, labels_of(before), differences)
    return VersionComparison(
        second, len(before), metrics, differences, known, tuple(_changes(first, second, before, after))
    )


def labels_of(images: Sequence[ImageScore]) -> Counts:
    """Return the labels of `images`, int64 `(N,)`."""
    return np.array([image.sample.label for image in images], dtype=np.int64)


def _scores_of(images: Sequence[ImageScore]) -> Float64Array:
    return np.array([image.score for image in images], dtype=np.float64)


def verdict(score: float, threshold: float) -> str:
    """Return what an image of that score is called."""
    return ANOMALY if score > threshold else NORMAL


def _changes(
    first: EvaluatedVersion, second: EvaluatedVersion, before: Sequence[ImageScore], after: Sequence[ImageScore]
) -> list[VerdictChange]:
    found = []
    for old, new in zip(before, after, strict=True):
        verdicts = verdict(old.score, first.result.threshold), verdict(new.score, second.result.threshold)
        if verdicts[0] != verdicts[1]:
            label = ANOMALY if old.sample.label else NORMAL
            found.append(VerdictChange(old.sample.path, label, (old.score, new.score), verdicts))
    return found
