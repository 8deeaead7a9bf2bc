"""The revision of a database's schema: reads it, checks it, and upgrades it to the program's.

The steps are in `migrations`. Alembic is only imported when there is something to do.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from sqlalchemy import Connection

import migrations
from service.errors import ConfigurationError
from service.storage.database.base import Database


def revision_of(connection: Connection) -> str | None:
    """Return the revision of the database's schema; None where it was never migrated."""
    if "alembic_version" not in _database(connection).tables(connection):
        return None
    found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one_or_none()
    return None if found is None else str(found)


def check_revision(connection: Connection, *, new: bool) -> str | None:
    """Return the revision of the database, one that the program knows; None for an empty one.

    `new` allows an empty one. Raises ConfigurationError for a newer schema and for a file of something else.
    """
    found, database = revision_of(connection), _database(connection)
    if found in migrations.REVISIONS:
        return found
    if found is not None:
        raise ConfigurationError(
            f"{database.known_as}: expected schema revision {migrations.HEAD} or older; found {found},"
            " made by a newer Tamis. Install that version, or put back a backup from before its upgrade"
        )
    tables = database.tables(connection)
    if tables:
        names = ", ".join(sorted(tables)[:5])
        raise ConfigurationError(
            f"{database.known_as}: expected Tamis's tables; found a database of something else ({names})"
        )
    if not new:
        raise ConfigurationError(
            f"{database.known_as}: expected Tamis's tables; found an empty database. If it once held results,"
            " put back a backup (docs/database.md, 'Backup');"
            f" otherwise begin anew with `tamis init {database.root}`"
        )
    return None


def require_head(found: str | None, name: str) -> None:
    """Raise ConfigurationError unless `found` is the program's own revision."""
    if found != migrations.HEAD:
        raise ConfigurationError(
            f"{name}: expected schema revision {migrations.HEAD}; found {found or 'none'}."
            " Bring it up to date with `tamis db upgrade`"
        )


def upgrade(connection: Connection, *, new: bool) -> None:
    """Run the missing migrations on `connection`, which holds the write lock and has foreign keys off.

    The revision is read again under the lock: another process may have been faster. Raises ConfigurationError
    where references between tables are broken afterwards; the caller then rolls back.
    """
    before, database = check_revision(connection, new=new), _database(connection)
    if before == migrations.HEAD:
        return
    from alembic import command
    from alembic.config import Config

    config = Config()
    # An absolute path, found in a wheel and from any working directory.
    config.set_main_option("script_location", str(Path(migrations.__file__).parent).replace("%", "%%"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    if before is None:
        database.take_possession(connection)
    broken = database.broken_references(connection)
    if broken:
        raise ConfigurationError(
            f"{database.known_as}: expected references that hold after the upgrade to {migrations.HEAD}; found"
            f" {len(broken)} broken, the first in table {broken[0]}. Nothing was changed"
        )


def _database(connection: Connection) -> Database:
    return cast(Database, connection.engine)
