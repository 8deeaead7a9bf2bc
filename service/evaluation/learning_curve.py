"""Learning curve: what more images would bring. Trains on seeded subsets, each in a process of its own.

The versions are not registered and are removed afterwards; their metrics and energy are returned.
"""

from __future__ import annotations

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from models.data.datasets import SUFFIXES, Sample, images_under
from models.data.select_images import ProductImages
from models.errors import DatasetError, TooFewImages
from models.evaluation.evaluate import Evaluation
from models.progress import Progress
from models.registry import BUILD_PREFIX, ModelVersion, file_sha256
from models.training.options import MINUTES_MAX
from service.errors import UsageError
from service.evaluation.outcome import LearningPoint
from service.names import shown_name
from service.settings import Settings
from service.storage.energy_sample import EnergySample
from service.training.job import TrainingJob, from_settings
from service.training.run import train_in_child

LEARNS_FROM_NORMALS = ("feature", "pixel")


def learning_curve(
    job: TrainingJob,
    pool: Sequence[Path],
    sizes: Sequence[int],
    evaluate: Callable[[ModelVersion], Evaluation],
    *,
    progress: Callable[[int], Callable[[Progress], None]] = lambda images: lambda progress: None,
    record: Callable[[EnergySample], None] = lambda sample: None,
) -> Iterator[LearningPoint]:
    """Yield a point for each of `sizes`, rising: `job` trained on so many images of `pool`, evaluated by `evaluate`.

    A smaller subset is part of every larger one, so that the curve shows the effect of number, not of chance;
    `job.seed` sets the order. Where the images are too few for a size, its point says so. `record` gets the energy of
    each training. Raises what `train_in_child` raises except TooFewImages.
    """
    order = sorted(pool)
    random.Random(job.seed).shuffle(order)
    for number, size in enumerate(sorted(set(sizes))):
        if size > len(order):
            yield LearningPoint(size, error=f"expected {size} normal images to train on; found {len(order)}")
            continue
        with tempfile.TemporaryDirectory(prefix="tamis-learning-curve-") as models_root:
            part = job.model_copy(
                update={
                    "products": (replace(job.products[0], normals=order[:size]),),
                    "models_root": Path(models_root),
                    "build": f"{BUILD_PREFIX}learning-{number}",
                }
            )
            try:
                trained = train_in_child(part, report=progress(size))
            except TooFewImages as error:
                yield LearningPoint(size, error=str(error))
                continue
            if trained.energy is not None:
                record(trained.energy)
            (version,) = trained.versions
            result = evaluate(version)
        yield LearningPoint(
            images=size,
            trained=version.manifest.training.images,
            calibrated=len(version.calibration_scores),
            metrics=result.metrics,
            threshold=result.threshold,
            seconds=version.manifest.training.seconds,
            training_wh=trained.energy.total_wh if trained.energy else None,
            energy_source=trained.energy.source if trained.energy else None,
        )


def sizes_asked(asked: str | None, normals: Path | None) -> list[int]:
    """Return the numbers in `asked`, such as `60,300`, rising; none for None. Raises UsageError without `normals`."""
    if (asked is None) != (normals is None):
        given, missing = ("--learning-curve", "--from") if asked is not None else ("--from", "--learning-curve")
        raise UsageError(f"{given}: expected {missing} with it; found none")
    if asked is None:
        return []
    parts = [part.strip() for part in asked.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 10 and int(part) for part in parts):
        raise UsageError(f"--learning-curve: expected numbers of images such as 60,300; found {asked!r}")
    return sorted({int(part) for part in parts})


def training_pool(folder: Path, evaluated: Sequence[Sample]) -> tuple[list[Path], int]:
    """Return the images of `folder` whose bytes are not among `evaluated`, and how many are.

    Raises DatasetError where there is none to train on.
    """
    shown = shown_name(folder)
    found = images_under(folder)
    if not found:
        raise DatasetError(f"{shown}: expected images ({SUFFIXES}) at any depth; found none")
    taken = {content for sample in evaluated if (content := _content(sample.path)) is not None}
    # Links stay as they are given.
    pool = [Path(os.path.abspath(path)) for path in found if _content(path) not in taken]  # noqa: PTH100
    if not pool:
        raise DatasetError(f"{shown}: expected images to train on; found only those that are evaluated")
    return pool, len(found) - len(pool)


def job_like(version: ModelVersion, rate: float, settings: Settings, steps: int | None) -> TrainingJob:
    """Return the training that made `version`, without its images and its place; calibrated for `rate`.

    Raises UsageError for a kind that does not learn from normal images alone.
    """
    if version.kind not in LEARNS_FROM_NORMALS:
        raise UsageError(
            f"--learning-curve: expected a version of kind {' or '.join(LEARNS_FROM_NORMALS)}, which learn from "
            f"normal images alone; found {version.version} of kind {version.kind}"
        )
    training = version.manifest.training
    return TrainingJob(
        products=(ProductImages(version.product, (), rate, value_range=settings.of(version.product, "value_range")),),
        models_root=Path(),
        kind=version.kind,
        profile=version.manifest.profile or "balanced",
        seed=training.seed or 0,
        minutes_max=training.minutes_max or MINUTES_MAX,
        steps=steps,
        **from_settings(settings),
    )


def _content(path: Path) -> str | None:
    try:
        return file_sha256(path)
    except OSError:
        return None  # training and evaluation each say what is wrong with it
