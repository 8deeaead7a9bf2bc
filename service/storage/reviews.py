"""Statements on reviews: what people said of images, by which way and when.

Rows are only ever added; the latest of an image holds.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, Connection, ScalarSelect, func, insert, select

from service.storage.database.chunks import chunks
from service.storage.tables import review_queue_view
from service.storage.tables import reviews_table as _reviews

_insert = insert(_reviews)


@dataclass(frozen=True, slots=True)
class NewReview:
    """What a person says of an image; `label` None takes back what was said before."""

    image_id: str
    label: str | None
    labelled_by: str | None
    labelled_at: datetime
    source: str
    note: str | None


@dataclass(frozen=True, slots=True)
class ReviewRow(NewReview):
    id: int


_rows = select(*(_reviews.c[name] for name in ReviewRow.__dataclass_fields__))


def last_label(image_id: ColumnElement[str]) -> ScalarSelect[str | None]:
    """Return the label that a person gave the image `image_id` last, to be selected beside it."""
    statement = select(_reviews.c.label).where(_reviews.c.image_id == image_id)
    return statement.order_by(_reviews.c.id.desc()).limit(1).scalar_subquery()


def add(connection: Connection, new: Sequence[NewReview]) -> None:
    if new:
        connection.execute(_insert, [asdict(one) for one in new])


def history(connection: Connection, image_id: str) -> list[ReviewRow]:
    """Return all that was said of an image, the latest, which holds, first."""
    statement = _rows.where(_reviews.c.image_id == image_id).order_by(_reviews.c.id.desc())
    return [ReviewRow(*row) for row in connection.execute(statement)]


def latest(connection: Connection, image_ids: Iterable[str]) -> dict[str, ReviewRow]:
    """Return the review that holds of each of `image_ids` that has one; its label may be None."""
    found: dict[str, ReviewRow] = {}
    for chunk in chunks(list(image_ids)):
        newest = select(func.max(_reviews.c.id)).where(_reviews.c.image_id.in_(chunk)).group_by(_reviews.c.image_id)
        rows = connection.execute(_rows.where(_reviews.c.id.in_(newest)))
        found.update((row.image_id, ReviewRow(*row)) for row in rows)
    return found


def next_in_queue(connection: Connection, product: str | None, passed_over: Collection[str]) -> dict[str, Any] | None:
    """Return the row of the view `review_queue` that a person should look at next, but for ids in `passed_over`."""
    statement = select(review_queue_view).limit(len(passed_over) + 1)
    if product is not None:
        statement = statement.where(review_queue_view.c.product == product)
    rows = connection.execute(statement).mappings()
    return next((dict(row) for row in rows if row["id"] not in passed_over), None)


def newest_id(connection: Connection) -> int | None:
    statement = select(_reviews.c.id).order_by(_reviews.c.id.desc()).limit(1)
    return connection.execute(statement).scalar_one_or_none()


def images_after(connection: Connection, review_id: int, limit: int = 1000) -> list[tuple[int, str]]:
    """Return the reviews after `review_id`, the oldest first, each with the id of its image; at most `limit`."""
    statement = select(_reviews.c.id, _reviews.c.image_id).where(_reviews.c.id > review_id)
    return [(id, image_id) for id, image_id in connection.execute(statement.order_by(_reviews.c.id).limit(limit))]
