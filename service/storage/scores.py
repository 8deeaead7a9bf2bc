"""Statements on scores: what a product's latest images scored, for the threshold explorer and for drift.

They read one bounded stretch of an index from its end, so that the answer comes as soon with a million images.
"""

from __future__ import annotations

from sqlalchemy import Connection, bindparam, select

from service.storage.tables import images_table as _images

# Times the images asked for that are looked at for those of one version, before fewer are taken.
LOOK_BACK = 10

_one_of = select(_images.c.id).where(_images.c.product == bindparam("of_product")).limit(1)
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


def any_of(connection: Connection, product: str) -> bool:
    """Return whether there is an image of `product`."""
    return connection.execute(_one_of, {"of_product": product}).first() is not None


def latest(connection: Connection, product: str, version: str, limit: int) -> tuple[list[float], list[float]]:
    """Return what `version` scored for the latest images of `product`, and the thresholds they were judged by.

    Newest first, `limit` at most; images of other versions among them are passed over, up to a bound.
    """
    rows = connection.execute(
        _latest, {"of_product": product, "of_version": version, "rows": LOOK_BACK * limit, "most": limit}
    ).all()
    return [row.score for row in rows], [row.threshold for row in rows]
