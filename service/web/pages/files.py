"""Routes of files: images and their maps by the id of the image, and the page's own style and scripts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import TypeVar
from urllib.parse import quote

from fastapi import APIRouter
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from models.errors import ModelError
from models.registry import read_manifest
from service.imaging.decode import ValueRange
from service.imaging.decoder_processes import HARMFUL
from service.names import safe_name
from service.root import DEFAULT_PRODUCT, MODELS
from service.storage import images
from service.storage.images import StoredImage
from service.storage.states import ATTEMPTS_EXHAUSTED
from service.web.images import Kind, NotShown, as_shown, map_path
from service.web.site import STATIC, NotFound, Site

# An image never changes; its map may be drawn a moment after its row.
IMAGE_AGE = "private, max-age=86400"
STATIC_AGE = "public, max-age=31536000, immutable"
WAITING_MAX = 400
CONTENT_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
NO_IMAGE = "no-image.svg"
NEVER_SHOWN = HARMFUL | {ATTEMPTS_EXHAUSTED}
"""Images that were put aside for these are not read again, nor given to a browser that would."""

Made = TypeVar("Made")


def add_routes(router: APIRouter, site: Site) -> None:
    waiting = 0

    @router.get("/images/{id}/{view}")
    async def file(request: Request, id: str, view: str) -> Response:
        nonlocal waiting
        if view not in VIEWS:
            raise HTTPException(404)
        # The image of an id never changes, so a browser may keep what it has.
        tag = f'"{id}-{view}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"cache-control": IMAGE_AGE})
        if waiting >= WAITING_MAX:
            return Response("too many images are asked for at once; try again\n", 503, {"retry-after": "2"})
        kind, make = VIEWS[view]
        waiting += 1
        try:
            made = await asyncio.get_running_loop().run_in_executor(site.pool, make, site, id, kind)
        except NotShown:
            # A drawing that says so, which browsers show in its place.
            content = (STATIC / NO_IMAGE).read_bytes()
            return Response(content, 404, media_type="image/svg+xml", headers={"cache-control": "no-store"})
        finally:
            waiting -= 1
        made.headers.update({"cache-control": IMAGE_AGE, "etag": tag})
        return made

    @router.get("/static/{name}")
    def static(name: str) -> Response:
        path = STATIC / name
        content_type = CONTENT_TYPES.get(path.suffix)
        # Only files in STATIC itself, and only of these types.
        if content_type is None or path.parent != STATIC or not path.is_file():
            raise NotFound(f"static file: expected one of the page's own; found {name[:100]!r}")
        return Response(path.read_bytes(), media_type=content_type, headers={"cache-control": STATIC_AGE})


def stored(site: Site, id: str) -> StoredImage:
    """Return the image with that id. Raises NotFound."""
    with site.reading.connect() as connection:
        found = images.find(connection, [id]).get(id)
    if found is None:
        raise NotFound(f"image: expected the id of one on record; found {id[:40]!r}")
    return found


def _whole(site: Site, id: str, kind: Kind) -> Response:
    limits = {"bytes_max": site.settings.file_bytes_max, "pixels_max": site.settings.pixels_max}
    path, (content_type, length, content) = _found(
        site, id, kind, lambda path, seen: as_shown(site.root, path, site.decoder, value_range=seen, **limits)
    )
    name = safe_name(PurePosixPath(path).name)
    headers = {
        "content-length": str(length),
        "content-disposition": f"inline; filename*=UTF-8''{quote(name, safe='')}",
        # Opened by itself an image is a document: it may load and run nothing.
        "content-security-policy": "default-src 'none'; img-src 'self'; style-src 'unsafe-inline'; sandbox",
    }
    return StreamingResponse(content, media_type=content_type, headers=headers)


def _small(site: Site, id: str, kind: Kind) -> Response:
    made = _found(site, id, kind, lambda path, seen: site.thumbnails.get(id, kind, path, seen))[1]
    return Response(made, media_type="image/jpeg")


VIEWS: dict[str, tuple[Kind, Callable[[Site, str, Kind], Response]]] = {
    "picture": ("image", _whole),
    "map": ("map", _whole),
    "thumb": ("image", _small),
    "map-thumb": ("map", _small),
}
"""What can be seen of an image, by the last part of its address."""


def _found(site: Site, id: str, kind: Kind, open_: Callable[[str, ValueRange | None], Made]) -> tuple[str, Made]:
    """Return where the file lies, and what `open_` makes of it and of the range in which it was judged.

    Raises NotShown.
    """
    known = stored(site, id)
    if known.error_code in NEVER_SHOWN or (id, kind) in site.refused:
        raise NotShown(f"{known.path!r}: it takes too much of what reads it", harmful=True)
    try:
        if kind == "map":
            return map_path(id), open_(map_path(id), None)
        seen = _range_of(site.root, known.product, known.model_version) if known.model_version else None
        return _opened(site, id, known.path, lambda path: open_(path, seen))
    except NotShown as error:
        if error.harmful:
            site.refused.add((id, kind))
        raise


def _opened(site: Site, id: str, path: str, open_: Callable[[str], Made]) -> tuple[str, Made]:
    try:
        return path, open_(path)
    except NotShown as error:
        if error.harmful:
            raise
        # A label or a delivery may have moved it since it was looked up.
        again = stored(site, id)
        for moved in (again.path, again.destination):
            if moved != path:
                return moved, open_(moved)
        raise


@lru_cache(maxsize=64)
def _range_of(root: Path, product: str, version: str) -> ValueRange | None:
    """Return the range of values of the version that judged images of `product`; a version never changes."""
    for owner in (product, DEFAULT_PRODUCT):
        try:
            return read_manifest(root / MODELS / owner / version).value_range
        except ModelError:
            continue
    return None
