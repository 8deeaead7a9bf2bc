"""`tamis db`: upgrades, checks, backs up and restores the database of a root."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import migrations
from service.commands.options import AsJson, Root, print_json, print_result
from service.errors import TamisError, UsageError
from service.operations.backup import backup as copy_database
from service.operations.check_rows import RowsWithFiles, look_at_files, refused_rows
from service.operations.restore import mark_restored
from service.operations.restore import restore as restore_database
from service.settings_file import database_url
from service.storage.database import schema
from service.storage.database.open import DatabaseCorrupt, name_of_database, open_database

app = typer.Typer(help="Upgrade, check, back up and restore the database.", no_args_is_help=True)

# What a check reports, in this order; None is unknown.
FINDINGS = (
    *("database", "sound", "integrity", "broken_references", "revision", "revision_expected"),
    *("rows_refused", "refused", "rows", "rows_without_file", "files_unreadable", "unreadable"),
    *("files_changed", "changed"),
)


@app.command()
def upgrade(root: Root, as_json: AsJson = False) -> None:
    """Bring the schema up to date; `tamis run` does so by itself."""
    with open_database(root, read_only=True, migrate=False) as engine, engine.connect() as connection:
        before = schema.revision_of(connection)
    open_database(root).dispose()
    after = migrations.HEAD
    change = f"at revision {before} already" if before == after else f"upgraded from revision {before} to {after}"
    print_result({"before": before, "after": after}, f"{name_of_database(root)}: {change}", as_json)


@app.command()
def check(
    root: Root,
    files: Annotated[
        bool | None,
        typer.Option(
            "--files/--no-files",
            help="Read every file, and name those whose bytes are not those on record; or do not look at files at all. "
            "With neither, only whether each row's file is there.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check every page, every reference, the revision and where rows lead, and count rows whose file is gone."""
    found = inspect(root, files=files)
    if as_json:
        print_json(found)
    else:
        for name, value in found.items():
            typer.echo(f"{name}: {'; '.join(value) if isinstance(value, list) else value}")
    if not found["sound"]:
        raise typer.Exit(1)


def inspect(root: Path, *, files: bool | None = None) -> dict[str, Any]:
    """Return what `tamis db check` reports; `sound` says whether integrity, references, revision and paths are right,
    and with `files` that no file has other bytes than those on record. With `files` None none is read.

    Files that are gone do not make it unsound: people may clear out old images.
    """
    found: dict[str, Any] = dict.fromkeys(FINDINGS)
    found |= {"database": name_of_database(root), "integrity": [], "revision_expected": migrations.HEAD}
    try:
        with open_database(root, read_only=True, migrate=False) as engine:
            with engine.connect() as connection:
                found["integrity"] = engine.check(connection, quick=False)
                found["broken_references"] = len(engine.broken_references(connection))
                found["revision"] = schema.revision_of(connection)
            refused = refused_rows(engine)
            found["rows_refused"], found["refused"] = refused.count, refused.first
            if files is not False:
                found |= _of_files(look_at_files(engine, root, content=bool(files)))
    except DatabaseCorrupt as error:
        found["integrity"].append(str(error))
    found["sound"] = (
        found["integrity"] == ["ok"]
        and found["broken_references"] == 0
        and found["revision"] == migrations.HEAD
        and not found["rows_refused"]
        and not found["files_changed"]
    )
    return found


@app.command()
def backup(
    root: Root,
    destination: Annotated[Path, typer.Argument(help="The file to write.")],
    force: Annotated[bool, typer.Option("--force", help="Overwrite it if it is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Copy the database, also while Tamis runs, into a file that is checked before it appears."""
    _refuse_server(root, "pg_dump --format=custom --file=FILE URL")
    with open_database(root, read_only=True, migrate=False) as engine:
        try:
            size = copy_database(engine, destination, force=force)
        except OSError as error:
            raise TamisError(f"backup {destination}: expected to write it; found {error.strerror}") from error
    print_result({"backup": destination, "bytes": size}, f"{destination}: {size:,} bytes, checked", as_json)


@app.command()
def restore(root: Root, source: Annotated[Path, typer.Argument(help="The backup.")], as_json: AsJson = False) -> None:
    """Put a backup in the place of the database; what it does not know is scored anew at the next start."""
    _refuse_server(root, "pg_restore --clean --if-exists --dbname=URL FILE and then `tamis db reconcile`")
    try:
        kept = restore_database(root, source)
    except OSError as error:
        raise TamisError(f"restore {source}: expected to write it to {root}; found {error.strerror}") from error
    line = f"{name_of_database(root)}: restored from {source}; the one before is {kept}"
    print_result({"restored": source, "database_before": kept}, line, as_json)


@app.command()
def reconcile(root: Root) -> None:
    """Have the next start look through the folders, as after `restore`, for images without a row."""
    open_database(root, read_only=True, migrate=False).dispose()
    mark_restored(root)
    typer.echo(f"root {root}: the next start of `tamis run` looks through the folders")


def _refuse_server(root: Path, instead: str) -> None:
    if database_url(root) is not None:
        raise UsageError(
            f"root {root}: expected its database in a file; found {name_of_database(root)}, a server's, whose own tools"
            f" do this: {instead} (docs/database.md, 'PostgreSQL')"
        )


def _of_files(files: RowsWithFiles) -> dict[str, Any]:
    found: dict[str, Any] = {"rows": files.rows, "rows_without_file": files.gone}
    found |= {"files_unreadable": files.unreadable.count, "unreadable": files.unreadable.first}
    if files.changed is not None:
        found |= {"files_changed": files.changed.count, "changed": files.changed.first}
    return found
