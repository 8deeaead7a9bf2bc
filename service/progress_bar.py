"""Shows on stderr how far a training or an evaluation is: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import typer

from models.progress import Progress
from service.names import shown_name

if TYPE_CHECKING:
    from rich.progress import Progress as Bar


@contextmanager
def training_progress() -> Iterator[Callable[[Progress], None]]:
    """Give a function that shows the progress of a training; without a terminal, a line for each fifth of a stage."""
    if not sys.stderr.isatty():
        yield TrainingLines()
        return
    with _bar() as bar:
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


@contextmanager
def scoring_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows how many images are scored; without a terminal, a line for each tenth."""
    if not sys.stderr.isatty():
        tenths = 0

        def line(done: int, total: int) -> None:
            nonlocal tenths
            if done * 10 // total > tenths:
                tenths = done * 10 // total
                typer.echo(f"{shown_name(name)}: {done} of {total} images", err=True)

        yield line
        return
    with _bar() as bar:
        task = bar.add_task(shown_name(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingLines:
    """Writes a line for each fifth of each stage of a training, and each note."""

    def __init__(self, name: str | None = None) -> None:
        """Begin each line with `name`, if given; notes are then left out."""
        self._name = name
        self._told: tuple[str, int] = ("", -1)

    def __call__(self, progress: Progress) -> None:
        if progress.note and self._name is None:
            typer.echo(shown_name(progress.note), err=True)
        told = (progress.stage, 5 * progress.done // max(progress.total, 1))
        if progress.done and told != self._told and told[1] > 0:
            self._told = told
            stage = f"{progress.stage}:" if self._name is None else f"{self._name}: {progress.stage}"
            typer.echo(f"{stage} {progress.done} of {progress.total}", err=True)


def _bar() -> Bar:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Bar(*columns, console=Console(stderr=True, markup=False, highlight=False), transient=True)
