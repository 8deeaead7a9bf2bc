"""Restore: a backup replaces the database, and images that it does not know are scored again.

Owns the exchange of the files and the mark that tells the next start to look through the folders: images delivered
after the backup go back to `processing/` as claims, under the ids in their names. Every step may be repeated.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import Engine
from sqlalchemy.exc import DBAPIError

from service.errors import TamisError
from service.filesystem.durable import sync, sync_folder
from service.filesystem.odd_entries import ENTRY_ERRORS
from service.filesystem.place import OpenFolders, names_in
from service.inspection.claim import Claims
from service.instances import instance_lock, instances
from service.logs import fields
from service.names import ClaimedName, delivered_name, product_in, shown_name
from service.operations.backup import keep_mode
from service.operations.check_rows import refused_rows
from service.root import DATABASE_FILE, KINDS, RESTORED_MARK
from service.storage import images
from service.storage.database.open import open_database

log = logging.getLogger(__name__)

_ASIDE = ".restoring"
# SQLite keeps these beside the database, and would take them for those of the new one.
_BESIDE = ("-wal", "-shm", "-journal")


def restore(root: Path, backup: Path) -> Path:
    """Replace the database of `root` by a copy of `backup`; return where the old one lies now.

    It keeps owner and mode of the one that it replaces. Raises TamisError where a daemon runs on the root, where
    `backup` is not a sound database, or a newer one, and where its rows name files outside the folders of images.
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
        aside.mkdir(mode=0o700)
        stack.callback(shutil.rmtree, aside, ignore_errors=True)
        _copy(backup, aside / DATABASE_FILE)
        _check(aside, backup)
        _keep_access(aside / DATABASE_FILE, root)
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


def _take_back(root: Path, engine: Engine, claims: Claims, folder: str, names: dict[str, ClaimedName]) -> int:
    """Give back those of the files `names` below `folder`, a product's, that have no row; return how many."""
    with engine.connect() as connection:
        known = images.find(connection, [name.id for name in names.values()])
    without = {file_name: name for file_name, name in names.items() if name.id not in known}
    if not without:
        return 0
    target = f"{claims.folder}/{product_in(folder.rpartition('/')[2])}"
    taken = 0
    with OpenFolders(root) as folders:
        for file_name, name in without.items():
            path = f"{folder}/{file_name}"
            try:
                source = folders.place(path)
                source.rename(folders.place(f"{target}/{name}", make=True))
            # Another instance on the same root may have been there first.
            except FileNotFoundError:
                continue
            except OSError as error:
                _leave(path, error)
                continue
            taken += 1
        folders.sync()
    return taken


def _leave(path: str, error: OSError) -> None:
    """Say why the file or folder at `path` was not looked through; raise what is not about it alone."""
    if error.errno not in ENTRY_ERRORS:
        raise error
    log.warning("left where it is after a restore", extra=fields(path=shown_name(path), reason=error.strerror))


def _copy(backup: Path, fresh: Path) -> None:
    try:
        shutil.copyfile(backup, fresh)
        sync(fresh)
    except OSError as error:
        raise TamisError(f"restore {backup}: expected a backup to read; found: {error.strerror}") from error


def _keep_access(fresh: Path, root: Path) -> None:
    """Give `fresh` the owner, where the caller may, and the mode of the database of `root`; else its owner's alone."""
    fresh.chmod(0o600)
    original = root / DATABASE_FILE
    status = (original if original.exists() else root).stat()
    if os.geteuid() == 0:
        os.chown(fresh, status.st_uid, status.st_gid)
    if original.exists():
        keep_mode(fresh, original)


def _check(aside: Path, backup: Path) -> None:
    try:
        with open_database(aside, migrate=False, read_only=True) as engine, engine.connect() as connection:
            found = engine.check(connection, quick=False)
            refused = refused_rows(engine)
    except (TamisError, DBAPIError) as error:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {error}") from error
    if found != ["ok"]:
        raise TamisError(f"restore {backup}: expected a sound database of Tamis; found: {found[0]}")
    if refused.count:
        more = f" and {refused.count - len(refused.first)} more" if refused.count > len(refused.first) else ""
        raise TamisError(
            f"restore {backup}: expected rows that name files in the root's folders of images; found {refused.count} "
            f"that do not: {'; '.join(refused.first)}{more}"
        )


def _exchange(root: Path, fresh: Path) -> Path:
    before = root / f"{DATABASE_FILE}.before-{datetime.now(UTC):%Y%m%dT%H%M%S%fZ}"
    # First: if this breaks off, looking through the folders once too often does no harm.
    mark_restored(root)
    present = root / DATABASE_FILE
    moved: list[tuple[Path, Path]] = []
    try:
        for suffix in _BESIDE:
            if (beside := root / f"{DATABASE_FILE}{suffix}").exists():
                aside = before.with_name(before.name + suffix)
                beside.rename(aside)
                moved.append((aside, beside))
        if present.exists():
            os.link(present, before)
        fresh.replace(present)
    except OSError:
        # The database that stays needs what lay beside it.
        for aside, beside in moved:
            aside.rename(beside)
        before.unlink(missing_ok=True)
        raise
    sync_folder(root)
    return before


def _delivered(root: Path) -> Iterator[tuple[str, dict[str, ClaimedName]]]:
    """Yield the folder of each product's deliveries, relative to `root`, and its files in dated folders, as claims."""
    for kind in KINDS:
        for product in _names_in(root, kind, folders=True):
            for day in _names_in(root, f"{kind}/{product}", folders=True):
                files = _names_in(root, f"{kind}/{product}/{day}", folders=False)
                names = {f"{day}/{name}": known for name in files if (known := delivered_name(name)) is not None}
                yield f"{kind}/{product}", names


def _names_in(root: Path, folder: str, *, folders: bool) -> list[str]:
    try:
        return names_in(root, folder, folders=folders)
    except OSError as error:
        _leave(folder, error)
        return []
