"""`tamis retention`: removes old images' files as the settings say, or shows what would go."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from sqlalchemy import Engine

from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json, print_table
from service.operations.remove_file import NotRemovable
from service.operations.retention import Retention, last_run
from service.operations.retention_plan import Going, Outcome, Rule, rules_document, rules_of
from service.storage.database.open import open_database

DryRun = Annotated[bool, typer.Option("--dry-run", help="Show what would go, and change nothing.")]
Limit = Annotated[int, typer.Option(min=0, help="Images that a dry run lists, at most; it counts all.")]


def retention(root: Root, dry_run: DryRun = False, limit: Limit = 20, as_json: AsJson = False) -> None:
    root = root.resolve()
    rules = rules_of(settings_module.load(root))
    now = datetime.now(UTC)
    with open_database(root, read_only=dry_run) as engine:
        if dry_run:
            document = foreseen(root, engine, rules, now, listed_max=limit)
        else:
            outcome = Retention(root, engine, rules).run(now)
            document = {"rules": rules_document(rules), "removed": outcome.document()}
    if as_json:
        print_json(document)
        return
    if not rules:
        typer.echo("retention is off: set keep_normal_days, keep_anomaly_days, keep_normal_gb or keep_anomaly_gb")
        return
    for line in shown(document):
        typer.echo(line)
    if document.get("listed"):
        print_table(document["listed"], ("received_at", "verdict", "reason", "bytes", "path"))


def foreseen(
    root: Path,
    engine: Engine,
    rules: Sequence[Rule],
    now: datetime,
    *,
    images_max: int | None = None,
    listed_max: int = 0,
) -> dict[str, Any]:
    """Return what would go at `now` as one document, of which the first `listed_max` images are listed.

    With `images_max` no more of each verdict are looked at; `next.complete` is false where there are more.
    """
    outcome = Outcome()
    listed: list[dict[str, Any]] = []
    looked_at = 0
    for one in Retention(root, engine, rules).preview(now, images_max=images_max):
        looked_at += 1
        if isinstance(one, NotRemovable):
            outcome.left[one.why] += 1
            continue
        outcome.add(one)
        if len(listed) < listed_max:
            listed.append(_listed(one))
    outcome.complete = images_max is None or looked_at < images_max
    return {
        "rules": rules_document(rules),
        "last_run": last_run(root),
        "next": outcome.document(),
        **({"listed": listed} if listed_max else {}),
    }


def shown(document: dict[str, Any]) -> list[str]:
    """Return the lines that people read of a document of `foreseen` or of a run."""
    lines = []
    if "removed" in document:
        lines.append(f"removed: {_counts(document['removed'])}")
    last = document.get("last_run")
    if last:
        lines.append(f"retention: last ran at {last['ran_at']} and removed {_counts(last)}")
    elif "removed" not in document:
        lines.append("retention: has not run yet")
    if "error" in document:
        lines.append(f"retention: waits: {document['error']}")
    if "next" in document:
        found = document["next"]
        lines.append(f"retention: would go next: {'' if found['complete'] else 'at least '}{_counts(found)}")
    return lines


def _counts(found: dict[str, Any]) -> str:
    of_verdicts = "; ".join(
        f"{tally['pictures']} {verdict}, {tally['bytes'] / 1e9:.3f} GB" for verdict, tally in found["verdicts"].items()
    )
    left = ", ".join(f"{count} {why}" for why, count in found["left"].items())
    return (of_verdicts or "no images") + (f"; left where they are: {left}" if left else "")


def _listed(one: Going) -> dict[str, Any]:
    facts = {name: getattr(one.image, name) for name in ("id", "product", "verdict", "bytes", "path")}
    return facts | {"reason": one.reason, "received_at": one.image.received_at.isoformat()}
