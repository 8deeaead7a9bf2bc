"""What the commands share: options, and how a report is printed."""

from __future__ import annotations

import getpass
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from service.errors import UsageError
from service.names import composed, printable

Root = Annotated[
    Path,
    typer.Option("--root", envvar="TAMIS_ROOT", help="Folder that holds incoming/, normal/, anomaly/ and tamis.db."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.")]
By = Annotated[str | None, typer.Option(help="Who says so; without it the user of this command.")]
FalseAlarmRate = Annotated[float | None, typer.Option(help="Sets the threshold, instead of the setting of that name.")]

PIPE_WIDTH = 400


def folder_option(*names: str, help: str) -> Any:
    """Return an option that takes a folder of images."""
    return typer.Option(*names, metavar="DIR", exists=True, file_okay=False, help=help)


def product_option(help: str) -> Any:
    """Return an option that takes the name of a product, in any normal form: products are compared in one."""
    return typer.Option(help=help, callback=_composed)


def _composed(name: str | None) -> str | None:
    return name if name is None else composed(name)


def check_rate(asked: float | None) -> None:
    """Raise UsageError for a false-alarm rate outside (0, 1)."""
    if asked is not None and not 0 < asked < 1:
        raise UsageError(f"--false-alarm-rate: expected more than 0 and less than 1; found {asked:g}")


def who(by: str | None) -> str | None:
    """Return `by`, else the user of this process as far as the system knows a name; in a container it may not."""
    if by is not None:
        return by
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return None


def say_left_out(error: OSError) -> None:
    """Say on stderr that a folder cannot be listed, so that its images are left out."""
    name = printable(os.fsdecode(error.filename)) if error.filename is not None else "a folder"
    typer.echo(f"left out {name} and what is in it: {error.strerror}", err=True)


def print_json(document: Any) -> None:
    """Print `document` as one JSON document on stdout; dates become ISO 8601, paths strings."""
    text = json.dumps(document, indent=2, default=str, ensure_ascii=False)
    # Paths may hold bytes that are not UTF-8; escaped, the document is still JSON.
    typer.echo(text.encode("utf-8", "backslashreplace").decode())


def print_result(document: Any, line: str, as_json: bool) -> None:
    """Print what a command did: `document` as JSON if asked for, else `line`."""
    if as_json:
        print_json(document)
    else:
        typer.echo(line)


def print_table(rows: Sequence[Mapping[str, Any]], columns: Sequence[str], title: str | None = None) -> None:
    """Print `rows` as a table of `columns`, names as they are in the row; None shows as an empty cell."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*("" if row.get(c) is None else _cell(row[c]) for c in columns))
    console = Console(markup=False, highlight=False)
    # In a pipe or a file there is no edge to fold at.
    console.width = console.width if console.is_terminal else PIPE_WIDTH
    console.print(table)


def _cell(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))
