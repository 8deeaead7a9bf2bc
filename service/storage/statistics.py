"""Statements that count images, list what the latest scored, and look up one; each is bounded by an index.

So an answer comes as soon with a million images. The caller chooses short spans of time.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any, get_args

from sqlalchemy import Connection, bindparam, select, text

from service.storage.tables import ImageState, time_text
from service.storage.tables import images_table as _images

# How many times the images asked for are looked at to find those of one version.
LOOK_BACK = 10

_newest = (
    select(_images.c.score, _images.c.threshold, _images.c.model_version, _images.c.received_at, _images.c.id)
    .where(_images.c.product == bindparam("of_product"))
    .order_by(_images.c.received_at.desc(), _images.c.id.desc())
    .limit(bindparam("rows"))
    .subquery("newest")
)
_latest = (
    select(_newest.c.score, _newest.c.threshold)
    .where(_newest.c.model_version == bindparam("of_version"), _newest.c.score.is_not(None))
    .order_by(_newest.c.received_at.desc(), _newest.c.id.desc())
    .limit(bindparam("most"))
)


def per_hour(
    connection: Connection, since: datetime, until: datetime, product: str | None = None
) -> dict[str, dict[str, int]]:
    """Return for each UTC hour `YYYY-MM-DDTHH` with images their numbers: `normal` and `anomaly`."""
    of_product = "product = :product AND " if product is not None else ""
    # Each verdict is read off an index alone.
    statement = text(
        "SELECT substr(received_at, 1, 13) AS hour, count(*) AS images FROM images"
        f" WHERE {of_product}verdict = :verdict AND received_at >= :since AND received_at < :until GROUP BY 1"
    )
    found: dict[str, dict[str, int]] = {}
    span = {"since": time_text(since), "until": time_text(until), "product": product}
    for verdict in ("normal", "anomaly"):
        for hour, images in connection.execute(statement, span | {"verdict": verdict}):
            found.setdefault(hour, {"normal": 0, "anomaly": 0})[verdict] = images
    return found


def per_state(connection: Connection, since: datetime) -> dict[str, int]:
    """Return the number of images per state, received from `since` on; a state without any is left out."""
    # A count for each: one grouped by state would read the whole index.
    statement = text("SELECT count(*) FROM images WHERE state = :state AND received_at >= :since")
    asked = [{"state": state, "since": time_text(since)} for state in get_args(ImageState)]
    counts = {one["state"]: connection.execute(statement, one).scalar_one() for one in asked}
    return {state: count for state, count in counts.items() if count}


def products(connection: Connection) -> list[str]:
    """Return the products that have images, in order, with a look into the index for each and no more."""
    statement = text(
        "WITH RECURSIVE known(product) AS (SELECT min(product) FROM images UNION ALL"
        " SELECT (SELECT min(product) FROM images WHERE product > known.product) FROM known"
        " WHERE known.product IS NOT NULL) SELECT product FROM known WHERE product IS NOT NULL"
    )
    return list(connection.execute(statement).scalars())


def newest(connection: Connection) -> str | None:
    """Return when the latest image was received, as text; None where there is none."""
    found: str | None = connection.execute(text("SELECT max(received_at) FROM images")).scalar_one()
    return found


# What the view `results` does not have.
FACTS = ("mode", "placed_at", "attempts", "uncertain", "uncertainty", "brightness", "contrast", "sharpness")


def facts(connection: Connection, id: str) -> dict[str, Any] | None:
    """Return the row of `results` of one image with what the table knows beside it; None for an unknown id."""
    of_view = connection.execute(text("SELECT * FROM results WHERE id = :id"), {"id": id}).mappings().one_or_none()
    if of_view is None:
        return None
    beside = connection.execute(text(f"SELECT {', '.join(FACTS)} FROM images WHERE id = :id"), {"id": id})
    return {**of_view, **beside.mappings().one()}


def neighbours(
    connection: Connection, product: str, received_at: str, id: str, each_way: int
) -> tuple[list[str], list[str]]:
    """Return the ids of the images of `product` just before and just after that one in time, both oldest first."""
    asked = {"product": product, "received_at": received_at, "id": id, "limit": each_way}
    found = []
    for sign, direction in (("<", "DESC"), (">", "ASC")):
        statement = text(
            f"SELECT id FROM images WHERE product = :product AND (received_at, id) {sign} (:received_at, :id)"
            f" ORDER BY received_at {direction}, id {direction} LIMIT :limit"
        )
        found.append(list(connection.execute(statement, asked).scalars()))
    return found[0][::-1], found[1]


def has_images(connection: Connection, product: str) -> bool:
    statement = text("SELECT 1 FROM images WHERE product = :product LIMIT 1")
    return connection.execute(statement, {"product": product}).first() is not None


def latest_scores(connection: Connection, product: str, version: str, limit: int) -> tuple[list[float], list[float]]:
    """Return what `version` scored for the latest images of `product`, and the thresholds that applied.

    Newest first, `limit` at most; images of other versions among them are passed over, up to a bound.
    """
    asked = {"of_product": product, "of_version": version, "rows": LOOK_BACK * limit, "most": limit}
    rows = connection.execute(_latest, asked).all()
    return [row.score for row in rows], [row.threshold for row in rows]
