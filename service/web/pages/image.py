"""The page *Image*: everything that is known about one image."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import Connection, text
from starlette.requests import Request
from starlette.responses import Response

from service.operations.check_rows import STATES_WITH_FILE, is_changed
from service.storage import regions, review_pages, reviews
from service.storage import statistics as tallies
from service.web.pages.review import with_maps
from service.web.site import NotFound, Site

NEIGHBOURS = 4
# Reading so much takes a tenth of a second; of a larger file the size must do.
HASHED_BYTES_MAX = 32 << 20


def add_routes(router: APIRouter, site: Site) -> None:
    @router.get("/images/{id}")
    def image(request: Request, id: str) -> Response:
        with site.reading.connect() as connection:
            known = everything(connection, id)
            before, after = tallies.neighbours(
                connection, known["image"]["product"], known["image"]["received_at"], id, NEIGHBOURS
            )
            near = review_pages.by_ids(connection, [*before, *after])
        rows = {row["id"]: row for row in with_maps(site.root, near)}
        return site.page(
            request,
            "image.html",
            **known,
            changed=_is_changed(site, known["image"]),
            map=with_maps(site.root, [known["image"]])[0]["map"],
            before=[rows[one] for one in before if one in rows],
            after=[rows[one] for one in after if one in rows],
            back=f"/images/{id}",
        )


def _is_changed(site: Site, image: dict[str, Any]) -> bool:
    """Return whether the file is not the one that was judged; on its way it is nobody's to change."""
    there = image["state"] in STATES_WITH_FILE
    return there and is_changed(site.root, image["path"], image["bytes"], image["sha256"], HASHED_BYTES_MAX)


def everything(connection: Connection, id: str) -> dict[str, Any]:
    """Return what the database knows of an image: itself, regions, reviews, shadow scores, its role in training.

    Raises NotFound.
    """
    image = tallies.facts(connection, id)
    if image is None:
        raise NotFound(f"image: expected the id of one on record; found {id[:40]!r}")
    shadows = text("SELECT version, score, threshold, verdict FROM shadow_scores WHERE image_id = :id ORDER BY version")
    vouched = text("SELECT label, role, path, added_at, added_by FROM training_pictures WHERE image_id = :id")
    return {
        "image": image,
        "regions": regions.of_images(connection, [id])[id],
        "history": reviews.history(connection, id),
        "shadows": [dict(row) for row in connection.execute(shadows, {"id": id}).mappings()],
        "training": [dict(row) for row in connection.execute(vouched, {"id": id}).mappings()],
    }
