"""Checks what rows say of files: whether a path leads where it may, a file is there, and its bytes are those judged.

Changes nothing, and reads in short transactions: a check of a large root should not hold up its daemon.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, Select, inspect, select

from service.filesystem.open_below import MissingBelow
from service.filesystem.place import OpenFolders, place_of
from service.filesystem.row_path import IMAGE_FOLDERS, is_refused
from service.names import printable
from service.root import TRAINING
from service.storage.tables import images_table as _images
from service.storage.tables import training_images_table as _training_images

PAGE = 10_000
SHOWN = 5
FOLDERS_OPEN_MAX = 64
# Where such a row says that its file lies, it should lie. The others are under way, or known to be elsewhere.
STATES_WITH_FILE = ("placed", "quarantined")


@dataclass
class Named:
    """How many there are, and the first of them for people."""

    count: int = 0
    first: list[str] = field(default_factory=list)

    def add(self, name: str) -> None:
        self.count += 1
        if len(self.first) < SHOWN:
            self.first.append(printable(name))


@dataclass
class RowsWithFiles:
    """What was found of the rows that should have a file; `changed` is None where no file was read."""

    rows: int = 0
    gone: int = 0
    unreadable: Named = field(default_factory=Named)
    changed: Named | None = None


def refused_rows(engine: Engine) -> Named:
    """Return the rows whose path or destination lies outside the folders of images, none of which is ever used."""
    found = Named()
    columns = (_images.c.id, _images.c.path, _images.c.destination)
    for id, path, destination in _pages(engine, select(*columns), ""):
        for each in dict.fromkeys((path, destination)):
            if is_refused(each, IMAGE_FOLDERS):
                found.add(f"{id}: {each}")
    with engine.connect() as connection:
        has_training_set = inspect(connection).has_table(_training_images.name)
    if not has_training_set:
        return found  # a database from before there was one
    for id, path in _pages(engine, select(_training_images.c.id, _training_images.c.path), 0):
        if is_refused(path, (TRAINING,)):
            found.add(f"training image {id}: {path}")
    return found


def look_at_files(engine: Engine, root: Path, *, content: bool) -> RowsWithFiles:
    """Look whether the file of each row is there, and with `content` whether its bytes are those on record."""
    found = RowsWithFiles(changed=Named() if content else None)
    columns = (_images.c.id, _images.c.path, _images.c.bytes, _images.c.sha256)
    statement = select(*columns).where(_images.c.state.in_(STATES_WITH_FILE))
    with OpenFolders(root, open_max=FOLDERS_OPEN_MAX) as folders:
        for _, path, size, sha256 in _pages(engine, statement, ""):
            found.rows += 1
            try:
                place = folders.place(path)
                status = place.status()
                if status is None:
                    found.gone += 1
                elif found.changed is None or sha256 is None:
                    continue
                elif status.st_size != size or place.sha256() != sha256:
                    found.changed.add(path)
            except (MissingBelow, FileNotFoundError):
                found.gone += 1
            # A path that is refused is no reason to stop either.
            except OSError as error:
                found.unreadable.add(f"{path}: {error.strerror or error}")
    return found


def is_changed(root: Path, path: str, size: int | None, sha256: str | None, bytes_max: int) -> bool:
    """Return whether the file at `path` has other bytes than those that were judged, as far as that can be told.

    A file above `bytes_max` is known by its size alone.
    """
    if sha256 is None:
        return False
    try:
        with place_of(root, path) as place:
            status = place.status()
            if status is None:
                return False
            return status.st_size != size or (status.st_size <= bytes_max and place.sha256() != sha256)
    except OSError:
        return False


def _pages(engine: Engine, statement: Select[Any], last: str | int) -> Iterator[Any]:
    """Yield the rows of `statement`, whose first column is an id greater than `last`, in order of it."""
    id = statement.selected_columns[0]
    while True:
        with engine.connect() as connection:
            page = connection.execute(statement.where(id > last).order_by(id).limit(PAGE)).all()
        if not page:
            return
        yield from page
        last = page[-1][0]
