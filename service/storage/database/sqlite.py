"""SQLite, the database of a root that names no other: the file, its journal, its locks and its damage."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import Connection, create_engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry

from service.errors import ConfigurationError, TamisError
from service.root import DATABASE_FILE
from service.storage.database.base import WRITES, Database, DatabaseCorrupt
from service.storage.database.journal import JournalChoice, journal_choice

# Checking every page takes seconds for a gigabyte; up to here (some 30,000 images) it is not noticed at a start.
# Beyond it a bad page is found by the statement that meets it, or by `tamis db check`.
CHECK_AT_OPEN_BYTES_MAX = 32_000_000


class SQLite(Database):
    """A database in a file of the root.

    `begin()` takes SQLite's write lock at once (BEGIN IMMEDIATE): a transaction that reads first and writes
    later would otherwise fail, without waiting, when another has written in between.
    """

    @contextmanager
    def begin_schema_change(self) -> Iterator[Connection]:
        """As `begin`, with foreign keys off: rebuilding a table, as SQLite must, would break references."""
        with self.connect() as connection:
            driver: Any = connection.connection.driver_connection
            driver.execute("PRAGMA foreign_keys = OFF")  # without effect inside a transaction, so before it
            try:
                connection.execution_options(**{WRITES: True})
                with connection.begin():
                    yield connection
            finally:
                driver.execute("PRAGMA foreign_keys = ON")

    def check_at_open(self) -> None:
        path = self.root / DATABASE_FILE
        if path.stat().st_size > CHECK_AT_OPEN_BYTES_MAX:
            return
        with self.connect() as connection:
            [answer] = self.check(connection, quick=True)
        if answer != "ok":
            raise _corrupt(path, answer)

    def unopened(self, error: DBAPIError) -> TamisError:
        # A lock or a full disk may pass, so only the rest is final.
        code = getattr(error.orig, "sqlite_errorcode", 0) & 0xFF
        passing = code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL)
        message = f"{self.known_as}: expected a database that opens; found: {error.orig}"
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            message += ". Another program holds it; `fuser` on the file names it"
        return TamisError(message) if passing else ConfigurationError(message)

    def tables(self, connection: Connection) -> set[str]:
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'table'").scalars()
        return {name for name in rows if not name.startswith("sqlite_")}

    def broken_references(self, connection: Connection) -> list[str]:
        return [row[0] for row in connection.exec_driver_sql("PRAGMA foreign_key_check")]

    def check(self, connection: Connection, *, quick: bool) -> list[str]:
        pragma = "quick_check(1)" if quick else "integrity_check"
        return list(connection.exec_driver_sql(f"PRAGMA {pragma}").scalars())


def ensure_file(root: Path, *, create: bool) -> None:
    """Make the file of the database where there is none and `create` is set. Raises ConfigurationError otherwise."""
    path = root / DATABASE_FILE
    if path.is_file():
        return
    if not root.is_dir():
        raise ConfigurationError(f"root {root}: no such folder; make one with `tamis init {root}`")
    if not create:
        raise ConfigurationError(f"root {root}: no {DATABASE_FILE} in it; make one with `tamis init {root}`")
    # SQLite would make it 0644 less the umask; so a group that the umask lets write can. Its journals follow.
    os.close(os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o666))


def engine_of(root: Path, journal: JournalChoice | None, *, read_only: bool, busy_timeout_s: float) -> SQLite:
    """Return the engine of the file in `root`, which is there. `journal` overrides the choice for this SQLite."""
    path = root / DATABASE_FILE
    journal = journal or journal_choice(sqlite3.sqlite_version_info)
    # A reader still opens the file for writing where it may: only then can it roll back what a crash left.
    mode = "rw" if os.access(path, os.W_OK) and os.access(path.parent, os.W_OK) else "ro"
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"

    def connect() -> sqlite3.Connection:
        # isolation_level None: the driver begins nothing by itself, the listener below does.
        return sqlite3.connect(uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False)

    plain = create_engine("sqlite:///" + str(path), creator=connect)
    engine = SQLite(plain.pool, plain.dialect, plain.url)
    engine.root, engine.known_as = root, str(path)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, entry: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if mode == "rw":
            _set_journal(connection, journal, path, busy_timeout_s)

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False) and not read_only
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


def _is_corruption(error: BaseException | None) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _corrupt(path: Path, found: object) -> DatabaseCorrupt:
    return DatabaseCorrupt(
        f"{path}: expected a sound SQLite database; found: {found}."
        " Stop Tamis, keep a copy of the file, and put back a backup (docs/database.md, 'Backup')"
    )
