"""Statements on images: record verdicts, finish deliveries, find and search.

`record` is the commit point of a micro-batch; all statements here may be repeated without harm.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, TypedDict, Unpack, cast

from sqlalchemy import (
    ColumnElement,
    Connection,
    FromClause,
    Text,
    bindparam,
    func,
    literal,
    or_,
    select,
    tuple_,
    update,
)

from service.errors import TamisError
from service.storage.database.chunks import chunks
from service.storage.database.insert_new import insert_new
from service.storage.tables import images_table as _images
from service.storage.tables import results_view, time_text

_marked = _images.alias("marked")


class Filters(TypedDict, total=False):
    """Which images; None is any. `since` is inclusive, `until` exclusive; `uncertain` are those near the threshold."""

    since: datetime | None
    until: datetime | None
    product: str | None
    verdict: str | None
    state: str | None
    uncertain: bool


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image as decided. `path` and `destination` are relative to ROOT, with '/'; None is unknown."""

    id: str
    product: str
    file_name: str
    path: str
    destination: str
    state: str
    verdict: str | None
    score: float | None
    threshold: float | None
    p_value: float | None
    model_version: str | None
    sha256: str | None
    width: int | None
    height: int | None
    mode: str | None
    bytes: int | None
    received_at: datetime
    decided_at: datetime
    attempts: int
    error_code: str | None
    error: str | None
    uncertain: bool | None = None
    uncertainty: float | None = None
    brightness: float | None = None
    contrast: float | None = None
    sharpness: float | None = None


@dataclass(frozen=True, slots=True)
class Lying:
    """An image whose file lies at `path`, relative to the root; `file_name` as dropped."""

    id: str
    product: str
    file_name: str
    path: str


@dataclass(frozen=True, slots=True)
class Finished:
    """An image that is placed, quarantined, missing or in conflict; `path` is where it lies now."""

    id: str
    state: str
    path: str
    placed_at: datetime
    latency_ms: float | None
    error_code: str | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Sent:
    """An image that belongs elsewhere from now on: `path` is where it is, `destination` where it should be."""

    id: str
    state: str
    path: str
    destination: str


@dataclass(frozen=True, slots=True)
class StoredImage:
    """What recovery, a delivery, a label and the page need to know of an image."""

    id: str
    state: str
    path: str
    destination: str
    sha256: str | None
    product: str
    file_name: str
    verdict: str | None
    received_at: datetime
    width: int | None
    duplicate_of: str | None
    error_code: str | None = None
    model_version: str | None = None


_insert = insert_new(_images)
_change = update(_images).where(_images.c.id == bindparam("of_id"))
# What a finish does not know keeps what was known before.
_finish = _change.values(
    state=bindparam("to_state"),
    path=bindparam("to_path"),
    placed_at=bindparam("at", type_=_images.c.placed_at.type),
    latency_ms=func.coalesce(bindparam("latency"), _images.c.latency_ms),
    error_code=func.coalesce(bindparam("code"), _images.c.error_code),
    error=func.coalesce(bindparam("text"), _images.c.error),
)
# A label may have sent the image elsewhere since its delivery began.
_finish_where_sent = _finish.where(_images.c.destination == bindparam("to_path"))
_set_latency = _change.values(latency_ms=func.coalesce(_images.c.latency_ms, bindparam("latency")))
_lying = select(_images.c.id, _images.c.path, _images.c.state).where(_images.c.id.in_(bindparam("ids", expanding=True)))
# Of the images with the same bytes, the earliest is the one that duplicates none. Made once, as the others here:
# SQLAlchemy takes longer to know a statement again than SQLite to answer it.
_first_of = select(_images.c.sha256, _images.c.id).where(
    _images.c.sha256.in_(bindparam("hashes", expanding=True)), _images.c.duplicate_of.is_(None)
)
_stored = select(*(_images.c[name] for name in StoredImage.__dataclass_fields__))


def record(connection: Connection, records: Sequence[ImageRecord], energy_id: int | None) -> None:
    """Insert `records`, sharing the energy of row `energy_id`; ids that are there already stay as they are.

    Sets `duplicate_of` to the earliest image with the same bytes, in the database or earlier in `records`.
    """
    if not records:
        return
    earliest = _earliest(connection, {r.sha256 for r in records if r.sha256 is not None})
    rows = []
    for one in records:
        first = earliest.setdefault(one.sha256, one.id) if one.sha256 is not None else one.id
        added = {"duplicate_of": first if first != one.id else None, "energy_id": energy_id}
        stored = {"file_name": _storable(one.file_name), "error": _storable(one.error)}
        rows.append(asdict(one) | stored | added)
    connection.execute(_insert, rows)


def finish(connection: Connection, finished: Sequence[Finished]) -> None:
    """Set state, path, time of placing and latency of each, and its error where one is given.

    Raises TamisError where an id has no row: a delivery is only ever of a recorded image.
    """
    if not finished:
        return
    rows = _finish_rows(finished)
    changed = cast(Any, connection.execute(_finish, rows)).rowcount
    if changed != len(rows):
        unknown = {one.id for one in finished} - find(connection, [one.id for one in finished]).keys()
        some = ", ".join(sorted(unknown)[:5])
        raise TamisError(f"finish: expected a row for each of {len(rows)} images; found none for {some}")


def finish_where_sent(connection: Connection, finished: Sequence[Finished]) -> bool:
    """As `finish`, for those whose destination still is `path`; return whether that were all of them."""
    if not finished:
        return True
    return bool(cast(Any, connection.execute(_finish_where_sent, _finish_rows(finished))).rowcount == len(finished))


