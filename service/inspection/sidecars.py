"""Sidecars: files that writers put beside images, carried to where their image went, with its id in their name.

Each goes by one rename of its own, from `incoming/` to the folder of its image, once that has its place. So there is
nothing to take back after a crash: what was not carried still lies in `incoming/`, and the next look carries it. A
sidecar has no row; which image it belongs to is told by product, name and time.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from sqlalchemy import Engine
from ulid import ULID

from service.filesystem.file_state import NameFilter
from service.filesystem.lease import has_writer
from service.filesystem.open_below import open_file, open_folder
from service.filesystem.scan import walk
from service.logs import fields
from service.names import product_of, shown_name, split_suffix, time_of
from service.root import INCOMING
from service.storage import images
from service.storage.images import Lying

log = logging.getLogger(__name__)

# How long before its sidecar an image may have been taken.
BEFORE = timedelta(seconds=60)
# Two images of one name, of two folders of one product: nearer in time than this, which is meant is not guessed.
APART = timedelta(seconds=5)
# What was taken longer ago, and is not on its way, has been looked at.
LOOKED_BACK = timedelta(minutes=10)
# A look at all names in `incoming/` takes this share of a core, at most.
LOOK_SHARE = 0.05
SAID_MAX = 1000
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A sidecar that lies in `incoming/` without its image: path relative to the root, product, when it came."""

    path: str
    product: str
    stem: str
    suffix: str
    came_at: datetime

    def place_beside(self, image: Lying) -> str:
        """Return its path, relative to the root, beside `image`: `part.json` goes to `part.<id>.json`."""
        whole = self.stem == image.file_name
        return (image.path if whole else split_suffix(image.path)[0]) + self.suffix


def meant_by(sidecar: Sidecar, found: Sequence[Lying]) -> list[Lying]:
    """Return the image of its name, of those `found`, that was taken nearest in time; two where that is not plain."""
    apart = {one: abs(taken_at - sidecar.came_at) for one in found if (taken_at := _taken_after(sidecar, one))}
    near = sorted(apart, key=lambda one: (apart[one], one.id))
    return near[:2] if len(near) > 1 and apart[near[1]] - apart[near[0]] < APART else near[:1]


def _taken_after(sidecar: Sidecar, image: Lying) -> datetime | None:
    """Return when `image` was taken, None where that was too long before the sidecar came."""
    taken_at = time_of(image.id)
    return taken_at if taken_at is not None and taken_at >= sidecar.came_at - BEFORE else None


def carry(root: Path, source: str, place: str) -> None:
    """Move the file at `source` to `place`, both relative to `root`, durably; may be repeated after a crash.

    Follows no link. What is at the place stays: the source is removed if it has the same bytes. Raises OSError.
    """
    folders = []
    try:
        for path in (source, place):
            folders.append(open_folder((root / path).parent, root))
        from_, into = folders
        name, new = Path(source).name, Path(place).name
        if exists(new, into):
            if same_bytes(name, from_, new, into):
                os.unlink(name, dir_fd=from_)
        else:
            try:
                os.rename(name, new, src_dir_fd=from_, dst_dir_fd=into)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                _copy(name, from_, new, into)
                os.unlink(name, dir_fd=from_)
        for folder in (into, from_):
            os.fsync(folder)
    finally:
        for folder in folders:
            os.close(folder)


def exists(name: str, folder: int) -> bool:
    """Return whether the open `folder` has anything of that name."""
    with suppress(FileNotFoundError):
        os.stat(name, dir_fd=folder, follow_symlinks=False)
        return True
    return False


def same_bytes(name: str, folder: int, other: str, other_folder: int) -> bool:
    """Return whether two regular files in open folders have the same content. Raises OSError."""
    with os.fdopen(open_file(name, folder), "rb") as first, os.fdopen(open_file(other, other_folder), "rb") as second:
        if os.fstat(first.fileno()).st_size != os.fstat(second.fileno()).st_size:
            return False
        while chunk := first.read(_CHUNK):
            if chunk != second.read(_CHUNK):
                return False
    return True


def _copy(name: str, folder: int, new: str, into: int) -> None:
    # Whole and on the disk before it has its name.
    partial = f".tmp.{new}"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=into)
    with os.fdopen(open_file(name, folder), "rb") as source:
        made = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o640, dir_fd=into)
        with os.fdopen(made, "wb") as copy:
            shutil.copyfileobj(source, copy)
            copy.flush()
            os.fsync(copy.fileno())
    os.rename(partial, new, src_dir_fd=into, dst_dir_fd=into)
    os.fsync(into)


