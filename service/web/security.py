"""The guard before every page: who may call, by which name, from where, and who they say they are.

Pure ASGI, around everything else, so that no route can forget it: the Host must be one of ours, a write must come
from our own pages and carry their token (or, to the API, be JSON and from no other site), a password is asked for
where there is one. Every answer leaves with the headers that keep foreign scripts out.
"""

from __future__ import annotations

import base64
import binascii
import time
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.cookies import CookieError, SimpleCookie
from ipaddress import ip_address
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from service.web.sessions import Password, Session, Sessions

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

BODY_BYTES_MAX = 1_000_000
FIELDS_MAX = 5000
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
    """Who is asking: the session whose token forms carry, and a name, None where nobody said one.

    `vouched` is whether a proxy or a password's user said the name, and not the caller's own cookie.
    """

    session: Session
    who: str | None
    vouched: bool
    form: list[tuple[str, str]]

    def field(self, name: str) -> str | None:
        """Return the last value of a field of the form that was sent, stripped; None where it is missing or empty."""
        values = [value for key, value in self.form if key == name]
        return (values[-1].strip() or None) if values else None

    def fields(self, name: str) -> list[str]:
        """Return all values of a field of the form that was sent."""
        return [value for key, value in self.form if key == name]


def caller(request: Request) -> Caller:
    """Return who is asking, as the guard found."""
    found: Caller = request.scope["tamis.caller"]
    return found