def set_latencies(connection: Connection, finished: Sequence[Finished]) -> None:
    """Set the latency of each that has none yet."""
    if finished:
        connection.execute(_set_latency, [{"of_id": one.id, "latency": one.latency_ms} for one in finished])


def send(connection: Connection, sent: Sequence[Sent]) -> None:
    """Say where each image is, and where it belongs from now on."""
    if sent:
        rows = [{"of_id": one.id, "state": one.state, "path": one.path, "destination": one.destination} for one in sent]
        connection.execute(_change, rows)


def find(connection: Connection, ids: Collection[str]) -> dict[str, StoredImage]:
    """Return the images of `ids` by id; an unknown id is left out."""
    rows = (row for chunk in chunks(ids) for row in connection.execute(_stored.where(_images.c.id.in_(chunk))))
    return {row.id: StoredImage(*row) for row in rows}


def lying(connection: Connection, ids: Collection[str]) -> dict[str, str]:
    """Return the paths of the images of `ids` whose files have arrived there, by id, and "" for all others there are.

    Asked for each of a million files at a start: no more than that is read.
    """
    rows = (row for chunk in chunks(ids) for row in connection.execute(_lying, {"ids": chunk}))
    return {row.id: row.path if row.state in ("placed", "quarantined") else "" for row in rows}


def lying_since(connection: Connection, id: str) -> Iterator[Lying]:
    """Yield the images of ids from `id` on, which are ordered by time, whose files have arrived at their place."""
    columns = (_images.c.id, _images.c.product, _images.c.file_name, _images.c.path)
    statement = select(*columns).where(_images.c.id >= id, _images.c.state.in_(("placed", "quarantined")))
    for row in connection.execute(statement, execution_options={"yield_per": 1000}):
        yield Lying(*row)


def oldest_unfinished(connection: Connection) -> str | None:
    """Return the lowest id of the images that are recorded and not yet delivered; None where there are none."""
    found: str | None = connection.scalar(select(func.min(_images.c.id)).where(_images.c.state == "scored"))
    return found


def with_bytes(connection: Connection, sha256: str) -> list[StoredImage]:
    """Return the images with these bytes, of whatever product, the earliest first."""
    first = connection.execute(_first_of, {"hashes": [sha256]}).first()
    if first is None:
        return []
    statement = _stored.where(or_(_images.c.id == first.id, _images.c.duplicate_of == first.id))
    found = (StoredImage(*row) for row in connection.execute(statement))
    return sorted(found, key=lambda one: (one.received_at, one.id))


def unfinished(connection: Connection) -> list[StoredImage]:
    """Return the images that are recorded and not yet delivered, oldest first."""
    statement = _stored.where(_images.c.state == "scored").order_by(_images.c.received_at, _images.c.id)
    return [StoredImage(*row) for row in connection.execute(statement)]


def search(
    connection: Connection,
    *,
    limit: int | None = 100,
    before: tuple[str, str] | None = None,
    **filters: Unpack[Filters],
) -> list[dict[str, Any]]:
    """Return rows of the view `results`, newest first by (received_at, id); `limit` None is all of them.

    Times in the rows are text, as in the view. `before` is the (received_at, id) of the last row of the page
    before this one.
    """
    # The view does not say what is uncertain; the table does, in an index of those alone.
    source: FromClause = _marked if filters.get("uncertain") else results_view
    conditions = _conditions(source, filters)
    columns = source.c
    statement = select(results_view)
    if source is _marked:
        statement = statement.select_from(_marked).join(results_view, results_view.c.id == columns.id)
    if before is not None:
        last = tuple_(*(literal(value, Text) for value in before))
        conditions.append(tuple_(columns.received_at, columns.id) < last)
    statement = statement.where(*conditions).order_by(columns.received_at.desc(), columns.id.desc()).limit(limit)
    return [dict(row) for row in connection.execute(statement).mappings()]


def count(connection: Connection, **filters: Unpack[Filters]) -> int:
    """Return how many rows `search` with these filters has without a limit."""
    # Of the table: SQLite would look up every review and energy row of the view for nothing.
    statement = select(func.count()).select_from(_images).where(*_conditions(_images, filters))
    return connection.execute(statement).scalar_one()


def _finish_rows(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    names = {"of_id": "id", "to_state": "state", "to_path": "path", "at": "placed_at"}
    names |= {"latency": "latency_ms", "code": "error_code"}
    return [
        {name: getattr(one, its) for name, its in names.items()} | {"text": _storable(one.error)} for one in finished
    ]


def _earliest(connection: Connection, hashes: Collection[str]) -> dict[str, str]:
    rows = (row for chunk in chunks(hashes) for row in connection.execute(_first_of, {"hashes": chunk}))
    return {row.sha256: row.id for row in rows}


def _conditions(table: FromClause, filters: Filters) -> list[ColumnElement[bool]]:
    columns, uncertain = table.c, filters.get("uncertain")
    conditions: list[ColumnElement[bool]] = []
    if since := filters.get("since"):
        conditions.append(columns.received_at >= literal(time_text(since), Text))
    if until := filters.get("until"):
        conditions.append(columns.received_at < literal(time_text(until), Text))
    for name in ("product", "verdict", "state"):
        if (value := filters.get(name)) is not None:
            # SQLite takes the index of the uncertain, which are few, only where no other seems to serve.
            column = columns[name].concat("") if uncertain else columns[name]
            conditions.append(column == value)
    return [*conditions, columns.uncertain == 1] if uncertain else conditions


def _storable(text: str | None) -> str | None:
    """Return `text` with what is not Unicode, as in a name that is not UTF-8, written as `\\udcff`."""
    return text if text is None else text.encode("utf-8", "backslashreplace").decode("utf-8")
