"""The page *Energy*: Wh and grams per day and kind, what 1,000 images cost, and scoring against training."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import accumulate
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from service.storage import energy as storage
from service.storage.energy import sum_known
from service.web import charts
from service.web.charts import Bar, Line
from service.web.site import NotFound, Site

DAY = timedelta(days=1)
SPANS = {"30d": 30, "90d": 90, "365d": 365, "all": 36_500}
KINDS = ("scoring", "idle", "training", "evaluation")
PLACES_MAX = 120
# Days summed up for one page; a database of many years takes some pages until all are.
DAYS_MAX = 1500
# A row is of a stretch that has ended, some minutes after it began.
SETTLED_AFTER = timedelta(hours=3)

Rows = list[dict[str, Any]]
Groups = list[tuple[datetime, dict[str, float]]]


class Days:
    """Energy per UTC day and kind; what is over is summed once and kept. Safe for threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: dict[datetime, Rows] = {}

    def get(self, now: datetime, days: int) -> tuple[list[tuple[datetime, Rows]], bool]:
        """Return the last `days` days, oldest first, from the first that has any, and whether that is all of them."""
        with self._engine.connect() as connection:
            first = storage.first_at(connection)
        if first is None:
            return [], True
        today, first_day = (
            one.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0) for one in (now, first)
        )
        start = max(first_day, today - DAY * (days - 1))
        wanted = [start + DAY * number for number in range((today - start).days + 1)]
        with self._lock:
            missing = [day for day in reversed(wanted) if day not in self._kept]
            found = {}
            for day in missing[:DAYS_MAX]:
                # A day at a time, so that no writer waits for all of them.
                with self._engine.connect() as connection:
                    found[day] = storage.per_kind(connection, day, day + DAY)
            self._kept |= {day: rows for day, rows in found.items() if day + DAY + SETTLED_AFTER < now}
            found |= self._kept
        left = missing[DAYS_MAX:]
        return [(day, found[day]) for day in wanted if not left or day > left[0]], not left


def add_routes(router: APIRouter, site: Site) -> None:
    days = Days(site.reading)

    @router.get("/energy")
    def energy(request: Request, span: str = "30d") -> Response:
        if span not in SPANS:
            raise NotFound(f"span: expected one of {', '.join(SPANS)}; found {span[:40]!r}")
        found, whole = days.get(datetime.now(UTC), SPANS[span])
        return site.page(request, "energy.html", spans=list(SPANS), span=span, whole=whole, **figures(found))


def figures(days: list[tuple[datetime, Rows]]) -> dict[str, Any]:
    """Return what the page shows of `days`: sums of each kind, a table of days, drawings. Unknown is None."""
    kinds = [_of_kind(kind, [row for _, rows in days for row in rows if row["kind"] == kind]) for kind in KINDS]
    known = [one for one in kinds if one["rows"]]
    total_wh = sum_known(one["total_wh"] for one in known)
    for one in known:
        one["share"] = one["total_wh"] / total_wh if one["total_wh"] is not None and total_wh else None
    of = {one["kind"]: one for one in kinds}
    learning = sum_known([of["training"]["total_wh"], of["evaluation"]["total_wh"]])
    scored, scoring_wh = of["scoring"]["images"], of["scoring"]["total_wh"]
    per_image = scoring_wh / scored if scoring_wh and scored else None
    groups = _grouped(days)
    return {
        "kinds": known,
        "total_wh": total_wh,
        "emissions_g": sum_known(one["emissions_g"] for one in known),
        "wh_per_1000": of["scoring"]["wh_per_1000_images"],
        "g_per_1000": of["scoring"]["g_per_1000_images"],
        "running_wh": sum_known([of["scoring"]["total_wh"], of["idle"]["total_wh"]]),
        "learning_wh": learning,
        "as_images": None if learning is None or not per_image else round(learning / per_image),
        "unknown_rows": sum(one["rows_without_wh"] for one in known),
        "without_g": sum(one["rows_without_g"] for one in known),
        "sources": sorted({one["source"] for one in known}),
        "days": [_of_day(day, rows) for day, rows in reversed(days[-60:])],
        "per_day_chart": _per_day(groups),
        "cumulative_chart": _cumulative(groups),
    }


def _of_kind(kind: str, rows: Rows) -> dict[str, Any]:
    return {
        "kind": kind,
        **{name: sum(row[name] for row in rows) for name in ("rows", "images", "rows_without_wh", "rows_without_g")},
        **{name: sum_known(row[name] for row in rows) for name in ("total_wh", "emissions_g")},
        **{name: _weighted(rows, name) for name in ("wh_per_1000_images", "g_per_1000_images")},
        "source": storage.source_of(rows),
        "share": None,
    }


def _of_day(day: datetime, rows: Rows) -> dict[str, Any]:
    scoring = next((row for row in rows if row["kind"] == "scoring"), None)
    return {
        "day": f"{day:%Y-%m-%d}",
        "images": scoring["images"] if scoring else 0,
        "of": {row["kind"]: row["total_wh"] for row in rows},
        "total_wh": sum_known(row["total_wh"] for row in rows),
        "emissions_g": sum_known(row["emissions_g"] for row in rows),
        "wh_per_1000": scoring["wh_per_1000_images"] if scoring else None,
        "g_per_1000": scoring["g_per_1000_images"] if scoring else None,
    }


def _per_day(groups: Groups) -> Any:
    drawn = []
    for day, wh in groups:
        title = ", ".join(f"{kind} {wh[kind]:.3g} Wh" for kind in KINDS if wh[kind])
        drawn.append(Bar(f"{day:%Y-%m-%d}: {title or 'none'}", tuple((kind, wh[kind]) for kind in KINDS)))
    total = sum(bar.total for bar in drawn)
    return charts.bars(f"Energy per day and kind: {total:.3g} Wh in all", drawn, _labels(groups))


def _cumulative(groups: Groups) -> Any:
    running = list(accumulate(wh["scoring"] + wh["idle"] for _, wh in groups))
    learning = list(accumulate(wh["training"] + wh["evaluation"] for _, wh in groups))
    said = "Cumulative energy: " + (
        f"scoring and idling {running[-1]:.3g} Wh, training and evaluation {learning[-1]:.3g} Wh" if groups else "none"
    )
    return charts.lines(said, [Line("scoring", running), Line("training", learning)], _labels(groups))


def _grouped(days: list[tuple[datetime, Rows]]) -> Groups:
    """Return Wh by kind of each day, or of as many days together as make a drawing that can be read."""
    each = max(1, -(-len(days) // PLACES_MAX))
    groups = [days[start : start + each] for start in range(0, len(days), each)]
    found = []
    for group in groups:
        wh = dict.fromkeys(KINDS, 0.0)
        for row in (row for _, rows in group for row in rows):
            wh[row["kind"]] += row["total_wh"] or 0.0
        found.append((group[0][0], wh))
    return found


def _labels(groups: Groups) -> list[tuple[int, str]]:
    return charts.time_labels([day for day, _ in groups], "%m-%d")


def _weighted(rows: Rows, name: str) -> float | None:
    """Return a figure per 1,000 images over several days, each weighed by its images."""
    known = [(row[name], row["images"]) for row in rows if row[name] is not None and row["images"]]
    images = sum(count for _, count in known)
    return sum(value * count for value, count in known) / images if images else None
