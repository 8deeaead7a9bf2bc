"""The page below a path of a host that it shares, such as `/tamis`: only here and in `Site.page` is that path known.

Routes, links, redirects and cookies are written as if the page had a host of its own. On the way in the prefix is taken
from the path, if the proxy left it there; on the way out it is put before each address of ours.
"""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# In what our templates write, an attribute with an address of our own; text and values are escaped, so none looks so.
_ADDRESSES = re.compile(r'(\s(?:href|src|action|formaction|hx-[a-z-]+)=")(?=/(?!/))')
_COOKIE_PATH = re.compile(r"(;\s*path=)/(?=;|$)", re.IGNORECASE)
_OF_HTMX = ("hx-redirect", "hx-location", "hx-push-url", "hx-replace-url")


def with_prefix(html: str, prefix: str) -> str:
    """Return `html`, made of our templates, with `prefix` before each address of the page's own."""
    return _ADDRESSES.sub(lambda match: match[1] + prefix, html) if prefix else html


class Prefixed:
    """Wraps `app`, which knows nothing of the `prefix`: a path without a `/` at its end, not empty."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        host = Headers(scope=scope).get("host", "")

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                self._readdress(MutableHeaders(scope=message), host)
            await send(message)

        await self._app(self._without_prefix(scope), receive, sending)

    def _without_prefix(self, scope: Scope) -> Scope:
        path = scope["path"]
        if path != self._prefix and not path.startswith(f"{self._prefix}/"):
            return scope
        # The prefix has no character that is written in two ways.
        raw = scope.get("raw_path") or b""
        shorter = raw.removeprefix(self._prefix.encode()) if raw.startswith(self._prefix.encode()) else raw
        return {**scope, "path": path.removeprefix(self._prefix) or "/", "raw_path": shorter or b"/"}

    def _readdress(self, headers: MutableHeaders, host: str) -> None:
        for name in ("location", *_OF_HTMX):
            if (address := headers.get(name)) is not None:
                headers[name] = self._outside(address, host)
        cookies = headers.getlist("set-cookie")
        if cookies:
            del headers["set-cookie"]
            for cookie in cookies:
                headers.append("set-cookie", _COOKIE_PATH.sub(rf"\g<1>{self._prefix}", cookie))

    def _outside(self, address: str, host: str) -> str:
        parts = urlsplit(address)
        if parts.netloc == host and parts.scheme in ("http", "https"):
            # Made of the request's own address: whether a browser speaks TLS to the proxy is not known here.
            address = address.partition(host)[2] or "/"
        return self._prefix + address if address.startswith("/") and not address.startswith("//") else address
