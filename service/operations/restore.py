"""Restore: a backup replaces the database, and images that it does not know are scored again.

Owns the exchange of the files and the mark that tells the next start to look through the folders: images delivered
after the backup go back to `processing/` as claims, under the ids in their names. Every step may be repeated.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from service.errors import TamisError
from service.filesystem.durable import sync, sync_folder
from service.filesystem.file_state import file_state
from service.filesystem.open_below import make_folders
from service.inspection.claim import Claims
from service.instances import instance_lock, instances
from service.logs import fields
from service.names import ClaimedName, delivered_name
from service.root import DATABASE_FILE, KINDS, RESTORED_MARK
from service.storage import images
from service.storage.database.open import open_database

log = logging.getLogger(__name__)

_ASIDE = ".restoring"
# SQLite keeps these beside the database, and would take them for those of the new one.
_BESIDE = ("-wal", "-shm", "-journal")


def restore(root: Path, backup: Path) -> Path:
    """Replace the database of `root` by a copy of `backup`; return where the old one lies now.

    Raises TamisError where a daemon runs on the root, and where `backup` is not a sound database, or a newer one.
    """
    with ExitStack() as stack:
        for name in instances(root):
            lock = instance_lock(root, name)
            if (holder := lock.acquire_patiently()) is not None:
                raise TamisError(f"restore {root}: expected no daemon on it; found {holder}. Stop it first")
            stack.callback(lock.release)
        # In a folder of its own the copy can be opened like the database of a root.
        aside = root / _ASIDE
        shutil.rmtree(aside, ignore_errors=True)
        aside.mkdir()
        stack.callback(shutil.rmtree, aside, ignore_errors=True)
        _copy(backup, aside / DATABASE_FILE)
        _check(aside, backup)
        return _exchange(root, aside / DATABASE_FILE)


def mark_restored(root: Path) -> None:
    """Have the next start look through the folders for images that the database does not know."""
    (root / RESTORED_MARK).touch()
    sync_folder(root)


def take_back(root: Path, engine: Engine, claims: Claims) -> int:
    """Give images without a row back for scoring, if the database was restored; return how many.

    Called before anything else looks at the folders.
    """
    mark = root / RESTORED_MARK
    if not mark.exists():
        return 0
    taken = sum(_take_back(root, engine, claims, folder, names) for folder, names in _delivered(root))
    mark.unlink(missing_ok=True)
    sync_folder(root)
    log.warning("looked through the folders after a restore", extra=fields(without_row=taken))
    return taken


def _take_back(root: Path, engine: Engine, claims: Claims, folder: Path, names: dict[str, ClaimedName]) -> int:
    """Give back those of the files `names` in `folder`, relative to the root, that have no row; return how many."""
    with engine.connect() as connection:
        known = images.find(connection, [name.id for name in names.values()])
    without = {file_name: name for file_name, name in names.items() if name.id not in known}
    if not without:
        return 0
    target = root / claims.folder / folder.parts[1]
    make_folders(target, root)
    taken = 0
    for file_name, name in without.items():
        # Another instance on the same root may have been there first.
        with suppress(FileNotFoundError):
            (root / folder / file_name).rename(target / str(name))
            taken += 1
    sync_folder(target)
    sync_folder(root / folder)
    return taken


def _copy(backup: Path, fresh: Path) -> None:
    try:
        shutil.copyfile(backup, fresh)
        sync(fresh)
    except OSError as error:
        raise TamisError(f"restore {backup}: expected a backup to read; found: {error.strerror}") from error


def _check(aside: Path, backup: Path) -> None:
    try:
        with open_database(aside, migrate=False, read_only=True) as engine, engine.connect() as connection:
            found = engine.check(connection, quick=False)
    except (TamisError, DBAPIError) as error:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {error}") from error
    if found != ["ok"]:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {found[0]}")


def _exchange(root: Path, fresh: Path) -> Path:
    before = root / f"{DATABASE_FILE}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    # First: if this breaks off, looking through the folders once too often does no harm.
    mark_restored(root)
    present = root / DATABASE_FILE
    for suffix in _BESIDE:
        if (beside := root / f"{DATABASE_FILE}{suffix}").exists():
            beside.rename(before.with_name(before.name + suffix))
    if present.exists():
        os.link(present, before)
    fresh.replace(present)
    sync_folder(root)
    return before


def _delivered(root: Path) -> Iterator[tuple[Path, dict[str, ClaimedName]]]:
    """Yield each folder of deliveries, relative to `root`, with its files by name, as claims."""
    for kind in KINDS:
        for walked, _, file_names in os.walk(root / kind):
            folder = Path(walked)
            if len(folder.relative_to(root).parts) == 3:
                names = {name: delivered_name(name) for name in file_names if file_state(folder / name) is not None}
                yield folder.relative_to(root), {name: known for name, known in names.items() if known is not None}
