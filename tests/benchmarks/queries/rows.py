"""Makes a database of many realistic results, fast: seeded, so that two runs search the same rows."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.root import DATABASE_FILE
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.tables import time_text

PRODUCTS = ("default", "bracket", "housing", "lid", "macaroni")
PRODUCT_WEIGHTS = (5, 40, 30, 20, 5)
DAYS = 100
ANOMALY_SHARE = 0.01
QUARANTINED_SHARE = 0.001
BATCH = 8
IMAGE_COLUMNS = (
    "id",
    "product",
    "file_name",
    "path",
    "destination",
    "state",
    "verdict",
    "score",
    "threshold",
    "p_value",
    "model_version",
    "sha256",
    "width",
    "height",
    "mode",
    "bytes",
    "received_at",
    "decided_at",
    "placed_at",
    "latency_ms",
    "attempts",
    "duplicate_of",
    "error_code",
    "error",
    "energy_id",
    "uncertain",
    "uncertainty",
)
UNCERTAIN_SHARE = 0.03


def fill(root: Path, rows: int, now: datetime, seed: int = 1) -> None:
    """Make the database of `root` with `rows` results, evenly over the 100 days before `now`."""
    open_database(root, create=True).dispose()
    connection = sqlite3.connect(root / DATABASE_FILE)
    # Only while filling: a power cut here loses nothing that cannot be made again.
    connection.execute("PRAGMA synchronous = OFF")
    connection.execute("PRAGMA cache_size = -400000")
    with connection:
        connection.executemany(
            "INSERT INTO energy_rows VALUES"
            " (?, 'scoring', ?, 0.4, ?, 0.002, NULL, 0.0005, 0.0025, 0.9, 'estimated', 'FRA')",
            ((n + 1, _time(n * BATCH, rows, now), BATCH) for n in range(-(-rows // BATCH))),
        )
        marks = ", ".join("?" * len(IMAGE_COLUMNS))
        connection.executemany(
            f"INSERT INTO images ({', '.join(IMAGE_COLUMNS)}) VALUES ({marks})", _images(rows, now, random.Random(seed))
        )
        connection.executemany(
            "INSERT INTO reviews (image_id, label, labelled_by, labelled_at, source) VALUES (?, ?, 'ada', ?, 'page')",
            [
                (id, verdict, time_text(now))
                for (id, verdict) in connection.execute("SELECT id, verdict FROM images WHERE verdict = 'anomaly'")
            ],
        )
    connection.close()


def _images(rows: int, now: datetime, rng: random.Random) -> Iterator[tuple[object, ...]]:
    for n in range(rows):
        product = rng.choices(PRODUCTS, PRODUCT_WEIGHTS)[0]
        anomaly, quarantined = rng.random() < ANOMALY_SHARE, rng.random() < QUARANTINED_SHARE
        received = _time(n, rows, now)
        id = f"{n:026d}"
        digest = hashlib.sha256(id.encode()).hexdigest()
        folder = "quarantine" if quarantined else "anomaly" if anomaly else "normal"
        path = f"{folder}/{product}/{received[:10]}/camera1_{n:07d}.{id}.jpg"
        score = None if quarantined else rng.uniform(1.0, 2.0) if anomaly else rng.uniform(0.1, 1.0)
        # A band as wide as holds so many of the normal images.
        uncertainty = None if score is None else 1 / (1 + abs(score - 1.0) / (0.9 * UNCERTAIN_SHARE))
        yield (
            *(id, product, f"camera1_{n:07d}.jpg", path, path, "quarantined" if quarantined else "placed"),
            *(None if quarantined else "anomaly" if anomaly else "normal", score, 1.0, 0.5, "20260101T000000Z-abcdef"),
            *(digest, 1500, 1000, "RGB", 240_000, received, received, received, 180.0, 1, None),
            *(("truncated", "image file is truncated") if quarantined else (None, None)),
            *(n // BATCH + 1, None if uncertainty is None else int(uncertainty > 0.5), uncertainty),
        )


def _time(n: int, rows: int, now: datetime) -> str:
    return time_text(now.astimezone(UTC) - timedelta(days=DAYS) * ((rows - n) / rows))
