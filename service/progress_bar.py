"""Shows on stderr how far a training is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from models.progress import Progress
from service.names import shown_name


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows progress on stderr: a bar on a terminal, a line each fifth elsewhere."""
    if not sys.stderr.isatty():
        yield _Lines()
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True, markup=False, highlight=False), transient=True) as bar:
        task, stage = bar.add_task("starting", total=None), ""

        def show(progress: Progress) -> None:
            nonlocal stage
            if progress.stage != stage:
                stage = progress.stage
                bar.reset(task, description=stage, total=progress.total)
            bar.update(task, completed=progress.done)
            if progress.note:
                bar.console.print(shown_name(progress.note))

        yield show


class _Lines:
    """Writes a line for each fifth of each stage, and each note."""

    def __init__(self) -> None:
        self._told: tuple[str, int] = ("", -1)

    def __call__(self, progress: Progress) -> None:
        if progress.note:
            typer.echo(shown_name(progress.note), err=True)
        told = (progress.stage, 5 * progress.done // max(progress.total, 1))
        if progress.done and told != self._told and told[1] > 0:
            self._told = told
            typer.echo(f"{progress.stage}: {progress.done} of {progress.total}", err=True)
