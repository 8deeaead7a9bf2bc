"""Fits the detector `classifier`: pooled features of labelled images, then a linear head on them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models.calibration.split import balanced
from models.fitting.feature_cache import FrozenNetwork, reporting
from models.fitting.fit_result import FitRequest, FitResult
from models.networks.classifier import PARTS, POOLS, ClassifierScoringGraph, PooledFeatures
from models.networks.pretrained import BackboneSource, load_pretrained
from models.progress import Progress

if TYPE_CHECKING:
    from models.fitting.logistic_regression import LinearHead

STEPS = 500  # iterations of the solver, at most


def fit_classifier(request: FitRequest, *, anomalies: Sequence[Path], source: BackboneSource) -> FitResult:
    """Return the classifier of the normals of all products against `anomalies`, at least two, the same for each.

    Raises BackboneUnavailable if there are no weights for `source`.
    """
    # scikit-learn takes seconds to import, and the other kinds do without it.
    from models.fitting.logistic_regression import fit_linear_head

    backbone, channels, about = load_pretrained(source)
    # The same image in two folds would be learnt from and left out at once.
    normals = list(dict.fromkeys(balanced(request.products)))
    paths = [*normals, *anomalies]
    size, report = request.size, request.report
    images = reporting((request.read(path, size) for path in paths), len(paths), "features", report)
    features = FrozenNetwork(PooledFeatures(backbone), size).first_outputs(images).astype(np.float64)
    labels = np.arange(len(features)) >= len(normals)
    report(Progress("training", 0, 1))
    columns = _columns(channels)
    head = fit_linear_head(features, labels, columns, request.seed, request.steps, request.limits.deadline)
    uncertain = "cross-validation tells anomalies from normals no better than chance" if head.auroc <= 0.5 else None
    report(Progress("training", 1, 1, uncertain))
    weight, centre = (torch.tensor(values, dtype=torch.float32) for values in (head.weight, head.centre))
    graph = ClassifierScoringGraph(backbone, channels, POOLS[head.pool], weight, centre, head.offset).eval()
    return FitResult(
        graphs=[graph] * len(request.products),
        stride=graph.stride,
        steps=head.iterations,
        loss=head.log_loss,
        architecture=_architecture(head),
        backbone=about,
        map_meaning="class activation map: what each position adds to the log-odds of an anomaly, where above 0",
        score_meaning="calibrated probability of an anomaly, at the share of anomalies in training",
        comparable=True,
    )


def _columns(channels: Sequence[int]) -> dict[str, Any]:
    """Return for each of `POOLS` its columns of the pooled features."""
    ends = np.cumsum([channels[level] for _, level in PARTS])
    columns = dict(zip(PARTS, np.split(np.arange(ends[-1]), ends[:-1]), strict=True))
    return {name: np.concatenate([columns[part] for part in parts]) for name, parts in POOLS.items()}


def _architecture(head: LinearHead) -> dict[str, Any]:
    """Return what model.json says of the head."""
    return {
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
    }
