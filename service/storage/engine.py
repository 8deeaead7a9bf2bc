"""Opens the database of a root: refuses what is not safe to use, and sets every connection up.

Owns the file, the journal mode, the locking and the schema's revision; the statements are in the files of the
nouns. Read with `engine.connect()`, write with `engine.begin()`: see `Database`.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

import migrations
from service import filesystem
from service.errors import ConfigurationError, TamisError
from service.storage import schema
from service.storage.journal import JournalChoice, journal_choice

DATABASE_FILE = "tamis.db"
# Longer than a minute, so that a lock of a minute is waited out and nothing is lost.
BUSY_TIMEOUT_S = 90.0
# Checking every page takes seconds for a gigabyte; up to here (some 30,000 pictures) it is not noticed at a start.
# Beyond it a bad page is found by the statement that meets it, or by `tamis db check`.
CHECK_AT_OPEN_BYTES_MAX = 32_000_000

_WRITES = "tamis_writes"


class DatabaseCorrupt(ConfigurationError):
    """The file is not a sound SQLite database; raised at open, and by any statement that meets a bad page."""


class Database(Engine):
    """An engine whose `begin()` writes and whose `connect()` reads.

    `begin()` takes SQLite's write lock at once (BEGIN IMMEDIATE): a transaction that reads first and writes
    later would otherwise fail, without waiting, when another has written in between. `connect()` begins
    without a lock and may not write: SQLite then answers "attempt to write a readonly database".
    """

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; an error rolls it back."""
        with self.connect() as connection:
            connection.execution_options(**{_WRITES: True})
            with connection.begin():
                yield connection

    @contextmanager
    def begin_schema_change(self) -> Iterator[Connection]:
        """As `begin`, with foreign keys off: rebuilding a table, as SQLite must, would break references."""
        with self.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA foreign_keys = OFF")  # without effect inside a transaction, so before it
            try:
                connection.execution_options(**{_WRITES: True})
                with connection.begin():
                    yield connection
            finally:
                driver.execute("PRAGMA foreign_keys = ON")


def open_database(
    root: Path,
    *,
    create: bool = False,
    migrate: bool = True,
    read_only: bool = False,
    journal: JournalChoice | None = None,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> Engine:
    """Return the engine of the database in `root`, at the program's revision.

    `create` makes the file where there is none. `migrate` brings an older schema up to date; with `read_only`
    it only demands that it is. `journal` overrides the choice made for this SQLite. A statement waits
    `busy_timeout_s` for another's lock; `is_locked` tells that error. Raises ConfigurationError
    for a network file system, a missing or corrupt file, a file that is not Tamis's, or a newer schema; TamisError
    where the file is locked for longer than `busy_timeout_s`.
    """
    path = root / DATABASE_FILE
    _refuse_network(root)
    _ensure_file(path, root, create=create and not read_only)
    engine = _engine(path, journal or journal_choice(sqlite3.sqlite_version_info), read_only, busy_timeout_s)
    try:
        if not read_only:
            _check(engine, path)
        with engine.connect() as connection:
            found = schema.judge(connection, path, new=create)
        if migrate and found != migrations.HEAD:
            if read_only:
                schema.require_head(found, path)
            with engine.begin_schema_change() as connection:
                schema.upgrade(connection, path, new=create)
    except DBAPIError as error:
        engine.dispose()
        raise _unopened(path, error.orig) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def _refuse_network(root: Path) -> None:
    try:
        mount = filesystem.mount_of(root)
    except (OSError, ValueError):
        return  # no mount table (a stripped sandbox): what cannot be known is not refused
    if filesystem.is_network(mount.type):
        raise ConfigurationError(
            f"root {root}: expected a local file system for {DATABASE_FILE}; found {mount.type}"
            f" ({mount.source} on {mount.mount_point}), on which SQLite's locks are not safe."
            " Put the root on a local disk; cameras may write into its incoming/ through a share of it"
        )


def _ensure_file(path: Path, root: Path, *, create: bool) -> None:
    if path.is_file():
        return
    if not root.is_dir():
        raise ConfigurationError(f"root {root}: no such folder; make one with `tamis init {root}`")
    if not create:
        raise ConfigurationError(f"root {root}: no {DATABASE_FILE} in it; make one with `tamis init {root}`")
    # SQLite would make it 0644 less the umask; so a group that the umask lets write can. Its journals follow.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))


def is_locked(error: DBAPIError) -> bool:
    """Return whether a statement failed because another held the lock for longer than it waited."""
    code = getattr(error.orig, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)


def _engine(path: Path, journal: JournalChoice, read_only: bool, busy_timeout_s: float) -> Database:
    # A reader still opens the file for writing where it may: only then can it roll back what a crash left.
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: the driver begins nothing by itself, the listener below does.
        return sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)

    plain = create_engine("sqlite:///" + str(path), creator=connect)
    engine = Database(plain.pool, plain.dialect, plain.url)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, entry: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rw":
            _set_journal(connection, journal, path, busy_timeout_s)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(_WRITES, False) and not read_only
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @event.listens_for(engine, "handle_error")
    def name_corruption(context: ExceptionContext) -> BaseException | None:
        found = context.original_exception
        return _corrupt(path, found) if _is_corruption(found) else None

    return engine


def _set_journal(connection: sqlite3.Connection, journal: JournalChoice, path: Path, busy_timeout_s: float) -> None:
    try:
        found = _patiently(connection, f"PRAGMA journal_mode = {journal.mode}", busy_timeout_s)
        connection.execute(f"PRAGMA synchronous = {journal.synchronous}")
    except sqlite3.DatabaseError as error:
        if _is_corruption(error):
            raise _corrupt(path, error) from error
        raise
    if found.upper() != journal.mode:
        raise ConfigurationError(
            f"{path}: expected journal mode {journal.mode}; found {found.upper()}, kept by another program"
            " that has the database open. Stop all that use it, then start again"
        )


def _patiently(connection: sqlite3.Connection, pragma: str, timeout_s: float) -> str:
    """Return what `pragma` answers, tried for `timeout_s`: SQLite does not wait while another changes it, too."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return str(connection.execute(pragma).fetchone()[0])
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.02)


def _check(engine: Engine, path: Path) -> None:
    if path.stat().st_size > CHECK_AT_OPEN_BYTES_MAX:
        return
    with engine.connect() as connection:
        answer = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
    if answer != "ok":
        raise _corrupt(path, answer)


def _unopened(path: Path, found: BaseException | None) -> TamisError:
    """Return the error for a file that did not open: a lock or a full disk may pass, so only the rest is final."""
    code = getattr(found, "sqlite_errorcode", 0) & 0xFF
    passing = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
    message = f"{path}: expected a database that opens; found: {found}"
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        message += ". Another program holds it; `fuser` on the file names it"
    return TamisError(message) if passing else ConfigurationError(message)


def _is_corruption(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _corrupt(path: Path, found: object) -> DatabaseCorrupt:
    return DatabaseCorrupt(
        f"{path}: expected a sound SQLite database; found: {found}."
        " Stop Tamis, keep a copy of the file, and put back a backup (docs/database.md, 'Backup')"
    )