class Sidecars:
    """Carries those of one root; `run` looks once. `ignored` are the names that nobody looks at."""

    def __init__(
        self,
        root: Path,
        engine: Engine,
        ignored: Sequence[str],
        suffixes: Sequence[str],
        *,
        settle_time_s: float,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._root = root
        self._engine = engine
        self._names = NameFilter(ignored)
        self._suffixes = tuple(suffix.lower() for suffix in suffixes)
        self._settle_time = timedelta(seconds=settle_time_s)
        self._clock = clock
        self._looks_again_at = float("-inf")
        self._said: set[str] = set()
        # What is known of sidecars that wait, by their path: the images of their name, and who was asked for.
        self._known: dict[str, list[Lying]] = {}
        self._asked: set[str] = set()
        self._placed_since = clock()

    def run(self) -> None:
        """Carry every sidecar whose image has its place by now."""
        began = time.monotonic()
        if began < self._looks_again_at:
            return
        waiting = list(self._without_image())
        if waiting:
            found = self._images_of(waiting)
            for one in waiting:
                self._carry_if_plain(one, found[one.path])
        now = time.monotonic()
        self._looks_again_at = now + (now - began) * (1 / LOOK_SHARE - 1)

    def _images_of(self, waiting: Sequence[Sidecar]) -> dict[str, list[Lying]]:
        """Return by path of a sidecar the images that it may belong to, of those placed since the last look."""
        by_name: dict[tuple[str, str], list[Sidecar]] = {}
        for one in waiting:
            by_name.setdefault((one.product, one.stem), []).append(one)
            self._known.setdefault(one.path, [])
        began_at = self._clock()
        # At the first look nothing is known of any that waits.
        new = [one.came_at - BEFORE for one in waiting if one.path not in self._asked]
        since = min([self._placed_since, *new])
        with self._engine.connect() as connection:
            unfinished = images.oldest_unfinished(connection)
            for image in images.lying_since(connection, str(ULID.from_datetime(since))):
                for stem in {image.file_name, split_suffix(image.file_name)[0]}:
                    for one in by_name.get((image.product, stem), ()):
                        if image not in self._known[one.path]:
                            self._known[one.path].append(image)
        oldest = time_of(unfinished) if unfinished is not None else None
        self._placed_since = min(one for one in (began_at - LOOKED_BACK, oldest) if one is not None)
        self._asked = {one.path for one in waiting}
        self._known = {path: found for path, found in self._known.items() if path in self._asked}
        return self._known

    def _without_image(self) -> Iterator[Sidecar]:
        settled_before = self._clock() - self._settle_time
        with suppress(OSError):  # the scan for images says so
            for folder in walk(self._root / INCOMING, self._names):
                names = [entry.name for entry in folder.files if entry.is_file(follow_symlinks=False)]
                sidecars = [name for name in names if name.lower().endswith(self._suffixes)]
                others = set(names) - set(sidecars) if sidecars else set()
                beside = others | {split_suffix(name)[0] for name in others}
                for name in sidecars:
                    stem, suffix = split_suffix(name)
                    if stem in beside:
                        continue  # its image is still here
                    came_at = self._came_at(name, folder.descriptor)
                    if came_at is not None and came_at <= settled_before:
                        path, product = f"{INCOMING}/{folder.path_of(name)}", product_of(folder.path)
                        yield Sidecar(path, product, shown_name(stem), suffix, came_at)

    def _came_at(self, name: str, folder: int) -> datetime | None:
        with suppress(OSError):
            file = open_file(name, folder)
            try:
                if not has_writer(file):
                    # Of this machine's own clock, unlike the time that a writer may set.
                    return datetime.fromtimestamp(os.fstat(file).st_ctime, UTC)
            finally:
                os.close(file)
        return None

    def _carry_if_plain(self, sidecar: Sidecar, found: Sequence[Lying]) -> None:
        meant = meant_by(sidecar, [one for one in found if not self._has_another(sidecar, one)])
        if len(meant) > 1:
            self._say("sidecar stays: more than one image has its name", sidecar.path)
        for image in meant if len(meant) == 1 else ():
            try:
                carry(self._root, sidecar.path, sidecar.place_beside(image))
            except FileNotFoundError:
                continue  # it, or the folder of its image, is gone by now
            except OSError as error:
                self._say(f"sidecar stays: {error.strerror}", sidecar.path)

    def _has_another(self, sidecar: Sidecar, image: Lying) -> bool:
        """Return whether the place beside `image` is taken by the sidecar of an earlier look."""
        here = self._root / sidecar.path
        place = self._root / sidecar.place_beside(image)
        folders = []
        try:
            folders.append(open_folder(here.parent, self._root))
            folders.append(open_folder(place.parent, self._root))
            return exists(place.name, folders[1]) and not same_bytes(here.name, folders[0], place.name, folders[1])
        except OSError:
            return False
        finally:
            for folder in folders:
                os.close(folder)

    def _say(self, what: str, path: str) -> None:
        if path not in self._said and len(self._said) < SAID_MAX:
            self._said.add(path)
            log.warning(what, extra=fields(path=shown_name(path)))
