"""The pages that ask before they make another version the champion, and the change itself."""

from __future__ import annotations

from fastapi import APIRouter
from sqlalchemy import Connection
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from models import registry
from service.errors import TamisError, UsageError
from service.root import MODELS
from service.storage import versions
from service.storage.versions import VersionRow
from service.web.pages.models import version_of, versions_of
from service.web.security import caller, plain
from service.web.site import FormText, Site, segment

REASON_CHARACTERS_MAX = 500


def add_routes(router: APIRouter, site: Site) -> None:
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
    def do_rollback(request: Request, product: str, reason: FormText = None, now: FormText = None) -> Response:
        roll_back(site, product, reason, caller(request).who, _confirmed(now))
        return RedirectResponse(f"/models/{segment(product)}", 303)

    @router.post("/models/{product}/{version}/promote")
    def do_promotion(
        request: Request, product: str, version: str, reason: FormText = None, now: FormText = None
    ) -> Response:
        promote(site, product, version, reason, caller(request).who, _confirmed(now))
        return RedirectResponse(f"/models/{segment(product)}", 303)


def promote(
    site: Site, product: str, version: str, reason: str | None, by: str | None, expected: str | None = None
) -> VersionRow:
    """Make a version the champion of its product once its files are checked; return it.

    With `expected` only if that is still the champion: two people may change it at once. Raises NotFound, TamisError,
    and ModelCorrupt for files that are not what was registered.
    """
    with site.reading.connect() as connection:
        row = version_of(connection, product, version)
    # Before the transaction: reading all files takes long, and they never change.
    registry.verify(site.root / MODELS / row.product / row.version, row.sha256)
    with site.writing.begin() as connection:
        _check_expected(connection, product, expected)
        return versions.promote(connection, product, version, _reason("promoted", reason, by))


def roll_back(site: Site, product: str, reason: str | None, by: str | None, expected: str | None = None) -> VersionRow:
    """Make the champion before this one champion again once its files are checked; return it. Raises as `promote`."""
    with site.reading.connect() as connection:
        _, then = _before(connection, product)
    registry.verify(site.root / MODELS / then.product / then.version, then.sha256)
    with site.writing.begin() as connection:
        _check_expected(connection, product, expected)
        if versions.previous(connection, product) != then.version:
            raise TamisError(f"product {product}: the champion changed meanwhile; look at the versions again")
        return versions.rollback(connection, product, _reason("rolled back", reason, by))


def _before(connection: Connection, product: str) -> tuple[VersionRow, VersionRow]:
    """Return the champion and the version that a rollback would put in its place. Raises NotFound or TamisError."""
    versions_of(connection, product)
    now, previous = versions.champion(connection, product), versions.previous(connection, product)
    if now is None or previous is None:
        found = f"{now.version} alone" if now else "none"
        raise TamisError(f"product {product}: expected an earlier champion to go back to; found {found}")
    return now, version_of(connection, product, previous)


def _confirmed(now: str | None) -> str:
    """Return the champion that the confirmation page showed. Raises UsageError without one."""
    if now is None:
        raise UsageError("now: expected the champion shown by the confirmation page; found none. Open that page first")
    return now


def _check_expected(connection: Connection, product: str, expected: str | None) -> None:
    champion = versions.champion(connection, product)
    found = champion.version if champion else "none"
    if expected not in (None, found):
        raise TamisError(
            f"product {product}: expected {expected} as its champion, as the page showed; found {found}."
            " Somebody changed it meanwhile: look at the versions again"
        )


def _reason(action: str, reason: str | None, by: str | None) -> str:
    said = f"{action} by {by or 'somebody'} on the page"
    why = plain(reason or "", REASON_CHARACTERS_MAX)
    return f"{said}: {why}" if why else said
