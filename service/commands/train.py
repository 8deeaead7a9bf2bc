"""`tamis train`: a detector from a folder of normal pictures, in a process of its own, registered when it is good.

Shows how far it is: a bar on a terminal, plain lines elsewhere, both on stderr.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from models.datasets import SUFFIXES, pictures_under
from models.errors import DatasetError
from models.progress import Progress
from models.registry import ModelVersion
from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json
from service.errors import TamisError, UsageError
from service.names import shown_name
from service.products import check_product
from service.settings import DEFAULT_PRODUCT
from service.storage import versions
from service.storage.engine import open_database
from service.storage.versions import VersionRow
from service.training import MINUTES_MAX, TrainingJob, run_training

UNKNOWN = "unknown"


class KindName(StrEnum):
    """What the detector looks at."""

    feature = "feature"
    pixel = "pixel"


class ProfileName(StrEnum):
    """How large pictures are scored: area of 256, 384 or 512 pixels squared."""

    fast = "fast"
    balanced = "balanced"
    accurate = "accurate"


def train(
    root: Root,
    folder: Annotated[
        Path,
        typer.Option("--from", metavar="DIR", exists=True, file_okay=False, help="Normal pictures, at any depth."),
    ],
    product: Annotated[str, typer.Option(help="What the pictures show.")] = DEFAULT_PRODUCT,
    kind: Annotated[KindName, typer.Option(help="Features of a pretrained network, or plain pixels.")] = (
        KindName.feature
    ),
    profile: Annotated[ProfileName, typer.Option(help="Size at which pictures are scored.")] = ProfileName.balanced,
    false_alarm_rate: Annotated[
        float | None, typer.Option(help="Sets the threshold, instead of the setting of that name.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Divides the pictures and starts the network.")] = 0,
    promote: Annotated[bool, typer.Option("--promote", help="Make it champion, even if the product has one.")] = False,
    minutes_max: Annotated[
        float, typer.Option("--minutes", min=0.1, help="Minutes after which the training loop stops.")
    ] = MINUTES_MAX,
    steps: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Train a detector from normal pictures; a product's first one becomes its champion."""
    settings = settings_module.load(root)
    check_product(product)
    rate = settings.false_alarm_rate_of(product) if false_alarm_rate is None else false_alarm_rate
    if not 0 < rate < 1:
        raise UsageError(f"--false-alarm-rate: expected more than 0 and less than 1; found {rate:g}")
    pictures = pictures_under(folder)
    if not pictures:
        raise DatasetError(f"{shown_name(str(folder))}: expected pictures ({SUFFIXES}) at any depth; found none")
    job = TrainingJob(
        pictures=tuple(os.path.abspath(path) for path in pictures),  # noqa: PTH100  (links stay as they are given)
        models_root=str((root / "models").absolute()),
        product=product,
        kind=kind.value,
        profile=profile.value,
        false_alarm_rate=rate,
        seed=seed,
        minutes_max=minutes_max,
        steps=steps,
        file_bytes_max=settings.file_bytes_max,
        pixels_max=settings.pixels_max,
        energy_tracking=settings.energy_tracking,
        energy_country=settings.energy_country,
        energy_cpu_max_w=settings.energy_cpu_max_w,
    )
    engine = open_database(root)
    try:
        with _progress() as report:
            version = run_training(engine, job, promote=promote, report=report)
        with engine.connect() as connection:
            row = versions.get(connection, product, version.version)
    finally:
        engine.dispose()
    if row is None:
        raise TamisError(f"model {product}/{version.version}: expected it in the database; found it gone")
    if as_json:
        print_json(_document(version, row))
    else:
        _print(version, row)


def _document(version: ModelVersion, row: VersionRow) -> dict[str, Any]:
    manifest = version.manifest
    return {
        "product": row.product,
        "version": row.version,
        "kind": row.kind,
        "profile": manifest["profile"],
        "state": row.state,
        "folder": shown_name(str(version.folder)),
        "input_size": manifest["input_size"],
        "threshold": row.threshold,
        "false_alarm_rate": row.false_alarm_rate,
        "training_images": manifest["training"]["images"],
        "calibration_images": manifest["calibration"]["images"],
        "skipped": len(manifest["training"]["skipped"]),
        "steps": manifest["training"]["steps"],
        "seconds": manifest["training"]["seconds"],
        "training_wh": row.training_wh,
        "energy": manifest["energy"],
        "sha256": row.sha256,
    }


def _print(version: ModelVersion, row: VersionRow) -> None:
    training, calibration = version.manifest["training"], version.manifest["calibration"]
    height, width = version.input_size
    skipped = f", {len(training['skipped'])} skipped" if training["skipped"] else ""
    facts = {
        "version": f"{row.product}/{row.version}",
        "state": f"{row.state} ({row.reason})",
        "pictures": f"{training['images']} to train, {calibration['images']} to calibrate{skipped}",
        "input size": f"{width} x {height} pixels",
        "threshold": f"{row.threshold:.6g} at a false-alarm rate of {row.false_alarm_rate:g}",
        "energy": UNKNOWN if row.training_wh is None else f"{row.training_wh:.3g} Wh",
        "time": f"{training['seconds']:.0f} s",
    }
    for name, value in facts.items():
        typer.echo(f"{name:<12} {value}")


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
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
