"""Deliver: a file goes from where it lies to the folder its row names, at first from `processing/`.

Each move may be repeated: the two places and the recorded hash tell what a crash left, and no file is ever overwritten
or deleted unless its bytes are at the destination. Nothing goes into the bare mount point of a missing share. What is
wrong with one file or its folder has that file wait; only what is wrong with the root's own disk is raised.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path, PurePosixPath

from service.filesystem.durable import sync_open_folder
from service.filesystem.mounts import Mounts
from service.filesystem.odd_entries import ENTRY_ERRORS, OddEntries
from service.filesystem.open_below import MissingBelow, WrongFolder
from service.filesystem.place import OpenFolders, Place, copy_between
from service.filesystem.row_path import PathRefused
from service.names import plainer_folder, plainer_name, shown_name
from service.root import PROCESSING

TRIES = 3
# What a file system says of a name that it cannot hold.
NAME_ERRORS = frozenset({errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ})
# These tell of a whole disk: the root's own, which everything else needs too, or that of the destination alone.
DISK_ERRORS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS})


class Delivery(Enum):
    """How a delivery ended."""

    DONE = "done"
    CONFLICT = "conflict"
    MISSING = "missing"
    WAITS = "waits"
    """For a mount that is gone, or for what was noted of the entry: nothing was moved, as far as is known."""
    NAME_REFUSED = "name refused"
    """The file system cannot hold the name; nothing was moved. Try `readdressed`, once it is on record."""
    FOLDER_REFUSED = "folder refused"
    """As NAME_REFUSED, of the folder of the product."""


@dataclass(frozen=True, slots=True)
class Move:
    """A file to move, paths relative to the root; `sha256` of its bytes, None where it was never read."""

    id: str
    source: str
    destination: str
    sha256: str | None


def deliver(
    root: Path, moves: Iterable[Move], mounts: Mounts | None = None, odd: OddEntries | None = None
) -> dict[str, Delivery]:
    """Carry out `moves`, make them last through a power cut, and return by id how each ended.

    `mounts` are what must be mounted in `root`; None where nothing is known of any. What waits is noted in `odd`.
    Raises OSError for what concerns the root as a whole: its disk is full or read-only, the process has no more files.
    """
    ended = {}
    with OpenFolders(root, is_right=mounts.are_under if mounts is not None else None) as folders:
        delivering = _Delivering(root, mounts, odd if odd is not None else OddEntries(), folders)
        for move in moves:
            ended[move.id] = delivering.deliver(move)
        unsynced = delivering.sync()
    return {id: Delivery.WAITS if id in unsynced else end for id, end in ended.items()}


def readdressed(move_destination: str, id: str, end: Delivery) -> str:
    """Return the destination that a file system takes which refused `move_destination` as `end` says; pure."""
    if end is Delivery.FOLDER_REFUSED:
        return plainer_folder(move_destination)
    return plainer_name(move_destination, id) if end is Delivery.NAME_REFUSED else move_destination


class _Delivering:
    def __init__(self, root: Path, mounts: Mounts | None, odd: OddEntries, folders: OpenFolders) -> None:
        self._root = root
        self._mounts = mounts
        self._odd = odd
        self._folders = folders
        # The ids by the folder that has to be synced for them, open.
        self._changed: dict[int, tuple[str, set[str]]] = {}

    def deliver(self, move: Move) -> Delivery:
        refused = Delivery.NAME_REFUSED
        for _ in range(TRIES):
            try:
                return self._try(move)
            except WrongFolder:
                return Delivery.WAITS
            except FileNotFoundError as error:
                # Retention removes empty folders, perhaps this one since it was opened.
                self._folders.forget(move.destination)
                refused = Delivery.FOLDER_REFUSED if isinstance(error, MissingBelow) else Delivery.NAME_REFUSED
        (self._root / PROCESSING).stat()  # raises where the whole root is gone
        # The folder is made anew each time and the file is there: it is the name that cannot be.
        return self._waits(move, OSError(errno.ENOENT, os.strerror(errno.ENOENT)), refused)

    def sync(self) -> set[str]:
        """Make what was moved last through a power cut; return the ids of which that is not certain."""
        unsynced: set[str] = set()
        for descriptor, (folder, ids) in sorted(self._changed.items(), key=lambda one: one[1][0]):
            try:
                sync_open_folder(descriptor)
            except OSError as error:
                if self._is_on_roots_disk(descriptor):
                    raise
                self._note(folder, error)
                unsynced |= ids
        return unsynced

    def _try(self, move: Move) -> Delivery:
        try:
            destination = self._folders.place(move.destination, make=move.source != move.destination)
            self._odd.clear(shown_name(move.destination.rpartition("/")[0]), "deliver")
        except PathRefused as error:
            self._note(move.destination, error)
            return Delivery.WAITS
        except MissingBelow:
            if move.source == move.destination:
                return self._missing()
            raise
        except OSError as error:
            return self._waits(move, error, Delivery.FOLDER_REFUSED)
        try:
            source = self._source(move)
        except OSError as error:
            self._note(move.source, error)
            return Delivery.WAITS
        try:
            end = _deliver_one(source, destination, move)
        except FileNotFoundError:
            raise
        except OSError as error:
            return self._waits(move, error, Delivery.NAME_REFUSED, destination)
        for path in (move.source, move.destination):
            self._odd.clear(shown_name(path), "deliver")
        if end is Delivery.MISSING:
            return self._missing()
        if end is Delivery.DONE:
            for place, path in ((source, move.source), (destination, move.destination)):
                if place is not None:
                    folder = path.rpartition("/")[0]
                    self._changed.setdefault(place.folder, (folder, set()))[1].add(move.id)
        return end

    def _source(self, move: Move) -> Place | None:
        try:
            return self._folders.place(move.source, make=False)
        except MissingBelow:
            return None

    def _missing(self) -> Delivery:
        # Asked after the file was looked for, since its mount may go at any time.
        hidden = self._mounts is not None and self._mounts.any_gone()
        return Delivery.WAITS if hidden else Delivery.MISSING

    def _waits(self, move: Move, error: OSError, refused: Delivery, destination: Place | None = None) -> Delivery:
        """Return `refused` where another name may help; else note what is wrong, and where, and have the file wait."""
        of_name = error.errno in NAME_ERRORS or error.errno == errno.ENOENT
        if of_name and readdressed(move.destination, move.id, refused) != move.destination:
            return refused
        folder = move.destination.rpartition("/")[0]
        # What lies in processing/ is the service's own; of a file that people reach, that one may be to blame.
        at_fault = move.destination if move.source.startswith(f"{PROCESSING}/") else move.source
        if destination is None:
            at_fault = self._below(error) or folder
        elif error.errno in DISK_ERRORS or not os.access(f"/proc/self/fd/{destination.folder}", os.W_OK | os.X_OK):
            at_fault = folder
        if error.errno == errno.EROFS and os.statvfs(self._root).f_flag & os.ST_RDONLY:
            raise error
        on = destination.folder if destination is not None else None
        if error.errno in DISK_ERRORS - {errno.EROFS} and self._is_on_roots_disk(on, at_fault):
            raise error
        self._note(at_fault, error)
        return Delivery.WAITS

    def _below(self, error: OSError) -> str | None:
        """Return which folder `error` is about, relative to the root, where it says so."""
        with suppress(TypeError, ValueError):
            return str(PurePosixPath(os.fsdecode(error.filename)).relative_to(self._root))
        return None

    def _is_on_roots_disk(self, descriptor: int | None, folder: str = "") -> bool:
        """Return whether the open folder, or else what there is of `folder`, lies on the disk that the root needs."""
        device = self._root.stat().st_dev
        if descriptor is not None:
            return os.fstat(descriptor).st_dev == device
        at = self._root / folder
        while at != self._root:
            with suppress(OSError):
                return at.lstat().st_dev == device
            at = at.parent
        return True

    def _note(self, path: str, error: OSError) -> None:
        if error.errno is None:
            error = OSError(errno.EINVAL, str(error))  # something else than a file
        elif error.errno in DISK_ERRORS - ENTRY_ERRORS:
            error = OSError(errno.EIO, error.strerror)  # of another disk than the root's, which would have been raised
        self._odd.note(shown_name(path), "deliver", error)


def _deliver_one(source: Place | None, destination: Place, move: Move) -> Delivery:
    found = destination.status()
    if move.source == move.destination:
        return Delivery.DONE if found is not None else Delivery.MISSING
    partial = destination.beside(f".tmp.{move.id}")
    partial.unlink(missing_ok=True)
    there = source.status() if source is not None else None
    if found is not None:
        if not stat.S_ISREG(found.st_mode):
            return Delivery.CONFLICT
        if source is None or there is None:
            return Delivery.DONE
        if os.path.samestat(there, found) or _same_bytes(source, destination, move.sha256):
            source.unlink(missing_ok=True)
            return Delivery.DONE
        return Delivery.CONFLICT
    if source is None or there is None:
        return Delivery.MISSING
    if not stat.S_ISREG(there.st_mode):
        return Delivery.CONFLICT
    try:
        source.rename(destination)
    except FileNotFoundError:
        if source.status() is not None:
            raise
        return Delivery.MISSING
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        _copy_across(source, destination, partial, move)
    return Delivery.DONE


def _copy_across(source: Place, destination: Place, partial: Place, move: Move) -> None:
    # A rename cannot cross devices; the copy is whole and on the disk before it gets its name.
    sha256 = copy_between(source, partial)
    try:
        if move.source.startswith(f"{PROCESSING}/") and move.sha256 not in (None, sha256):
            raise OSError(errno.EIO, "its bytes are not those that were judged")
        partial.rename(destination)
    except OSError:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
        raise
    sync_open_folder(destination.folder)
    source.unlink(missing_ok=True)


def _same_bytes(source: Place, destination: Place, sha256: str | None) -> bool:
    at_source = source.sha256()
    return at_source == destination.sha256() and sha256 in (None, at_source)
