"""The JSON API under `/api/v1`: what the pages show, and what can be done on them, for scripts and controllers.

Answers are rows of the public views. An error is `{"error": "…"}` with the sentence that a command would print.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Literal

from fastapi import APIRouter, FastAPI, Path, Query
from fastapi.openapi.utils import get_openapi
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from service import __version__
from service.errors import UsageError
from service.labelling.label import label_images
from service.names import composed
from service.scoring.threshold_preview import LAST, champion_of
from service.storage import drift as drift_rows
from service.storage import energy as energy_rows
from service.storage import images, retrainings, review_pages, thresholds, versions
from service.storage import statistics as tallies
from service.storage.review_pages import Order, Reviewed, ReviewFilters, Which
from service.storage.tables import ImageState, Verdict
from service.web.images import map_path
from service.web.pages import image as image_page
from service.web.pages import models as model_pages
from service.web.pages import promote as promotion
from service.web.pages.files import stored
from service.web.pages.review import LABELS_MAX, NOTE_CHARACTERS_MAX, moment
from service.web.pages.thresholds import choose_for, previewed
from service.web.pages.today import health
from service.web.security import WHO_CHARACTERS_MAX, caller, plain
from service.web.site import Site

PREFIX = "/api/v1"
PAGE_MAX = 1000
DAYS_MAX = 366

Id = Annotated[str, Path(min_length=1, max_length=64, description="id of an image, a ULID")]
Product = Annotated[str, Path(min_length=1, max_length=400, description="name of a product"), AfterValidator(composed)]
Version = Annotated[str, Path(min_length=1, max_length=200, description="name of a version")]
Cursor = Annotated[str | None, Query(max_length=64, description="`next` of the page before")]
Limit = Annotated[int, Query(ge=1, le=PAGE_MAX, description="rows at most")]
Since = Annotated[str | None, Query(max_length=40, description="from then on; ISO 8601, UTC if no zone is given")]
Until = Annotated[str | None, Query(max_length=40, description="before then; as `since`")]
OfProduct = Annotated[
    Annotated[str, AfterValidator(composed)] | None, Query(max_length=400, description="of this product alone")
]


class Error(BaseModel):
    """The answer to a request that failed."""

    error: str


class Asked(BaseModel):
    """The body of a request; an unknown field is refused, since it is probably misspelt."""

    model_config = ConfigDict(extra="forbid", strict=True)


class NewLabel(Asked):
    """A person's label of an image. `label` null takes the label back."""

    label: Verdict | None
    by: str | None = Field(
        None, max_length=WHO_CHARACTERS_MAX, description="who says it, where neither password nor proxy says so"
    )
    note: str | None = Field(None, max_length=NOTE_CHARACTERS_MAX)


class LabelRequest(NewLabel):
    """The same label for many images: all of them or, if one is unknown, none."""

    ids: list[Annotated[str, Field(min_length=1, max_length=64)]] = Field(min_length=1, max_length=LABELS_MAX)


class Change(Asked):
    """Why the champion is changed; with `expected` only if that version is champion still."""

    reason: str | None = Field(None, max_length=500)
    expected: str | None = Field(None, max_length=200)


class NewRate(Asked):
    """The false-alarm rate to choose; null goes back to what the settings say."""

    false_alarm_rate: float | None = Field(gt=0, lt=1)


def routes(site: Site) -> APIRouter:
    error = {"model": Error, "description": "What was expected and what was found"}
    router = APIRouter(prefix=PREFIX, responses={"default": error})
    for add in (_add_images, _add_review, _add_labels, _add_models, _add_thresholds, _add_figures):
        add(router, site)
    return router


def add_description(app: FastAPI, site: Site) -> None:
    """Give `app` its OpenAPI document, and a page that lists what is in it."""

    @cache
    def document() -> dict[str, Any]:
        found = get_openapi(title=app.title, version=app.version, summary=app.summary, routes=app.routes)
        if site.settings.web_path_prefix:
            found["servers"] = [{"url": site.settings.web_path_prefix}]
        if site.sessions is not None:
            schemes = {name: {"type": "http", "scheme": name} for name in ("basic", "bearer")}
            found["components"]["securitySchemes"] = schemes
            found["security"] = [{"basic": []}, {"bearer": []}]
        return found

    @app.get(f"{PREFIX}/openapi.json", include_in_schema=False)
    def openapi() -> Response:
        return JSONResponse(document())

    @app.get("/api", include_in_schema=False)
    def listing(request: Request) -> Response:
        found = [
            {"method": method.upper(), "path": site.settings.web_path_prefix + path, "text": one.get("description", "")}
            for path, methods in document()["paths"].items()
            for method, one in methods.items()
        ]
        return site.page(request, "api.html", operations=found)


