"""`tamis retrain`: learns from what people labelled, and puts the better version in the champion's place.

Runs at a low priority, so that scoring goes on beside it; the daemon starts the same command on schedule.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from models.errors import ModelError
from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json
from service.errors import TamisError
from service.names import ALL_PRODUCTS, check_product
from service.progress_bar import training_progress
from service.retraining import retrain as retraining
from service.storage import versions
from service.storage.database.open import open_database
from service.storage.retrainings import RetrainingRow
from service.training.low_priority import step_back

Trigger = Literal["cron", "labels", "drift", "command"]


def retrain(
    root: Root,
    product: Annotated[
        str, typer.Option(help="The product; `all`: one after the other, each that has a champion.")
    ] = ALL_PRODUCTS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin from zero and not with the champion's weights.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also without new labels.")] = False,
    trigger: Annotated[Trigger, typer.Option(help="Why; kept with the run.")] = "command",
    steps: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Retrain from new labels; a version that the gate finds better becomes the champion."""
    settings = settings_module.load(root)
    if product != ALL_PRODUCTS:
        check_product(product)
    signal.signal(signal.SIGTERM, _end_once)
    step_back()
    rows: list[RetrainingRow] = []
    failures: list[str] = []

    def retrain_one(product: str) -> RetrainingRow:
        with training_progress() as report:
            return retraining.retrain(
                root, engine, settings, product, trigger=trigger, fresh=fresh, force=force, steps=steps, report=report
            )

    with open_database(root) as engine:
        for one in [product] if product != ALL_PRODUCTS else _products(engine):
            try:
                rows.append(retrain_one(one))
            except (TamisError, ModelError) as error:
                if product != ALL_PRODUCTS:
                    raise
                failures.append(f"product {one}: {error}")
                continue
            if not as_json:
                _print(rows[-1])
    if as_json:
        documents = [document(row) for row in rows]
        print_json(documents[0] if product != ALL_PRODUCTS else {"retrainings": documents, "failed": failures})
    if failures:
        raise TamisError("; ".join(failures))


def document(row: RetrainingRow) -> dict[str, Any]:
    """Return a run as it is printed as JSON."""
    times = {
        name: None if value is None else value.isoformat()
        for name, value in asdict(row).items()
        if name.endswith("_at")
    }
    return {**asdict(row), **times, "gate": None if row.gate is None else json.loads(row.gate)}


def _products(engine: Any) -> list[str]:
    with engine.connect() as connection:
        return sorted(versions.champions(connection))


def _print(row: RetrainingRow) -> None:
    typer.echo(f"{row.product}: {row.outcome}: {row.reason}")
    if row.challenger is not None:
        used = "unknown energy" if row.total_wh is None else f"{row.total_wh:.3g} Wh"
        typer.echo(f"  version {row.challenger}, {used}, report {row.report}")


def _end_once(number: int, frame: FrameType | None) -> None:
    """Leave as if the program had ended; while it is being left, a second signal changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)
