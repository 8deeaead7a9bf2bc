"""`tamis energy`: what scoring, idling and training used, per 1,000 images, per day and per kind."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from service.commands.options import AsJson, Root, print_json, print_table
from service.commands.results import moment
from service.storage import energy as storage
from service.storage.database.open import open_database

PER_1000 = ("wh_per_1000_images", "g_per_1000_images")
KIND_COLUMNS = ("kind", "images", "total_wh", "emissions_g", *PER_1000, "share", "source")
DAY_COLUMNS = ("day", "images", "total_wh", "emissions_g", *PER_1000, "idle_share", "source")

Per = Literal["day", "kind"]


def energy(
    root: Root,
    since: Annotated[str | None, typer.Option(help="From then on: 24h, 7d, or a UTC time.")] = None,
    per: Annotated[Per | None, typer.Option(help="Rows per day or per kind; without it both.")] = None,
    as_json: AsJson = False,
) -> None:
    found = report(root, None if since is None else moment(since, datetime.now(UTC)), per)
    if as_json:
        print_json(found)
        return
    typer.echo(_summary(found))
    if "per_kind" in found:
        print_table(found["per_kind"], KIND_COLUMNS, title="Per kind")
    if "per_day" in found:
        print_table(found["per_day"], DAY_COLUMNS, title="Per day, UTC")
    for note in found["notes"]:
        typer.echo(f"note: {note}", err=True)


def report(root: Path, since: datetime | None, per: Per | None) -> dict[str, Any]:
    """Return the report as one JSON document; an unknown figure is None, and the notes say why."""
    with open_database(root, read_only=True) as engine, engine.connect() as connection:
        kinds = storage.per_kind(connection, since)
        days = storage.per_day(connection, since)
    rows = {"per_kind": kinds, "per_day": days} if per is None else {f"per_{per}": kinds if per == "kind" else days}
    return _totals(kinds) | {"since": since} | rows | {"notes": _notes(kinds)}


def _totals(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    of = {row["kind"]: row for row in kinds}
    scoring, idle = of.get("scoring", {}), of.get("idle", {})
    return {
        "images": scoring.get("images", 0),
        "total_wh": storage.sum_known(row["total_wh"] for row in kinds),
        "emissions_g": storage.sum_known(row["emissions_g"] for row in kinds),
        "wh_per_1000_images": scoring.get("wh_per_1000_images"),
        "g_per_1000_images": scoring.get("g_per_1000_images"),
        "idle_share": idle.get("share"),
        "source": storage.source_of(kinds),
    }


def _notes(kinds: list[dict[str, Any]]) -> list[str]:
    notes = []
    if not kinds:
        notes.append("no energy was recorded in this time")
    if unmetered := sum(row["rows_without_wh"] for row in kinds):
        notes.append(f"{unmetered:,} rows have no energy: it could not be metered; they are left out of the sums")
    if without := sum(row["rows_without_g"] for row in kinds):
        notes.append(
            f"{without:,} rows have no grams of CO2e: the setting energy_country is not set, or was not then;"
            " they are left out of the grams"
        )
    if any(row["source"] != "measured" for row in kinds):
        notes.append("energy that is estimated comes from a model of the processor, not from a meter")
    return notes


def _summary(found: dict[str, Any]) -> str:
    share = found["idle_share"]
    return (
        f"{found['images']:,} images scored, {_figure(found['total_wh'])} Wh in all"
        f" ({found['source'] or 'nothing recorded'}); per 1,000 images {_figure(found['wh_per_1000_images'])} Wh"
        f" and {_figure(found['g_per_1000_images'])} g CO2e;"
        f" idling {'unknown' if share is None else format(share, '.0%')} of the energy"
    )


def _figure(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4g}"
