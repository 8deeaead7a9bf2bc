"""`tamis models threshold`: shows what another false-alarm rate would do, and chooses it for the running daemon."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json, product_option, who
from service.errors import UsageError
from service.root import DEFAULT_PRODUCT
from service.scoring.threshold_preview import LAST, ThresholdPreview, choose_rate, preview
from service.storage import thresholds
from service.storage.database.open import open_database


def threshold(
    root: Root,
    product: Annotated[str, product_option("Whose images.")] = DEFAULT_PRODUCT,
    rate: Annotated[float | None, typer.Option(help="False-alarm rate, above 0 and below 1.")] = None,
    reset: Annotated[bool, typer.Option("--reset", help="Go back to what the settings say.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Show what --rate would do, and choose nothing.")] = False,
    last: Annotated[int, typer.Option(min=1, max=100_000, help="Latest images that are looked at.")] = LAST,
    by: Annotated[str | None, typer.Option(help="Who chooses; without it the user who calls.")] = None,
    as_json: AsJson = False,
) -> None:
    """Choose the false-alarm rate of a product: it holds at once, without a restart or a training.

    Says how many of the last images would change sides. Without --rate and --reset it shows what holds.
    """
    if reset and (rate is not None or dry_run):
        raise UsageError("--reset: expected to stand alone; found --rate or --dry-run beside it")
    if dry_run and rate is None:
        raise UsageError("--dry-run: expected --rate R beside it; found none")
    root = root.resolve()
    settings = settings_module.load(root)
    changing = reset or (rate is not None and not dry_run)
    with open_database(root, read_only=not changing) as engine:
        with engine.connect() as connection:
            found = None if rate is None else preview(root, connection, settings, product, rate, last)
        if changing:
            with engine.begin() as connection:
                choose_rate(root, connection, settings, product, rate, by=who(by), at=datetime.now(UTC))
        with engine.connect() as connection:
            choice = thresholds.latest(connection).get(product)
    if not as_json:
        _print(product, found, choice, changing)
        return
    document = {
        "product": product,
        "exploration": found and asdict(found),
        "applied": changing,
        "chosen_rate": choice and choice.false_alarm_rate,
        "chosen_by": choice and choice.chosen_by,
        "chosen_at": choice and choice.chosen_at.isoformat(),
    }
    print_json(document)


def _print(product: str, found: ThresholdPreview | None, choice: thresholds.Choice | None, changed: bool) -> None:
    if found is not None:
        now = "-" if found.present_threshold is None else f"{found.present_threshold:.6g}"
        then = "-" if found.threshold is None else f"{found.threshold:.6g}"
        typer.echo(f"{product}: threshold {now} → {then} by version {found.version}")
        if found.threshold is None:
            typer.echo(f"its calibration images are too few for {found.rate:g}; the lowest is {found.lowest_rate:g}")
        else:
            typer.echo(
                f"of the last {found.images} images {found.to_normal} would become normal and "
                f"{found.to_anomaly} anomalies; images on record keep their verdict"
            )
    if choice is None or choice.false_alarm_rate is None:
        typer.echo(f"{product}: {'now' if changed else 'no rate is chosen:'} the settings hold")
    else:
        who = f" by {choice.chosen_by}" if choice.chosen_by else ""
        at = f"{choice.chosen_at:%Y-%m-%d %H:%M:%S} UTC"
        typer.echo(f"{product}: false-alarm rate {choice.false_alarm_rate:g}, chosen{who} at {at}")
