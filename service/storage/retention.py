"""Statements on what retention may remove: files that lie in their folder and that no person spoke of.

An image on its way out is marked first, so that a crash between its file and its row leaves word of it; rows stay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import (
    ColumnElement,
    Connection,
    and_,
    bindparam,
    exists,
    func,
    literal,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.sql.expression import tuple_
from sqlalchemy.types import Text

from service.storage.reviews import last_label
from service.storage.tables import images_table as _images
from service.storage.tables import time_text
from service.storage.tables import training_images_table as _training

REMOVING = "removing_by_retention"
REMOVED = "removed_by_retention"


@dataclass(frozen=True, slots=True)
class KeptImage:
    """An image whose file is there; `path` is relative to ROOT."""

    id: str
    product: str
    verdict: str
    path: str
    sha256: str
    bytes: int
    received_at: datetime


_columns = [_images.c[name] for name in KeptImage.__dataclass_fields__]
# As text, not as a parameter: SQLite takes an index of some rows only where it can see that they are those.
_placed = _images.c.state == literal_column("'placed'")
# SQLite has two that serve; this one leaves out what lies elsewhere.
_OFF_INDEX = "INDEXED BY images_placed"
_label = last_label(_images.c.id)
# Two questions and not one with OR: each has its index.
_vouched: ColumnElement[bool] = or_(
    exists().where(_training.c.image_id == _images.c.id),
    exists().where(_training.c.product == _images.c.product, _training.c.sha256 == _images.c.sha256),
)
_spoken_of: ColumnElement[bool] = or_(_label.is_not(None), _vouched)
_removable = and_(_placed, _images.c.sha256.is_not(None), _images.c.bytes.is_not(None), ~_spoken_of)
_change = update(_images).where(_images.c.id == bindparam("of_id"))
_mark = _change.where(_placed).values(error_code=REMOVING)
_unmark = _change.where(_images.c.error_code == REMOVING).values(error_code=None, error=None)
_removed = _change.where(_placed).values(state="missing", error_code=REMOVED, error=bindparam("why"))


def removable(
    connection: Connection, verdict: str, limit: int, after: tuple[datetime, str] | None = None
) -> list[KeptImage]:
    """Return images of `verdict` whose files may be removed, oldest first: placed, of which no person spoke.

    `after` is the (received_at, id) of the last one of the page before.
    """
    statement = select(*_columns).where(_images.c.verdict == verdict, _removable)
    statement = statement.with_hint(_images, _OFF_INDEX, "sqlite")
    if after is not None:
        last = tuple_(literal(time_text(after[0]), Text), literal(after[1], Text))
        statement = statement.where(tuple_(_images.c.received_at, _images.c.id) > last)
    statement = statement.order_by(_images.c.received_at, _images.c.id).limit(limit)
    return [KeptImage(*row) for row in connection.execute(statement)]


def total_bytes(connection: Connection, verdict: str) -> int:
    """Return the bytes of all files of `verdict` that are there, with a label or without."""
    statement = select(func.coalesce(func.sum(_images.c.bytes), 0)).where(_images.c.verdict == verdict, _placed)
    return int(connection.execute(statement).scalar_one())


def marked(connection: Connection, limit: int) -> list[tuple[KeptImage, bool]]:
    """Return images that an earlier run marked and did not finish, each with whether its row still says `placed`."""
    # The code as text, as above.
    condition = _images.c.error_code == literal(REMOVING, literal_execute=True)
    statement = select(_images.c.state, *_columns).where(condition).order_by(_images.c.id).limit(limit)
    return [(KeptImage(*row[1:]), row.state == "placed") for row in connection.execute(statement)]


def still_removable(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Return the path by id of those of `ids` that may be removed as things stand now."""
    statement = select(_images.c.id, _images.c.path).where(_images.c.id.in_(list(ids)), _removable)
    return {row.id: row.path for row in connection.execute(statement)}


def mark(connection: Connection, ids: Sequence[str]) -> None:
    """Say that the files of `ids` are about to be removed."""
    if ids:
        connection.execute(_mark, [{"of_id": id} for id in ids])


def unmark(connection: Connection, ids: Sequence[str]) -> None:
    """Say that the files of `ids` stay after all."""
    if ids:
        connection.execute(_unmark, [{"of_id": id} for id in ids])


def removed(connection: Connection, reasons: dict[str, str]) -> None:
    """Say that files are gone: `reasons` is a sentence by id. The rows stay, with the path where each lay."""
    if reasons:
        connection.execute(_removed, [{"of_id": id, "why": why} for id, why in reasons.items()])


def received_bytes(connection: Connection, since: datetime) -> tuple[int, datetime | None]:
    """Return the bytes of the images received from `since` on, and when the first of them was received."""
    columns = func.coalesce(func.sum(_images.c.bytes), 0), func.min(_images.c.received_at)
    total, first = connection.execute(select(*columns).where(_images.c.received_at >= since)).one()
    return int(total), first