def _add_images(router: APIRouter, site: Site) -> None:
    @router.get("/images")
    def search(
        since: Since = None,
        until: Until = None,
        product: OfProduct = None,
        verdict: Verdict | None = None,
        state: ImageState | None = None,
        uncertain: bool = False,
        limit: Limit = 100,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """Images, newest first: rows of the view `results`; `next` is the cursor of the next page."""
        with site.reading.connect() as connection:
            last = None if cursor is None else tallies.facts(connection, cursor)
            if cursor is not None and last is None:
                raise UsageError(f"cursor: expected the `next` of another page; found {cursor!r}")
            rows = images.search(
                connection,
                since=moment("since", since),
                until=moment("until", until),
                product=product,
                verdict=verdict,
                state=state,
                uncertain=uncertain,
                limit=limit + 1,
                before=None if last is None else (last["received_at"], last["id"]),
            )
        return {"images": rows[:limit], "next": rows[limit - 1]["id"] if len(rows) > limit else None}

    @router.get("/images/{id}")
    def image(id: Id) -> dict[str, Any]:
        """One image with its regions, what people said of it, what challengers said, its role in training."""
        with site.reading.connect() as connection:
            known = image_page.everything(connection, id)
        known["history"] = [asdict(one) for one in known["history"]]
        address = f"{site.settings.web_path_prefix}/images/{id}"
        files = {"picture": f"{address}/picture"}
        if (site.root / map_path(id)).is_file():
            files["map"] = f"{address}/map"
        return {**known.pop("image"), **known, "files": files}


def _add_review(router: APIRouter, site: Site) -> None:
    @router.get("/review")
    def review(
        product: OfProduct = None,
        verdict: Which | None = None,
        score_min: float | None = None,
        score_max: float | None = None,
        since: Since = None,
        until: Until = None,
        reviewed: Reviewed = "no",
        order: Order = "uncertain",
        limit: Annotated[int, Query(ge=1, le=200)] = 50,
        cursor: Cursor = None,
    ) -> dict[str, Any]:
        """Images as the review page shows them, the most uncertain first.

        `whole` is false where many images in a row did not match and the search stopped early: go on with `next`.
        """
        begin, end = moment("since", since), moment("until", until)
        filters = ReviewFilters(product, verdict, score_min, score_max, begin, end, reviewed, order)
        with site.reading.connect() as connection:
            page = review_pages.page(connection, filters, cursor, limit)
        return {"images": page.rows, "next": page.after, "whole": page.whole}


def _add_labels(router: APIRouter, site: Site) -> None:
    @router.post("/images/{id}/label")
    def label(request: Request, id: Id, asked: NewLabel) -> dict[str, Any]:
        """Label one image; its file goes to the folder that the label says."""
        stored(site, id)
        return _label(request, [id], asked)["labelled"][0]  # type: ignore[no-any-return]

    @router.post("/labels")
    def labels(request: Request, asked: LabelRequest) -> dict[str, Any]:
        """Label many images alike: all of them or, where one is unknown, none."""
        return _label(request, asked.ids, asked)

    def _label(request: Request, ids: list[str], asked: NewLabel) -> dict[str, Any]:
        who = caller(request)
        # Somebody whom a proxy or a password vouches for cannot label in another's name.
        by = who.who if who.vouched else plain(asked.by or "") or who.who
        note = plain(asked.note or "", NOTE_CHARACTERS_MAX)
        done = label_images(site.root, site.writing, ids, asked.label, by=by, source="api", note=note)
        return {"labelled": [asdict(one) for one in done]}


def _add_models(router: APIRouter, site: Site) -> None:
    @router.get("/models")
    def models(product: OfProduct = None) -> dict[str, Any]:
        """Versions, newest first: rows of the view `model_versions`."""
        with site.reading.connect() as connection:
            return {"models": [asdict(row) for row in versions.versions(connection, product)]}

    @router.get("/models/{product}/{version}")
    def model(product: Product, version: Version) -> dict[str, Any]:
        """One version with what it was made from."""
        with site.reading.connect() as connection:
            row = model_pages.version_of(connection, product, version)
        return model_pages.described(site, row)

    @router.post("/models/{product}/{version}/promote")
    def promote(request: Request, product: Product, version: Version, asked: Change) -> dict[str, Any]:
        """Make a version the champion of its product, once its files are checked."""
        who = caller(request).who
        return asdict(promotion.promote(site, product, version, asked.reason, who, asked.expected))

    @router.post("/models/{product}/rollback")
    def rollback(request: Request, product: Product, asked: Change) -> dict[str, Any]:
        """Make the champion before this one champion again."""
        return asdict(promotion.roll_back(site, product, asked.reason, caller(request).who, asked.expected))

    @router.get("/retrainings")
    def retraining_runs(product: OfProduct = None, limit: Limit = 100) -> dict[str, Any]:
        """Retrainings, newest first."""
        with site.reading.connect() as connection:
            return {"retrainings": [asdict(row) for row in retrainings.runs(connection, product, limit)]}


def _add_thresholds(router: APIRouter, site: Site) -> None:
    @router.get("/thresholds")
    def all_thresholds() -> dict[str, Any]:
        """The rate and threshold in force for each product that has a champion, and who chose them."""
        with site.reading.connect() as connection:
            products = sorted(versions.champions(connection))
            choices = thresholds.latest(connection)
        found = []
        for product in products:
            one = previewed(site, product, _rate_of(product), 1)
            choice = choices.get(product)
            same = {name: getattr(one, name) for name in ("product", "version", "policy", "lowest_rate")}
            in_force = {"false_alarm_rate": one.present_rate, "threshold": one.present_threshold}
            found.append(same | in_force | {"chosen": asdict(choice) if choice is not None and one.chosen else None})
        return {"thresholds": found}

    @router.get("/thresholds/{product}")
    def explore(
        product: Product,
        rate: Annotated[float | None, Query(gt=0, lt=1, description="rate to try; present one if not given")] = None,
        last: Annotated[int, Query(ge=1, le=10_000, description="latest images to try it on")] = LAST,
    ) -> dict[str, Any]:
        """What another false-alarm rate would do to the latest images of a product; changes nothing."""
        return asdict(previewed(site, product, _rate_of(product) if rate is None else rate, last))

    @router.post("/thresholds/{product}")
    def choose(request: Request, product: Product, asked: NewRate) -> dict[str, Any]:
        """Choose the false-alarm rate of a product; the daemon judges by it within a second, without a restart."""
        choose_for(site, product, asked.false_alarm_rate, caller(request).who)
        return asdict(previewed(site, product, asked.false_alarm_rate or _rate_of(product)))

    def _rate_of(product: str) -> float:
        with site.reading.connect() as connection:
            trained = champion_of(site.root, connection, product).trained_false_alarm_rate
            return thresholds.chosen(connection).get(product) or site.settings.false_alarm_rate_of(product, trained)


def _add_figures(router: APIRouter, site: Site) -> None:
    @router.get("/energy")
    def energy(since: Since = None, per: Literal["kind", "day"] = "kind") -> dict[str, Any]:
        """Wh and grams of CO2e per kind or per UTC day, of the last 30 days or from `since` on, a year at most."""
        now = datetime.now(UTC)
        begin = moment("since", since) or now - timedelta(days=30)
        if begin < now - timedelta(days=DAYS_MAX):
            raise UsageError(f"since: expected at most {DAYS_MAX} days ago; found {since!r}")
        with site.reading.connect() as connection:
            rows = energy_rows.per_kind(connection, begin) if per == "kind" else energy_rows.per_day(connection, begin)
        return {"since": begin, f"per_{per}": rows}

    @router.get("/status")
    def status() -> dict[str, Any]:
        """How the daemons are, what was decided in the last 24 hours, and what is wrong, as sentences."""
        now = datetime.now(UTC)
        with site.reading.connect() as connection:
            document = {
                "version": __version__,
                "champions": {name: row.version for name, row in sorted(versions.champions(connection).items())},
                "states_24h": tallies.per_state(connection, now - timedelta(days=1)),
                "anomalies_24h": images.count(connection, since=now - timedelta(days=1), verdict="anomaly"),
                "last_received_at": tallies.newest(connection),
            }
        return document | health(site)

    @router.get("/drift")
    def drift(product: OfProduct = None) -> dict[str, Any]:
        """The drift state of each product whose present champion has shown one, with its cause and first image."""
        with site.reading.connect() as connection:
            found = drift_rows.latest(connection)
        return {"drift": [asdict(row) for name, row in sorted(found.items()) if product in (None, name)]}
