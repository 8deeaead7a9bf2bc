"""What SQLite and PostgreSQL have in common here: who may write when, and which errors may pass."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Self, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError, OperationalError

from service.errors import ConfigurationError, TamisError
from service.storage.database.driver import sqlite3

Result = TypeVar("Result")
Trouble = Literal["locked", "away"]

# How long a write waits for a server that went away: it is started again, or the machine is.
AWAY_TIMEOUT_S = 90.0
ASK_AGAIN_S = 0.5
WRITES = "tamis_writes"

# Of PostgreSQL, https://www.postgresql.org/docs/current/errcodes-appendix.html: connection exceptions, a server that
# ends or ended, one that starts; and a lock that did not come in time.
_CONNECTION_CLASS = "08"
_AWAY_STATES = ("57P01", "57P02", "57P03")
_LOCK_NOT_AVAILABLE = "55P03"


class DatabaseCorrupt(ConfigurationError):
    """The database is damaged; raised at open, and by any statement that meets the damage."""


class Database(Engine):
    """An engine whose `begin()` writes and whose `connect()` reads; `known_as` is what messages call it.

    Writers take turns from the beginning of their transactions, so that none decides by rows that another is changing.
    `connect()` sees one moment, waits for no writer and may not write.
    """

    root: Path
    known_as: str

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.dispose()

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """Yield a connection in a transaction that may write; an error rolls it back."""
        with self.connect() as connection:
            connection.execution_options(**{WRITES: True})
            with connection.begin():
                yield connection

    def begin_schema_change(self) -> AbstractContextManager[Connection]:
        return self.begin()

    def check_at_open(self) -> None:
        """Raise DatabaseCorrupt where a check that is quick enough for a start finds damage."""

    def check_owner(self, connection: Connection) -> None:
        """Raise ConfigurationError where the database, which has a schema, is another root's."""

    def take_possession(self, connection: Connection) -> None:
        """Mark a new database as this root's, in the transaction that makes its schema."""

    def unopened(self, error: DBAPIError) -> TamisError:
        """Return the error for a database that did not open: final, or one that may pass."""
        raise NotImplementedError

    def reads_hold_up_nobody(self, connection: Connection) -> bool:
        """Return whether a transaction that reads may take long, since no writer waits for it."""
        return True

    def choose_journal(self) -> None:
        """Have the database keep its transactions as is best here, once it is known to be this root's."""

    def tend_journal(self) -> str | None:
        """Begin or shorten the write-ahead log where that waits for nobody; return what is in the way, None if nothing.

        Asked now and then by whoever writes for long.
        """
        return None

    def journal_trouble(self) -> str | None:
        """Return why the journal is not as it should be, as `tend_journal`; changes nothing."""
        return None

    def tables(self, connection: Connection) -> set[str]:
        raise NotImplementedError

    def broken_references(self, connection: Connection) -> list[str]:
        """Return the table of each broken reference."""
        raise NotImplementedError

    def check(self, connection: Connection, *, quick: bool) -> list[str]:
        """Return what is damaged, `["ok"]` where nothing is found. A quick check reads less."""
        raise NotImplementedError


def trouble(error: BaseException) -> Trouble | None:
    """Return why a statement failed if that may pass: another held the lock for too long, or the server went away."""
    if not isinstance(error, DBAPIError):
        return None
    if getattr(error.orig, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return "locked"
    state = getattr(error.orig, "sqlstate", "")
    if state == _LOCK_NOT_AVAILABLE:
        return "locked"
    if state is None:  # no answer by a server
        return "away" if isinstance(error, OperationalError) else None
    return "away" if state[:2] == _CONNECTION_CLASS or state in _AWAY_STATES else None


def write(
    engine: Engine,
    work: Callable[[Connection], Result],
    done: Callable[[Connection], Result | None] = lambda _: None,
    *,
    away_timeout_s: float = AWAY_TIMEOUT_S,
) -> Result:
    """Return what `work` returns in a transaction that may write, begun again when a server that went away is back.

    Where the connection was lost at the commit, `done` returns the result if the transaction holds, else None; without
    `done`, repeating `work` must do no harm. Raises the error after `away_timeout_s`, and any other at once.
    """
    until: float | None = None
    while True:
        try:
            with engine.begin() as connection:
                held = None if until is None else done(connection)
                return work(connection) if held is None else held
        except OperationalError as error:
            now = time.monotonic()
            until = now + away_timeout_s if until is None else until
            if trouble(error) != "away" or now > until:
                raise
        time.sleep(ASK_AGAIN_S)
