"""PostgreSQL, the database of a root whose setting `database_url` names one; needs the extra `postgres`.

A database, or a schema of one, belongs to one root: a comment in the database and a file in the root bear the same id.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event, make_url
from sqlalchemy.engine import URL, ExceptionContext
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.pool import ConnectionPoolEntry
from ulid import ULID

from service.errors import ConfigurationError, TamisError
from service.filesystem.durable import write_durably
from service.root import DATABASE_OWNER_FILE
from service.storage.database.base import WRITES, Database, DatabaseCorrupt, trouble

DRIVERS = ("postgresql", "postgres", "postgresql+psycopg")
_EXPECTED = "expected a URL like postgresql://user@host/database"
# Of PostgreSQL: data_corrupted and index_corrupted.
_CORRUPT_STATES = ("XX001", "XX002")
_COMMENT = "root "
_LOCK = "pg_advisory_xact_lock(hashtext('tamis'), hashtext(current_schema()))"
CONNECT_TIMEOUT_S = 10
SHOWN_PARAMETERS = frozenset({"host", "hostaddr", "port", "options", "sslmode", "connect_timeout", "application_name"})


class PostgreSQL(Database):
    """A database of a server. Writers take one advisory lock, as SQLite has one writer; readers see one snapshot."""

    def check_owner(self, connection: Connection) -> None:
        owner = self._owner(connection)
        found = _id_of(self.root)
        if owner != found:
            raise ConfigurationError(
                f"{self.known_as}: expected the database of root {self.root}, whose {DATABASE_OWNER_FILE} says"
                f" {found or 'nothing'}; found that of root {owner or 'unknown'}."
                " One database, or schema, serves one root"
            )

    def take_possession(self, connection: Connection) -> None:
        # The file first: after a crash in between, the next try finds a database that is still nobody's.
        id = _id_of(self.root) or _make_id(self.root)
        connection.exec_driver_sql(f"COMMENT ON TABLE alembic_version IS '{_COMMENT}{id}'")

    def unopened(self, error: DBAPIError) -> TamisError:
        message = f"{self.known_as}: expected a server that answers; found: {_plain(error)}"
        # What no server said may pass; so may a wrong password, as far as the driver tells them apart.
        return TamisError(message) if trouble(error) else ConfigurationError(message)

    def tables(self, connection: Connection) -> set[str]:
        statement = "SELECT tablename FROM pg_tables WHERE schemaname = current_schema()"
        return set(connection.exec_driver_sql(statement).scalars())

    def broken_references(self, connection: Connection) -> list[str]:
        # The server lets none break, but one may have been added without its check.
        statement = (
            "SELECT conrelid::regclass::text FROM pg_constraint WHERE contype = 'f' AND NOT convalidated"
            " AND connamespace = current_schema()::regnamespace"
        )
        return list(connection.exec_driver_sql(statement).scalars())

    def check(self, connection: Connection, *, quick: bool) -> list[str]:
        """Read every row, unless `quick`: that meets pages with wrong checksums, where the server keeps any."""
        found = []
        for table in [] if quick else sorted(self.tables(connection)):
            try:
                with connection.begin_nested():
                    connection.exec_driver_sql(f'SELECT max(length(t::text)) FROM "{table}" AS t').scalar_one()
            except (DBAPIError, DatabaseCorrupt) as error:
                if trouble(error):
                    raise
                found.append(f"{table}: {error}")
        return found or ["ok"]

    def _owner(self, connection: Connection) -> str | None:
        comment = connection.exec_driver_sql("SELECT obj_description('alembic_version'::regclass)").scalar_one()
        return str(comment).removeprefix(_COMMENT) if comment and str(comment).startswith(_COMMENT) else None


def shown(url: str) -> str:
    """Return `url` without its password, as messages show it. Raises ConfigurationError for any other."""
    parsed = _url_of(url)
    # A password may be among the parameters too, by several names.
    query = {name: value for name, value in parsed.query.items() if name in SHOWN_PARAMETERS}
    return parsed.set(drivername="postgresql", query=query).render_as_string(hide_password=True)


def engine_of(root: Path, url: str, *, read_only: bool, busy_timeout_s: float) -> PostgreSQL:
    """Return the engine of the database at `url`; nothing is asked of the server yet.

    Raises ConfigurationError for an invalid URL, and where the driver is not installed.
    """
    parsed = _url_of(url)
    if not root.is_dir():
        raise ConfigurationError(f"root {root}: no such folder; make one with `tamis init {root}`")
    given = {"connect_timeout": CONNECT_TIMEOUT_S, "application_name": "tamis"}
    arguments = {name: value for name, value in given.items() if name not in parsed.query}
    try:
        # Pre-ping: the server may have been restarted since the last use.
        plain = create_engine(parsed, connect_args=arguments, pool_pre_ping=True)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"setting database_url: expected psycopg, which {shown(url)} is reached by; found {error}."
            " Install it with `pip install 'tamis[postgres]'`"
        ) from None
    except ArgumentError as error:
        raise ConfigurationError(f"setting database_url: {_EXPECTED}; found {shown(url)}: {error}") from None
    engine = PostgreSQL(plain.pool, plain.dialect, plain.url)
    engine.root, engine.known_as = root, shown(url)

    @event.listens_for(engine, "connect")
    def set_up(connection: Any, entry: ConnectionPoolEntry) -> None:
        connection.autocommit = True
        with connection.cursor() as cursor:
            # A recorded verdict must survive a power cut, whatever the server's default.
            cursor.execute(
                "SELECT set_config('synchronous_commit', 'on', false)"
                " WHERE current_setting('synchronous_commit') = 'off'"
            )
            cursor.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL READ COMMITTED")
            cursor.execute("SHOW server_encoding")
            [encoding] = cursor.fetchone()
        connection.autocommit = False
        if encoding != "UTF8":
            raise ConfigurationError(
                f"{engine.known_as}: expected a database in UTF8, for any file name; found {encoding}"
            )

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        if connection.get_execution_options().get(WRITES, False) and not read_only:
            # Before any read, so that it sees what the last writer left.
            connection.exec_driver_sql(
                f"SELECT set_config('lock_timeout', '{busy_timeout_s * 1000:.0f}ms', true), {_LOCK}"
            )
        else:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY")

    @event.listens_for(engine, "handle_error")
    def name_corruption(context: ExceptionContext) -> BaseException | None:
        found = context.original_exception
        if getattr(found, "sqlstate", None) in _CORRUPT_STATES:
            return DatabaseCorrupt(
                f"{engine.known_as}: expected a sound database; found: {found}. Stop Tamis and put back a backup"
                " (docs/database.md, 'PostgreSQL')"
            )
        return None

    return engine


def _url_of(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise ConfigurationError(f"setting database_url: {_EXPECTED}; found something else, not shown here") from None
    if parsed.drivername not in DRIVERS:
        raise ConfigurationError(f"setting database_url: {_EXPECTED}; found {parsed.drivername}://…")
    if "@" in (parsed.host or ""):
        # Not the host: what stands before it is the rest of a password.
        raise ConfigurationError(f"setting database_url: {_EXPECTED}; found two @: in a password it is written %40")
    if not parsed.database:
        raise ConfigurationError(f"setting database_url: {_EXPECTED}; found none with the name of a database")
    return parsed.set(drivername="postgresql+psycopg")


def _id_of(root: Path) -> str | None:
    path = root / DATABASE_OWNER_FILE
    try:
        found = path.read_text(encoding="ascii").strip()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{path}: expected the id of the root's database; found {error}") from None
    if found and not found.isalnum():
        raise ConfigurationError(f"{path}: expected the id of the root's database; found {found[:40]!r}")
    return found or None


def _make_id(root: Path) -> str:
    id = str(ULID())
    part = root / f"{DATABASE_OWNER_FILE}.{id}"
    write_durably(part, f"{id}\n".encode("ascii"))
    part.replace(root / DATABASE_OWNER_FILE)
    return id


def _plain(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())
