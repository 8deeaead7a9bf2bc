"""Statements on regions: where in an image its map was above the pixel threshold.

The caller owns the transaction, which is that of the image's own row: a region never lies without its image.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, bindparam, select

from service.storage.database.chunks import chunks
from service.storage.database.insert_new import insert_new
from service.storage.tables import images_table as _images
from service.storage.tables import regions_table, regions_view

if TYPE_CHECKING:
    from models.regions import Region

_insert = insert_new(regions_table)
_known = select(_images.c.id).where(_images.c.id.in_(bindparam("ids", expanding=True)))
_of = (
    select(regions_view)
    .where(regions_view.c.image_id.in_(bindparam("ids", expanding=True)))
    .order_by(regions_view.c.image_id, regions_view.c.number)
)


def without_row(connection: Connection, found: Mapping[str, Sequence[Region]]) -> dict[str, Sequence[Region]]:
    """Return those of `found`, regions by image, that are of images without a row yet, and are not empty.

    Called before the images are recorded: an image on record keeps its regions, as it keeps its score.
    """
    some = {id: regions for id, regions in found.items() if regions}
    known = set(connection.execute(_known, {"ids": list(some)}).scalars()) if some else set()
    return {id: regions for id, regions in some.items() if id not in known}


def record(connection: Connection, found: Mapping[str, Sequence[Region]]) -> None:
    """Insert `found`, the regions of recorded images by id, numbered from 1 in their order."""
    rows = [
        {"image_id": id, "number": number, **asdict(region)}
        for id, regions in found.items()
        for number, region in enumerate(regions, 1)
    ]
    if rows:
        connection.execute(_insert, rows)


def of_images(connection: Connection, ids: Collection[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of the view `regions` of each of `ids`, highest peak first; an image without any has [].

    The rows are without `image_id`, which is the key.
    """
    found: dict[str, list[dict[str, Any]]] = {id: [] for id in ids}
    for chunk in chunks(ids):
        for row in connection.execute(_of, {"ids": chunk}).mappings():
            values = dict(row)
            found[values.pop("image_id")].append(values)
    return found
