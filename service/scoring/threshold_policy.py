"""Threshold policy: which policy holds for a product, and the decider that it makes of a model's calibration.

Everyone asks here, so that one product has one threshold. The formulas are in `models.calibration.thresholds`.
"""

from __future__ import annotations

from sqlalchemy import Connection

from models.calibration.thresholds import AtBestF1, AtFalseAlarmRate, AtFixedScore, AtLeastCost, Policy
from models.errors import NoAnomalyScores, TooFewImages
from models.registry import ModelVersion
from service.errors import ConfigurationError
from service.root import DEFAULT_PRODUCT
from service.scoring.decide import ThresholdDecider
from service.settings import Settings
from service.storage import versions
from service.storage.thresholds import Choice, latest

Rate = float | None
"""A false-alarm rate, if there is one."""


def policy_of(
    settings: Settings, product: str, trained_rate: float, asked_rate: Rate = None, chosen_rate: Rate = None
) -> Policy:
    """Return the policy for `product`: its own settings, else those of all.

    `trained_rate` is the false-alarm rate that its model was trained for, which holds where the settings give none.
    `chosen_rate`, see `service.storage.thresholds`, overrides the settings' rate where their policy is by rate.
    `asked_rate`, of a command's option, overrides all of these, the policy too.
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


def decider_of(
    settings: Settings, product: str, version: ModelVersion, asked_rate: Rate = None, chosen_rate: Rate = None
) -> ThresholdDecider:
    """Return the decider of `product`'s images by `version`, by the policy of `policy_of`.

    Raises TooFewImages where the version's normal images are too few for the false-alarm rate, and ConfigurationError
    where the policy needs known anomalies and the version has none; no other policy takes its place.
    """
    policy = policy_of(settings, product, version.trained_false_alarm_rate, asked_rate, chosen_rate)
    known = version.manifest.calibration.anomaly_scores
    try:
        return ThresholdDecider(
            version.calibration_scores, policy, known, uncertain_band=settings.of(product, "uncertain_band")
        )
    except NoAnomalyScores as error:
        raise ConfigurationError(
            f"product {product}, version {version.version}: {error} (calibration.anomaly_scores"
            " in its model.json). Train with `--anomalies DIR`, or set threshold_policy to 'false_alarm_rate'"
            " or 'fixed'"
        ) from None


def threshold_of(
    settings: Settings, product: str, version: ModelVersion, asked_rate: Rate = None, chosen_rate: Rate = None
) -> float:
    """Return the score above which an image of `product` is an anomaly by `version`. Raises as `decider_of`."""
    return decider_of(settings, product, version, asked_rate, chosen_rate).threshold


def reason_not_to_promote(connection: Connection, settings: Settings, version: ModelVersion) -> str | None:
    """Return why `version` cannot be the champion of its product, or None where it can.

    It cannot where its calibration does not suffice for the false-alarm rate that a person chose or the settings ask
    for: the daemon could not use it, and another version than the champion would score the product. A version of
    `default` also scores the products without a champion of their own, each at its own rate.
    """
    choices = latest(connection)
    products = [version.product]
    if version.product == DEFAULT_PRODUCT:
        products += sorted({*choices, *settings.products} - {DEFAULT_PRODUCT, *versions.champions(connection)})
    reasons = (_reason_not_to_score(settings, product, version, choices.get(product)) for product in products)
    return next((reason for reason in reasons if reason is not None), None)


def _reason_not_to_score(settings: Settings, product: str, version: ModelVersion, choice: Choice | None) -> str | None:
    rate = choice.false_alarm_rate if choice is not None else None
    try:
        threshold_of(settings, product, version, chosen_rate=rate)
    except ConfigurationError as error:
        return str(error)
    except TooFewImages as error:
        if choice is None or rate is None:
            return f"product {product}, version {version.version}: {error}"
        by = f" that {choice.chosen_by} chose" if choice.chosen_by else " chosen"
        return (
            f"product {product}, version {version.version}: expected one that can keep the false-alarm rate of"
            f" {rate:g}{by} for {product}; found that it cannot: {error}. Choose another rate with `tamis models"
            f" threshold`, or train with more normal images"
        )
    return None
