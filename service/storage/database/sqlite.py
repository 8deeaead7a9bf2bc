"""SQLite, the database of a root that names no other: the file, its journal, its locks and its damage."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote

from sqlalchemy import Connection, FromClause, create_engine, event
from sqlalchemy.dialects.sqlite.base import SQLiteCompiler
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.pool import ConnectionPoolEntry, NullPool

from service.errors import ConfigurationError, TamisError
from service.filesystem.lock_holders import named
from service.root import DATABASE_FILE
from service.storage.database import write_ahead
from service.storage.database.base import WRITES, Database, DatabaseCorrupt
from service.storage.database.driver import is_corruption, sqlite3
from service.storage.database.journal import JournalChoice, journal_choice
from service.storage.database.write_ahead import WAL, begin_log, journal_of, with_file_open

# Checking every page takes seconds for a gigabyte; up to here (some 30,000 images) it is not noticed at a start.
# Beyond it a bad page is found by the statement that meets it, or by `tamis db check`.
CHECK_AT_OPEN_BYTES_MAX = 32_000_000


class SQLite(Database):
    """A database in a file of the root.

    `begin()` takes SQLite's write lock at once (BEGIN IMMEDIATE): a transaction that reads first and writes
    later would otherwise fail, without waiting, when another has written in between.
    """

    journal: JournalChoice

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
            message += f". Another program holds it: {named(with_file_open(self.root / DATABASE_FILE))}"
        if code == sqlite3.SQLITE_CANTOPEN:
            message += ". Who may only read it needs the files -wal and -shm beside it too, where there are any"
        return TamisError(message) if passing else ConfigurationError(message)

    def reads_hold_up_nobody(self, connection: Connection) -> bool:
        return str(connection.exec_driver_sql("PRAGMA journal_mode").scalar_one()).upper() == WAL

    def choose_journal(self) -> None:
        with self._driver() as driver:
            begin_log(driver, self.journal)

    def tend_journal(self) -> str | None:
        with self._driver() as driver:
            return write_ahead.tend(driver, self.journal, self.root / DATABASE_FILE)

    @contextmanager
    def _driver(self) -> Iterator[Any]:
        """Yield a connection outside of any transaction; its errors are those that statements raise."""
        with closing(self.raw_connection()) as pooled:
            try:
                yield pooled.driver_connection
            except sqlite3.DatabaseError as error:
                if is_corruption(error):
                    raise _corrupt(self.root / DATABASE_FILE, error) from error
                raise OperationalError("PRAGMA", None, error) from error

    def journal_trouble(self) -> str | None:
        with self._driver() as driver:
            return write_ahead.in_the_way(driver, self.journal, self.root / DATABASE_FILE)

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
    may_write = os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)

    def connect() -> sqlite3.Connection:
        if not may_write:
            return _open_unwritable(path, busy_timeout_s)
        # A SQLite with the WAL-reset bug may read a log that others write, but never empty it.
        if read_only and journal.mode != WAL and (reading := _open_log(path, busy_timeout_s)) is not None:
            return reading
        writing: sqlite3.Connection = _open(path, "mode=rw", busy_timeout_s)
        return writing

    # Who may not write opens anew each time: how the file can be read depends on whether others have it open.
    pool = {} if may_write else {"poolclass": NullPool}
    plain = create_engine("sqlite:///" + str(path), module=sqlite3, creator=connect, **pool)
    plain.dialect.statement_compiler = _Compiler
    engine = SQLite(plain.pool, plain.dialect, plain.url)
    engine.root, engine.known_as, engine.journal = root, str(path), journal

    @event.listens_for(engine, "connect")
    def on_connect(connection: Any, entry: ConnectionPoolEntry) -> None:
        connection.execute("PRAGMA foreign_keys = ON")
        if may_write and not read_only:
            try:
                write_ahead.set_up(connection, journal, path, busy_timeout_s)
            except sqlite3.DatabaseError as error:
                if is_corruption(error):
                    raise _corrupt(path, error) from error
                raise

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        writes = connection.get_execution_options().get(WRITES, False) and not read_only
        connection.exec_driver_sql(f"PRAGMA query_only = {'OFF' if writes else 'ON'}")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    @event.listens_for(engine, "handle_error")
    def name_corruption(context: ExceptionContext) -> BaseException | None:
        found = context.original_exception
        return _corrupt(path, found) if is_corruption(found) else None

    if not may_write:
        for end in ("commit", "rollback"):
            event.listen(engine, end, _refuse_changed)
    return engine


class _Compiler(SQLiteCompiler):
    """SQLAlchemy's, with hints: `with_hint(table, "INDEXED BY …", "sqlite")` names the index to read by."""

    def get_from_hint_text(self, table: FromClause, text: str | None) -> str | None:
        return text


class _Unlocked(sqlite3.Connection):
    """A connection that takes no locks; `found` is how the file was before."""

    found: tuple[int, int]


def _open(path: Path, how: str, busy_timeout_s: float, kind: type[sqlite3.Connection] = sqlite3.Connection) -> Any:
    # isolation_level None: the driver begins nothing by itself, the engine's listener does.
    uri = f"file:{quote(str(path.absolute()))}?{how}"
    return sqlite3.connect(
        uri, uri=True, timeout=busy_timeout_s, isolation_level=None, check_same_thread=False, factory=kind
    )


def _open_log(path: Path, busy_timeout_s: float) -> sqlite3.Connection | None:
    """Return a connection that reads a write-ahead log and cannot empty it; None where there is no log."""
    reading: sqlite3.Connection = _open(path, "mode=ro", busy_timeout_s)
    try:
        if journal_of(reading, busy_timeout_s) == WAL:
            return reading
    except sqlite3.OperationalError as error:
        # What a crash left in a rollback journal, which only one that may write can take back.
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_READONLY:
            raise
    reading.close()
    return None


def _open_unwritable(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Return a connection for who may not write the file, or nothing beside it.

    A write-ahead log cannot be read without its index, which whoever has the file open keeps beside it. Where nobody
    has, there is no log either: the file is read as it is, and `_refuse_changed` finds out who came meanwhile.
    """
    found = _stamp(path)
    plain: sqlite3.Connection = _open(path, "mode=ro", busy_timeout_s)
    try:
        journal_of(plain, busy_timeout_s)
    except sqlite3.OperationalError as error:
        # Which of the two depends on what else is there. Where there is a journal, the first statement says why.
        without_index = error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY)
        if not without_index or any(path.with_name(path.name + end).exists() for end in ("-wal", "-journal")):
            return plain
        plain.close()
        unlocked: _Unlocked = _open(path, "mode=ro&immutable=1", busy_timeout_s, _Unlocked)
        unlocked.found = found
        return unlocked
    except sqlite3.DatabaseError:
        return plain
    return plain


def _refuse_changed(connection: Connection) -> None:
    driver, database = connection.connection.driver_connection, cast(SQLite, connection.engine)
    path = database.root / DATABASE_FILE
    if isinstance(driver, _Unlocked) and _stamp(path) != driver.found:
        raise TamisError(f"{path}: expected nobody to write it while it was read; found it changed. Try again")


def _stamp(path: Path) -> tuple[int, int]:
    now = path.stat()
    return now.st_mtime_ns, now.st_size


def _corrupt(path: Path, found: object) -> DatabaseCorrupt:
    return DatabaseCorrupt(
        f"{path}: expected a sound SQLite database; found: {found}."
        " Stop Tamis, keep a copy of the file, and put back a backup (docs/database.md, 'Backup')"
    )
