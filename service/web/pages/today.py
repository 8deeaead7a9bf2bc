"""The page *Today*: how much came, what was decided, whether all is well, and what it cost."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import Response

from service.filesystem.odd_entries import sentence, told_by
from service.instances import statuses
from service.names import meant, printable
from service.storage import drift, review_pages, versions
from service.storage import energy as energy_rows
from service.storage import statistics as tallies
from service.storage.energy import sum_known
from service.web import charts
from service.web.charts import Bar, Line
from service.web.hourly_counts import Hour, Hours
from service.web.site import NotFound, Site, is_part, query

DAY = timedelta(days=1)
# Of each span: its hours, and the hours of one bar.
SPANS = {"24h": (24, 1), "7d": (7 * 24, 4), "30d": (30 * 24, 24)}
SCORES = 2000
HISTOGRAMS_MAX = 6
# All visitors share the figures; none is older than this.
KEPT_S = 4.0
# Of entries that wait, so many are named; the API and `tamis status` name more.
ODD_SHOWN_MAX = 5


class FigureCache:
    """Keeps figures for a few seconds, so that many refreshing pages cost as much as one. Safe for threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._values: dict[Any, tuple[float, Any]] = {}

    def get(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return the value of `key`, made anew if it is too old."""
        with self._lock:
            now = time.monotonic()
            self._values = {k: v for k, v in self._values.items() if now - v[0] < KEPT_S}
            if key not in self._values:
                self._values[key] = (now, make())
            return self._values[key][1]


def add_routes(router: APIRouter, site: Site) -> None:
    hours, kept = Hours(site.reading), FigureCache()

    @router.get("/")
    def today(request: Request, product: str | None = None, span: str = "24h") -> Response:
        product = product or None
        if span not in SPANS:
            raise NotFound(f"span: expected one of {', '.join(SPANS)}; found {span[:40]!r}")
        figures = kept.get((product, span), lambda: _figures(site, hours, product, span))
        template = "parts/today.html" if is_part(request) else "today.html"
        here = query(product=product, span=None if span == "24h" else span)
        return site.page(request, template, spans=list(SPANS), span=span, product=product, here=here, **figures)


def health(site: Site) -> dict[str, Any]:
    """Return the state of the root's daemons, and what is known to be wrong, as sentences."""
    daemons = statuses(site.root)
    wrong = [] if daemons else ["no daemon has run on this root yet: tamis run starts one"]
    for daemon in daemons:
        if daemon["running"] is None:
            wrong.append(f"daemon {daemon['instance']}: whether it runs is not known, {daemon['unknown']}")
        elif not daemon["running"]:
            wrong.append(f"daemon {daemon['instance']} is not running: images wait in incoming")
        elif daemon.get("paused"):
            wrong.append(f"daemon {daemon['instance']} is paused: {daemon['paused']}")
        for product in daemon.get("waiting_for_model") or ():
            guess = meant(product, daemon.get("products") or ())
            hint = f"; did you mean {printable(guess)}?" if guess is not None else ""
            wrong.append(f"product {printable(product)} has no model: its images wait{hint}")
    odd = told_by(daemons)
    wrong += [printable(f"{sentence(one)}; {one['advice']}".rstrip("; ")) for one in odd["first"][:ODD_SHOWN_MAX]]
    if (more := odd["files"] - sum(one["files"] for one in odd["first"][:ODD_SHOWN_MAX])) > 0:
        wrong.append(f"{more} more files wait, since they cannot be worked on now: tamis doctor names them")
    disk = os.statvfs(site.root)
    free = disk.f_bavail * disk.f_frsize
    if free < 2 * site.settings.free_bytes_min:
        wrong.append(
            f"{free / 1e9:.1f} GB free on the disk; claiming stops at {site.settings.free_bytes_min / 1e9:.1f}"
        )
    with site.reading.connect() as connection:
        states = drift.latest(connection)
    wrong += [
        f"product {name} drifts, as found at {row.at:%Y-%m-%d %H:%M} UTC; cause: {row.cause or 'unknown'};"
        f" it began with image {row.first_image_id or 'unknown'}"
        for name, row in sorted(states.items())
        if row.state == "drifting"
    ]
    return {"daemons": daemons, "wrong": wrong, "free_bytes": free, "odd_entries": odd}


def _figures(site: Site, hours: Hours, product: str | None, span: str) -> dict[str, Any]:
    now = datetime.now(UTC)
    shown, each = SPANS[span]
    counted = hours.get(now, shown, product)
    with site.reading.connect() as connection:
        at_hand = sorted({*tallies.products(connection), *versions.champions(connection)})
        costs = energy_rows.per_kind(connection, now - DAY)
        found: dict[str, Any] = {
            "states": tallies.per_state(connection, now - DAY),
            "newest": tallies.newest(connection),
            "waiting": review_pages.waiting(connection),
        }
    if product is not None and product not in at_hand:
        raise NotFound(f"product: expected one of {', '.join(at_hand) or 'none yet'}; found {product[:100]!r}")
    found |= health(site)
    normal, anomaly = sum(hour.normal for hour in counted), sum(hour.anomaly for hour in counted)
    scoring = next((row for row in costs if row["kind"] == "scoring"), {})
    drawn = [product] if product else at_hand[:HISTOGRAMS_MAX]
    return {
        "now": now,
        "products": at_hand,
        "normal": normal,
        "anomaly": anomaly,
        "rate": anomaly / (normal + anomaly) if normal + anomaly else None,
        "backlog": sum(daemon.get("backlog", 0) + daemon.get("in_flight", 0) for daemon in found["daemons"]),
        "backlog_is_least": any(daemon.get("backlog_is_least") for daemon in found["daemons"]),
        "energy_wh": sum_known(row["total_wh"] for row in costs),
        "emissions_g": sum_known(row["emissions_g"] for row in costs),
        "wh_per_1000": scoring.get("wh_per_1000_images"),
        **_charts(counted, each),
        "histograms": [one for name in drawn if (one := histogram(site.reading, name))],
        **found,
    }


def _charts(counted: list[Hour], each: int) -> dict[str, Any]:
    """Return the anomaly rate over time, in %, and the images by verdict, a place for every `each` hours."""
    groups = [counted[start : start + each] for start in range(0, len(counted), each)]
    sums = [(group[0].at, sum(h.normal for h in group), sum(h.anomaly for h in group)) for group in groups]
    labels = charts.time_labels([at for at, _, _ in sums], "%H:%M" if each == 1 else "%m-%d")
    rates = [100 * a / (n + a) if n + a else None for _, n, a in sums]
    known = [rate for rate in rates if rate is not None]
    said = f"Anomaly rate over time: {min(known):.1f} to {max(known):.1f} %" if known else "Anomaly rate: no images"
    drawn = [
        Bar(f"{at:%Y-%m-%d %H:%M}: {n} normal, {a} anomalies", (("normal", n), ("anomaly", a))) for at, n, a in sums
    ]
    total = sum(n + a for _, n, a in sums)
    return {
        "rate_chart": charts.lines(said, [Line("anomaly", rates)], labels, unit="%", least_top=1.0),
        "count_chart": charts.bars(f"Images over time: {total:,} in all", drawn, labels),
    }


def histogram(reading: Engine, product: str) -> dict[str, Any] | None:
    """Return the latest scores of `product` by its champion, with their threshold; None where there are none."""
    with reading.connect() as connection:
        champions = versions.champions(connection)
        champion = champions.get(product) or champions.get("default")
        if champion is None:
            return None
        # Scores of another version cannot be compared with these.
        found, thresholds = tallies.latest_scores(connection, product, champion.version, SCORES)
    if not found:
        return None
    threshold = thresholds[0]
    above = sum(score > threshold for score in found)
    said = f"Scores of the latest {len(found)} images of {product}: {above} above the threshold {threshold:.4g}"
    return {
        "product": product,
        "version": champion.version,
        "images": len(found),
        "above": above,
        "threshold": threshold,
        "chart": charts.histogram(said, found, threshold),
    }