class Refused(Exception):
    """The guard lets this request go no further."""

    def __init__(self, status: HTTPStatus, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.headers = headers or {}


class Guard:
    """Wraps `app`; `hosts` are the names, without ports, that it may be called by."""

    def __init__(
        self,
        app: App,
        *,
        hosts: Iterable[str],
        sessions: Sessions,
        password: Password | None,
        user_header: str | None,
        cookie: str,
    ) -> None:
        self._app = app
        self._hosts = frozenset(_host_name(host) for host in hosts)
        self.sessions = sessions
        self._password = password
        self._user_header = user_header
        self.cookie = cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        request = Request(scope)
        try:
            body = await self._judge(request, receive)
        except Refused as refused:
            response = _answer(request, refused)
            await response(scope, receive, self._sending(request, send, None))
            return
        session: Session = scope["tamis.caller"].session
        await self._app(scope, _replayed(body, receive), self._sending(request, send, session))

    async def _judge(self, request: Request, receive: Receive) -> bytes:
        """Put the `Caller` into the scope and return the body of a write; raises Refused."""
        self._check_host(request)
        api, write = request.url.path.startswith(API), request.method not in READS
        if write:
            _check_site(request)
        session, user = self._session(request)
        if self._password is not None and not session.signed_in and not _is_open(request.url.path):
            raise _sign_in(request, api)
        who, vouched = self._who(request, user)
        body, form = b"", []
        if write:
            body = await _body(request, receive)
            if api:
                _check_json(request)
            else:
                form = _form(request, body)
                _check_token(request, session, form)
        request.scope["tamis.caller"] = Caller(session, who, vouched, form)
        return body

    def _check_host(self, request: Request) -> None:
        named = request.headers.getlist("host")
        if len(named) != 1 or _host_name(named[0]) not in self._hosts:
            shown = ", ".join(named)[:200] or "none"
            raise Refused(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host: expected one of {', '.join(sorted(self._hosts))}; found {shown}. The setting web_hosts"
                " names others that the page may be called by",
            )

    def _session(self, request: Request) -> tuple[Session, str | None]:
        """Return the session of the request, a new one where it has none, and the user that it names by password."""
        now = time.time()
        given = _cookies(request).get(self.cookie)
        session = self.sessions.read(given, now) if given else None
        if session is not None and (session.signed_in or self._password is None):
            return session, None
        user = self._by_password(request) if self._password is not None else None
        if user is not None:
            return self.sessions.new(now, signed_in=True), user or None
        return session or self.sessions.new(now, signed_in=False), None

    def _by_password(self, request: Request) -> str | None:
        """Return the user of a right password in the Authorization header, '' without one; None where there is none."""
        scheme, _, credentials = request.headers.get("authorization", "").partition(" ")
        if not credentials:
            return None
        user, given = "", credentials.strip()
        if scheme.lower() == "basic":
            try:
                user, _, given = base64.b64decode(given, validate=True).decode().partition(":")
            except (binascii.Error, ValueError):
                return None
        elif scheme.lower() != "bearer":
            return None
        self.try_password(request, given)
        return user

    def try_password(self, request: Request, given: str) -> None:
        """Return where `given` is the password; raises Refused where it is not, or was tried too often."""
        assert self._password is not None
        address, now = request.client.host if request.client else "", time.monotonic()
        if wait_s := self._password.wait_s(address, now):
            raise Refused(
                HTTPStatus.TOO_MANY_REQUESTS,
                f"password: tried too often; try again in {wait_s:.0f} s",
                {"retry-after": f"{wait_s:.0f}"},
            )
        if not self._password.fits(given, address, now):
            raise Refused(HTTPStatus.UNAUTHORIZED, "password: that is not it")

    def _who(self, request: Request, user: str | None) -> tuple[str | None, bool]:
        if self._user_header is not None:
            said = self._by_header(request)
            if said is None and self._password is None and not _is_open(request.url.path):
                raise Refused(
                    HTTPStatus.FORBIDDEN,
                    f"header {self._user_header}: expected who is asking, as the reverse proxy says it; found none",
                )
            if said is not None:
                return said, True
        if user is not None and (name := plain(user)) is not None:
            return name, True
        return plain(unquote(_cookies(request).get(WHO_COOKIE, ""))), False

    def _by_header(self, request: Request) -> str | None:
        assert self._user_header is not None
        given = request.headers.getlist(self._user_header)
        if len(given) > 1:
            # One is the caller's own: the proxy added to it where it should have taken its place.
            raise Refused(
                HTTPStatus.FORBIDDEN,
                f"header {self._user_header}: expected it once, from the proxy; found {len(given)}",
            )
        said = given[0] if given else ""
        with suppress(UnicodeDecodeError):
            # Read as Latin-1, as headers are; most proxies write UTF-8.
            said = said.encode("latin-1").decode()
        return plain(said)

    def _sending(self, request: Request, send: Send, session: Session | None) -> Send:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                # A page that may be kept is the same for all, and one that sets the cookie itself knows better.
                own = headers["cache-control"] == "no-store" and "set-cookie" not in headers
                new = session is not None and _cookies(request).get(self.cookie) != session.cookie
                if session is not None and new and own and not request.url.path.startswith(API):
                    headers.append("set-cookie", cookie_header(request, self.cookie, session.cookie))
            await send(message)

        return sending


def cookie_header(request: Request, name: str, value: str, age_s: int | None = None) -> str:
    """Return a Set-Cookie header that scripts cannot read and other sites do not send."""
    parts = [f"{name}={value}", "Path=/", "HttpOnly", "SameSite=Strict"]
    if age_s is not None:
        parts.append(f"Max-Age={age_s}")
    # Behind a proxy that speaks TLS; a caller who says so without one only loses their own cookie.
    if request.url.scheme == "https" or request.headers.get("x-forwarded-proto") == "https":
        parts.append("Secure")
    return "; ".join(parts)


def plain(said: str, characters_max: int = WHO_CHARACTERS_MAX) -> str | None:
    """Return what somebody said as it is kept: printable, in one line, of bounded length; None where it is nothing."""
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
    """Return the names that the page may be called by: those set, and this machine's own."""
    wildcard = web_host in ("", "0.0.0.0", "::")
    return ["localhost", "127.0.0.1", "::1", *([] if wildcard else [web_host]), *web_hosts]


def _host_name(host: str) -> str:
    """Return `host` without its port and brackets, in small letters; '' for what is no host."""
    try:
        parts = urlsplit(f"//[{host}]" if host.count(":") > 1 and "[" not in host else f"//{host}")
        _ = parts.port
        # Nothing but host and port: no user, no path.
        return "" if parts.path or parts.query or "@" in parts.netloc else (parts.hostname or "").rstrip(".")
    except ValueError:
        return ""


def _check_site(request: Request) -> None:
    site = request.headers.get("sec-fetch-site")
    if site is not None and site not in ("same-origin", "none"):
        raise Refused(HTTPStatus.FORBIDDEN, f"origin: expected a request from this page; found one from {site}")
    origin = request.headers.get("origin")
    if origin is None:
        return
    if urlsplit(origin).netloc.lower() != request.headers["host"].lower():
        raise Refused(HTTPStatus.FORBIDDEN, f"origin: expected {request.headers['host']}; found {origin[:200]}")


def _check_json(request: Request) -> None:
    found = request.headers.get("content-type", "")
    if found.partition(";")[0].strip().lower() != "application/json":
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE, f"content-type: expected application/json; found {found[:100] or 'none'}"
        )


