"""The journal of a SQLite file as it is: begins and empties a write-ahead log, and names who is in the way.

Which journal it should be is said by `journal`.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from service.errors import ConfigurationError
from service.filesystem.lock_holders import LockHolder, lock_holders, named
from service.storage.database.driver import is_corruption, sqlite3
from service.storage.database.journal import JournalChoice

WAL = "WAL"
# How long an open tries to begin a log, which one reader prevents; the daemon tries again beside its work.
SWITCH_TIMEOUT_S = 1.0
# A log grows while a reader keeps it from being emptied, then shrinks to this.
LOG_BYTES_KEPT = 16_000_000
# A log of this is worth a word: an image that comes alone adds some 75 kB, so it takes a reader of minutes.
LOG_BYTES_MAX = 64_000_000
# The bytes that SQLite locks: of the index of a log for reading, and of the file. https://sqlite.org/walformat.html
# and https://sqlite.org/src/file/src/os.h
READ_LOCKS = (123, 127)
SHARED_LOCK = (0x40000002, 0x40000002 + 509)
# Two looks, so that who reads for a moment only is not named.
LOOK_AGAIN_S = 0.2


def set_up(connection: sqlite3.Connection, journal: JournalChoice, path: Path, busy_timeout_s: float) -> None:
    """Make a new connection safe to write by: with the level that its journal needs, and no log where none may be.

    Raises ConfigurationError where others keep a log that this SQLite must not write.
    """
    found = journal_of(connection, busy_timeout_s)
    if found == WAL != journal.mode and (found := switch(connection, journal.mode, busy_timeout_s)) == WAL:
        raise ConfigurationError(
            f"{path}: expected journal {journal.mode}, since {journal.reason}; found {found}, kept by"
            f" {named(with_file_open(path))}. Stop all that use it, then start again"
        )
    _set_level(connection, journal, found)
    connection.execute(f"PRAGMA journal_size_limit = {LOG_BYTES_KEPT}")


def begin_log(connection: sqlite3.Connection, journal: JournalChoice, timeout_s: float = SWITCH_TIMEOUT_S) -> bool:
    """Begin a log, if `journal` is one; return whether the journal is now as chosen, or others were in the way."""
    try:
        found = journal_of(connection, timeout_s)
        if journal.mode == WAL != found:
            found = switch(connection, WAL, timeout_s)
            _set_level(connection, journal, found)
    except sqlite3.OperationalError as error:
        if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
            raise
        return False
    return found == journal.mode


def _set_level(connection: sqlite3.Connection, journal: JournalChoice, found: str) -> None:
    # Where a log is still to come, the level that a rollback journal needs; for a log it is no less.
    connection.execute(f"PRAGMA synchronous = {journal.synchronous if found == journal.mode else 'EXTRA'}")


def journal_of(connection: sqlite3.Connection, timeout_s: float = 0.0) -> str:
    """Return the journal that the file has, such as `WAL`."""
    return _patiently(connection, "PRAGMA journal_mode", timeout_s)


def switch(connection: sqlite3.Connection, mode: str, timeout_s: float) -> str:
    """Return the journal after trying for `timeout_s` to make it `mode`."""
    # Not SQLite's own waiting: it would keep others from reading while it waits for one reader to end.
    [[waits_ms]] = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        return _patiently(connection, f"PRAGMA journal_mode = {mode}", timeout_s)
    except sqlite3.OperationalError as error:
        # Busy; or a file system that cannot share memory, as a log needs it.
        if is_corruption(error):
            raise
    finally:
        connection.execute(f"PRAGMA busy_timeout = {waits_ms}")
    return journal_of(connection, waits_ms / 1000)


def tend(connection: sqlite3.Connection, journal: JournalChoice, path: Path) -> str | None:
    """Begin the log of `path`, or shorten it, where that waits for nobody; return what is in the way, if anything."""
    if begin_log(connection, journal, 0.0) and _bytes_of_log(path) > LOG_BYTES_MAX:
        _empty_log(connection)
    return in_the_way(connection, journal, path)


def in_the_way(connection: sqlite3.Connection, journal: JournalChoice, path: Path) -> str | None:
    """Return why the journal of `path` is not as it should be, and who reads meanwhile; None where it is."""
    size = _bytes_of_log(path)
    if size > LOG_BYTES_MAX:
        return f"{log_of(path)}: {size:_} bytes, not emptied while others read: {named(_in_both_looks(path))}"
    if journal.mode == WAL != journal_of(connection, SWITCH_TIMEOUT_S):
        return f"{path}: no write-ahead log yet, so verdicts wait for who reads it: {named(_in_both_looks(path))}"
    return None


def _empty_log(connection: sqlite3.Connection) -> None:
    """Bring the log into the database and empty it, as far as readers allow; wait for none of them."""
    [[waits_ms]] = connection.execute("PRAGMA busy_timeout").fetchall()
    connection.execute("PRAGMA busy_timeout = 0")
    try:
        # First what can be done beside writers, so that the rest keeps them for a moment only.
        connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    finally:
        connection.execute(f"PRAGMA busy_timeout = {waits_ms}")


def log_of(path: Path) -> Path:
    return path.with_name(path.name + "-wal")


def _bytes_of_log(path: Path) -> int:
    with suppress(OSError):
        return log_of(path).stat().st_size
    return 0


def with_file_open(path: Path) -> list[LockHolder]:
    """Return the other processes that keep a log open, or of a rollback journal those in a transaction."""
    return lock_holders(path, *SHARED_LOCK)


def _reading(path: Path) -> list[LockHolder]:
    """Return the other processes that are in a transaction that reads."""
    index = path.with_name(path.name + "-shm")
    return lock_holders(index, *READ_LOCKS) if index.exists() else with_file_open(path)


def _in_both_looks(path: Path) -> list[LockHolder]:
    """Return who reads, and still reads a moment later."""
    first = _reading(path)
    if not first:
        return []
    time.sleep(LOOK_AGAIN_S)
    return sorted(set(first) & set(_reading(path)))


def _patiently(connection: sqlite3.Connection, pragma: str, timeout_s: float) -> str:
    """Return what `pragma` answers, tried for `timeout_s`: SQLite does not wait while another changes it, too."""
    until = time.monotonic() + timeout_s
    while True:
        try:
            return str(connection.execute(pragma).fetchone()[0]).upper()
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
        time.sleep(0.02)
