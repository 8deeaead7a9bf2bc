"""The page *Review*: a wall of images to look through and to label, the most uncertain first."""

from __future__ import annotations

from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

from fastapi import APIRouter, Form, Query
from pydantic import BaseModel
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from service.errors import UsageError
from service.labelling.label import label_images
from service.storage import review_pages, shadow, versions
from service.storage import statistics as tallies
from service.storage.review_pages import Order, Reviewed, ReviewFilters, Which
from service.web.images import map_path
from service.web.security import caller, plain
from service.web.site import FormText, Site, back_to, is_part, query

PAGE = 48
DISAGREEMENTS = 24
# As many as a person can have looked at: a selection, not the whole database.
LABELS_MAX = 500
NOTE_CHARACTERS_MAX = 1000
TAKEN_BACK = "none"


class FilterFields(BaseModel):
    """The filters as the form sends them: text, empty for any. The page begins after the image `after`."""

    product: str | None = None
    verdict: str | None = None
    score_min: str | None = None
    score_max: str | None = None
    since: str | None = None
    until: str | None = None
    reviewed: str | None = None
    order: str | None = None
    after: str | None = None

    def filters(self) -> ReviewFilters:
        """Return them with their types. Raises UsageError naming the field."""
        return ReviewFilters(
            product=self.product or None,
            which=_one_of("verdict", self.verdict, get_args(Which)),
            score_min=_number("score_min", self.score_min),
            score_max=_number("score_max", self.score_max),
            since=moment("since", self.since),
            until=moment("until", self.until, of_day_end=True),
            reviewed=_one_of("reviewed", self.reviewed, get_args(Reviewed)) or "no",
            order=_one_of("order", self.order, get_args(Order)) or "uncertain",
        )


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/review")
    def review(request: Request, fields: Annotated[FilterFields, Query()]) -> Response:
        filters, part = fields.filters(), is_part(request)
        with site.reading.connect() as connection:
            page = review_pages.page(connection, filters, fields.after or None, PAGE)
            first = not fields.after and filters == ReviewFilters(product=filters.product)
            differing = _disagreements(connection, filters.product) if first else []
            products = [] if part else tallies.products(connection)
            waiting = None if part else review_pages.waiting(connection)
        at_the_top = {row["id"] for row in differing}
        given = fields.model_dump(exclude={"after"})
        return site.page(
            request,
            "parts/cards.html" if part else "review.html",
            differing=with_maps(site.root, differing),
            rows=with_maps(site.root, [row for row in page.rows if row["id"] not in at_the_top]),
            more=None if page.after is None else f"/review{query(**given, after=page.after)}",
            whole=page.whole,
            products=products,
            waiting=waiting,
            given=given,
            back=f"/review{query(**given, after=fields.after)}",
            filtered=bool(query(**given)),
        )

    @router.post("/review/label")
    def save_label(
        request: Request,
        id: Annotated[list[str] | None, Form()] = None,
        label: FormText = None,
        note: FormText = None,
        back: FormText = None,
    ) -> Response:
        ids = id or []
        if not 1 <= len(ids) <= LABELS_MAX:
            raise UsageError(f"id: expected 1 to {LABELS_MAX} images; found {len(ids)}")
        said, note = None if label == TAKEN_BACK else label or "", plain(note or "", NOTE_CHARACTERS_MAX)
        label_images(site.root, site.writing, ids, said, by=caller(request).who, source="web", note=note)
        if not is_part(request):
            return back_to(back, "/review")
        with site.reading.connect() as connection:
            rows = with_maps(site.root, review_pages.by_ids(connection, ids))
        return site.page(request, "parts/labelled.html", rows=rows, back=back or "/review")


def moment(name: str, given: str | None, *, of_day_end: bool = False) -> datetime | None:
    """Return the UTC time given in a field: a day or ISO 8601, UTC if no zone is given.

    A day stands for its beginning, or with `of_day_end` for the beginning of the next. Raises UsageError.
    """
    if not given:
        return None
    try:
        if len(given) == 10:
            day = date.fromisoformat(given) + timedelta(days=of_day_end)
            return datetime.combine(day, time(), UTC)
        found = datetime.fromisoformat(given)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError):
        raise UsageError(f"{name}: expected a day or a time such as 2026-01-31T08:00; found {given[:40]!r}") from None


def with_maps(root: Path, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return `rows` with `map`, whether there is an anomaly map of the image."""
    return [row | {"map": (root / map_path(row["id"])).is_file()} for row in rows]


def _disagreements(connection: Connection, product: str | None) -> list[dict[str, Any]]:
    """Return unlabelled images on which a challenger and the champion differ, as rows of a page."""
    found: dict[str, dict[str, Any]] = {}
    for row in versions.versions(connection, product):
        if row.state != "challenger" or len(found) >= DISAGREEMENTS:
            continue
        for one in shadow.disagreements(connection, row.product, row.version, DISAGREEMENTS - len(found)):
            if one["label"] is None:
                said = {"challenger": row.version, "shadow_verdict": one["shadow_verdict"]}
                found[one["id"]] = said
    return [row | found[row["id"]] for row in review_pages.by_ids(connection, list(found))]


def _one_of(name: str, given: str | None, known: tuple[Any, ...]) -> Any:
    if not given:
        return None
    if given not in known:
        raise UsageError(f"{name}: expected one of {', '.join(known)}; found {given[:40]!r}")
    return given


def _number(name: str, given: str | None) -> float | None:
    if not given:
        return None
    try:
        found = float(given)
    except ValueError:
        found = float("nan")
    if not abs(found) < 1e300:
        raise UsageError(f"{name}: expected a number; found {given[:40]!r}")
    return found
