"""Drift: whether a product's pictures still score like those its champion was calibrated on, since when, and why.

The tests are in `models.drift`. Here is what they are made on: the latest pictures since the champion became one,
without those that people confirmed as anomalies, and the pictures at the beginning, whose look the light is told by.
`assess` is pure; `DriftWatch` reads, writes a row where the state changed, and says so in the log.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from models.appearance import FIGURES
from models.drift import IMAGES_MIN, Comparison, Moved, cause_of, change_point, compare, look_moved
from models.errors import ModelCorrupt, TooFewImages
from models.registry import ModelVersion, read_manifest
from service.decide import ANOMALY, NORMAL
from service.errors import ConfigurationError
from service.logs import fields
from service.score import MODELS
from service.settings import DEFAULT_PRODUCT, Settings
from service.storage import drift as rows
from service.storage.drift import DriftRow, Reign, Seen
from service.storage.engine import is_locked
from service.storage.thresholds import chosen
from service.thresholds import threshold_of

log = logging.getLogger(__name__)

STEADY = "steady"
DRIFTING = "drifting"
# Windows that are looked back over; and once drift is found, for the picture with which it began: a fast line may have
# brought more than a window since the last look. Rows beyond the pictures, as some may be another version's.
LOOK_BACK_WINDOWS = 2
FIND_WINDOWS = 10
ROWS_PER_PICTURE = 1.5
ROWS_MAX = 30_000
# A cause that was said is taken back for another one only after so many windows' worth of new pictures.
NEW_CAUSE_WINDOWS = 0.25

Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Subject:
    """A product and what its pictures are compared with.

    `reference` holds scores, from the calibration or, for a product that another's champion judges, from its own first
    pictures; `look` that of the pictures which the version was calibrated on, `(n, 3)`, where it is known.
    """

    product: str
    version: str
    window: int
    threshold: float | None
    reference: Float64Array
    of_calibration: bool
    look: Float64Array


def assess(
    subject: Subject, first: Sequence[Seen], recent: Sequence[Seen], before: DriftRow | None, at: datetime
) -> DriftRow | None:
    """Return the row of a change of state, or None where the state is as `before`, or nothing can be said yet.

    `first` are the pictures since the champion became one, `recent` the latest of them; both oldest first, scored by
    the version of `subject`, and without gaps.
    """
    known = before if before is not None and before.version == subject.version else None
    window = recent[-subject.window :]
    normals = [picture for picture in window if picture.label != ANOMALY]
    if len(window) < IMAGES_MIN:
        return None
    already = known is not None and known.state == DRIFTING
    of_all = compare(subject.reference, _scores(window), subject.threshold)
    of_normals = compare(subject.reference, _scores(normals), subject.threshold) if len(normals) >= IMAGES_MIN else None
    normals_drift = of_normals is not None and of_normals.drifts(already=already)
    # What people confirmed counts as defects: by their number, and not as normals that score otherwise.
    confirmed = of_all.exceeds(already=already)
    figures = _figures(subject, of_normals or of_all, len(window) - len(normals), window[-1])
    if not normals_drift and not confirmed:
        return None if known is not None and not already else _steady(subject, figures, at)
    began_at = _began(subject, known, recent, only_normals=normals_drift)
    after = [picture for picture in recent if _order(picture) >= began_at]
    look = look_moved(_look_before(subject, first, began_at), _look(after))
    cause = _cause(subject, after, look) if normals_drift else "defects"
    found = DriftRow(
        subject.product,
        subject.version,
        DRIFTING,
        cause,
        known.first_image_id if already and known is not None else began_at[1],
        at,
        figures | {"images_since": len(after), "look": _told(look)},
    )
    if known is None or not already:
        return found
    return found if _another_cause(known, cause, recent, subject.window) else None


class DriftWatch:
    """Checks products of one root. Used by one thread at a time, beside the loop."""

    def __init__(self, root: Path, settings: Settings, reading: Engine, writing: Engine) -> None:
        self._root = root
        self._settings = settings
        self._reading = reading
        self._writing = writing
        self._versions: dict[tuple[str, str], ModelVersion] = {}
        self._said: set[str] = set()

    def check(self, products: Collection[str], now: datetime | None = None) -> list[DriftRow]:
        """Look at `products`, and write and return what changed of their state at `now`.

        A product whose champion's figures cannot be read is passed over, which is said once; so is one that is
        locked, which is looked at with its next pictures.
        """
        at = now or datetime.now(UTC)
        changed = []
        for product in products:
            try:
                row = self._look_at(product, at)
                if row is not None and self._write(row):
                    changed.append(row)
            except OperationalError as error:
                if not is_locked(error):
                    raise
                continue
            except ModelCorrupt as error:
                self._say_once(product, error)
        return changed

    def _look_at(self, product: str, at: datetime) -> DriftRow | None:
        with self._reading.connect() as connection:
            reigns = rows.reigns(connection)
            reign = reigns.get(product) or reigns.get(DEFAULT_PRODUCT)
            if reign is None:
                return None
            before = rows.last(connection).get(product)
            rate = chosen(connection).get(product)
            size = self._settings.drift_window
            first = rows.oldest(connection, product, reign.since, size)
            version = self._version(reign)
            if version.product != product and len(first) < size:
                # Another's calibration says nothing of this product's normals: its own first pictures are to.
                return None
            first_judged = _of(first, version.version)
            subject = self._subject(product, version, first_judged, rate)
            if len(subject.reference) < IMAGES_MIN:
                return None

            def assess_last(windows: int) -> DriftRow | None:
                limit = min(int(windows * size * ROWS_PER_PICTURE), ROWS_MAX)
                recent = _of(rows.newest(connection, product, reign.since, limit), version.version)
                if not subject.of_calibration:
                    recent = [picture for picture in recent if _order(picture) > _order(first[-1])]
                return assess(subject, first_judged, recent[-windows * size :], before, at)

            row = assess_last(LOOK_BACK_WINDOWS)
            return assess_last(FIND_WINDOWS) if row is not None and row.state == DRIFTING else row

    def _subject(self, product: str, version: ModelVersion, first: Sequence[Seen], rate: float | None) -> Subject:
        own = version.product == product
        try:
            threshold = threshold_of(self._settings, product, version, chosen_rate=rate)
        except (TooFewImages, ConfigurationError):  # said where pictures are judged
            threshold = None
        calibration = version.calibration_scores.astype(np.float64)
        look = version.calibration_look if own else None
        return Subject(
            product,
            version.version,
            self._settings.drift_window,
            threshold,
            calibration if own else _scores([picture for picture in first if picture.label != ANOMALY]),
            own,
            np.empty((0, len(FIGURES))) if look is None else look.astype(np.float64),
        )

    def _version(self, reign: Reign) -> ModelVersion:
        row = reign.row
        version = self._versions.get((row.product, row.version))
        if version is None or version.sha256 != row.sha256:
            version = read_manifest(self._root / MODELS / row.product / row.version, row.sha256)
            self._versions = {key: known for key, known in self._versions.items() if key[0] != row.product}
            self._versions[row.product, row.version] = version
        return version

    def _write(self, row: DriftRow) -> bool:
        with self._writing.begin() as connection:
            known = rows.last(connection).get(row.product)
            # Another daemon of the same root may have seen the same pictures.
            if known is not None and (known.version, known.state, known.cause) == (row.version, row.state, row.cause):
                return False
            rows.add(connection, row)
        if row.state == DRIFTING:
            log.warning(
                "drifting",
                extra=fields(
                    product=row.product,
                    cause=row.cause,
                    first=row.first_image_id,
                    version=row.version,
                    images=row.figures["images"],
                    beyond=row.figures["beyond"],
                    distance=row.figures["distance"],
                ),
            )
        elif known is not None and known.state == DRIFTING:
            log.info("steady", extra=fields(product=row.product, version=row.version))
        return True

    def _say_once(self, product: str, error: ModelCorrupt) -> None:
        if product not in self._said:
            self._said.add(product)
            log.error("drift is not watched", extra=fields(product=product, reason=error))


def _steady(subject: Subject, figures: dict[str, Any], at: datetime) -> DriftRow:
    return DriftRow(subject.product, subject.version, STEADY, None, None, at, figures)


def _began(
    subject: Subject, known: DriftRow | None, recent: Sequence[Seen], *, only_normals: bool
) -> tuple[datetime, str]:
    """Return the place in time of the picture with which drift began: as was said, else the likeliest."""
    if known is not None and known.state == DRIFTING:
        for picture in recent:
            if picture.id == known.first_image_id:
                return _order(picture)
        return _order(recent[0])
    series = [picture for picture in recent if not only_normals or picture.label != ANOMALY]
    return _order(series[change_point(subject.reference, _scores(series), subject.threshold)])


def _cause(subject: Subject, after: Sequence[Seen], look: dict[str, Moved | None]) -> str:
    normals = [picture for picture in after if picture.label != ANOMALY]
    cause = cause_of(subject.reference, _scores(normals), subject.threshold, look)
    if cause == "defects" and subject.threshold is not None:
        beyond = [picture for picture in after if (picture.score or 0.0) > subject.threshold]
        labels = [picture.label for picture in beyond]
        # People looked, and found more of them good than bad.
        if labels.count(NORMAL) > labels.count(ANOMALY):
            return "unknown"
    return cause


def _another_cause(known: DriftRow, cause: str, recent: Sequence[Seen], window: int) -> bool:
    if cause in (known.cause, "unknown"):
        return False
    if known.cause == "unknown":
        return True
    ids = [picture.id for picture in recent]
    last = known.figures.get("last_image_id")
    return last not in ids or len(ids) - 1 - ids.index(last) >= NEW_CAUSE_WINDOWS * window


def _look_before(subject: Subject, first: Sequence[Seen], began_at: tuple[datetime, str]) -> Float64Array:
    """Return the look to compare with: of the champion's first pictures, or where they are few of its calibration's."""
    before = _look([picture for picture in first if _order(picture) < began_at and picture.label != ANOMALY])
    enough = np.isfinite(before).any(axis=1).sum() >= IMAGES_MIN
    return before if enough or not len(subject.look) else subject.look


def _figures(subject: Subject, comparison: Comparison, confirmed: int, last: Seen) -> dict[str, Any]:
    return {
        "images": comparison.images,
        "distance": comparison.distance,
        "distance_p_value": comparison.distance_p_value,
        "beyond": comparison.beyond,
        "beyond_p_value": comparison.beyond_p_value,
        "confirmed_anomalies": confirmed,
        "threshold": subject.threshold,
        "reference": "calibration" if subject.of_calibration else "first pictures",
        "reference_images": len(subject.reference),
        "last_image_id": last.id,
    }


def _told(look: dict[str, Moved | None]) -> dict[str, Any]:
    return {
        name: None if one is None else {"before": one.before, "after": one.after, "moved": one.moved}
        for name, one in look.items()
    }


def _of(pictures: Sequence[Seen], version: str) -> list[Seen]:
    return [picture for picture in pictures if picture.version == version and picture.score is not None]


def _scores(pictures: Sequence[Seen]) -> Float64Array:
    return np.asarray([picture.score for picture in pictures], dtype=np.float64)


def _look(pictures: Sequence[Seen]) -> Float64Array:
    """Return brightness, contrast and sharpness, float64 `(n, 3)`; NaN is not known."""
    values = [(picture.brightness, picture.contrast, picture.sharpness) for picture in pictures]
    return np.asarray(values, dtype=np.float64).reshape(-1, len(FIGURES))


def _order(picture: Seen) -> tuple[datetime, str]:
    return picture.received_at, picture.id
