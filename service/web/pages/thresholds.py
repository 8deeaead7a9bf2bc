"""The page *Threshold*: what another false-alarm rate would do, and the choice of one."""

from __future__ import annotations

import math
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.errors import UsageError
from service.scoring.threshold_preview import LAST, ThresholdPreview, champion_of, choose_rate, preview
from service.storage import statistics, thresholds, versions
from service.web import charts
from service.web.security import caller
from service.web.site import FormText, Site, is_part, segment

RATE_MAX = 0.5
STOPS = 60


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/thresholds")
    def overview(request: Request) -> Response:
        with site.reading.connect() as connection:
            champions = versions.champions(connection)
            choices = thresholds.latest(connection)
        rows = [{"version": champions[name], "choice": choices.get(name)} for name in sorted(champions)]
        return site.page(request, "thresholds.html", rows=rows)

    @router.get("/thresholds/{product}")
    def explorer(request: Request, product: str, rate: str | None = None, stop: str | None = None) -> Response:
        values = _explored(site, product, rate, stop)
        return site.page(request, "parts/explored.html" if is_part(request) else "threshold.html", **values)

    @router.post("/thresholds/{product}")
    def choose(request: Request, product: str, rate: FormText = None, action: FormText = None) -> Response:
        chosen = None if action == "reset" else _rate(rate or "")
        choose_for(site, product, chosen, caller(request).who)
        return RedirectResponse(f"/thresholds/{segment(product)}", 303)


def choose_for(site: Site, product: str, rate: float | None, by: str | None) -> None:
    """Choose `rate` for `product`; None goes back to the settings. Raises as `choose_rate`."""
    with site.writing.begin() as connection:
        choose_rate(site.root, connection, site.settings, product, rate, by=by, at=datetime.now(UTC))


def previewed(site: Site, product: str, rate: float, last: int = LAST) -> ThresholdPreview:
    """Return what `rate` would do for `product`. Raises as `service.scoring.threshold_preview.preview`."""
    with site.reading.connect() as connection:
        return preview(site.root, connection, site.settings, product, rate, last)


def stops_of(lowest: float) -> list[float]:
    """Return the slider's rates from `lowest` to RATE_MAX, evenly spaced on a log scale, of two digits each."""
    step = (RATE_MAX / lowest) ** (1 / (STOPS - 1)) if lowest < RATE_MAX else 1.0
    rounded = {float(f"{lowest * step**number:.2g}") for number in range(STOPS)}
    return sorted(rate for rate in rounded if lowest <= rate <= RATE_MAX) or [lowest]


def _explored(site: Site, product: str, rate: str | None, stop: str | None) -> dict[str, Any]:
    with site.reading.connect() as connection:
        version = champion_of(site.root, connection, product)
        choice = thresholds.latest(connection).get(product)
    first = previewed(site, product, version.trained_false_alarm_rate)
    stops = stops_of(first.lowest_rate)
    if rate:
        wanted = _rate(rate)
    elif stop:
        wanted = stops[min(len(stops) - 1, _whole(stop))]
    else:
        wanted = first.present_rate or version.trained_false_alarm_rate
    found = previewed(site, product, wanted)
    with site.reading.connect() as connection:
        values, _ = statistics.latest_scores(connection, product, version.version, LAST)
    said = f"Scores of the latest {len(values)} images; threshold in force and the one at {wanted:g}"
    marks = [found.present_threshold] if found.present_threshold is not None else []
    return {
        "found": asdict(found),
        "product": product,
        "choice": choice,
        "stops": stops,
        "stop": min(range(len(stops)), key=lambda place: abs(math.log(stops[place] / wanted))),
        "chart": charts.histogram(said, values, found.threshold, marks),
        "changes": None if found.to_normal is None or found.to_anomaly is None else found.to_normal + found.to_anomaly,
    }


def _rate(given: str) -> float:
    """Return the rate given in a form: in percent with a `%`, else a share. Raises UsageError."""
    plain = given.strip().replace(",", ".")
    percent = plain.endswith("%")
    try:
        found = float(plain.rstrip("% ")) / (100 if percent else 1)
    except ValueError:
        found = math.nan
    if not 0 < found < 1:
        raise UsageError(
            f"false-alarm rate: expected more than 0 and less than 1, such as 0.01 or 1 %; found {given[:40]!r}"
        )
    return found


def _whole(given: str) -> int:
    if not (given.isascii() and given.isdigit() and len(given) < 6):
        raise UsageError(f"stop: expected a whole number; found {given[:40]!r}")
    return int(given)
