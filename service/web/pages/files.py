"""Routes of files: images and their maps by the id of the image, and the page's own style and scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from pathlib import PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.names import safe_name
from service.storage import images
from service.storage.images import StoredImage
from service.web.images import Kind, NotShown, as_shown, map_path
from service.web.site import STATIC, NotFound, Site

# An image never changes; its map may be drawn a moment after its row.
IMAGE_AGE = "private, max-age=86400"
STATIC_AGE = "public, max-age=31536000, immutable"
WAITING_MAX = 400
CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
NO_IMAGE = "no-image.svg"

Made = TypeVar("Made")


def routes(site: Site) -> APIRouter:
    """Return the routes."""
    router = APIRouter()
    waiting = 0

    async def in_pool(work: Callable[[], Made]) -> Made | None:
        """Return what `work` makes, in one of the few threads for images; None where too many wait already."""
        nonlocal waiting
        if waiting >= WAITING_MAX:
            return None
        waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(site.pool, work)
        finally:
            waiting -= 1

    @router.get("/images/{id}/picture")
    async def image(request: Request, id: str) -> Response:
        return await _sent(request, id, "picture", partial(_whole, site, id, "picture"))

    @router.get("/images/{id}/map")
    async def map_(request: Request, id: str) -> Response:
        return await _sent(request, id, "map", partial(_whole, site, id, "map"))

    @router.get("/images/{id}/thumb")
    async def thumb(request: Request, id: str) -> Response:
        return await _sent(request, id, "picture-small", partial(_small, site, id, "picture"))

    @router.get("/images/{id}/map-thumb")
    async def map_thumb(request: Request, id: str) -> Response:
        return await _sent(request, id, "map-small", partial(_small, site, id, "map"))

    async def _sent(request: Request, id: str, of: str, make: Callable[[], Response]) -> Response:
        # What a browser has it keeps: an image of an id is always the same.
        if request.headers.get("if-none-match") == _tag(id, of):
            return Response(status_code=304, headers={"cache-control": IMAGE_AGE})
        made = await in_pool(make)
        return made or Response("too many images are asked for at once; try again\n", 503, {"retry-after": "2"})

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        path = STATIC / name
        content_type = CONTENT_TYPES.get(path.suffix)
        # One segment of a path that names one of our files: nothing else has such a suffix.
        if content_type is None or path.parent != STATIC or not path.is_file():
            raise NotFound(f"file {name[:100]!r}: expected one that the page has")
        return Response(path.read_bytes(), media_type=content_type, headers={"cache-control": STATIC_AGE})

    return router


def stored(site: Site, id: str) -> StoredImage:
    """Return the image on record by that id. Raises NotFound."""
    with site.reading.connect() as connection:
        found = images.find(connection, [id]).get(id)
    if found is None:
        raise NotFound(f"image: expected the id of one on record; found {id[:40]!r}")
    return found


def _whole(site: Site, id: str, kind: Kind) -> Response:
    try:
        relative, (content_type, length, content) = _found(
            site,
            id,
            kind,
            lambda path: as_shown(
                site.root, path, bytes_max=site.settings.file_bytes_max, pixels_max=site.settings.pixels_max
            ),
        )
    except NotShown:
        return _nothing()
    name = safe_name(PurePosixPath(relative).name)
    headers = {
        "content-length": str(length),
        "content-disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        "cache-control": IMAGE_AGE,
        "etag": _tag(id, kind),
        # Opened by itself an image is a document of its own: it loads and runs nothing.
        "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox",
    }
    return StreamingResponse(content, media_type=content_type, headers=headers)


def _small(site: Site, id: str, kind: Kind) -> Response:
    try:
        _, made = _found(site, id, kind, lambda path: site.thumbnails.get(id, kind, path))
    except NotShown:
        return _nothing()
    headers = {"cache-control": IMAGE_AGE, "etag": _tag(id, f"{kind}-small")}
    return Response(made, media_type="image/jpeg", headers=headers)


def _found(site: Site, id: str, kind: Kind, open_: Callable[[str], Made]) -> tuple[str, Made]:
    """Return where the file lies and what `open_` makes of it. Raises NotShown."""
    path = stored(site, id).path
    if kind == "map":
        return map_path(id), open_(map_path(id))
    try:
        return path, open_(path)
    except NotShown:
        # A label or a delivery may have moved it since it was looked up.
        again = stored(site, id)
        for moved in (again.path, again.destination):
            if moved != path:
                return moved, open_(moved)
        raise


def _tag(id: str, of: str) -> str:
    return f'"{id}-{of}"'


def _nothing() -> Response:
    """Return a drawing that says that there is nothing to see, which browsers show in the place of the image."""
    content = (STATIC / NO_IMAGE).read_bytes()
    return Response(content, 404, media_type="image/svg+xml", headers={"cache-control": "no-store"})
