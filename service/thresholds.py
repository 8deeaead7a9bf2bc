"""Thresholds: which policy holds for a product, and the judge that it makes of a model's calibration.

Brings the settings, what a person chose since, and a model together; the formulas are in `models.calibrate`. The
daemon, `tamis score` and `tamis evaluate` all ask here, so that one product has one threshold.
"""

from __future__ import annotations

from models.calibrate import AtBestF1, AtFalseAlarmRate, AtFixedScore, AtLeastCost, Policy
from models.errors import NoAnomalyScores
from models.registry import ModelVersion
from service.decide import Judge
from service.errors import ConfigurationError
from service.settings import Settings


def policy_of(
    settings: Settings,
    product: str,
    trained_rate: float,
    asked_rate: float | None = None,
    chosen_rate: float | None = None,
) -> Policy:
    """Return the policy for `product`: its own settings, else those of all.

    `trained_rate` is the false-alarm rate that its model was trained for, which holds where no setting says
    another. `chosen_rate`, see `service.storage.thresholds`, goes over the settings' rate, where their policy is one
    of a rate. `asked_rate`, of a command's option, goes over all of these, the policy too.
    """
    if asked_rate is not None:
        return AtFalseAlarmRate(asked_rate)
    name = settings.of(product, "threshold_policy")
    if name == "fixed":
        return AtFixedScore(settings.of(product, "threshold_fixed"))
    if name == "cost":
        return AtLeastCost(
            cost_of_miss=settings.of(product, "cost_of_miss"),
            cost_of_false_alarm=settings.of(product, "cost_of_false_alarm"),
            prevalence=settings.of(product, "anomaly_prevalence"),
        )
    if name == "f1":
        return AtBestF1(settings.of(product, "anomaly_prevalence"))
    return AtFalseAlarmRate(settings.false_alarm_rate_of(product, trained_rate) if chosen_rate is None else chosen_rate)


def judge_of(
    settings: Settings,
    product: str,
    version: ModelVersion,
    asked_rate: float | None = None,
    chosen_rate: float | None = None,
) -> Judge:
    """Return the judge of `product`'s pictures by `version`, by the policy of `policy_of`.

    Raises TooFewImages where the version's normal pictures do not do for the false-alarm rate, and
    ConfigurationError where the policy needs known anomalies and the version has none; no other policy is put in
    its place.
    """
    policy = policy_of(settings, product, version.trained_false_alarm_rate, asked_rate, chosen_rate)
    known = version.manifest["calibration"].get("anomaly_scores") or ()
    try:
        return Judge(version.calibration_scores, policy, known, uncertain_band=settings.of(product, "uncertain_band"))
    except NoAnomalyScores as error:
        raise ConfigurationError(
            f"product {product}, version {version.version}: {error} (calibration.anomaly_scores"
            " in its model.json). Train with `--anomalies DIR`, or set threshold_policy to 'false_alarm_rate'"
            " or 'fixed'"
        ) from None


def threshold_of(
    settings: Settings,
    product: str,
    version: ModelVersion,
    asked_rate: float | None = None,
    chosen_rate: float | None = None,
) -> float:
    """Return the score above which a picture of `product` is an anomaly by `version`. Raises as `judge_of`."""
    return judge_of(settings, product, version, asked_rate, chosen_rate).threshold
