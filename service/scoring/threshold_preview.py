"""Threshold preview: what another false-alarm rate would do to a product's latest images, and the choice of one.

Nothing is scored again: calibration and recorded scores tell. The daemon follows a choice within a second.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import numpy.typing as npt
from sqlalchemy import Connection

from models.calibration.thresholds import AtFalseAlarmRate, lowest_rate, threshold_at
from models.errors import ModelCorrupt, TooFewImages
from models.registry import ModelVersion, read_manifest
from service.errors import ConfigurationError, TamisError, UsageError
from service.names import safe_name
from service.root import INCOMING, MODELS
from service.scoring.active_versions import champion_row
from service.scoring.threshold_policy import policy_of, threshold_of
from service.settings import Settings
from service.storage import statistics, thresholds, versions

LAST = 1000


@dataclass(frozen=True, slots=True)
class ThresholdPreview:
    """What the false-alarm rate `rate` would do for a product: how many of its last `images` images change sides.

    `threshold` is None where the champion's calibration images are too few for the rate, `present_threshold` where none
    is in force. The images are those that `version`, the champion, scored: another's scores mean something else.
    """

    product: str
    version: str
    policy: str
    rate: float
    threshold: float | None
    present_rate: float | None
    present_threshold: float | None
    chosen: bool
    images: int
    to_normal: int | None
    to_anomaly: int | None
    lowest_rate: float


def would_change(scores: npt.ArrayLike, old: npt.ArrayLike, new: float) -> tuple[int, int]:
    """Return how many of `scores` `(n,)` become normal, and how many anomalies, by the threshold `new`. Pure.

    `old` is one threshold or one for each score; an image is an anomaly if its score is above its threshold.
    """
    values = np.asarray(scores, dtype=np.float64)
    was, will = values > np.asarray(old, dtype=np.float64), values > new
    return int(np.count_nonzero(was & ~will)), int(np.count_nonzero(~was & will))


def preview(
    root: Path, connection: Connection, settings: Settings, product: str, rate: float, last: int = LAST
) -> ThresholdPreview:
    """Return what `rate` would do for the latest images of `product`, `last` at most. Raises as `choose_rate`.

    Reads one of the champion's files and a bounded range of an index.
    """
    check_rate(rate)
    version = champion_of(root, connection, product)
    chosen = thresholds.chosen(connection).get(product)
    policy = policy_of(settings, product, version.trained_false_alarm_rate, chosen_rate=chosen)
    scores, were = statistics.latest_scores(connection, product, version.version, last)
    try:
        present = threshold_of(settings, product, version, chosen_rate=chosen)
    except (TooFewImages, ConfigurationError):
        present = None
    try:
        threshold = threshold_at(version.calibration_scores, rate)
    except TooFewImages:
        threshold = None
    # Without a threshold in force, compare with those by which the images were decided.
    old = were if present is None else present
    to_normal, to_anomaly = (None, None) if threshold is None else would_change(scores, old, threshold)
    present_rate = policy.false_alarm_rate if isinstance(policy, AtFalseAlarmRate) else None
    return ThresholdPreview(
        product=product,
        version=version.version,
        policy=policy.name,
        rate=rate,
        threshold=threshold,
        present_rate=present_rate,
        present_threshold=present,
        chosen=present_rate is not None and chosen is not None,
        images=len(scores),
        to_normal=to_normal,
        to_anomaly=to_anomaly,
        lowest_rate=lowest_rate(len(version.calibration_scores)),
    )


def choose_rate(
    root: Path,
    connection: Connection,
    settings: Settings,
    product: str,
    rate: float | None,
    *,
    by: str | None,
    at: datetime,
) -> None:
    """Choose `rate` for `product` from now on, or with None what the settings say. The caller owns the transaction.

    Raises UsageError for a rate outside (0, 1); TamisError where the product is not known or has no champion, where its
    threshold is not set by a rate, or where its champion's calibration images are too few for the rate;
    ConfigurationError where the champion's file is damaged. A choice is taken back whatever the champion is.
    """
    if rate is None:
        _require_known(root, connection, product)
        thresholds.choose(connection, product, None, by, at)
        return
    check_rate(rate)
    version = champion_of(root, connection, product)
    policy = settings.of(product, "threshold_policy")
    if policy != "false_alarm_rate":
        raise TamisError(
            f"product {product}: expected the threshold_policy 'false_alarm_rate' for a rate to be chosen; found "
            f"{policy!r} in the settings, which sets the threshold by other means"
        )
    try:
        threshold_at(version.calibration_scores, rate)
    except TooFewImages as error:
        raise TamisError(f"product {product}, version {version.version}: {error}") from None
    thresholds.choose(connection, product, rate, by, at)


def check_rate(rate: float) -> None:
    """Raise UsageError for a false-alarm rate outside (0, 1)."""
    if not 0 < rate < 1:
        raise UsageError(f"false-alarm rate: expected more than 0 and less than 1; found {rate:g}")


def champion_of(root: Path, connection: Connection, product: str) -> ModelVersion:
    """Return the version that scores `product`; only its manifest is read.

    Raises TamisError for an unknown product or one without champion, ConfigurationError for a file that has changed.
    """
    _require_known(root, connection, product)
    row = champion_row(connection, product)
    try:
        return read_manifest(root / MODELS / row.product / row.version, row.sha256)
    except ModelCorrupt as error:
        raise ConfigurationError(f"product {row.product}, version {row.version}: {error}") from None


def _require_known(root: Path, connection: Connection, product: str) -> None:
    # A misspelt product would be scored by `default`'s champion and get a choice that nobody notices.
    known = versions.champions(connection)
    has_folder = product != "" and safe_name(product) == product and (root / INCOMING / product).is_dir()
    was_scored = statistics.has_images(connection, product)
    if product in known or has_folder or was_scored or product in thresholds.latest(connection):
        return
    names = ", ".join(sorted(known)) or "none"
    raise TamisError(
        f"product {product}: expected one with a champion, with images, or with a folder in incoming/; found "
        f"none of these. Products with a champion: {names}"
    )
