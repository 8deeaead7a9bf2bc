"""Statements on retrainings: the runs there were, what was labelled since, and what a training may learn from.

A run is `waiting`, `running`, then `done`, `failed` or `stopped`; what came of one that is done says its outcome.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

from sqlalchemy import Connection, Select, func, insert, select, update

from service.storage import drift
from service.storage.tables import drift_table as _drift
from service.storage.tables import images_table as _images
from service.storage.tables import retrainings_table as _runs
from service.storage.tables import reviews_table as _reviews
from service.storage.tables import training_images_table as _training_images


@dataclass(frozen=True)
class RetrainingRow:
    """A row of `retraining_runs`; None is unknown or not yet."""

    id: int
    product: str
    trigger: str
    state: str
    requested_at: datetime
    planned_at: datetime | None
    started_at: datetime | None
    ended_at: datetime | None
    review_id: int | None
    champion: str | None
    challenger: str | None
    outcome: str | None
    reason: str | None
    gate: str | None
    report: str | None
    total_wh: float | None
    saved_g: float | None


@dataclass(frozen=True)
class NewLabels:
    """What people said since a run: how many labels, the time of the first of them, the id of the last review."""

    count: int
    first_at: datetime | None
    review_id: int


@dataclass(frozen=True)
class KnownImage:
    """What people last said of an image of the training set; `label` None was taken back, `path` as it is stored."""

    sha256: str
    label: str | None
    role: str | None
    path: str


_rows = select(*(_runs.c[name] for name in RetrainingRow.__dataclass_fields__))


def request(
    connection: Connection,
    product: str,
    trigger: str,
    *,
    state: str,
    requested_at: datetime,
    planned_at: datetime | None = None,
    started_at: datetime | None = None,
) -> RetrainingRow:
    """Insert a run, `waiting` or `running`, and return it; one that waits for `product` already is taken up instead."""
    waiting = waiting_for(connection, product)
    if waiting is not None:
        if state == "running":
            change(connection, waiting.id, state=state, started_at=started_at)
        return get(connection, waiting.id)
    times = {"requested_at": requested_at, "planned_at": planned_at, "started_at": started_at}
    result = connection.execute(insert(_runs).values(product=product, trigger=trigger, state=state, **times))
    return get(connection, int(cast(Any, result).inserted_primary_key[0]))


def change(connection: Connection, id: int, **values: Any) -> None:
    connection.execute(update(_runs).where(_runs.c.id == id).values(values))


def get(connection: Connection, id: int) -> RetrainingRow:
    return RetrainingRow(*connection.execute(_rows.where(_runs.c.id == id)).one())


def runs(connection: Connection, product: str | None = None, limit: int | None = None) -> list[RetrainingRow]:
    """Return the runs, of `product` if given, newest first."""
    statement = _rows.order_by(_runs.c.id.desc()).limit(limit)
    if product is not None:
        statement = statement.where(_runs.c.product == product)
    return [RetrainingRow(*row) for row in connection.execute(statement)]


def in_state(connection: Connection, state: str) -> list[RetrainingRow]:
    """Return the runs in `state`, oldest first."""
    return [RetrainingRow(*row) for row in connection.execute(_rows.where(_runs.c.state == state).order_by(_runs.c.id))]


def waiting_for(connection: Connection, product: str) -> RetrainingRow | None:
    return _first(connection, _rows.where(_runs.c.product == product, _runs.c.state == "waiting"))


def last_learned(connection: Connection, product: str) -> RetrainingRow | None:
    """Return the last run of `product` that was done, or None: what was labelled until it began, it knew."""
    of_product = _rows.where(_runs.c.product == product, _runs.c.state == "done")
    return _first(connection, of_product.order_by(_runs.c.id.desc()))


def new_labels(connection: Connection, product: str, since: RetrainingRow | None) -> NewLabels:
    """Return what people said of images of `product`, by review or by import, since the run `since` looked."""
    known = since.review_id or 0 if since is not None else 0
    reviews = connection.execute(
        select(func.count(), func.min(_reviews.c.labelled_at), func.max(_reviews.c.id))
        .join(_images, _images.c.id == _reviews.c.image_id)
        .where(_reviews.c.id > known, _images.c.product == product)
    ).one()
    imported = select(func.count(), func.min(_training_images.c.added_at)).where(
        _training_images.c.product == product, _training_images.c.image_id.is_(None)
    )
    if since is not None:
        imported = imported.where(_training_images.c.added_at > (since.started_at or since.requested_at))
    brought = connection.execute(imported).one()
    times = [at for at in (reviews[1], brought[1]) if at is not None]
    return NewLabels(reviews[0] + brought[0], min(times, default=None), max(known, reviews[2] or 0))


def known_images(connection: Connection, product: str) -> Mapping[str, KnownImage]:
    """Return by sha256 every image of `product` that a person ever vouched for, also where that was taken back."""
    columns = (_training_images.c[name] for name in KnownImage.__dataclass_fields__)
    statement = select(*columns).where(_training_images.c.product == product).order_by(_training_images.c.id)
    return {row.sha256: KnownImage(*row) for row in connection.execute(statement)}


def newest(connection: Connection) -> tuple[int, ...]:
    """Return the ids of the last review, training image, drift event and run: while they stay, nothing is new."""
    newest_ids = [select(func.max(table.c.id)) for table in (_reviews, _training_images, _drift, _runs)]
    return tuple(connection.execute(statement).scalar_one() or 0 for statement in newest_ids)


def drifting_since(connection: Connection, product: str) -> datetime | None:
    """Return since when `product` drifts by the scores of its present champion; None where it does not."""
    row = drift.latest(connection).get(product)
    return row.at if row is not None and row.state == "drifting" else None


def _first(connection: Connection, statement: Select[Any]) -> RetrainingRow | None:
    row = connection.execute(statement.limit(1)).one_or_none()
    return None if row is None else RetrainingRow(*row)
