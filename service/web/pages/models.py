"""The page *Models*: versions side by side, what each was trained on, and which is the champion."""

from __future__ import annotations

import io
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import Response

from models import registry
from models.data.image_list import parse_image_list
from models.errors import DatasetError, ModelError
from models.manifest import Manifest
from service.root import MODELS, REPORTS
from service.storage import retrainings, shadow, versions
from service.storage.versions import VersionRow
from service.web.images import NotShown, read_below
from service.web.site import NotFound, Site

COMPARED_MAX = 6
COMPARED_FIRST = 4
RUNS = 20
REPORT_BYTES_MAX = 20_000_000
LIST_BYTES_MAX = 50_000_000
# A report is a page with its own style and images in it. It may run and load nothing.
REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:; frame-ancestors 'none'; base-uri 'none';"
    " form-action 'none'"
)


def add_routes(router: APIRouter, site: Site) -> None:
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

    @router.get("/models/{product}/{version}/report")
    def report(product: str, version: str) -> Response:
        with site.reading.connect() as connection:
            row = version_of(connection, product, version)
        try:
            # The path comes from the database, never from the address.
            content = read_below(
                site.root, _report_path(row.product, row.version), REPORT_BYTES_MAX, frozenset({REPORTS})
            )
        except NotShown:
            raise NotFound(f"report of {product}/{version}: expected one of a retraining; found none") from None
        headers = {"content-security-policy": REPORT_POLICY, "cache-control": "private, max-age=3600"}
        return Response(content, media_type="text/html; charset=utf-8", headers=headers)


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


def described(site: Site, row: VersionRow) -> dict[str, Any]:
    """Return a version with what its folder says of it; a folder that cannot be read is said, not fatal."""
    report = (site.root / _report_path(row.product, row.version)).is_file()
    found: dict[str, Any] = {**asdict(row), "facts": {}, "roles": {}, "report": report, "damaged": None}
    folder = f"{MODELS}/{row.product}/{row.version}"
    try:
        manifest = registry.read_manifest(site.root / folder, row.sha256).manifest
    except ModelError as error:
        return found | {"damaged": str(error)}
    found["facts"] = _facts(manifest)
    found["calibration_images"] = len(manifest.calibration.scores)
    try:
        listed = read_below(site.root, f"{folder}/{registry.IMAGES}", LIST_BYTES_MAX, frozenset({MODELS}))
        images = parse_image_list(io.StringIO(listed.decode("utf-8", "replace")), Path(folder, registry.IMAGES))
    except (NotShown, DatasetError) as error:
        return found | {"damaged": str(error)}
    found["roles"] = dict(sorted(Counter(image.role for image in images).items()))
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


def _first(rows: list[VersionRow]) -> list[str]:
    champion = [row.version for row in rows if row.state == "champion"]
    return [*champion, *(row.version for row in rows if row.version not in champion)][:COMPARED_FIRST]


def _report_path(product: str, version: str) -> str:
    return f"{REPORTS}/{product}/{version}.html"


def _run(site: Site, run: retrainings.RetrainingRow) -> dict[str, Any]:
    made = run.challenger is not None and (site.root / _report_path(run.product, run.challenger)).is_file()
    return asdict(run) | {"has_report": made}
