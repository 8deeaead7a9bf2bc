"""Opens the database of a root, SQLite's or PostgreSQL's, and refuses one that is not safe to use.

Read with `engine.connect()`, write with `engine.begin()`: see `Database`.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.exc import DBAPIError

import migrations
from service.errors import ConfigurationError
from service.filesystem import mount_table as filesystem
from service.root import DATABASE_FILE
from service.settings_file import database_url
from service.storage.database import schema, sqlite
from service.storage.database.base import Database, DatabaseCorrupt, trouble
from service.storage.database.journal import JournalChoice

__all__ = ["BUSY_TIMEOUT_S", "DatabaseCorrupt", "has_database", "name_of_database", "open_database", "trouble"]

# Longer than a minute, so that a lock of a minute is waited out and nothing is lost.
BUSY_TIMEOUT_S = 90.0


def open_database(
    root: Path,
    *,
    create: bool = False,
    migrate: bool = True,
    read_only: bool = False,
    journal: JournalChoice | None = None,
    busy_timeout_s: float = BUSY_TIMEOUT_S,
) -> Database:
    """Return the database of `root`, at the program's revision: `tamis.db`, or the one that `database_url` names.

    `create` makes the file, or the tables, where there are none. `migrate` upgrades an older schema; with `read_only`
    it only requires the newest. `journal` overrides the choice made for this SQLite. A statement waits
    `busy_timeout_s` for a lock. Raises ConfigurationError for a network file system, a missing or corrupt file, a
    database that is not Tamis's or not this root's, or a newer schema; TamisError where it stays locked, or no server
    answers.
    """
    url = database_url(root)
    _refuse_network(root)
    if url is None:
        sqlite.ensure_file(root, create=create and not read_only)
        engine: Database = sqlite.engine_of(root, journal, read_only=read_only, busy_timeout_s=busy_timeout_s)
    else:
        engine = _server(root, url, read_only=read_only, busy_timeout_s=busy_timeout_s)
    try:
        if not read_only:
            engine.check_at_open()
        found = _revision(engine, new=create)
        if migrate and found != migrations.HEAD:
            if read_only:
                schema.require_head(found, engine.known_as)
            with engine.begin_schema_change() as connection:
                schema.upgrade(connection, new=create)
        if not read_only:
            engine.choose_journal()
    except DBAPIError as error:
        engine.dispose()
        raise engine.unopened(error) from error
    except BaseException:
        engine.dispose()
        raise
    return engine


def has_database(root: Path) -> bool:
    """Return whether the database of `root` was made before. Raises as `open_database`."""
    url = database_url(root)
    if url is None:
        return (root / DATABASE_FILE).exists()
    with _server(root, url, read_only=True, busy_timeout_s=BUSY_TIMEOUT_S) as engine:
        try:
            return _revision(engine, new=True) is not None
        except DBAPIError as error:
            raise engine.unopened(error) from error


def name_of_database(root: Path) -> str:
    """Return what messages call the database of `root`: its path, or its URL without the password."""
    url = database_url(root)
    if url is None:
        return str(root / DATABASE_FILE)
    from service.storage.database.postgresql import shown

    return shown(url)


def _revision(engine: Database, *, new: bool) -> str | None:
    """Return the revision of a database that is Tamis's and this root's, None of an empty one.

    Raises as `check_revision`.
    """
    with engine.connect() as connection:
        found = schema.check_revision(connection, new=new)
        if found is not None:
            engine.check_owner(connection)
    return found


def _server(root: Path, url: str, *, read_only: bool, busy_timeout_s: float) -> Database:
    # Imported only where needed: a daemon on SQLite saves the memory of SQLAlchemy's part for PostgreSQL.
    from service.storage.database import postgresql

    return postgresql.engine_of(root, url, read_only=read_only, busy_timeout_s=busy_timeout_s)


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
