"""Deliver: a file goes from where it lies to the folder its row names, at first from `processing/`.

Owns the moves to `normal/`, `anomaly/` and `quarantine/`. Each may be repeated: whatever a crash left is
told from the two places and the recorded hash, and no file is ever overwritten or deleted unless its
bytes are at the destination.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from service.claim import make_folders, sync_folder


class Delivery(Enum):
    """How a delivery ended."""

    DONE = "done"
    CONFLICT = "conflict"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Move:
    """A file's way, paths relative to the root; `sha256` of its bytes, None where it was never read."""

    id: str
    source: str
    destination: str
    sha256: str | None


def deliver(root: Path, moves: Iterable[Move]) -> dict[str, Delivery]:
    """Carry out `moves`, make them last through a power cut, and return by id how each ended."""
    ended = {}
    folders: set[Path] = set()
    for move in moves:
        source, destination = root / move.source, root / move.destination
        make_folders(destination.parent, root)
        ended[move.id] = _deliver_one(root, source, destination, move)
        if ended[move.id] is Delivery.DONE:
            folders |= {source.parent, destination.parent}
    for folder in sorted(folders):
        with suppress(FileNotFoundError):  # empty by now, and taken away by retention
            sync_folder(folder)
    return ended


def _deliver_one(root: Path, source: Path, destination: Path, move: Move) -> Delivery:
    if move.source == move.destination:
        return Delivery.DONE if os.path.lexists(destination) else Delivery.MISSING
    _remove_partial(destination, move.id)
    if destination.is_symlink() or (destination.exists() and not destination.is_file()):
        return Delivery.CONFLICT
    if destination.exists():
        if not os.path.lexists(source):
            return Delivery.DONE
        if _same_file(source, destination) or _same_bytes(source, destination, move.sha256):
            source.unlink(missing_ok=True)
            return Delivery.DONE
        return Delivery.CONFLICT
    try:
        _rename(source, destination, root)
    except FileNotFoundError:
        return Delivery.MISSING
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # The kernel says so before it looks for the source, which may be gone.
        if not os.path.lexists(source):
            return Delivery.MISSING
        _copy_across(source, destination, move.id)
    return Delivery.DONE


def _rename(source: Path, destination: Path, root: Path) -> None:
    try:
        source.rename(destination)
    except FileNotFoundError:
        if not os.path.lexists(source):
            raise
        # Retention takes empty folders away, perhaps this one since it was made.
        make_folders(destination.parent, root)
        source.rename(destination)


def _copy_across(source: Path, destination: Path, id: str) -> None:
    # A rename cannot cross devices; the copy is whole and on the disk before it gets its name.
    partial = _partial(destination, id)
    with source.open("rb") as reading, partial.open("xb") as writing:
        shutil.copyfileobj(reading, writing, 1 << 20)
        writing.flush()
        os.fsync(writing.fileno())
    shutil.copystat(source, partial)
    partial.rename(destination)
    sync_folder(destination.parent)
    source.unlink(missing_ok=True)


def _partial(destination: Path, id: str) -> Path:
    return destination.with_name(f".tmp.{id}")


def _remove_partial(destination: Path, id: str) -> None:
    _partial(destination, id).unlink(missing_ok=True)


def _same_file(one: Path, other: Path) -> bool:
    return os.path.samestat(one.lstat(), other.lstat())


def _same_bytes(source: Path, destination: Path, sha256: str | None) -> bool:
    at_source = hash_file(source)
    return at_source == hash_file(destination) and sha256 in (None, at_source)


def hash_file(path: Path) -> str:
    """Return the SHA-256 of the file at `path`, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
