"""Statements on training pictures: what a person vouched for, once per product and bytes.

The role is given when a picture is added and never changes; only its label and, with it, its path do. The caller owns
the transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import cast

from sqlalchemy import Connection, Table, bindparam, select, update
from sqlalchemy.orm import Session

from service.storage.database.insert_new import insert_new
from service.storage.images import CHUNK
from service.storage.tables import Image, Review, TrainingPicture

_pictures = cast(Table, TrainingPicture.__table__)
_images = cast(Table, Image.__table__)
_reviews = cast(Table, Review.__table__)


@dataclass(frozen=True, slots=True)
class NewTrainingPicture:
    """A picture to be added; `path` relative to ROOT, `image_id` None for an imported one."""

    product: str
    sha256: str
    label: str
    role: str | None
    path: str
    file_name: str
    image_id: str | None
    taken_at: datetime
    added_at: datetime
    added_by: str | None


@dataclass(frozen=True, slots=True)
class TrainingPictureRow:
    """A picture of the training set; `label` None once it was taken back, `role` None where it is used for nothing.

    `path` is where its file is or should be, relative to ROOT.
    """

    id: int
    product: str
    sha256: str
    label: str | None
    role: str | None
    path: str
    file_name: str
    image_id: str | None
    taken_at: datetime
    added_at: datetime
    added_by: str | None


_rows = select(*(_pictures.c[name] for name in TrainingPictureRow.__dataclass_fields__))
_insert = insert_new(_pictures)
_set_label = (
    update(_pictures)
    .where(_pictures.c.id == bindparam("of_id"))
    .values(label=bindparam("to_label"), path=bindparam("to_path"))
)
# Made once: asked for each picture that is labelled.
_of_hash = _rows.where(_pictures.c.product == bindparam("of_product"), _pictures.c.sha256 == bindparam("of_sha256"))
_near = select(_pictures.c.role).where(
    _pictures.c.product == bindparam("of_product"),
    _pictures.c.taken_at >= bindparam("since", type_=_pictures.c.taken_at.type),
    _pictures.c.taken_at <= bindparam("until", type_=_pictures.c.taken_at.type),
)


def vouched(connection: Connection | Session, product: str) -> list[TrainingPictureRow]:
    """Return the pictures of `product` that a person vouches for, in the order in which they were added."""
    statement = _rows.where(_pictures.c.product == product, _pictures.c.label.is_not(None)).order_by(_pictures.c.id)
    return [TrainingPictureRow(*row) for row in connection.execute(statement)]


def of_hash(connection: Connection | Session, product: str, sha256: str) -> TrainingPictureRow | None:
    """Return the picture of `product` with these bytes, if it is or was vouched for."""
    row = connection.execute(_of_hash, {"of_product": product, "of_sha256": sha256}).one_or_none()
    return None if row is None else TrainingPictureRow(*row)


def find(connection: Connection | Session, ids: Collection[int]) -> list[TrainingPictureRow]:
    """Return the pictures of `ids`; an unknown id is left out."""
    found: list[TrainingPictureRow] = []
    ordered = list(ids)
    for start in range(0, len(ordered), CHUNK):
        statement = _rows.where(_pictures.c.id.in_(ordered[start : start + CHUNK]))
        found += [TrainingPictureRow(*row) for row in connection.execute(statement)]
    return found


def page(connection: Connection | Session, after: int, limit: int) -> list[TrainingPictureRow]:
    """Return up to `limit` pictures whose id is greater than `after`, in order of their ids, taken back or not."""
    statement = _rows.where(_pictures.c.id > after).order_by(_pictures.c.id).limit(limit)
    return [TrainingPictureRow(*row) for row in connection.execute(statement)]


def roles_near(connection: Connection | Session, product: str, taken_at: datetime, gap_s: float) -> set[str | None]:
    """Return the roles of the pictures of `product` taken within `gap_s` of `taken_at`, taken back or not."""
    gap = timedelta(seconds=gap_s)
    around = {"of_product": product, "since": taken_at - gap, "until": taken_at + gap}
    return set(connection.execute(_near, around).scalars())


def add(connection: Connection | Session, new: NewTrainingPicture) -> None:
    """Add `new`; where its bytes are there already, nothing changes."""
    connection.execute(_insert, [asdict(new)])


def set_labels(connection: Connection | Session, changed: Sequence[tuple[int, str | None, str]]) -> None:
    """Set label and path of each (id, label, path)."""
    if changed:
        rows = [{"of_id": id, "to_label": label, "to_path": path} for id, label, path in changed]
        connection.execute(_set_label, rows)


def label_of_bytes(connection: Connection | Session, product: str, ids: Collection[str]) -> str | None:
    """Return the label that was said last of the pictures `ids`, of those whose label was not taken back since."""
    latest = (
        select(_reviews.c.id)
        .where(_reviews.c.image_id == _images.c.id)
        .order_by(_reviews.c.id.desc())
        .limit(1)
        .correlate(_images)
        .scalar_subquery()
    )
    statement = (
        select(_reviews.c.label)
        .join(_images, _reviews.c.id == latest)
        .where(_images.c.id.in_(list(ids)[:CHUNK]), _images.c.product == product, _reviews.c.label.is_not(None))
        .order_by(_reviews.c.id.desc())
        .limit(1)
    )
    return connection.execute(statement).scalar_one_or_none()
