"""Statements behind the review page: images in the order in which a person should look at them, a page at a time.

A page is reached from the last row of the one before it, never by counting rows, and reads a bounded number of
rows whatever the filters: where few images match, it ends early and says where to go on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Literal

from sqlalchemy import Connection, text

from service.errors import UsageError
from service.storage.tables import time_text

Order = Literal["uncertain", "newest"]
Reviewed = Literal["no", "yes", "all"]
Which = Literal["normal", "anomaly", "quarantined"]

# Index entries looked at for one page, in steps that grow: most pages are full after the first.
STEPS = (200, 1000, 4000, 5000, 5000)
# Up to so many images the filters' own index is read and sorted, and no index in order walked.
FEW = 8000

CONDITIONS = {
    "product": "product = :product",
    "which": "verdict = :which",
    "since": "received_at >= :since",
    "until": "received_at < :until",
    "score_min": "score >= :score_min",
    "score_max": "score <= :score_max",
}
# Those that an index serves.
INDEXED = ("product", "which", "since", "until")

_COLUMNS = """
    i.id, i.product, i.file_name, i.path, i.state, i.verdict, i.score, i.threshold, i.p_value, i.model_version,
    i.uncertain, i.uncertainty, i.received_at, i.width, i.height, i.error,
    r.id AS review_id, r.label, r.labelled_by, r.labelled_at"""
_LATEST = "(SELECT max(latest.id) FROM reviews AS latest WHERE latest.image_id = i.id)"


@dataclass(frozen=True, slots=True)
class ReviewFilters:
    """Which images a person wants to see; None is any. `since` is inclusive, `until` exclusive."""

    product: str | None = None
    which: Which | None = None
    score_min: float | None = None
    score_max: float | None = None
    since: datetime | None = None
    until: datetime | None = None
    reviewed: Reviewed = "no"
    order: Order = "uncertain"


@dataclass(frozen=True, slots=True)
class ReviewPage:
    """Rows of a page; `after` is what the next one is asked for with, None at the end.

    `whole` is False where the page ended early, since too many images in a row did not match.
    """

    rows: list[dict[str, Any]]
    after: str | None
    whole: bool = True


def page(connection: Connection, filters: ReviewFilters, after: str | None = None, limit: int = 48) -> ReviewPage:
    """Return the images that come after `after`, at most `limit`.

    `after` is the id of an image or, of those reviewed, the number of a review. Raises UsageError where there is
    no such image.
    """
    if filters.reviewed == "yes":
        return _walk(connection, filters, _by_review(filters), None if after is None else _review_of(after), limit)
    last = None if after is None else _place_of(connection, after)
    # What could not be scored has no uncertainty; nor has what was scored before there was any.
    if filters.order == "newest" or filters.which == "quarantined":
        return _walk(connection, filters, _by_time(filters), last, limit)
    if _are_few(connection, filters):
        return _sorted(connection, filters, last, limit)
    return _walk(connection, filters, _by_uncertainty(connection, filters), last, limit)


def by_ids(connection: Connection, ids: list[str]) -> list[dict[str, Any]]:
    """Return the rows of `ids` as `page` does, in their order; an unknown id is left out."""
    if not ids:
        return []
    names = {f"id{n}": id for n, id in enumerate(ids)}
    marks = ", ".join(f":{name}" for name in names)
    statement = f"SELECT {_COLUMNS} FROM images AS i LEFT JOIN reviews AS r ON r.id = {_LATEST} WHERE i.id IN ({marks})"
    found = {row["id"]: row for row in _rows(connection, statement, names)}
    return [found[id] for id in ids if id in found]


def waiting(connection: Connection, most: int = 1000) -> int:
    """Return how many uncertain images nobody has labelled yet; counted up to `most`."""
    statement = text(
        f"SELECT count(*) FROM (SELECT 1 FROM images AS i{_by(connection, 'images_uncertain_by_received_at')}"
        f" LEFT JOIN reviews AS r ON r.id = {_LATEST} WHERE i.uncertain = 1 AND r.label IS NULL LIMIT :most) AS counted"
    )
    return int(connection.execute(statement, {"most": most}).scalar_one())


@dataclass(frozen=True)
class _Way:
    """An index to walk backwards: conditions `inside` are read off it, those `outside` need the rows that it finds."""

    table: str
    columns: tuple[str, ...]
    carried: str
    inside: list[str]
    joined: str
    outside: list[str]
    key: str


_OF_IMAGE = f"JOIN images AS i ON i.id = c.id LEFT JOIN reviews AS r ON r.id = {_LATEST}"
_OF_REVIEW = "JOIN reviews AS r ON r.id = c.id JOIN images AS i ON i.id = r.image_id"


def _by_uncertainty(connection: Connection, filters: ReviewFilters) -> _Way:
    """In order of uncertainty; product and time are read off the index before any row is."""
    table = f"images{_by(connection, 'images_by_uncertainty')}"
    columns = ("uncertainty", "received_at", "id")
    outside = [*_unindexed(filters), *_given(filters, "product", "since", "until", table="c.")]
    outside += _given(filters, "which", table="i.")
    carried = "uncertainty, received_at, id, product"
    return _Way(table, columns, carried, ["uncertainty IS NOT NULL"], _OF_IMAGE, outside, "id")


def _by_time(filters: ReviewFilters) -> _Way:
    """In order of time, by the index of the filters that have one."""
    columns, carried = ("received_at", "id"), "received_at, id, product"
    return _Way("images", columns, carried, _given(filters, *INDEXED), _OF_IMAGE, _unindexed(filters), "id")


def _by_review(filters: ReviewFilters) -> _Way:
    """What was labelled, what was labelled last first; an image is where its latest review is."""
    outside = ["r.label IS NOT NULL", f"r.id = {_LATEST}", *_given(filters, *CONDITIONS, table="i.")]
    return _Way("reviews", ("id",), "id", [], _OF_REVIEW, outside, "review_id")


def _walk(
    connection: Connection, filters: ReviewFilters, way: _Way, last: Mapping[str, Any] | None, limit: int
) -> ReviewPage:
    order = ", ".join(f"{column} DESC" for column in way.columns)
    parameters = _parameters(filters)
    found: list[dict[str, Any]] = []
    for step in STEPS:
        inside = list(way.inside)
        if last is not None:
            inside.append(f"({', '.join(way.columns)}) < ({', '.join(':last_' + c for c in way.columns)})")
            parameters |= {f"last_{column}": last[column] for column in way.columns}
        candidates = (
            f"SELECT {way.carried} FROM {way.table} WHERE {' AND '.join(inside) or 'TRUE'} ORDER BY {order} LIMIT :step"
        )
        statement = (
            f"SELECT {_COLUMNS} FROM ({candidates}) AS c {way.joined} WHERE {' AND '.join(way.outside) or 'TRUE'}"
            f" ORDER BY {', '.join(f'c.{column} DESC' for column in way.columns)} LIMIT :limit"
        )
        asked = parameters | {"step": step, "limit": limit + 1 - len(found)}
        found += _rows(connection, statement, asked)
        if len(found) > limit:
            return ReviewPage(found[:limit], str(found[limit - 1][way.key]))
        end = f"SELECT {', '.join(way.columns)} FROM ({candidates}) AS c ORDER BY {order} LIMIT 1 OFFSET :end"
        ends = _rows(connection, end, asked | {"end": step - 1})
        if not ends:
            return ReviewPage(found, None)
        last = ends[0]
    return ReviewPage(found, None if last is None else str(last["id"]), whole=False)


def _are_few(connection: Connection, filters: ReviewFilters) -> bool:
    conditions = _given(filters, *INDEXED)
    if not conditions:
        return False
    statement = text(
        f"SELECT count(*) FROM (SELECT 1 FROM images{_by(connection, _index_of(filters))}"
        f" WHERE {' AND '.join(conditions)} LIMIT :most) AS counted"
    )
    return int(connection.execute(statement, _parameters(filters) | {"most": FEW + 1}).scalar_one()) <= FEW


def _sorted(connection: Connection, filters: ReviewFilters, last: dict[str, Any] | None, limit: int) -> ReviewPage:
    conditions = ["i.uncertainty IS NOT NULL", *_given(filters, *INDEXED, table="i."), *_unindexed(filters)]
    parameters = _parameters(filters)
    if last is not None:
        conditions.append("(i.uncertainty, i.received_at, i.id) < (:last_uncertainty, :last_received_at, :last_id)")
        parameters |= {f"last_{column}": last[column] for column in ("uncertainty", "received_at", "id")}
    statement = (
        f"SELECT {_COLUMNS} FROM images AS i{_by(connection, _index_of(filters))}"
        f" LEFT JOIN reviews AS r ON r.id = {_LATEST} WHERE {' AND '.join(conditions)}"
        " ORDER BY i.uncertainty DESC, i.received_at DESC, i.id DESC LIMIT :limit"
    )
    found = _rows(connection, statement, parameters | {"limit": limit + 1})
    return ReviewPage(found[:limit], found[limit - 1]["id"] if len(found) > limit else None)


def _given(filters: ReviewFilters, *names: str, table: str = "") -> list[str]:
    """Return the conditions of those of the filters `names` that are set."""
    conditions = CONDITIONS | ({"which": "state = 'quarantined'"} if filters.which == "quarantined" else {})
    return [table + conditions[name] for name in names if getattr(filters, name) is not None]


def _unindexed(filters: ReviewFilters) -> list[str]:
    conditions = _given(filters, "score_min", "score_max", table="i.")
    if filters.which != "quarantined":
        # What lies nowhere can't be looked at.
        conditions.append("i.state IN ('scored', 'placed', 'quarantined')")
    return [*conditions, "r.label IS NULL"] if filters.reviewed == "no" else conditions


def _index_of(filters: ReviewFilters) -> str:
    product = "product_" if filters.product is not None else ""
    verdict = "verdict_" if filters.which is not None else ""
    return f"images_by_{product}{verdict}received_at_id"


def _by(connection: Connection, index: str | None) -> str:
    """Return the words that have SQLite read by `index`; PostgreSQL has none, and knows how rows are spread."""
    return f" INDEXED BY {index}" if index is not None and connection.dialect.name == "sqlite" else ""


def _parameters(filters: ReviewFilters) -> dict[str, Any]:
    values = asdict(filters)
    return {name: time_text(value) if isinstance(value, datetime) else value for name, value in values.items()}


def _place_of(connection: Connection, id: str) -> dict[str, Any]:
    statement = text("SELECT id, received_at, coalesce(uncertainty, 0) AS uncertainty FROM images WHERE id = :id")
    row = connection.execute(statement, {"id": id}).mappings().one_or_none()
    if row is None:
        raise UsageError(f"after: expected the id of an image on record; found {id!r}")
    return dict(row)


def _review_of(after: str) -> dict[str, int]:
    if not (after.isascii() and after.isdigit() and len(after) < 19):
        raise UsageError(f"after: expected the number of a review; found {after!r}")
    return {"id": int(after)}


def _rows(connection: Connection, statement: str, parameters: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [dict(row) for row in connection.execute(text(statement), parameters).mappings()]
