"""The page *Models*: versions side by side, what each was trained on, and which is the champion."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from dataclasses import asdict
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from models import registry
from models.errors import ModelError
from models.manifest import Manifest
from service.errors import TamisError, UsageError
from service.root import MODELS, REPORTS
from service.storage import retrainings, shadow, versions
from service.storage.versions import VersionRow
from service.web.images import NotShown, read_below
from service.web.security import Caller, caller, plain
from service.web.site import NotFound, Site, segment

COMPARED_MAX = 6
COMPARED_FIRST = 4
RUNS = 20
REASON_CHARACTERS_MAX = 500
REPORT_BYTES_MAX = 20_000_000
LIST_BYTES_MAX = 50_000_000
# A report is a page of its own with its style and images in it. It may do nothing and reach nothing.
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'"
)


def routes(site: Site) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/models")
    def overview(request: Request) -> Response:
        with site.reading.connect() as connection:
            rows = versions.versions(connection)
        products: dict[str, list[VersionRow]] = {}
        for row in rows:
            products.setdefault(row.product, []).append(row)
        return site.page(request, "models.html", products=products)

    @router.get("/models/{product}")
    def of_product(request: Request, product: str) -> Response:
        with site.reading.connect() as connection:
            rows = versions_of(connection, product)
            runs = retrainings.runs(connection, product, RUNS)
            previous = versions.previous(connection, product)
            chosen = request.query_params.getlist("v")[:COMPARED_MAX] or _first(rows)
            compared = [row for row in rows if row.version in chosen]
            shadows = {row.version: asdict(shadow.summary(connection, product, row.version)) for row in compared}
        return site.page(
            request,
            "model.html",
            product=product,
            versions=rows,
            compared=[described(site, row) | {"shadow": shadows[row.version]} for row in compared],
            runs=[_run(site, run) for run in runs],
            previous=previous,
        )

    @router.get("/models/{product}/rollback")
    def confirm_rollback(request: Request, product: str) -> Response:
        with site.reading.connect() as connection:
            now, then = _before(connection, product)
        return site.page(request, "promote.html", action="roll back", product=product, now=now, then=then)

    @router.get("/models/{product}/{version}/promote")
    def confirm_promotion(request: Request, product: str, version: str) -> Response:
        with site.reading.connect() as connection:
            then = version_of(connection, product, version)
            now = versions.champion(connection, product)
        return site.page(request, "promote.html", action="promote", product=product, now=now, then=then)

    @router.post("/models/{product}/rollback")
    def do_rollback(request: Request, product: str) -> Response:
        asked = caller(request)
        roll_back(site, product, asked.field("reason"), asked.who, _confirmed(asked))
        return RedirectResponse(f"/models/{segment(product)}", 303)

    @router.post("/models/{product}/{version}/promote")
    def do_promotion(request: Request, product: str, version: str) -> Response:
        asked = caller(request)
        promote(site, product, version, asked.field("reason"), asked.who, _confirmed(asked))
        return RedirectResponse(f"/models/{segment(product)}", 303)

    @router.get("/models/{product}/{version}/report")
    def report(product: str, version: str) -> Response:
        with site.reading.connect() as connection:
            row = version_of(connection, product, version)
        try:
            # By what is on record, never by what the address says.
            content = read_below(site.root, _report_path(row), REPORT_BYTES_MAX, frozenset({REPORTS}))
        except NotShown:
            raise NotFound(f"report of {product}/{version}: expected one of a retraining; found none") from None
        headers = {"content-security-policy": REPORT_POLICY, "cache-control": "private, max-age=3600"}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)

    return router


def versions_of(connection: Connection, product: str) -> list[VersionRow]:
    """Return the versions of `product`, newest first. Raises NotFound where there are none."""
    rows = versions.versions(connection, product)
    if not rows:
        raise NotFound(f"product: expected one with versions; found {product[:100]!r}")
    return rows


def version_of(connection: Connection, product: str, version: str) -> VersionRow:
    """Return one version. Raises NotFound, with those that there are."""
    row = versions.get(connection, product, version)
    if row is None:
        known = ", ".join(one.version for one in versions_of(connection, product)[:10])
        raise NotFound(f"model {product[:100]}/{version[:100]}: expected one of {known}")
    return row


def promote(
    site: Site, product: str, version: str, reason: str | None, by: str | None, expected: str | None = None
) -> VersionRow:
    """Make a version the champion of its product once its files are checked; return it.

    With `expected` only where that is the champion still: two people may be at it. Raises NotFound, TamisError, and
    ModelCorrupt for files that are not what was registered.
    """
    with site.reading.connect() as connection:
        row = version_of(connection, product, version)
    # Before the transaction: reading all files takes long, and they never change.
    registry.verify(site.root / MODELS / row.product / row.version, row.sha256)
    with site.writing.begin() as connection:
        _check_expected(connection, product, expected)
        versions.promote(connection, product, version, _reason("promoted", reason, by))
        found = versions.champion(connection, product)
    assert found is not None
    return found


def roll_back(site: Site, product: str, reason: str | None, by: str | None, expected: str | None = None) -> VersionRow:
    """Make the champion before this one champion again once its files are checked; return it. Raises as `promote`."""
    with site.reading.connect() as connection:
        _, then = _before(connection, product)
    registry.verify(site.root / MODELS / then.product / then.version, then.sha256)
    with site.writing.begin() as connection:
        _check_expected(connection, product, expected)
        if versions.previous(connection, product) != then.version:
            raise TamisError(f"product {product}: the champions changed meanwhile; look at them again")
        return versions.rollback(connection, product, _reason("rolled back", reason, by))


def described(site: Site, row: VersionRow) -> dict[str, Any]:
    """Return a version with what its folder says of it; a folder that cannot be read is said, not fatal."""
    found: dict[str, Any] = {**asdict(row), "facts": {}, "roles": {}, "report": _has_report(site, row), "damaged": None}
    folder = f"{MODELS}/{row.product}/{row.version}"
    try:
        manifest = registry.read_manifest(site.root / folder, row.sha256).manifest
    except ModelError as error:
        return found | {"damaged": str(error)}
    found["facts"] = _facts(manifest)
    found["calibration_images"] = len(manifest.calibration.scores)
    try:
        listed = read_below(site.root, f"{folder}/{registry.IMAGES}", LIST_BYTES_MAX, frozenset({MODELS}))
    except NotShown as error:
        return found | {"damaged": str(error)}
    reader = csv.DictReader(io.StringIO(listed.decode("utf-8", "replace")))
    found["roles"] = dict(sorted(Counter(str(line.get("role")) for line in reader).items()))
    return found


def _facts(manifest: Manifest) -> dict[str, str]:
    """Return how a version was made, as its manifest says; what it does not say is left out."""
    training = manifest.training
    height, width = manifest.input_size
    found = {
        "profile": manifest.profile,
        "input": f"{width} × {height} px",
        "backbone": manifest.backbone.name if manifest.backbone else None,
        "began with": training.warm_start,
        "seed": training.seed,
        "steps": training.steps,
        "left out as doubtful": None if training.trimmed is None else len(training.trimmed),
        "training took": None if training.seconds is None else f"{training.seconds:.0f} s",
        "joint with": ", ".join(manifest.joint) if manifest.joint else None,
    }
    return {name: str(value) for name, value in found.items() if value is not None}


def _before(connection: Connection, product: str) -> tuple[VersionRow, VersionRow]:
    """Return the champion and the version that a rollback would make it. Raises NotFound or TamisError."""
    versions_of(connection, product)
    now, previous = versions.champion(connection, product), versions.previous(connection, product)
    if now is None or previous is None:
        raise TamisError(
            f"product {product}: expected an earlier champion to go back to; found {now.version if now else 'none'}"
            f"{' alone' if now else ''}"
        )
    return now, version_of(connection, product, previous)


def _confirmed(asked: Caller) -> str:
    """Return the champion that the page showed when it asked whether to go on. Raises UsageError where none did."""
    now = asked.field("now")
    if now is None:
        raise UsageError("now: expected the champion that the question named; found none. Open the question first")
    return now


def _check_expected(connection: Connection, product: str, expected: str | None) -> None:
    champion = versions.champion(connection, product)
    found = champion.version if champion else "none"
    if expected is not None and expected != found:
        raise TamisError(
            f"product {product}: expected {expected} as its champion, as the page showed; found {found}."
            " Somebody changed it meanwhile: look at the versions again"
        )


def _reason(action: str, reason: str | None, by: str | None) -> str:
    said = f"{action} by {by or 'somebody'} on the page"
    why = plain(reason or "", REASON_CHARACTERS_MAX)
    return f"{said}: {why}" if why else said


def _first(rows: list[VersionRow]) -> list[str]:
    champion = [row.version for row in rows if row.state == "champion"]
    return [*champion, *(row.version for row in rows if row.version not in champion)][:COMPARED_FIRST]


def _report_path(row: VersionRow) -> str:
    return f"{REPORTS}/{row.product}/{row.version}.html"


def _has_report(site: Site, row: VersionRow) -> bool:
    return (site.root / _report_path(row)).is_file()


def _run(site: Site, run: retrainings.RetrainingRow) -> dict[str, Any]:
    try:
        gate = json.loads(run.gate) if run.gate else None
    except ValueError:
        gate = None
    made = run.challenger is not None and (site.root / f"{REPORTS}/{run.product}/{run.challenger}.html").is_file()
    return asdict(run) | {"gate": gate, "has_report": made}
