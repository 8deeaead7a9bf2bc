"""Calibrates a trained detector: scores images that it has not seen, in one of two ways.

`split`: normals were held out of the training. `cross`: there were too few to spare, so networks are fitted
without a fold each and score that fold. Which threshold follows from the scores is `models.calibration.thresholds`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.appearance import FIGURES, appearance_of
from models.calibration.split import FOLDS
from models.calibration.thresholds import threshold_at
from models.data.select_images import Chosen, Read, TrainingImage
from models.detector import Detector, Float32Array
from models.evaluation.metrics import image_auroc
from models.fitting.fit_result import FitResult
from models.fitting.limits import TrainingLimits
from models.manifest import Calibration
from models.progress import Progress
from models.registry import unpublished
from models.runtime.export import export_graph
from models.runtime.openvino_detector import OpenVinoDetector

BATCH_SIZE = 16  # images scored at once

Report = Callable[[Progress], None]


class FitNetwork(Protocol):
    """Fits a network of the training's kind and size to the normal images of each product."""

    def __call__(self, products: Sequence[Sequence[Path]], limits: TrainingLimits, report: Report) -> FitResult: ...


def calibrate(
    detectors: Sequence[Detector],
    chosen: Sequence[Chosen],
    fit: FitNetwork,
    *,
    comparable: bool,
    limits: TrainingLimits,
    workspace: Path,
    threads: int,
    read: Read,
    report: Report,
) -> list[Calibration]:
    """Return the calibration of each of the products `chosen`, by its own one of `detectors`.

    For products with the method `cross`, 5 networks are fitted by `fit` and lie in `workspace` while they score.
    `comparable` says that the scores of two networks are in the same unit.
    """
    size = chosen[0].input_size
    pairs = list(zip(detectors, chosen, strict=True))
    image_statistics = [np.full((len(each.calibrate), len(FIGURES)), np.nan, dtype=np.float32) for each in chosen]
    normals = [
        _scored(detector, each.calibrate, size, read, report, image_statistics)
        for (detector, each), image_statistics in zip(pairs, image_statistics, strict=True)
    ]
    fold_steps: list[int] = []
    if any(each.method == "cross" for each in chosen):
        left_out = [values.copy() for values in normals]
        for fold in range(FOLDS):

            def told(progress: Progress, stage: str = f"fold {fold + 1} of {FOLDS}") -> None:
                report(replace(progress, stage=f"{stage}: {progress.stage}"))

            kept = [[p.path for p, out in zip(each.train, _out(each, fold), strict=True) if not out] for each in chosen]
            fitted = fit(kept, limits.shared_among(FOLDS - fold), told)
            fold_steps.append(fitted.steps)
            with tempfile.TemporaryDirectory(dir=workspace, prefix="fold-") as folder:
                for index, each in enumerate(chosen):
                    if each.method == "cross":
                        export_graph(fitted.graphs[index], size, Path(folder))
                        scorer = OpenVinoDetector(unpublished(Path(folder), size), threads)
                        own, out = _scored(scorer, each.calibrate, size, read, told), _out(each, fold)
                        scores = own if comparable else in_unit_of(normals[index], own, ~out)
                        left_out[index][out] = scores[out]
        normals = left_out
    return [
        _calibration(
            each,
            values,
            _scored(detector, each.held_out_anomalies, size, read, report)[:, 0],
            image_statistics,
            tuple(fold_steps) if each.method == "cross" else (),
        )
        for (detector, each), values, image_statistics in zip(pairs, normals, image_statistics, strict=True)
    ]


def _calibration(
    chosen: Chosen,
    normals: Float32Array,
    anomaly_scores: Float32Array,
    image_statistics: Float32Array,
    fold_steps: tuple[int, ...],
) -> Calibration:
    """Return what the scores and highest map values of unseen `normals`, `(n, 2)`, and those of anomalies come to."""
    scores, map_maxima = normals.T
    labels = np.repeat([0, 1], [len(scores), len(anomaly_scores)])
    return Calibration(
        method=chosen.method,
        false_alarm_rate=chosen.false_alarm_rate,
        threshold=threshold_at(scores, chosen.false_alarm_rate),
        pixel_threshold=threshold_at(map_maxima, chosen.false_alarm_rate),
        images=len(scores),
        scores=tuple(np.sort(scores).tolist()),
        anomaly_scores=tuple(np.sort(anomaly_scores).tolist()),
        # None without known anomalies
        image_auroc=image_auroc(np.concatenate([scores, anomaly_scores]), labels),
        look={
            name: tuple(None if np.isnan(value) else round(float(value), 3) for value in image_statistics[:, column])
            for column, name in enumerate(FIGURES)
        },
        fold_steps=fold_steps,
    )


def in_unit_of(wanted: Float32Array, own: Float32Array, shared: npt.NDArray[np.bool_]) -> Float32Array:
    """Return `own`, one network's values `(n, columns)`, in the unit of another's, `wanted`, of the same images.

    Each column is moved and stretched so that over the images `shared` by both trainings its median and its mean
    absolute deviation from it are the other's. What a network gives to images that it was not trained on keeps
    its distance from those that it was.
    """
    centre, other_centre = np.median(own[shared], axis=0), np.median(wanted[shared], axis=0)
    spread = np.abs(own[shared] - centre).mean(axis=0)
    other_spread = np.abs(wanted[shared] - other_centre).mean(axis=0)
    scale = np.divide(other_spread, spread, out=np.ones_like(spread), where=(spread > 0) & (other_spread > 0))
    moved: Float32Array = (other_centre + scale * (own - centre)).astype(np.float32)
    return moved


def _out(chosen: Chosen, fold: int) -> npt.NDArray[np.bool_]:
    """Return which of the images `chosen.train` belong to `fold`; none where others were held out."""
    out: npt.NDArray[np.bool_] = np.arange(len(chosen.train)) % FOLDS == fold
    return out if chosen.method == "cross" else np.zeros_like(out)


def _scored(
    detector: Detector,
    images: Sequence[TrainingImage],
    size: tuple[int, int],
    read: Read,
    report: Report,
    image_statistics: Float32Array | None = None,
) -> Float32Array:
    """Return score and highest map value of each image, float32 `(n, 2)`.

    How each image looks is put into `image_statistics`, `(n, 3)`.
    """
    values = np.empty((len(images), 2), dtype=np.float32)
    for start in range(0, len(images), BATCH_SIZE):
        batch = images[start : start + BATCH_SIZE]
        read_images = [read(image.path, size) for image in batch]
        if image_statistics is not None:
            image_statistics[start : start + len(batch)] = [appearance_of(pixels).as_row() for pixels in read_images]
        scored = detector.score(np.stack(read_images))
        values[start : start + len(batch), 0] = scored.scores
        values[start : start + len(batch), 1] = scored.maps.max(axis=(1, 2))
        report(Progress("calibrating", start + len(batch), len(images)))
    return values
