"""Copies the database while it is in use, into a file that is complete or absent."""

from __future__ import annotations

import glob
import math
import os
from contextlib import closing, suppress
from pathlib import Path

from sqlalchemy import Engine

from service.errors import TamisError
from service.filesystem.durable import sync
from service.storage.database.driver import sqlite3

STEP_PAGES = 1000
RESTARTS_MAX = 3
HEARD_EVERY = 100_000


class _Restarted(Exception):
    """Others wrote between the steps so often that the copy would never end."""


def backup(engine: Engine, destination: Path, *, force: bool = False) -> int:
    """Copy the database of `engine` to the file `destination`; return its size in bytes.

    The copy is made beside it, synced, checked in full and renamed; its mode is that of the original, less the caller's
    umask. An exception, as SIGTERM and SIGINT are in a command, ends it without leaving anything. Raises TamisError
    where the file exists and `force` is not set, where its folder is missing, or where the copy is not sound.
    """
    if destination.is_dir():
        raise TamisError(f"backup {destination}: expected the name of a file; found a folder")
    if destination.exists() and not force:
        raise TamisError(f"backup {destination}: expected a file that is not there yet; --force overwrites it")
    if not destination.parent.is_dir():
        raise TamisError(f"backup {destination}: expected its folder to be there; found none")
    part = destination.with_name(f".{destination.name}.{os.getpid()}.part")
    _remove_left(destination)
    # Nobody but the caller can read it until it has the mode of the original.
    os.close(os.open(part, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
    try:
        try:
            _copy(engine, part)
        except sqlite3.OperationalError as error:
            raise TamisError(f"backup {destination}: expected to copy the database; found: {error}") from error
        # Where there are no modes, as on a stick, it stays as narrow as the disk lets it be.
        with suppress(OSError):
            assert engine.url.database is not None
            keep_mode(part, Path(engine.url.database), umask=_umask())
        sync(part)
        part.replace(destination)
    finally:
        part.unlink(missing_ok=True)
    sync(destination.parent)
    return destination.stat().st_size


def keep_mode(fresh: Path, original: Path, *, umask: int = 0) -> None:
    """Give the file `fresh` the mode of `original` less `umask`; no group may more than the one of `original`."""
    status = original.stat()
    same_group = fresh.stat().st_gid == status.st_gid
    fresh.chmod(status.st_mode & (0o666 if same_group else 0o606) & ~umask)


def _umask() -> int:
    found = os.umask(0o077)
    os.umask(found)
    return found


def _remove_left(destination: Path) -> None:
    """Remove what earlier backups to `destination` left that were killed: their processes are gone."""
    for left in destination.parent.glob(f".{glob.escape(destination.name)}.*.part"):
        pid = left.name.removesuffix(".part").rpartition(".")[2]
        if pid.isdecimal() and not Path(f"/proc/{pid}").exists():
            left.unlink(missing_ok=True)


def _copy(engine: Engine, part: Path) -> None:
    with closing(engine.raw_connection()) as source, closing(sqlite3.connect(part, isolation_level=None)) as target:
        driver = source.driver_connection
        assert isinstance(driver, sqlite3.Connection)
        _in_steps(driver, target)
        # One file without a log beside it, whichever journal the original has.
        target.execute("PRAGMA journal_mode = DELETE")
        # Between two calls of this a signal is heard; the check of a large copy takes minutes.
        target.set_progress_handler(lambda: 0, HEARD_EVERY)
        found = [row[0] for row in target.execute("PRAGMA integrity_check(1)")]
    if found != ["ok"]:
        raise TamisError(f"backup {part}: expected a sound copy; found: {found[0]}. `tamis db check` says more")


def _in_steps(source: sqlite3.Connection, target: sqlite3.Connection) -> None:
    """Copy in small steps, so that writers get between them; in one go if they keep it from ending.

    A write by another process makes SQLite start the copy over. With a write-ahead log the one go holds up nobody; with
    a rollback journal writers wait for it, well within their timeout.
    """
    left = math.inf
    restarts = 0

    def watch(_status: int, remaining: int, _total: int) -> None:
        nonlocal left, restarts
        restarts += remaining > left
        if restarts > RESTARTS_MAX:
            raise _Restarted
        left = remaining

    try:
        source.backup(target, pages=STEP_PAGES, progress=watch, sleep=0.01)
    except _Restarted:
        source.backup(target, pages=-1)
