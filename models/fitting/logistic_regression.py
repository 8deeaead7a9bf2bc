"""A linear head that tells anomalies from normals: logistic regression, chosen and calibrated by cross-validation.

Knows features and labels, no images. The numbers that it chooses by all come from what it is given to train on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold

from models.evaluation.metrics import image_auroc

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CROSS_VALIDATION_FOLDS = 5
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # sklearn's C, on standardised features
SLOPE_MIN = 1e-3  # of the calibration: below it, it would turn the order of scores round
DEVIATION_FLOOR = 1e-6


@dataclass(frozen=True)
class LinearHead:
    """Log-odds of an anomaly are `weight · (features - centre) + offset`, features those at `columns`.

    `log_loss` (classes weighing the same) and `auroc` are of decision values for images that were left out in
    fitting. `slope` and `intercept` are Platt's, already part of `weight` and `offset`.
    """

    pool: str
    weight: Float64Array
    centre: Float64Array
    offset: float
    inverse_penalty: float
    iterations: int
    slope: float
    intercept: float
    anomaly_share: float
    log_loss: float
    auroc: float
    folds: int


def fit_head(
    features: Float64Array,
    anomalies: BoolArray,
    pools: Mapping[str, npt.NDArray[np.intp]],
    seed: int,
    iterations_max: int,
    deadline: float,
) -> LinearHead:
    """Return the head for `features` `(n, d)`, of which those where `anomalies` `(n,)` is true are anomalies.

    `pools` names the columns to choose among. The pool and the L2 penalty with the least balanced log loss in
    stratified cross-validation are taken, the simpler where they tie; after `deadline` no other is tried.
    Needs two of each class.
    """
    folds = min(CROSS_VALIDATION_FOLDS, int(anomalies.sum()), int((~anomalies).sum()))
    division = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, anomalies))
    best: tuple[float, str, float, Float64Array] | None = None
    for name, columns in pools.items():
        for inverse_penalty in INVERSE_PENALTIES:
            if best is not None and time.monotonic() > deadline:
                break
            decisions = _left_out_decisions(features[:, columns], anomalies, division, inverse_penalty, iterations_max)
            loss = balanced_log_loss(decisions, anomalies)
            if best is None or loss < best[0]:
                best = loss, name, inverse_penalty, decisions
    assert best is not None
    loss, name, inverse_penalty, decisions = best
    slope, intercept = platt(decisions, anomalies)
    columns = pools[name]
    centre, deviation = _scale(features[:, columns])
    model = _fit((features[:, columns] - centre) / deviation, anomalies, inverse_penalty, iterations_max)
    auroc = image_auroc(decisions, anomalies.astype(np.int64))
    assert auroc is not None
    return LinearHead(
        pool=name,
        weight=slope * model.coef_[0] / deviation,
        centre=centre,
        offset=slope * float(model.intercept_[0]) + intercept,
        inverse_penalty=inverse_penalty,
        iterations=int(model.n_iter_[0]),
        slope=slope,
        intercept=intercept,
        anomaly_share=float(anomalies.mean()),
        log_loss=loss,
        auroc=auroc,
        folds=folds,
    )


def platt(decisions: Float64Array, anomalies: BoolArray) -> tuple[float, float]:
    """Return slope and intercept by which `slope * decision + intercept` are calibrated log-odds.

    Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2: a logistic fit to targets drawn
    in from 0 and 1 by one count, so that few anomalies do not make it certain. Not isotonic regression, whose
    steps tie scores, and which needs about a thousand images (Niculescu-Mizil and Caruana, ICML 2005).
    """
    positives, negatives = int(anomalies.sum()), int((~anomalies).sum())
    targets = np.where(anomalies, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = float(decisions.std()) or 1.0

    def loss(parameters: Float64Array) -> tuple[float, Float64Array]:
        log_odds = parameters[0] * decisions / spread + parameters[1]
        residual = expit(log_odds) - targets
        value = float((np.logaddexp(0, log_odds) - targets * log_odds).sum())
        return value, np.array([(residual * decisions / spread).sum(), residual.sum()])

    start = np.array([1.0, np.log((positives + 1) / (negatives + 1))])
    bounds = [(SLOPE_MIN * spread, None), (None, None)]
    found = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return float(found.x[0] / spread), float(found.x[1])


def balanced_log_loss(decisions: Float64Array, anomalies: BoolArray) -> float:
    """Return the mean over the two classes of the mean of -log p(class), `decisions` being log-odds `(n,)`."""
    losses = np.logaddexp(0, np.where(anomalies, -decisions, decisions))
    return float((losses[anomalies].mean() + losses[~anomalies].mean()) / 2)


def _left_out_decisions(
    features: Float64Array,
    anomalies: BoolArray,
    division: Sequence[tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]],
    inverse_penalty: float,
    iterations_max: int,
) -> Float64Array:
    decisions = np.empty(len(features))
    for kept, left_out in division:
        centre, deviation = _scale(features[kept])
        model = _fit((features[kept] - centre) / deviation, anomalies[kept], inverse_penalty, iterations_max)
        decisions[left_out] = model.decision_function((features[left_out] - centre) / deviation)
    return decisions


def _scale(features: Float64Array) -> tuple[Float64Array, Float64Array]:
    deviation = features.std(axis=0)
    # A feature that never changes here says nothing, and divided by almost nothing it would say too much.
    return features.mean(axis=0), np.where(deviation > DEVIATION_FLOOR, deviation, np.inf)


def _fit(
    features: Float64Array, anomalies: BoolArray, inverse_penalty: float, iterations_max: int
) -> LogisticRegression:
    model = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=iterations_max)
    return model.fit(features, anomalies)
