"""How far `tamis evaluate` is, on stderr: a bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import typer

from models.progress import Progress
from service.names import shown_name


@contextmanager
def scoring_progress(name: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function that shows how many images are scored; a line each tenth where there is no terminal."""
    if not sys.stderr.isatty():
        told = 0

        def line(done: int, total: int) -> None:
            nonlocal told
            if done * 10 // total > told:
                told = done * 10 // total
                typer.echo(f"{shown_name(name)}: {done} of {total} images", err=True)

        yield line
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(shown_name(name), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


class TrainingLines:
    """Writes a line for each fifth of each stage of a training."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._told: tuple[str, int] = ("", 0)

    def __call__(self, progress: Progress) -> None:
        told = (progress.stage, 5 * progress.done // max(progress.total, 1))
        if progress.done and told[1] and told != self._told:
            self._told = told
            typer.echo(f"{self._name}: {progress.stage} {progress.done} of {progress.total}", err=True)
