"""Calibrates a trained detector: scores images that it has not seen, in one of two ways.

`split`: normals were held out of the training. `cross`: there were too few to spare, so networks are fitted
without a fold each and score that fold. Which threshold follows from the scores is `models.calibration.thresholds`'s.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from models.appearance import FIGURES, appearance_of
from models.calibration.split import FOLDS, Method
from models.calibration.thresholds import threshold_at
from models.data.select_images import Chosen, Read, TrainingImage
from models.detector import Detector, Float32Array
from models.evaluation.metrics import image_auroc
from models.fitting.fit_result import FitResult
from models.fitting.limits import TrainingLimits
from models.progress import Progress
from models.registry import ModelVersion
from models.runtime.export import export_graph
from models.runtime.openvino_detector import OpenVinoDetector

BATCH_SIZE = 16  # images scored at once

Report = Callable[[Progress], None]


class FitNetwork(Protocol):
    """Fits a network of the training's kind and size to the normal images of each product."""

    def __call__(self, products: Sequence[Sequence[Path]], limits: TrainingLimits, report: Report) -> FitResult: ...


@dataclass(frozen=True)
class Calibration:
    """What a product's unseen images scored: `scores` and `map_maxima` of normals `(n,)`, of anomalies `(m,)`.

    `image_statistics` is how the normals look, float32 `(n, 3)` of `models.appearance.FIGURES`; NaN is not known.
    `fold_steps` are those that the networks of the folds were trained for; none with the method `split`.
    """

    method: Method
    false_alarm_rate: float
    scores: Float32Array
    map_maxima: Float32Array
    anomaly_scores: Float32Array
    image_statistics: Float32Array
    fold_steps: tuple[int, ...]

    def as_manifest(self) -> dict[str, Any]:
        """Return the field `calibration` of model.json; `image_auroc` is null without known anomalies."""
        both = np.concatenate([self.scores, self.anomaly_scores])
        labels = np.repeat([0, 1], [len(self.scores), len(self.anomaly_scores)])
        return {
            "method": self.method,
            "false_alarm_rate": self.false_alarm_rate,
            "threshold": threshold_at(self.scores, self.false_alarm_rate),
            "pixel_threshold": threshold_at(self.map_maxima, self.false_alarm_rate),
            "images": len(self.scores),
            "scores": sorted(float(score) for score in self.scores),
            "anomaly_scores": sorted(float(score) for score in self.anomaly_scores),
            "image_auroc": image_auroc(both, labels),
            "look": {
                name: [
                    None if np.isnan(value) else round(float(value), 3) for value in self.image_statistics[:, column]
                ]
                for column, name in enumerate(FIGURES)
            },
            "fold_steps": list(self.fold_steps),
        }


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
                        scorer = OpenVinoDetector(ModelVersion(Path(folder), {"input_size": size}, ""), threads)
                        own, out = _scored(scorer, each.calibrate, size, read, told), _out(each, fold)
                        scores = own if comparable else in_unit_of(normals[index], own, ~out)
                        left_out[index][out] = scores[out]
        normals = left_out
    return [
        Calibration(
            method=each.method,
            false_alarm_rate=each.false_alarm_rate,
            scores=values[:, 0],
            map_maxima=values[:, 1],
            anomaly_scores=_scored(detector, each.held_out_anomalies, size, read, report)[:, 0],
            image_statistics=image_statistics,
            fold_steps=tuple(fold_steps) if each.method == "cross" else (),
        )
        for (detector, each), values, image_statistics in zip(pairs, normals, image_statistics, strict=True)
    ]


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
