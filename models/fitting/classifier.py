"""Fits the detector `classifier`: pooled features of labelled images, then a linear head on them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from models.calibration.split import balanced
from models.data.select_images import Read
from models.fitting.fit_result import FitResult
from models.fitting.limits import TrainingLimits
from models.fitting.logistic_regression import Float64Array, fit_head
from models.networks.classifier import PARTS, POOLS, ClassifierScoringGraph, Part, PooledFeatures
from models.networks.pretrained import BackboneSource, load_pretrained
from models.progress import Progress
from models.runtime.export import converted
from models.runtime.openvino_runtime import compile_queue

STEPS = 500  # iterations of the solver, at most


def fit_classifier(
    products: Sequence[Sequence[Path]],
    size: tuple[int, int],
    seed: int,
    steps: int,
    limits: TrainingLimits,
    read: Read,
    report: Callable[[Progress], None],
    *,
    anomalies: Sequence[Path],
    source: BackboneSource,
) -> FitResult:
    """Return the classifier of the normals of all `products` against `anomalies`, at least two, the same for each.

    Raises BackboneUnavailable if there are no weights for `source`.
    """
    backbone, channels, about = load_pretrained(source)
    columns = dict(zip(PARTS, _columns(channels), strict=True))
    pools = {name: np.concatenate([columns[part] for part in parts]) for name, parts in POOLS.items()}
    # An image that comes again, to balance products, would be left out and learnt from at once.
    normals = list(dict.fromkeys(balanced(products)))
    features = _features(PooledFeatures(backbone), [*normals, *anomalies], size, read, report)
    labels = np.arange(len(features)) >= len(normals)
    report(Progress("training", 0, 1))
    with warnings.catch_warnings():
        # A solver that is cut off at `steps` is judged by cross-validation like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        head = fit_head(features, labels, pools, seed, steps, limits.deadline)
    uncertain = "cross-validation tells anomalies from normals no better than chance" if head.auroc <= 0.5 else None
    report(Progress("training", 1, 1, uncertain))
    parts: tuple[Part, ...] = POOLS[head.pool]
    graph = ClassifierScoringGraph(
        backbone,
        channels,
        parts,
        torch.tensor(head.weight, dtype=torch.float32),
        torch.tensor(head.centre, dtype=torch.float32),
        head.offset,
    )
    return FitResult(
        graphs=[graph.eval()] * len(products),
        stride=graph.stride,
        steps=head.iterations,
        loss=head.log_loss,
        architecture={
            "pool": head.pool,
            "features": len(head.weight),
            "inverse_penalty": head.inverse_penalty,
            "probability": {
                "method": "platt",
                "slope": head.slope,
                "intercept": head.intercept,
                "anomaly_share": head.anomaly_share,
            },
            "cross_validation": {"folds": head.folds, "balanced_log_loss": head.log_loss, "auroc": head.auroc},
        },
        backbone=about,
        map_meaning="class activation map: what each position adds to the log-odds of an anomaly, where above 0",
        score_meaning="calibrated probability of an anomaly, at the share of anomalies in training",
        comparable=True,
    )


def _columns(channels: Sequence[int]) -> list[Any]:
    """Return for each of `PARTS` the columns of the pooled features that are its own."""
    ends = np.cumsum([channels[level] for _, level in PARTS])
    return list(np.split(np.arange(ends[-1]), ends[:-1]))


def _features(
    network: PooledFeatures,
    paths: Sequence[Path],
    size: tuple[int, int],
    read: Read,
    report: Callable[[Progress], None],
) -> Float64Array:
    """Return float64 `(len(paths), features)`; the network runs once over each image, on OpenVINO."""
    queue = compile_queue(converted(network, size))
    found: list[Any] = [None] * len(paths)

    def keep(request: Any, index: int) -> None:
        found[index] = request.get_output_tensor(0).data[0].astype(np.float64)

    queue.set_callback(keep)
    for index, path in enumerate(paths):
        queue.start_async({0: read(path, size)[np.newaxis]}, index)
        report(Progress("features", index + 1, len(paths)))
    queue.wait_all()
    return np.stack(found)
