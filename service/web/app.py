"""Builds the web application of one root: its pages, its API, and the guard around them.

Nothing happens at import; `create_app` opens the database, and the end of the application's lifespan closes it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import anyio.to_thread
from fastapi import APIRouter, FastAPI
from starlette.types import ASGIApp

from service import __version__
from service.imaging.decoder_processes import DecoderProcesses, memory_needed
from service.settings import Settings
from service.storage.database.open import open_database
from service.web import api
from service.web.errors import add_error_answers
from service.web.images import Thumbnails
from service.web.pages import energy, files, image, login, promote, review, thresholds, today
from service.web.pages import models as model_pages
from service.web.prefix import Prefixed
from service.web.security import Guard, names_of
from service.web.sessions import Sessions
from service.web.site import (
    IMAGE_DECODERS,
    IMAGE_THREADS,
    SHOWN_MEMORY_MAX,
    SHOWN_WITHIN_S,
    RefusedImages,
    Site,
    templates,
)

# A person is waiting: better an early error than a page that hangs as long as the daemon would wait.
BUSY_TIMEOUT_S = 10.0
REQUEST_THREADS = 8


def create_app(root: Path, settings: Settings) -> ASGIApp:
    """Return the web application of `root`. Raises what `open_database` raises for a missing or outdated database."""
    password = settings.web_password
    decoder = DecoderProcesses(
        IMAGE_DECODERS,
        timeout_s=min(SHOWN_WITHIN_S, settings.decode_timeout_s),
        memory_max=min(SHOWN_MEMORY_MAX, memory_needed(settings.pixels_max, settings.file_bytes_max)),
    )
    site = Site(
        root=root,
        settings=settings,
        reading=open_database(root, read_only=True, busy_timeout_s=BUSY_TIMEOUT_S),
        writing=open_database(root, migrate=False, busy_timeout_s=BUSY_TIMEOUT_S),
        decoder=decoder,
        refused=RefusedImages(),
        thumbnails=Thumbnails(root, decoder, bytes_max=settings.file_bytes_max, pixels_max=settings.pixels_max),
        pool=ThreadPoolExecutor(IMAGE_THREADS, thread_name_prefix="images"),
        templates=templates(),
        # Cookies know no ports: two Tamis on one machine would sign each other's people out.
        sessions=None if password is None else Sessions(password.get_secret_value(), f"tamis_{settings.web_port}"),
    )

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = REQUEST_THREADS
        yield
        site.pool.shutdown(cancel_futures=True)
        decoder.close()
        site.reading.dispose()
        site.writing.dispose()

    app = FastAPI(
        title="Tamis",
        version=__version__,
        summary="What was decided, what people said of it, and what it cost.",
        openapi_url=None,
        lifespan=lifespan,
    )
    add_error_answers(app, site)
    pages = APIRouter(include_in_schema=False)
    for page in (today, review, image, files, model_pages, promote, thresholds, energy, login):
        page.add_routes(pages, site)
    app.include_router(pages)
    app.include_router(api.routes(site))
    api.add_description(app, site)
    hosts = names_of(settings.web_host, settings.web_hosts)
    guarded = Guard(app, hosts=hosts, sessions=site.sessions, user_header=settings.web_user_header)
    return Prefixed(guarded, settings.web_path_prefix) if settings.web_path_prefix else guarded
