"""The guard before every page: who may call, under which host name, from which site, and who they say they are.

Pure ASGI, around everything else, so that no route can forget it. Every answer leaves with the headers that keep
foreign scripts out.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address
from urllib.parse import quote, unquote, urlsplit

from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.web.sessions import Sessions

BODY_BYTES_MAX = 1_000_000
WHO_CHARACTERS_MAX = 100
WHO_COOKIE = "tamis_who"
API = "/api/"
READS = frozenset({"GET", "HEAD"})

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; form-action 'self';"
    " frame-ancestors 'none'; base-uri 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    # Not `no-referrer`: browsers then send forms with `Origin: null`, and where they come from cannot be checked.
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}


@dataclass(frozen=True, slots=True)
class Caller:
    """The name of who is asking; None if it was not given.

    `vouched` tells whether the name came from a proxy or with a password, and not from the caller's own cookie.
    """

    who: str | None
    vouched: bool


def caller(request: Request) -> Caller:
    """Return who is asking, as the guard found."""
    found: Caller = request.scope["tamis.caller"]
    return found


class Guard:
    """Wraps `app`; `hosts` are the host names, without ports, that it answers to."""

    def __init__(
        self, app: ASGIApp, *, hosts: Iterable[str], sessions: Sessions | None, user_header: str | None
    ) -> None:
        self._app = app
        self._hosts = frozenset(_host_name(host) for host in hosts)
        self._sessions = sessions
        self._user_header = user_header

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request, app = Request(scope), self._app
        try:
            scope["tamis.caller"] = self._admit(request)
        except HTTPException as refusal:
            app = _answer(request, refusal)
        await app(scope, receive if request.method in READS else _bounded(receive), _with_headers(send))

    def _admit(self, request: Request) -> Caller:
        """Return who is asking. Raises HTTPException where the request may go no further."""
        self._check_host(request)
        write = request.method not in READS
        if write:
            _check_site(request)
        found = self._who(request, self._check_password(request))
        if write:
            _check_body(request)
        return found

    def _check_host(self, request: Request) -> None:
        named = request.headers.getlist("host")
        if len(named) != 1 or _host_name(named[0]) not in self._hosts:
            shown = ", ".join(named)[:200] or "none"
            raise HTTPException(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host: expected one of {', '.join(sorted(self._hosts))}; found {shown}. Other names go into"
                " the setting web_hosts",
            )

    def _check_password(self, request: Request) -> str | None:
        """Return the user that the Authorization header names, if any. Raises HTTPException for a stranger."""
        if self._sessions is None or self._sessions.is_signed_in(request):
            return None
        if (given := _credentials(request)) is not None:
            user, password = given
            self._sessions.check_password(request, password)
            return user
        if _is_open(request.url.path):
            return None
        raise _sign_in_first(request)

    def _who(self, request: Request, user: str | None) -> Caller:
        if self._user_header is not None:
            said = _by_header(request, self._user_header)
            if said is not None:
                return Caller(said, True)
            if self._sessions is None and not _is_open(request.url.path):
                raise HTTPException(
                    HTTPStatus.FORBIDDEN,
                    f"header {self._user_header}: expected the user's name from the reverse proxy; found none",
                )
        if name := plain(user or ""):
            return Caller(name, True)
        return Caller(plain(unquote(request.cookies.get(WHO_COOKIE, ""))), False)


def plain(said: str, characters_max: int = WHO_CHARACTERS_MAX) -> str | None:
    """Return `said` as it is stored: printable, on one line, of bounded length; None if nothing is left."""
    kept = "".join(one if one.isprintable() else " " * one.isspace() for one in said).strip()
    return kept[:characters_max] or None


def is_loopback(host: str) -> bool:
    """Return whether `host`, a name or an address, is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def names_of(web_host: str, web_hosts: Iterable[str]) -> list[str]:
    """Return the host names that the page answers to: this machine's own and those of the settings."""
    wildcard = web_host in ("", "0.0.0.0", "::")
    return ["localhost", "127.0.0.1", "::1", *([] if wildcard else [web_host]), *web_hosts]


