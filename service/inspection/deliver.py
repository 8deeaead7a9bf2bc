"""Deliver: a file goes from where it lies to the folder its row names, at first from `processing/`.

Each move may be repeated: the two places and the recorded hash tell what a crash left, and no file is ever overwritten
or deleted unless its bytes are at the destination. Nothing goes into the bare mount point of a missing share.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from models.registry import file_sha256
from service.filesystem.durable import copy_durably, sync, sync_folder
from service.filesystem.mounts import Mounts
from service.filesystem.open_below import WrongFolder, open_folder

TRIES = 3


class Delivery(Enum):
    """How a delivery ended."""

    DONE = "done"
    CONFLICT = "conflict"
    MISSING = "missing"
    WAITS = "waits"
    """For a mount that is gone: nothing was moved, as far as is known."""


@dataclass(frozen=True, slots=True)
class Move:
    """A file to move, paths relative to the root; `sha256` of its bytes, None where it was never read."""

    id: str
    source: str
    destination: str
    sha256: str | None


def deliver(root: Path, moves: Iterable[Move], mounts: Mounts | None = None) -> dict[str, Delivery]:
    """Carry out `moves`, make them last through a power cut, and return by id how each ended.

    `mounts` are what must be mounted in `root`; None where nothing is known of any.
    """
    ended = {}
    folders: set[Path] = set()
    for move in moves:
        source, destination = root / move.source, root / move.destination
        ended[move.id] = _deliver_into(destination.parent, root, move, mounts)
        if ended[move.id] is Delivery.DONE:
            folders |= {source.parent, destination.parent}
    for folder in sorted(folders):
        with suppress(FileNotFoundError):  # empty by now, and removed by retention
            sync_folder(folder)
    return ended


def _deliver_into(folder: Path, root: Path, move: Move, mounts: Mounts | None) -> Delivery:
    for tries_left in reversed(range(TRIES)):
        try:
            with _held_open(folder, root, mounts) as held:
                end = _deliver_one(root / move.source, held / Path(move.destination).name, move)
            # Asked after the file was looked for, since its mount may go at any time.
            is_hidden = end is Delivery.MISSING and mounts is not None and mounts.any_gone()
            return Delivery.WAITS if is_hidden else end
        except WrongFolder:
            return Delivery.WAITS
        except FileNotFoundError:
            # Retention removes empty folders, perhaps this one since it was opened.
            if not tries_left:
                raise
    raise AssertionError("unreachable")


@contextmanager
def _held_open(folder: Path, root: Path, mounts: Mounts | None) -> Iterator[Path]:
    """Yield a path to `folder` through its descriptor: a link put into its place meanwhile leads nowhere."""
    descriptor = open_folder(folder, root, make=True, is_right=mounts.are_under if mounts is not None else None)
    try:
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


def _deliver_one(source: Path, destination: Path, move: Move) -> Delivery:
    if move.source == move.destination:
        return Delivery.DONE if os.path.lexists(destination) else Delivery.MISSING
    _partial(destination, move.id).unlink(missing_ok=True)
    if destination.is_symlink() or (destination.exists() and not destination.is_file()):
        return Delivery.CONFLICT
    if destination.exists():
        if not os.path.lexists(source):
            return Delivery.DONE
        same_file = os.path.samestat(source.lstat(), destination.lstat())
        if same_file or _same_bytes(source, destination, move.sha256):
            source.unlink(missing_ok=True)
            return Delivery.DONE
        return Delivery.CONFLICT
    try:
        _rename(source, destination)
    except FileNotFoundError:
        if os.path.lexists(source):
            raise
        return Delivery.MISSING
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The kernel says so before it looks for the source, which may be gone.
        if not os.path.lexists(source):
            return Delivery.MISSING
        _copy_across(source, destination, move.id)
    return Delivery.DONE


def _rename(source: Path, destination: Path) -> None:
    source.rename(destination)


def _copy_across(source: Path, destination: Path, id: str) -> None:
    # A rename cannot cross devices; the copy is whole and on the disk before it gets its name.
    partial = _partial(destination, id)
    copy_durably(source, partial)
    shutil.copystat(source, partial)
    partial.rename(destination)
    # The path of the open folder is a link, which `sync_folder` would refuse.
    sync(destination.parent)
    source.unlink(missing_ok=True)


def _partial(destination: Path, id: str) -> Path:
    return destination.with_name(f".tmp.{id}")


def _same_bytes(source: Path, destination: Path, sha256: str | None) -> bool:
    at_source = file_sha256(source)
    return at_source == file_sha256(destination) and sha256 in (None, at_source)
