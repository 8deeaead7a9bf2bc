"""Statements on training images: what a person vouched for, once per product and bytes.

The role is given when an image is added and never changes; only its label and, with it, its path do.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta

from sqlalchemy import Connection, bindparam, select, update

from service.storage.database.chunks import chunks
from service.storage.database.insert_new import insert_new
from service.storage.tables import training_images_table as _training_images


@dataclass(frozen=True, slots=True)
class NewTrainingImage:
    """An image to be added; `path` is where its file should be, relative to ROOT, `image_id` None of an import."""

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


@dataclass(frozen=True, slots=True)
class TrainingImageRow(NewTrainingImage):
    """An image of the training set; `label` None once it was taken back, `role` None where it is used for nothing."""

    id: int


_rows = select(*(_training_images.c[name] for name in TrainingImageRow.__dataclass_fields__))
_insert = insert_new(_training_images)
_of_id = update(_training_images).where(_training_images.c.id == bindparam("of_id"))
_set_label = _of_id.values(label=bindparam("to_label"), path=bindparam("to_path"))
# Made once: asked for each image that is labelled.
_of_hash = _rows.where(
    _training_images.c.product == bindparam("of_product"), _training_images.c.sha256 == bindparam("of_sha256")
)
_near = select(_training_images.c.role).where(
    _training_images.c.product == bindparam("of_product"),
    _training_images.c.taken_at >= bindparam("since", type_=_training_images.c.taken_at.type),
    _training_images.c.taken_at <= bindparam("until", type_=_training_images.c.taken_at.type),
)


def vouched(connection: Connection, product: str) -> list[TrainingImageRow]:
    """Return the images of `product` that a person vouches for, in the order in which they were added."""
    statement = _rows.where(_training_images.c.product == product, _training_images.c.label.is_not(None))
    return [TrainingImageRow(*row) for row in connection.execute(statement.order_by(_training_images.c.id))]


def of_hash(connection: Connection, product: str, sha256: str) -> TrainingImageRow | None:
    """Return the image of `product` with these bytes, if it is or was vouched for."""
    row = connection.execute(_of_hash, {"of_product": product, "of_sha256": sha256}).one_or_none()
    return None if row is None else TrainingImageRow(*row)


def find(connection: Connection, ids: Collection[int]) -> list[TrainingImageRow]:
    """Return the images of `ids`; an unknown id is left out."""
    rows = (row for chunk in chunks(ids) for row in connection.execute(_rows.where(_training_images.c.id.in_(chunk))))
    return [TrainingImageRow(*row) for row in rows]


def page(connection: Connection, after: int, limit: int) -> list[TrainingImageRow]:
    """Return up to `limit` images whose id is greater than `after`, in order of their ids, taken back or not."""
    statement = _rows.where(_training_images.c.id > after).order_by(_training_images.c.id).limit(limit)
    return [TrainingImageRow(*row) for row in connection.execute(statement)]


def roles_near(connection: Connection, product: str, taken_at: datetime, gap_s: float) -> set[str | None]:
    """Return the roles of the images of `product` taken within `gap_s` of `taken_at`, taken back or not."""
    gap = timedelta(seconds=gap_s)
    around = {"of_product": product, "since": taken_at - gap, "until": taken_at + gap}
    return set(connection.execute(_near, around).scalars())


def add(connection: Connection, new: NewTrainingImage) -> None:
    """Add `new`; where its bytes are there already, nothing changes."""
    connection.execute(_insert, [asdict(new)])


def set_labels(connection: Connection, changed: Sequence[tuple[int, str | None, str]]) -> None:
    """Set label and path of each (id, label, path)."""
    if changed:
        rows = [{"of_id": id, "to_label": label, "to_path": path} for id, label, path in changed]
        connection.execute(_set_label, rows)
