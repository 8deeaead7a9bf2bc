"""What the pages share: the root, its settings and database, templates and common answers.

Made once by `service.web.app.create_app`; owns nothing that a page changes but its caches.
"""

from __future__ import annotations

import hashlib
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import quote, urlencode

from fastapi import Form
from jinja2 import Environment, PackageLoader, StrictUndefined
from sqlalchemy import Engine
from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from service import __version__
from service.errors import TamisError
from service.imaging.decoder import Decoder
from service.settings import Settings
from service.web import formatting as shown
from service.web.images import Thumbnails
from service.web.prefix import with_prefix
from service.web.security import caller
from service.web.sessions import Sessions

STATIC = Path(__file__).with_name("static")
# Decoding is the slow part; two processes leave room for people who label meanwhile.
IMAGE_DECODERS = 2
# They open files and wait for what decodes: enough that images which are ready are not kept by slow ones.
IMAGE_THREADS = 12
# Somebody is waiting: less than the daemon has.
SHOWN_WITHIN_S = 10.0
# What an image may take here, bytes: enough for one of 60 megapixels without alpha in 8 bits.
SHOWN_MEMORY_MAX = 450_000_000
REFUSED_FOR_S = 600.0
REFUSED_MAX = 10_000

FormText = Annotated[str | None, Form()]
"""A field of a form; None where it is missing or empty."""


class NotFound(TamisError):
    """There is no such image, version or page."""


@dataclass
class Site:
    """The root that is shown, and what is needed for it; `reading` never writes, `writing` does so at once."""

    root: Path
    settings: Settings
    reading: Engine
    writing: Engine
    decoder: Decoder
    refused: RefusedImages
    thumbnails: Thumbnails
    pool: ThreadPoolExecutor
    templates: Environment
    sessions: Sessions | None

    def page(self, request: Request, template: str, status: int = 200, **values: Any) -> Response:
        """Return the page that `template` makes of `values`."""
        who = caller(request)
        html = self.templates.get_template(template).render(
            who=who.who,
            vouched=who.vouched,
            path=request.url.path,
            has_password=self.settings.web_password is not None,
            prefix=self.settings.web_path_prefix,
            **values,
        )
        return HTMLResponse(with_prefix(html, self.settings.web_path_prefix), status)


class RefusedImages:
    """Images that took too much when they were last read here, by id and kind; not tried again for a while."""

    def __init__(self) -> None:
        self._until: dict[tuple[str, str], float] = {}

    def __contains__(self, image: tuple[str, str]) -> bool:
        return self._until.get(image, 0.0) > time.monotonic()

    def add(self, image: tuple[str, str]) -> None:
        if len(self._until) >= REFUSED_MAX:
            self._until.clear()
        self._until[image] = time.monotonic() + REFUSED_FOR_S


def templates() -> Environment:
    """Return the templates: what is not marked as safe is escaped, and an unknown name is an error."""
    environment = Environment(
        loader=PackageLoader("service.web"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    filters = (shown.number, shown.count, shown.share, shown.moment, shown.size, segment)
    environment.filters |= {one.__name__: one for one in filters}
    hashes = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:12] for path in STATIC.iterdir() if path.is_file()
    }

    def static(name: str) -> str:
        return f"/static/{name}?v={hashes[name]}"

    environment.globals |= {"static": static, "version": __version__}
    return environment


def segment(name: str) -> str:
    """Return `name` as one segment of a path."""
    return quote(name, safe="")


def back_to(back: str | None, otherwise: str) -> Response:
    """Return a redirect to `back` if it is one of our pages, else to `otherwise`."""
    ours = back is not None and back.startswith("/") and not back.startswith(("//", "/\\")) and back.isprintable()
    return RedirectResponse(back if ours and back else otherwise, 303)


def query(**values: Any) -> str:
    """Return `values` that are neither None nor empty as a query with its `?`; '' for none."""
    given = {name: value for name, value in values.items() if value not in (None, "")}
    return f"?{urlencode(given)}" if given else ""


def is_part(request: Request) -> bool:
    """Return whether htmx, or our own script, asks for a part of a page."""
    return "hx-request" in request.headers
