"""The program `tamis`: puts the commands together and turns errors into messages and exit codes."""

from __future__ import annotations

import sys

import typer
from typer.core import TyperGroup

from models.errors import ModelError
from service import __version__
from service.commands import (
    database,
    demo,
    doctor,
    energy,
    evaluate,
    init,
    results,
    retention,
    retrain,
    review,
    run,
    score,
    status,
    train,
    versions,
    web,
)
from service.commands import import_images as import_images
from service.errors import TamisError

EXIT_FAILED = 1

app = typer.Typer(
    name="tamis",
    cls=TyperGroup,
    help="Visual inspection of a watched folder: learns from good parts, sorts images, counts its energy.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.command()(init.init)
app.command()(train.train)
app.command()(retrain.retrain)
app.command()(run.run)
app.command()(web.web)
app.command()(score.score)
app.command()(evaluate.evaluate)
app.command()(results.results)
app.command()(review.review)
app.command("import")(import_images.import_)
app.add_typer(versions.app, name="models")
app.command()(retention.retention)
app.command()(energy.energy)
app.command()(status.status)
app.command()(doctor.doctor)
app.add_typer(database.app, name="db")
app.command()(demo.demo)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"tamis {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_print_version, is_eager=True, help="Print the version."),
) -> None:
    pass


def main() -> None:
    """Run `tamis`; the console script's entry point."""
    try:
        app()
    except TamisError as error:
        _fail(str(error), error.exit_code)
    except ModelError as error:
        _fail(str(error), EXIT_FAILED)


def _fail(message: str, exit_code: int) -> None:
    typer.echo(f"tamis: {message}", err=True)
    sys.exit(exit_code)
