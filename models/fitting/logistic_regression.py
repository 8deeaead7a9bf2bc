"""A linear head that tells anomalies from normals: logistic regression, chosen and calibrated by cross-validation.

All choices rest on the training images alone. scikit-learn, slow to import, is imported with this module.
"""

from __future__ import annotations

import itertools
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.special import logit
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from models.evaluation.metrics import image_auroc

Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

CROSS_VALIDATION_FOLDS = 5
INVERSE_PENALTIES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # sklearn's C, on standardised features
SLOPE_MIN = 1e-3  # of the calibration: a lower one would reverse the order of scores
DEVIATION_FLOOR = 1e-6


@dataclass(frozen=True)
class LinearHead:
    """Log-odds of an anomaly are `weight · (features - centre) + offset`, features those of the columns of `pool`.

    `log_loss` (both classes weighted alike) and `auroc` are of left-out images. `slope` and `intercept` are Platt's,
    already part of `weight` and `offset`.
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


def fit_linear_head(
    features: Float64Array,
    anomalies: BoolArray,
    pools: Mapping[str, npt.NDArray[np.intp]],
    seed: int,
    iterations_max: int,
    deadline: float,
) -> LinearHead:
    """Return the head for `features` `(n, d)`, of which those where `anomalies` `(n,)` is true are anomalies.

    `pools` names the columns to choose among. Takes the pool and the L2 penalty with the lowest balanced log loss in
    stratified cross-validation, the simpler where they tie; after `deadline` no other is tried. Needs two of each
    class.
    """
    folds = min(CROSS_VALIDATION_FOLDS, int(anomalies.sum()), int((~anomalies).sum()))
    division = list(StratifiedKFold(folds, shuffle=True, random_state=seed).split(features, anomalies))
    best: tuple[float, str, float, Float64Array] | None = None
    with warnings.catch_warnings():
        # A solver stopped at `iterations_max` is compared by cross-validation like any other.
        warnings.simplefilter("ignore", ConvergenceWarning)
        # By hand, since no search of scikit-learn ends at a deadline.
        for name, inverse_penalty in itertools.product(pools, INVERSE_PENALTIES):
            if best is not None and time.monotonic() > deadline:
                break
            model = _model(inverse_penalty, iterations_max)
            decisions = cross_val_predict(
                model, features[:, pools[name]], anomalies, cv=division, method="decision_function"
            )
            loss = balanced_log_loss(decisions, anomalies)
            if best is None or loss < best[0]:
                best = loss, name, inverse_penalty, decisions
        assert best is not None
        loss, name, inverse_penalty, decisions = best
        scaler, model = _model(inverse_penalty, iterations_max).fit(features[:, pools[name]], anomalies)
    slope, intercept = platt(decisions, anomalies)
    auroc = image_auroc(decisions, anomalies.astype(np.int64))
    assert auroc is not None
    return LinearHead(
        pool=name,
        weight=slope * model.coef_[0] / scaler.scale_,
        centre=scaler.mean_,
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

    Platt, Probabilistic Outputs for Support Vector Machines, 1999, section 2.2: a logistic fit to targets moved in
    from 0 and 1 by one count, so that few anomalies do not make it certain. Not isotonic regression, whose steps tie
    scores, and which needs about a thousand images (Niculescu-Mizil and Caruana, ICML 2005).
    """
    positives, negatives = int(anomalies.sum()), int((~anomalies).sum())
    targets = np.where(anomalies, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    spread = float(decisions.std()) or 1.0
    # Each image counts as both classes, weighted by its target.
    twice, classes = np.tile(decisions / spread, 2)[:, np.newaxis], np.repeat([True, False], len(decisions))
    model = LogisticRegression(C=np.inf, tol=1e-8)
    model.fit(twice, classes, sample_weight=np.concatenate([targets, 1 - targets]))
    slope, intercept = float(model.coef_[0, 0]) / spread, float(model.intercept_[0])
    if slope < SLOPE_MIN:
        return SLOPE_MIN, float(logit(targets.mean()) - SLOPE_MIN * decisions.mean())
    return slope, intercept


def balanced_log_loss(decisions: Float64Array, anomalies: BoolArray) -> float:
    """Return the mean over the two classes of the mean of -log p(class), `decisions` being log-odds `(n,)`."""
    losses = np.logaddexp(0, np.where(anomalies, -decisions, decisions))
    return float((losses[anomalies].mean() + losses[~anomalies].mean()) / 2)


class _Scaler(StandardScaler):  # type: ignore[misc]
    """Standardises features; one that hardly varies says nothing, and becomes 0."""

    def fit(self, features: Float64Array, anomalies: object = None) -> _Scaler:
        super().fit(features)
        deviation = np.sqrt(self.var_)
        self.scale_ = np.where(deviation > DEVIATION_FLOOR, deviation, np.inf)
        return self


def _model(inverse_penalty: float, iterations_max: int) -> Pipeline:
    regression = LogisticRegression(C=inverse_penalty, class_weight="balanced", max_iter=iterations_max)
    return make_pipeline(_Scaler(), regression)
