"""What `tamis evaluate` does: evaluates versions one after the other, meters each and records its energy.

Owns the checks before anything is scored: each object has its version, and each version a threshold.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Engine

from models.calibration.thresholds import AtFalseAlarmRate, Policy
from models.data.datasets import Sample
from models.evaluation import evaluate as evaluation
from models.evaluation.evaluate import Evaluation
from models.evaluation.pixel_histograms import ImageHistograms
from models.progress import Progress
from models.registry import ModelVersion
from service.energy.meter import EnergyMeter
from service.errors import TamisError, UsageError
from service.evaluation.learning_curve import job_like, learning_curve
from service.evaluation.outcome import Evaluated, EvaluatedVersion, LearningPoint, compare
from service.evaluation.worst_mistakes import WorstMistakes
from service.imaging.read import UNREADABLE, image_reader, size_reader
from service.names import shown_name
from service.scoring.active_versions import has_champion, load_version
from service.scoring.threshold_policy import policy_of, threshold_of
from service.settings import Settings
from service.storage import energy
from service.storage.energy_sample import EnergySample
from service.storage.thresholds import chosen
from service.storage.versions import VersionRow


@dataclass(frozen=True)
class CandidateVersion:
    """A version, its row and its threshold."""

    version: ModelVersion
    row: VersionRow
    threshold: float


@dataclass(frozen=True)
class Work:
    """The evaluation of one object, known to be possible; both versions have the same policy."""

    object: str
    samples: Sequence[Sample]
    product: str
    policy: Policy
    first: CandidateVersion
    other: CandidateVersion | None

    @property
    def rate(self) -> float:
        """The false-alarm rate of the policy, or that of training where the policy has none."""
        if isinstance(self.policy, AtFalseAlarmRate):
            return self.policy.false_alarm_rate
        return self.first.version.trained_false_alarm_rate


def plan(
    root: Path,
    engine: Engine,
    settings: Settings,
    samples: Mapping[str, Sequence[Sample]],
    product: str,
    version: str | None,
    compare_with: str | None,
    asked_rate: float | None,
) -> list[Work]:
    """Return the work for each object of `samples`.

    Raises TamisError for a missing version, UsageError where a version would be compared with itself, TooFewImages
    where a version has too few calibration images for the policy.
    """
    works = []
    with engine.connect() as connection:
        rates = chosen(connection)
    for name, of_object in samples.items():
        owner = name if len(samples) > 1 and version is None and has_champion(engine, name) else product
        model, row = load_version(root, engine, owner, version)
        chosen_rate = rates.get(owner)
        policy = policy_of(settings, owner, model.trained_false_alarm_rate, asked_rate, chosen_rate)
        first = CandidateVersion(model, row, threshold_of(settings, owner, model, asked_rate, chosen_rate))
        other = None
        if compare_with is not None:
            other_model, other_row = load_version(root, engine, row.product, compare_with)
            if other_row.version == row.version:
                raise UsageError(
                    f"--compare {compare_with}: expected another version than the one evaluated; found the same"
                )
            same_rate = policy.false_alarm_rate if isinstance(policy, AtFalseAlarmRate) else asked_rate
            other = CandidateVersion(other_model, other_row, threshold_of(settings, owner, other_model, same_rate))
        works.append(Work(name, of_object, owner, policy, first, other))
    return works


@dataclass(frozen=True)
class Bench:
    """Evaluates by one meter; every evaluation and every training is a row of energy.

    `scoring_progress` and `training_progress` take a name to show and give a function that shows progress.
    """

    engine: Engine
    settings: Settings
    meter: EnergyMeter
    scoring_progress: Callable[[str], AbstractContextManager[Callable[[int, int], None]]]
    training_progress: Callable[[str], Callable[[Progress], None]]

    def evaluate(self, work: Work) -> Evaluated:
        """Evaluate the object's version, and the other where one is asked for."""
        first = self._evaluate(work.first, work, work.object)
        if work.other is None:
            return Evaluated(work.object, first)
        second = self._evaluate(work.other, work, f"{work.object}, {work.other.version.version}")
        return Evaluated(work.object, first, compare(first, second))

    def learn(self, work: Work, pool: Sequence[Path], sizes: Sequence[int], steps: int | None) -> list[LearningPoint]:
        """Train versions like that of `work` on subsets of `pool`, and evaluate them on the same images.

        Their thresholds follow from the false-alarm rate, since a fixed score means something else for each of them.
        """

        def evaluate_one(version: ModelVersion) -> Evaluation:
            # The child has metered the training; it does not belong to this evaluation.
            self.meter.take("idle")
            threshold = threshold_of(self.settings, work.product, version, work.rate)
            shown = f"{work.object}, trained on {version.manifest.training.images}"
            result = self._scored(version, threshold, work, shown)
            self._record(self.meter.take("evaluation", images=result.images))
            return result

        def progress(images: int) -> Callable[[Progress], None]:
            return self.training_progress(f"learning curve, {images} images")

        job = job_like(work.first.version, work.rate, self.settings, steps)
        return list(learning_curve(job, pool, sizes, evaluate_one, progress=progress, record=self._record))

    def _evaluate(self, candidate: CandidateVersion, work: Work, shown: str) -> EvaluatedVersion:
        histograms, mistakes = ImageHistograms(), WorstMistakes(candidate.threshold)
        remarks: dict[Path, str] = {}
        result = self._scored(candidate.version, candidate.threshold, work, shown, histograms, mistakes, remarks)
        sample = self.meter.take("evaluation", images=result.images)
        self._record(sample)
        return EvaluatedVersion(
            candidate.version, candidate.row, work.policy, result, sample, histograms, mistakes, remarks
        )

    def _scored(
        self,
        version: ModelVersion,
        threshold: float,
        work: Work,
        shown: str,
        histograms: ImageHistograms | None = None,
        mistakes: WorstMistakes | None = None,
        remarks: dict[Path, str] | None = None,
    ) -> Evaluation:
        from models.runtime.load_detector import load_detector

        with self.scoring_progress(shown) as report:
            result = evaluation.evaluate(
                load_detector(version, self.settings.scoring_threads),
                work.samples,
                threshold,
                image_reader(self.settings, draft=version.draft, value_range=version.value_range, remarks=remarks),
                size_reader(self.settings),
                unreadable=UNREADABLE,
                decode_threads=self.settings.decoders,
                report=report,
                resampling=histograms,
                watch=mistakes.offer if mistakes is not None else None,
            )
        if not result.images:
            first = result.failures[0]
            raise TamisError(
                f"object {work.object}: expected images; none of {len(work.samples)} could be scored, "
                f"the first being {shown_name(str(first.path))}: {shown_name(first.error)}"
            )
        return result

    def _record(self, sample: EnergySample | None) -> None:
        if sample is not None:
            with self.engine.begin() as connection:
                energy.add(connection, sample)
