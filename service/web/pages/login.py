"""The page *Sign in*, signing out, and the name that visitors give themselves."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Form
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response

from service.web.security import WHO_CHARACTERS_MAX, WHO_COOKIE
from service.web.sessions import set_cookie
from service.web.site import FormText, NotFound, Site, back_to

YEAR_S = 365 * 86_400


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/login")
    def login(request: Request, back: str = "/") -> Response:
        if site.sessions is None:
            return RedirectResponse("/", 303)
        return site.page(request, "login.html", back=back, wrong=None)

    @router.post("/login")
    async def sign_in(request: Request, password: Annotated[str, Form()] = "", back: FormText = None) -> Response:
        if site.sessions is None:
            raise NotFound("sign-in: expected the setting web_password; found none")
        try:
            site.sessions.check_password(request, password)
        except HTTPException as refusal:
            response = site.page(request, "login.html", refusal.status_code, back=back or "/", wrong=refusal.detail)
            response.headers.update(refusal.headers or {})
            return response
        response = back_to(back, "/")
        site.sessions.begin(request, response)
        return response

    @router.post("/logout")
    def sign_out(request: Request) -> Response:
        response = RedirectResponse("/login", 303)
        if site.sessions is not None:
            site.sessions.end(request, response)
        return response

    @router.post("/who")
    def say_who(request: Request, who: FormText = None, back: FormText = None) -> Response:
        response = back_to(back, "/")
        name = quote((who or "").strip()[:WHO_CHARACTERS_MAX], safe="")
        set_cookie(request, response, WHO_COOKIE, name, YEAR_S if name else 0)
        return response
