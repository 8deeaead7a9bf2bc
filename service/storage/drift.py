"""Statements on drift: the changes of a product's state, and the images that a state is told by.

Rows of `drift_events` are only ever added. Images are read off one end of an index, a bounded number of them.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, bindparam, func, insert, select

from service.root import DEFAULT_PRODUCT
from service.storage import versions
from service.storage.reviews import last_label
from service.storage.tables import drift_table as _events
from service.storage.tables import images_table as _images
from service.storage.tables import promotions_table as _promotions
from service.storage.versions import VersionRow


@dataclass(frozen=True, slots=True)
class DriftRow:
    """A change of a product's drift state, by the scores of `version`; see docs/drift.md for `figures`.

    `state` is `steady` or `drifting`; `cause` is `light`, `defects` or `unknown`, None when steady.
    """

    product: str
    version: str
    state: str
    cause: str | None
    first_image_id: str | None
    at: datetime
    figures: dict[str, Any]


@dataclass(frozen=True, slots=True)
class ScoredImage:
    """What drift needs to know of an image; `label` is what a person said last, None where nobody did."""

    id: str
    received_at: datetime
    version: str | None
    score: float | None
    brightness: float | None
    contrast: float | None
    sharpness: float | None
    label: str | None


@dataclass(frozen=True, slots=True)
class ChampionPeriod:
    row: VersionRow
    since: datetime


_insert = insert(_events)
_last = select(*(_events.c[name] for name in DriftRow.__dataclass_fields__)).where(
    _events.c.id.in_(select(func.max(_events.c.id)).group_by(_events.c.product))
)
_crowned = select(_promotions.c.product, _promotions.c.at).where(
    _promotions.c.id.in_(select(func.max(_promotions.c.id)).group_by(_promotions.c.product))
)
_SEEN = ("id", "received_at", "model_version", "score", "brightness", "contrast", "sharpness")
_seen: Select[Any] = select(*(_images.c[name] for name in _SEEN), last_label(_images.c.id).label("label")).where(
    _images.c.product == bindparam("of_product"),
    _images.c.received_at >= bindparam("since", type_=_images.c.received_at.type),
)
_times = select(_images.c.id, _images.c.received_at).where(_images.c.id.in_(bindparam("ids", expanding=True)))
_newest = _seen.order_by(_images.c.received_at.desc(), _images.c.id.desc()).limit(bindparam("rows"))
_oldest = _seen.order_by(_images.c.received_at, _images.c.id).limit(bindparam("rows"))


def add(connection: Connection, row: DriftRow) -> None:
    connection.execute(_insert, asdict(row) | {"figures": json.dumps(row.figures, allow_nan=False)})


def last(connection: Connection) -> dict[str, DriftRow]:
    """Return the last change of each product for which there is one, whichever version it was judged by."""
    rows = connection.execute(_last).mappings()
    return {row["product"]: DriftRow(**{**row, "figures": json.loads(row["figures"])}) for row in rows}


def latest(connection: Connection) -> dict[str, DriftRow]:
    """Return the drift state of each product whose present champion, or that of `default`, has shown one."""
    # A state is of one version's scores: a product that got a new champion has none until enough images came.
    of = {product: row.version for product, row in versions.champions(connection).items()}
    rows = last(connection).items()
    return {product: row for product, row in rows if of.get(product, of.get(DEFAULT_PRODUCT)) == row.version}


def reigns(connection: Connection) -> dict[str, ChampionPeriod]:
    crowned = {row.product: row.at for row in connection.execute(_crowned)}
    return {
        product: ChampionPeriod(row, crowned.get(product, row.created_at))
        for product, row in versions.champions(connection).items()
    }


def newest(connection: Connection, product: str, since: datetime, limit: int) -> list[ScoredImage]:
    """Return the `limit` latest images of `product` received from `since` on, oldest first."""
    asked = {"of_product": product, "since": since, "rows": limit}
    return [ScoredImage(*row) for row in connection.execute(_newest, asked)][::-1]


def oldest(connection: Connection, product: str, since: datetime, limit: int) -> list[ScoredImage]:
    """Return the first `limit` images of `product` received from `since` on, oldest first."""
    asked = {"of_product": product, "since": since, "rows": limit}
    return [ScoredImage(*row) for row in connection.execute(_oldest, asked)]


def received_at(connection: Connection, ids: Collection[str]) -> dict[str, datetime]:
    """Return when each of the images `ids` was received; an unknown one is left out."""
    return {row.id: row.received_at for row in connection.execute(_times, {"ids": list(ids)})}
