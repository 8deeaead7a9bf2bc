"""`tamis retrain`: learns from what people labelled, and puts the better version in the champion's place.

Runs at a low priority, so that scoring goes on beside it; the daemon starts the same command on schedule.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict
from datetime import datetime
from types import FrameType
from typing import Annotated, Any, Literal

import typer

from models.errors import ModelError
from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json, product_option
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
        str, product_option("The product; `all`: one after the other, each that has a champion.")
    ] = ALL_PRODUCTS,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Begin from zero and not with the champion's weights.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Also without new labels.")] = False,
    trigger: Annotated[Trigger, typer.Option(help="Why; kept with the run.")] = "command",
    steps: Annotated[int | None, typer.Option(min=2, hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    settings = settings_module.load(root)
    if product != ALL_PRODUCTS:
        check_product(product)
    signal.signal(signal.SIGTERM, _end_once)
    step_back()
    rows: list[RetrainingRow] = []
    failures = []
    asked: dict[str, Any] = {"trigger": trigger, "fresh": fresh, "force": force, "steps": steps}
    with open_database(root) as engine:
        with engine.connect() as connection:
            products = [product] if product != ALL_PRODUCTS else sorted(versions.champions(connection))
        for one in products:
            try:
                with training_progress() as report:
                    rows.append(retraining.retrain(root, engine, settings, one, report=report, **asked))
            except (TamisError, ModelError) as error:
                if product != ALL_PRODUCTS:
                    raise
                failures.append(f"product {one}: {error}")
                continue
            if not as_json:
                _print(rows[-1])
    if as_json:
        documents = [_document(row) for row in rows]
        print_json(documents[0] if product != ALL_PRODUCTS else {"retrainings": documents, "failed": failures})
    if failures:
        raise TamisError("; ".join(failures))


def _document(row: RetrainingRow) -> dict[str, Any]:
    times = {name: value.isoformat() for name, value in asdict(row).items() if isinstance(value, datetime)}
    return {**asdict(row), **times, "gate": None if row.gate is None else json.loads(row.gate)}


def _print(row: RetrainingRow) -> None:
    typer.echo(f"{row.product}: {row.outcome}: {row.reason}")
    if row.challenger is not None:
        used = "unknown energy" if row.total_wh is None else f"{row.total_wh:.3g} Wh"
        typer.echo(f"  version {row.challenger}, {used}, report {row.report}")


def _end_once(number: int, frame: FrameType | None) -> None:
    """Leave as if the program had ended; while it is being left, a second signal changes nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise SystemExit(128 + number)
