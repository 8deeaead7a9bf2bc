"""Signing in and out where there is a password, and saying who one is where nobody else says it."""

from __future__ import annotations

import time
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.web.security import WHO_CHARACTERS_MAX, WHO_COOKIE, Refused, caller, cookie_header
from service.web.site import NotFound, Site, back_to

YEAR_S = 365 * 86_400


def routes(site: Site) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.get("/login")
    def login(request: Request, back: str = "/") -> Response:
        if site.settings.web_password is None:
            return RedirectResponse("/", 303)
        return site.page(request, "login.html", back=back, wrong=None)

    @router.post("/login")
    async def sign_in(request: Request) -> Response:
        guard = site.guard
        if site.settings.web_password is None or guard is None:
            raise NotFound("page: expected one that there is; no password is set")
        asked = caller(request)
        back = asked.field("back") or "/"
        # Not stripped: a password may end in a space.
        given = (asked.fields("password") or [""])[-1]
        try:
            guard.try_password(request, given)
        except Refused as refused:
            response = site.page(request, "login.html", refused.status, back=back, wrong=str(refused))
            response.headers.update(refused.headers)
            return response
        response = back_to(back, "/")
        session = guard.sessions.new(time.time(), signed_in=True)
        response.headers.append("set-cookie", cookie_header(request, guard.cookie, session.cookie))
        return response

    @router.post("/logout")
    def sign_out(request: Request) -> Response:
        guard = site.guard
        assert guard is not None
        response = RedirectResponse("/login", 303)
        response.headers.append("set-cookie", cookie_header(request, guard.cookie, "", age_s=0))
        return response

    @router.post("/who")
    def who(request: Request) -> Response:
        asked = caller(request)
        name = (asked.field("who") or "")[:WHO_CHARACTERS_MAX]
        response = back_to(asked.field("back"), "/")
        value = quote(name, safe="")
        response.headers.append("set-cookie", cookie_header(request, WHO_COOKIE, value, YEAR_S if name else 0))
        return response

    return router