def _check_token(request: Request, session: Session, form: list[tuple[str, str]]) -> None:
    import hmac

    given = request.headers.get("x-csrf-token") or next((value for key, value in form if key == "csrf"), "")
    if not hmac.compare_digest(given.encode("utf-8", "replace"), session.token.encode()):
        raise Refused(
            HTTPStatus.FORBIDDEN,
            "form: expected the token of this session; found another. The page was started anew since, or it was"
            " open for too long: load it again",
        )


def _form(request: Request, body: bytes) -> list[tuple[str, str]]:
    found = request.headers.get("content-type", "")
    if body and found.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise Refused(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"content-type: expected application/x-www-form-urlencoded; found {found[:100] or 'none'}",
        )
    try:
        return parse_qsl(body.decode("ascii"), keep_blank_values=True, max_num_fields=FIELDS_MAX, errors="strict")
    except ValueError:
        raise Refused(
            HTTPStatus.BAD_REQUEST, f"form: expected at most {FIELDS_MAX} fields of UTF-8; found something else"
        ) from None


async def _body(request: Request, receive: Receive) -> bytes:
    too_long = Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"body: expected at most {BODY_BYTES_MAX} bytes")
    announced = request.headers.get("content-length", "0")
    if not (announced.isascii() and announced.isdigit()) or int(announced) > BODY_BYTES_MAX:
        raise too_long
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise Refused(HTTPStatus.BAD_REQUEST, "body: expected all of it; found the end of the connection")
        body += message.get("body", b"")
        if len(body) > BODY_BYTES_MAX:
            raise too_long
        if not message.get("more_body", False):
            return bytes(body)


def _replayed(body: bytes, receive: Receive) -> Receive:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


def _is_open(path: str) -> bool:
    return path == "/login" or path.startswith("/static/")


def _sign_in(request: Request, api: bool) -> Refused:
    message = "password: expected one; found none"
    headers: dict[str, str] = {}
    if api:
        headers["www-authenticate"] = 'Basic realm="Tamis", charset="UTF-8"'
    elif request.headers.get("hx-request"):
        headers["hx-redirect"] = "/login"
    elif request.method in READS and not request.url.path.startswith("/images/"):
        back = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        headers["location"] = f"/login?back={quote(back, safe='')}"
    return Refused(HTTPStatus.UNAUTHORIZED, message, headers)


def _answer(request: Request, refused: Refused) -> Response:
    if "location" in refused.headers:
        return RedirectResponse(refused.headers["location"], HTTPStatus.SEE_OTHER)
    if request.url.path.startswith(API):
        return JSONResponse({"error": str(refused)}, refused.status, refused.headers)
    return PlainTextResponse(f"{refused}\n", refused.status, refused.headers)


def _cookies(request: Request) -> dict[str, str]:
    # Starlette's own reader unquotes; ours are plain, and what is no cookie is none.
    found: dict[str, str] = {}
    for header in Headers(scope=request.scope).getlist("cookie"):
        try:
            found |= {name: morsel.value for name, morsel in SimpleCookie(header).items()}
        except CookieError:
            continue
    return found
