"""Drift monitor: checks the latest images of products, and records and logs each change of a product's drift state."""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from sqlalchemy import Engine
from sqlalchemy.exc import OperationalError

from models.appearance import FIGURES
from models.drift.drift import IMAGES_MIN
from models.errors import ModelCorrupt, TooFewImages
from models.registry import ModelVersion, read_manifest
from service.drift.assess import DRIFTING, DriftSubject, assess, order_of, scores_of
from service.errors import ConfigurationError
from service.logs import fields
from service.root import ANOMALY, DEFAULT_PRODUCT, MODELS
from service.scoring.threshold_policy import threshold_of
from service.settings import Settings
from service.storage import drift as rows
from service.storage.database.open import trouble
from service.storage.drift import ChampionPeriod, DriftRow, ScoredImage
from service.storage.thresholds import chosen

log = logging.getLogger(__name__)

# Windows to read; and, once drift is found, to find the image with which it began: a fast line may have brought more
# than a window since the last check. More rows than images, as some may be another version's.
LOOK_BACK_WINDOWS = 2
FIND_WINDOWS = 10
ROWS_PER_IMAGE = 1.5
ROWS_MAX = 30_000


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
        """Check `products`; record and return the changes of their states at `now`.

        What cannot be read is skipped and logged once; where the database is locked, it waits for the next images.
        """
        at = now or datetime.now(UTC)
        changed = []
        for product in products:
            try:
                row = self._assess(product, at)
                if row is not None and self._write(row):
                    changed.append(row)
            except OperationalError as error:
                if trouble(error) is None:
                    raise
            except ModelCorrupt as error:
                if product not in self._said:
                    self._said.add(product)
                    log.error("drift is not watched", extra=fields(product=product, reason=error))
        return changed

    def _assess(self, product: str, at: datetime) -> DriftRow | None:
        with self._reading.connect() as connection:
            periods = rows.reigns(connection)
            period = periods.get(product) or periods.get(DEFAULT_PRODUCT)
            if period is None:
                return None
            before = rows.last(connection).get(product)
            rate = chosen(connection).get(product)
            size = self._settings.drift_window
            first = rows.oldest(connection, product, period.since, size)
            version = self._version(period)
            if version.product != product and len(first) < size:
                # Another product's calibration says nothing about this one's normals; its own first images will.
                return None
            first_scored = _of(first, version.version)
            subject = self._subject(product, version, first_scored, rate)
            if len(subject.reference) < IMAGES_MIN:
                return None

            def assess_last(windows: int) -> DriftRow | None:
                limit = min(int(windows * size * ROWS_PER_IMAGE), ROWS_MAX)
                recent = _of(rows.newest(connection, product, period.since, limit), version.version)
                if not subject.of_calibration:
                    recent = [image for image in recent if order_of(image) > order_of(first[-1])]
                return assess(subject, first_scored, recent[-windows * size :], before, at)

            row = assess_last(LOOK_BACK_WINDOWS)
            return assess_last(FIND_WINDOWS) if row is not None and row.state == DRIFTING else row

    def _subject(
        self, product: str, version: ModelVersion, first: Sequence[ScoredImage], rate: float | None
    ) -> DriftSubject:
        own = version.product == product
        try:
            threshold = threshold_of(self._settings, product, version, chosen_rate=rate)
        except (TooFewImages, ConfigurationError):  # reported where images are scored
            threshold = None
        calibration = version.calibration_scores.astype(np.float64)
        image_statistics = version.calibration_look if own else None
        return DriftSubject(
            product,
            version.version,
            self._settings.drift_window,
            threshold,
            calibration if own else scores_of([image for image in first if image.label != ANOMALY]),
            own,
            np.empty((0, len(FIGURES))) if image_statistics is None else image_statistics.astype(np.float64),
        )

    def _version(self, period: ChampionPeriod) -> ModelVersion:
        row = period.row
        version = self._versions.get((row.product, row.version))
        if version is None or version.sha256 != row.sha256:
            version = read_manifest(self._root / MODELS / row.product / row.version, row.sha256)
            self._versions = {key: known for key, known in self._versions.items() if key[0] != row.product}
            self._versions[row.product, row.version] = version
        return version

    def _write(self, row: DriftRow) -> bool:
        with self._writing.begin() as connection:
            known = rows.last(connection).get(row.product)
            # Another daemon of the same root may have seen the same images.
            if known is not None and (known.version, known.state, known.cause) == (row.version, row.state, row.cause):
                return False
            rows.add(connection, row)
        if row.state == DRIFTING:
            about = {"product": row.product, "cause": row.cause, "first": row.first_image_id, "version": row.version}
            figures = {name: row.figures[name] for name in ("images", "beyond", "distance")}
            log.warning("drifting", extra=fields(**about, **figures))
        elif known is not None and known.state == DRIFTING:
            log.info("steady", extra=fields(product=row.product, version=row.version))
        return True


def _of(images: Sequence[ScoredImage], version: str) -> list[ScoredImage]:
    return [image for image in images if image.version == version and image.score is not None]