def _host_name(host: str) -> str:
    """Return `host` without port and brackets, in lower case; '' if it is not a host."""
    try:
        parts = urlsplit(f"//[{host}]" if host.count(":") > 1 and "[" not in host else f"//{host}")
        _ = parts.port
        # Only host and port: no user, no path.
        return "" if parts.path or parts.query or "@" in parts.netloc else (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _check_site(request: Request) -> None:
    """Raise HTTPException for a write that another site caused, as the browser's own headers say.

    With neither header a form is refused: it may be an attack through an old browser. A program may call the API so, as
    no browser sends JSON to another site without asking first.
    """
    site, origin, host = (request.headers.get(name) for name in ("sec-fetch-site", "origin", "host"))
    if site not in (None, "same-origin", "none"):
        raise HTTPException(HTTPStatus.FORBIDDEN, f"origin: expected a request from this page; found one from {site}")
    if origin is not None and host is not None and origin.partition("://")[2].lower() != host.lower():
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            f"origin: expected {host}; found {origin[:200]}. A reverse proxy must pass on the header Host as it comes",
        )
    if site is None and origin is None and not request.url.path.startswith(API):
        raise HTTPException(
            HTTPStatus.FORBIDDEN,
            "origin: expected the header Origin or Sec-Fetch-Site, as browsers send them with a form; found neither."
            " Programs write to /api/v1",
        )


def _check_body(request: Request) -> None:
    announced = request.headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()) or int(announced) > BODY_BYTES_MAX:
        raise _too_long()
    api = request.url.path.startswith(API)
    expected = "application/json" if api else "application/x-www-form-urlencoded"
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != expected:
        raise HTTPException(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: expected {expected}; found {found[:100] or 'none'}"
        )


def _too_long() -> HTTPException:
    return HTTPException(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: expected at most {BODY_BYTES_MAX} bytes")


def _bounded(receive: Receive) -> Receive:
    """Return `receive`, but for a body that turns out to be longer than allowed it raises HTTPException."""
    total = 0

    async def bounded() -> Message:
        nonlocal total
        message = await receive()
        total += len(message.get("body", b""))
        if total > BODY_BYTES_MAX:
            raise _too_long()
        return message

    return bounded


def _with_headers(send: Send) -> Send:
    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers.setdefault(name, value)
        await send(message)

    return sending


def _credentials(request: Request) -> tuple[str, str] | None:
    """Return user ('' for none) and password of the Authorization header; None if it has no password."""
    scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
    given = credentials.strip()
    if scheme.lower() == "bearer" and credentials:
        return "", given
    if scheme.lower() == "basic" and credentials:
        with suppress(binascii.Error, ValueError):
            user, _, password = base64.b64decode(given, validate=True).decode().partition(":")
            return user, password
    return None


def _by_header(request: Request, name: str) -> str | None:
    given = request.headers.getlist(name)
    if len(given) > 1:
        # One came from the caller: the proxy added its own where it should have replaced it.
        raise HTTPException(
            HTTPStatus.FORBIDDEN, f"header {name}: expected it once, from the proxy; found {len(given)}"
        )
    said = given[0] if given else ""
    with suppress(UnicodeDecodeError):
        # Read as Latin-1, as headers are; most proxies write UTF-8.
        said = said.encode("latin-1").decode()
    return plain(said)


def _is_open(path: str) -> bool:
    return path == "/login" or path.startswith("/static/")


def _sign_in_first(request: Request) -> HTTPException:
    status, path, headers = HTTPStatus.UNAUTHORIZED, request.url.path, {}
    if path.startswith(API):
        headers["www-authenticate"] = 'Basic realm="Tamis", charset="UTF-8"'
    elif request.headers.get("hx-request"):
        headers["hx-redirect"] = "/login"
    elif request.method in READS and not path.startswith("/images/"):
        back = path + (f"?{request.url.query}" if request.url.query else "")
        status, headers["location"] = HTTPStatus.SEE_OTHER, f"/login?back={quote(back, safe='')}"
    return HTTPException(status, "password: expected one; found none", headers)


def _answer(request: Request, refusal: HTTPException) -> Response:
    if request.url.path.startswith(API):
        return JSONResponse({"error": refusal.detail}, refusal.status_code, refusal.headers)
    return PlainTextResponse(f"{refusal.detail}\n", refusal.status_code, refusal.headers)
