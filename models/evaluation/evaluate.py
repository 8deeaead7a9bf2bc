"""Evaluate: runs a detector over labelled images and says how good it is and how fast.

Owns the way from files to scores in bounded memory, also for bulk scoring; formulas are in `models.evaluation.metrics`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path

import numpy as np

from models.data import datasets
from models.data.datasets import Sample
from models.detector import Detector, Float32Array, UInt8Array
from models.errors import DatasetError
from models.evaluation import metrics
from models.evaluation.pixel_histograms import ImageHistograms

BATCH_SIZE = 8
DECODE_THREADS = 2

Read = Callable[[Path, tuple[int, int]], UInt8Array]
"""Returns the image at a path as uint8 `(H, W, 3)` RGB at the size `(H, W)` asked for."""

ImageSize = Callable[[Path], tuple[int, int]]
"""Returns the height and width in pixels of the image at a path."""


@dataclass(frozen=True)
class Failure:
    """An image, or the mask of one, that could not be used: its place in the order given, and why."""

    index: int
    path: Path
    error: str


@dataclass(frozen=True)
class ScoredFile:
    """A scored image: its place in the order given, its anomaly score, its map float32 `(h, w)`."""

    index: int
    path: Path
    score: float
    map: Float32Array


@dataclass(frozen=True)
class ScoredBatch:
    """The outcome of up to `batch_size` files, and the seconds from file to score since the last batch."""

    scored: list[ScoredFile]
    failures: list[Failure]
    seconds: float


@dataclass(frozen=True)
class ImageScore:
    """What one labelled image scored."""

    sample: Sample
    score: float


@dataclass(frozen=True)
class Metrics:
    """All metrics of one evaluation; None where labels or masks are missing. docs/evaluation.md defines each.

    `pixel_auroc_error` and `aupro_error` bound how far binning may have moved those two.
    """

    precision: float | None
    recall: float | None
    f1: float | None
    accuracy: float | None
    false_alarm_rate: float | None
    image_auroc: float | None
    average_precision: float | None
    best_f1: float | None
    best_f1_threshold: float | None
    pixel_auroc: float | None
    pixel_auroc_error: float | None
    aupro: float | None
    aupro_error: float | None


@dataclass(frozen=True)
class Evaluation:
    """The metrics at `threshold`, what they rest on, and the pace.

    `failures` lists images and masks that could not be read. `scoring_seconds` is from file to score, `seconds` all.
    """

    metrics: Metrics
    threshold: float
    normals: int
    anomalies: int
    masked: int
    regions: int
    scores: tuple[ImageScore, ...]
    failures: tuple[Failure, ...]
    scoring_seconds: float
    seconds: float

    @property
    def images(self) -> int:
        return len(self.scores)

    @property
    def images_per_second(self) -> float | None:
        """Images per second from file to score; None where none was scored."""
        return self.images / self.scoring_seconds if self.images and self.scoring_seconds > 0 else None


def evaluate(
    detector: Detector,
    samples: Sequence[Sample],
    threshold: float,
    read: Read,
    image_size: ImageSize,
    *,
    unreadable: tuple[type[Exception], ...] = (OSError, ValueError),
    batch_size: int = BATCH_SIZE,
    decode_threads: int = DECODE_THREADS,
    report: Callable[[int, int], None] | None = None,
    resampling: ImageHistograms | None = None,
    watch: Callable[[Sample, ScoredFile], None] | None = None,
) -> Evaluation:
    """Score `samples` and return the metrics; an image is called an anomaly iff it scores above `threshold`.

    `read` and `image_size` raise one of `unreadable` for a file that is no image; it is then listed and left out, and
    so is an image whose score or map is not finite. An anomaly without a mask counts for the image metrics alone.
    `report(done, total)` is called after each batch, `watch` with each scored image and its map, which it should not
    keep for all of them. `resampling` gets the maps that pixel metrics count, for confidence intervals.
    """
    began = time.perf_counter()
    scores: list[ImageScore] = []
    failures: list[Failure] = []
    counted = _PixelCounts(samples, image_size, (DatasetError, *unreadable), resampling, failures)
    scoring_seconds, done = 0.0, 0
    paths = [sample.path for sample in samples]
    batches = score_files(
        detector, paths, read, unreadable=unreadable, batch_size=batch_size, decode_threads=decode_threads
    )
    for batch in batches:
        scoring_seconds += batch.seconds
        failures += batch.failures
        for scored in batch.scored:
            sample = samples[scored.index]
            scores.append(ImageScore(sample, scored.score))
            if watch is not None:
                watch(sample, scored)
            counted.add(sample, scored)
        done += len(batch.scored) + len(batch.failures)
        if report is not None:
            report(done, len(samples))
    return Evaluation(
        metrics=metrics_of(scores, threshold, counted.pixels),
        threshold=threshold,
        normals=sum(image.sample.label == 0 for image in scores),
        anomalies=sum(image.sample.label == 1 for image in scores),
        masked=counted.masked,
        regions=counted.pixels.regions if counted.pixels is not None else 0,
        scores=tuple(scores),
        failures=tuple(failures),
        scoring_seconds=scoring_seconds,
        seconds=time.perf_counter() - began,
    )


class _PixelCounts:
    """The maps of scored images, compared with their masks; those that cannot be are listed in `failures`."""

    def __init__(
        self,
        samples: Sequence[Sample],
        image_size: ImageSize,
        unusable: tuple[type[Exception], ...],
        resampling: ImageHistograms | None,
        failures: list[Failure],
    ) -> None:
        # Without any mask there is nothing to compare maps with, and their comparison is most of the work.
        self.pixels = metrics.PixelHistograms() if any(sample.mask for sample in samples) else None
        self.masked = 0
        self._image_size, self._unusable = image_size, unusable
        self._resampling, self._failures = resampling, failures

    def add(self, sample: Sample, scored: ScoredFile) -> None:
        if self.pixels is None or (sample.label == 1 and sample.mask is None):
            return
        try:
            common_map, mask = at_common_size(scored.map, sample, self._image_size)
            self.pixels.add(common_map, mask)
            if self._resampling is not None:
                self._resampling.add(sample.path, common_map, mask)
            self.masked += sample.mask is not None
        except self._unusable as error:
            self._failures.append(Failure(scored.index, sample.mask or sample.path, str(error)))


def score_files(
    detector: Detector,
    paths: Sequence[Path],
    read: Read,
    *,
    unreadable: tuple[type[Exception], ...] = (OSError, ValueError),
    batch_size: int = BATCH_SIZE,
    decode_threads: int = DECODE_THREADS,
) -> Iterator[ScoredBatch]:
    """Yield the scores of `paths` in batches, in order; the next batch is decoded while one is scored.

    Nothing runs here while the caller works on a batch: `ScoredBatch.seconds` is the whole cost from file to score.
    """
    remaining = iter(enumerate(paths))
    with ThreadPoolExecutor(decode_threads, thread_name_prefix="decode") as pool:

        def start() -> list[tuple[int, Path, Future[UInt8Array]]]:
            return [
                (index, path, pool.submit(read, path, detector.input_size))
                for index, path in islice(remaining, batch_size)
            ]

        began = time.perf_counter()
        current = start()
        while current:
            wait([future for _, _, future in current])
            coming = start()
            scored, failures = _score_batch(detector, current, unreadable)
            wait([future for _, _, future in coming])
            yield ScoredBatch(scored, failures, time.perf_counter() - began)
            began = time.perf_counter()
            current = coming


def at_common_size(
    anomaly_map: Float32Array, sample: Sample, image_size: ImageSize
) -> tuple[Float32Array, metrics.BoolArray | None]:
    """Return the map and the mask of `sample` at one size: float32 `(H, W)`, and bool `(H, W)` or None.

    The size is that of the image, shrunk until its longer side has `metrics.COMMON_SIDE_MAX` pixels. Raises
    DatasetError for a mask whose size is not its image's.
    """
    height, width = image_size(sample.path)
    size = metrics.common_size(height, width)
    if sample.mask is None:
        return metrics.resized_map(anomaly_map, size), None
    mask = datasets.read_mask(sample.mask)
    if mask.shape != (height, width):
        raise DatasetError(
            f"mask {sample.mask}: expected the height and width of its image, {height} x {width}; "
            f"found {mask.shape[0]} x {mask.shape[1]}"
        )
    return metrics.resized_map(anomaly_map, size), metrics.shrunk_mask(mask, size)


def mean(evaluations: Sequence[Metrics]) -> Metrics:
    """Return the mean of each metric over objects; None where one lacks it, as the rest is another set."""
    values = {}
    for field in fields(Metrics):
        known = [value for each in evaluations if (value := asdict(each)[field.name]) is not None]
        values[field.name] = sum(known) / len(known) if known and len(known) == len(evaluations) else None
    # Thresholds of different detectors have no common unit.
    values["best_f1_threshold"] = None
    return Metrics(**values)


def metrics_of(
    scores: Sequence[ImageScore], threshold: float, pixels: metrics.PixelHistograms | None = None
) -> Metrics:
    """Return the metrics of `scores` at `threshold`; without `pixels` those of pixels are None."""
    values = np.asarray([image.score for image in scores], dtype=np.float64)
    labels = np.asarray([image.sample.label for image in scores], dtype=np.int64)
    verdicts = metrics.at_threshold(values, labels, threshold)
    best = metrics.best_f1(values, labels)
    pixel_auroc = pixels.auroc() if pixels is not None else None
    aupro = pixels.aupro() if pixels is not None else None
    return Metrics(
        precision=verdicts.precision,
        recall=verdicts.recall,
        f1=verdicts.f1,
        accuracy=verdicts.accuracy,
        false_alarm_rate=verdicts.false_alarm_rate,
        image_auroc=metrics.image_auroc(values, labels),
        average_precision=metrics.average_precision(values, labels),
        best_f1=best.f1 if best else None,
        best_f1_threshold=best.threshold if best else None,
        pixel_auroc=pixel_auroc.value if pixel_auroc else None,
        pixel_auroc_error=pixel_auroc.error if pixel_auroc else None,
        aupro=aupro.value if aupro else None,
        aupro_error=aupro.error if aupro else None,
    )


def _score_batch(
    detector: Detector, decoded: list[tuple[int, Path, Future[UInt8Array]]], unreadable: tuple[type[Exception], ...]
) -> tuple[list[ScoredFile], list[Failure]]:
    images, places, failures = [], [], []
    for index, path, future in decoded:
        try:
            images.append(future.result())
            places.append((index, path))
        except unreadable as error:
            failures.append(Failure(index, path, str(error)))
    if not images:
        return [], failures
    outcome = detector.score(np.stack(images))
    scored = []
    for (index, path), score, anomaly_map in zip(places, outcome.scores, outcome.maps, strict=True):
        if np.isfinite(score) and np.isfinite(anomaly_map).all():
            scored.append(ScoredFile(index, path, float(score), anomaly_map))
        else:
            failures.append(Failure(index, path, f"expected a finite score and anomaly map; found score {score}"))
    return scored, failures
