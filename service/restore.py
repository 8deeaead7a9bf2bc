"""Restore: a backup takes the place of the database, and what it does not know is scored anew.

Owns the exchange of the files and the mark that tells the next start to look through the folders. Pictures that were
delivered after the backup have no row in it; they go back to `processing/` under the ids in their names, from where
`service.recover` goes on with them as with any other claim. Every step may be repeated.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from service.claim import Claims, InstanceLock, instances, make_folders, sync_folder
from service.errors import TamisError
from service.logs import fields
from service.names import ClaimedName, delivered_name
from service.place import KINDS
from service.storage import images
from service.storage.engine import DATABASE_FILE, open_database

log = logging.getLogger(__name__)

MARK = ".restored"
"""File in the root that is there from a restoring until the folders were looked through."""

_ASIDE = ".restoring"
# SQLite keeps these beside the database; with another database they would be taken for its own.
_BESIDE = ("-wal", "-shm", "-journal")
_NAMES_A_TURN = 500


def restore(root: Path, backup: Path) -> Path:
    """Put a copy of `backup` in the place of the database of `root`; return where that lies now.

    Raises TamisError where a daemon runs on the root, and where `backup` is no sound database of Tamis or a newer one.
    """
    with ExitStack() as stack:
        for name in instances(root):
            lock = InstanceLock(root, name)
            if (holder := lock.acquire_patiently()) is not None:
                raise TamisError(f"restore {root}: expected no daemon on it; found {holder}. Stop it first")
            stack.callback(lock.release)
        # In a folder of its own it can be opened like any other database before it is one.
        aside = root / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        stack.callback(shutil.rmtree, aside, ignore_errors=True)
        _copy(backup, aside / DATABASE_FILE)
        _check(aside, backup)
        return _exchange(root, aside / DATABASE_FILE)


def take_back(root: Path, engine: Engine, claims: Claims) -> int:
    """Give pictures without a row back to be scored, if the database was restored; return how many.

    Called before anything else looks at the folders.
    """
    mark = root / MARK
    if not mark.exists():
        return 0
    taken = 0
    for part in _parts(_delivered(root)):
        with engine.connect() as connection:
            known = images.find(connection, [name.id for _, name in part])
        for path, name in part:
            if name.id in known:
                continue
            product = path.split("/")[1]
            target = root / claims.folder / product / str(name)
            make_folders(target.parent, root)
            try:
                (root / path).rename(target)
            except FileNotFoundError:  # another instance on the same root was there first
                continue
            sync_folder(target.parent)
            sync_folder((root / path).parent)
            taken += 1
    mark.unlink(missing_ok=True)
    sync_folder(root)
    log.warning("looked through the folders after a restoring", extra=fields(without_row=taken))
    return taken


def _copy(backup: Path, fresh: Path) -> None:
    try:
        shutil.copyfile(backup, fresh)
        descriptor = os.open(fresh, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise TamisError(f"restore {backup}: expected a backup to read; found: {error.strerror}") from error
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check(aside: Path, backup: Path) -> None:
    try:
        engine = open_database(aside, migrate=False, read_only=True)
        try:
            with engine.connect() as connection:
                found = list(connection.exec_driver_sql("PRAGMA integrity_check(1)").scalars())
        finally:
            engine.dispose()
    except (TamisError, DBAPIError) as error:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {error}") from error
    if found != ["ok"]:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {found[0]}")


def _exchange(root: Path, fresh: Path) -> Path:
    before = root / f"{DATABASE_FILE}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    # First of all: if this breaks off, looking through the folders once too often does no harm.
    (root / MARK).touch()
    sync_folder(root)
    present = root / DATABASE_FILE
    for suffix in _BESIDE:
        if (beside := root / f"{DATABASE_FILE}{suffix}").exists():
            beside.rename(before.with_name(before.name + suffix))
    if present.exists():
        os.link(present, before)
    fresh.replace(present)
    sync_folder(root)
    return before


def _delivered(root: Path) -> Iterator[tuple[str, ClaimedName]]:
    """Yield the files that lie where a delivery puts them, as paths relative to `root`, with their names as claims."""
    for kind in KINDS:
        for folder, _, names in os.walk(root / kind):
            relative = Path(folder).relative_to(root)
            if len(relative.parts) != 3:
                continue
            for name in names:
                known = delivered_name(name)
                if known is not None and (Path(folder) / name).is_file() and not (Path(folder) / name).is_symlink():
                    yield f"{relative}/{name}", known


def _parts(found: Iterator[tuple[str, ClaimedName]]) -> Iterator[Sequence[tuple[str, ClaimedName]]]:
    part: list[tuple[str, ClaimedName]] = []
    for one in found:
        part.append(one)
        if len(part) == _NAMES_A_TURN:
            yield part
            part = []
    if part:
        yield part
