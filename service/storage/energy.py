"""Statements on energy: add what a micro-batch, idling or a training used, and sum it up.

What is unknown is NULL and stays out of the sums; figures per 1,000 images are of images whose energy is known.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict
from datetime import datetime
from typing import Any, cast

from sqlalchemy import ColumnElement, Connection, Select, case, func, insert, select

from service.storage.energy_sample import EnergySample
from service.storage.tables import energy_table as _rows

_insert = insert(_rows)


def add(connection: Connection, sample: EnergySample) -> int:
    """Insert `sample`; return the id of its row."""
    # As parameters: values within the statement would have SQLAlchemy make its key anew each time, at 30 ms a batch.
    result = cast(Any, connection.execute(_insert, asdict(sample)))
    return int(result.inserted_primary_key[0])


def find(connection: Connection, sample: EnergySample) -> int | None:
    """Return the id of the row that was inserted of `sample`; None where there is none."""
    statement = select(_rows.c.id).where(_rows.c.kind == sample.kind, _rows.c.started_at == sample.started_at)
    return connection.execute(statement).scalar_one_or_none()


def per_kind(
    connection: Connection, since: datetime | None = None, until: datetime | None = None
) -> list[dict[str, Any]]:
    """Return one dict per kind of energy, started from `since` on and before `until`.

    Keys: kind, rows, duration_s, images, total_wh, emissions_g, wh_per_1000_images, g_per_1000_images, share
    (of the energy of all kinds), source (measured, estimated or mixed), rows_without_wh, rows_without_g.
    """
    statement = select(_rows.c.kind, *_sums()).group_by(_rows.c.kind).order_by(_rows.c.kind)
    if since is not None:
        statement = statement.where(_rows.c.started_at >= since)
    if until is not None:
        statement = statement.where(_rows.c.started_at < until)
    return _report(connection, statement)


def first_at(connection: Connection) -> datetime | None:
    found: datetime | None = connection.execute(select(func.min(_rows.c.started_at))).scalar_one()
    return found


def per_day(connection: Connection, since: datetime | None = None) -> list[dict[str, Any]]:
    """Return one dict per UTC day, oldest first, with the keys of `per_kind` for `day` instead of `kind`.

    `images`, `wh_per_1000_images` and `g_per_1000_images` are of scoring alone; total_wh and emissions_g are
    of all kinds, and idle_wh and idle_share say how much of it was idling.
    """
    day = func.substr(_rows.c.started_at, 1, 10).label("day")
    scoring = _rows.c.kind == "scoring"
    idle_wh = func.sum(case((_rows.c.kind == "idle", _rows.c.total_wh))).label("idle_wh")
    statement = select(day, *_sums(scoring), idle_wh).group_by(day).order_by(day)
    if since is not None:
        statement = statement.where(_rows.c.started_at >= since)
    days = _report(connection, statement)
    for one in days:
        one["idle_share"] = _ratio(one["idle_wh"], one["total_wh"])
    return days


def sum_known(values: Iterable[float | None]) -> float | None:
    """Return the sum of what is known; None where nothing is."""
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def source_of(rows: Iterable[dict[str, Any]]) -> str | None:
    """Return the source of all `rows`, `mixed` where they have several; None without rows."""
    sources = {row["source"] for row in rows}
    return "mixed" if len(sources) > 1 else next(iter(sources), None)


def _sums(of_images: ColumnElement[bool] | None = None) -> list[ColumnElement[Any]]:
    """Return the columns of a report; what is per image only counts rows for which `of_images` holds."""

    def known(column: ColumnElement[Any], value: ColumnElement[Any]) -> ColumnElement[Any]:
        condition = column.is_not(None)
        return func.sum(case((condition if of_images is None else condition & of_images, value)))

    wh, grams, images = _rows.c.total_wh, _rows.c.emissions_g, _rows.c.images
    return [
        func.count().label("rows"),
        func.sum(_rows.c.duration_s).label("duration_s"),
        func.sum(images if of_images is None else case((of_images, images), else_=0)).label("images"),
        func.sum(wh).label("total_wh"),
        func.sum(grams).label("emissions_g"),
        (1000 * known(wh, wh) / func.nullif(known(wh, images), 0)).label("wh_per_1000_images"),
        (1000 * known(grams, grams) / func.nullif(known(grams, images), 0)).label("g_per_1000_images"),
        func.min(_rows.c.source).label("first_source"),
        func.max(_rows.c.source).label("last_source"),
        (func.count() - func.count(wh)).label("rows_without_wh"),
        (func.count() - func.count(grams)).label("rows_without_g"),
    ]


def _report(connection: Connection, statement: Select[Any]) -> list[dict[str, Any]]:
    rows = [dict(row) for row in connection.execute(statement).mappings()]
    total = sum_known(row["total_wh"] for row in rows)
    for row in rows:
        first, last = row.pop("first_source"), row.pop("last_source")
        row["source"] = first if first == last else "mixed"
        row["share"] = _ratio(row["total_wh"], total)
    return rows


def _ratio(part: float | None, whole: float | None) -> float | None:
    return part / whole if part is not None and whole else None
