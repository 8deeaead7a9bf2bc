"""`tamis status`: how the daemons of a root are, what waits, and what came of the last day."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import typer
from sqlalchemy import Connection, Engine

from service import settings as settings_module
from service.commands.options import AsJson, Root, print_json, print_table
from service.commands.retention import foreseen, shown
from service.errors import TamisError
from service.filesystem.file_state import NameFilter
from service.filesystem.mount_table import mounted_below
from service.filesystem.odd_entries import OddEntries, sentence, told_by
from service.filesystem.scan import scan
from service.instances import statuses
from service.names import meant, printable, product_of
from service.operations.retention import last_run
from service.operations.retention_plan import Rule, rules_document, rules_of
from service.root import INCOMING
from service.storage import drift, images, statistics, thresholds
from service.storage import energy as energy_rows
from service.storage.database.open import open_database
from service.storage.versions import champions

DAY = timedelta(days=1)
CAUSES = {
    "light": "the light or the lens changed",
    "defects": "many defects, in the same light",
    "unknown": "cause unknown",
}
# A status is asked for often, so it looks at no more images; `tamis retention --dry-run` looks at all.
FORESEEN_MAX = 2000


def status(root: Root, as_json: AsJson = False) -> None:
    root = root.resolve()
    settings = settings_module.load(root)
    document = report(root, settings.names_to_ignore, datetime.now(UTC), rules_of(settings))
    for product, choice in document["thresholds_chosen"].items():
        choice["in_force"] = settings.of(product, "threshold_policy") == "false_alarm_rate"
    if as_json:
        print_json(document)
    else:
        _print(document)


def report(root: Path, ignored_names: tuple[str, ...], now: datetime, rules: Sequence[Rule] = ()) -> dict[str, Any]:
    """Return the status of `root` at `now`, with retention by `rules`, as one document."""
    daemons = statuses(root)
    waiting, unlisted = _waiting(root, NameFilter(ignored_names))
    odd = told_by(daemons)
    with open_database(root, migrate=False, read_only=True) as engine:
        with engine.connect() as connection:
            champion_of = champions(connection)
            document = {
                "root": str(root),
                "daemons": daemons,
                "incoming": dict(sorted(waiting.items())),
                "waiting_for_model": sorted(
                    product for product in waiting if product not in champion_of and "default" not in champion_of
                ),
                "did_you_mean": {
                    product: guess
                    for product in sorted(waiting.keys() - champion_of.keys())
                    if (guess := meant(product, champion_of)) is not None
                },
                # What the daemon finds; where none runs, what this user could not list.
                "odd_entries": odd if any(daemon["running"] for daemon in daemons) else unlisted,
                "champions": {product: row.version for product, row in sorted(champion_of.items())},
                "states_24h": statistics.per_state(connection, now - DAY),
                "anomalies_24h": images.count(connection, since=now - DAY, verdict="anomaly"),
                "last_received_at": statistics.newest(connection),
                "energy_24h": energy_rows.per_kind(connection, now - DAY),
                "drift": _drift(connection),
                "thresholds_chosen": _thresholds(connection),
            }
        document["retention"] = _retention(root, engine, rules, now)
    return document


def _waiting(root: Path, names: NameFilter) -> tuple[Counter[str], dict[str, Any]]:
    """Return how many files of each product lie in `incoming/`, and what of it cannot be listed."""
    found: Counter[str] = Counter()
    odd = OddEntries(root=root, says=False)

    def failed(path: str, error: OSError) -> None:
        odd.note(f"{INCOMING}/{path}", "scan", error)

    try:
        for path, _ in scan(root / INCOMING, names, failed, mounted_below(root / INCOMING)):
            found[product_of(path.rpartition("/")[0])] += 1
    except OSError as error:
        odd.note(INCOMING, "scan", error)
    return found, odd.document()


def _drift(connection: Connection) -> dict[str, Any]:
    """Return the drift state of each product that has shown one; `began_at` is when its first image was received."""
    found = drift.latest(connection)
    began = drift.received_at(connection, [row.first_image_id for row in found.values() if row.first_image_id])
    lie = images.find(connection, list(began))
    return {
        product: {
            **{name: getattr(row, name) for name in ("state", "cause", "first_image_id", "version")},
            "began_at": began.get(row.first_image_id or ""),
            "first_image_path": lie[row.first_image_id].path if row.first_image_id in lie else None,
            "found_at": row.at,
        }
        for product, row in sorted(found.items())
    }


def _thresholds(connection: Connection) -> dict[str, Any]:
    return {
        product: {name: getattr(choice, name) for name in ("false_alarm_rate", "chosen_by", "chosen_at")}
        for product, choice in sorted(thresholds.latest(connection).items())
        if choice.false_alarm_rate is not None
    }


def _retention(root: Path, engine: Engine, rules: Sequence[Rule], now: datetime) -> dict[str, Any]:
    try:
        return foreseen(root, engine, rules, now, images_max=FORESEEN_MAX)
    except TamisError as error:
        # Reported as a line of the status; the rest of it still holds.
        return {"rules": rules_document(rules), "last_run": last_run(root), "error": str(error)}


def _print(document: dict[str, Any]) -> None:
    for daemon in document["daemons"]:
        state = "running" if daemon["running"] else "not running"
        if daemon["running"] is None:
            state = f"not known, {daemon['unknown']}"
        if daemon["running"] and daemon.get("paused"):
            state = f"paused: {daemon['paused']}"
        typer.echo(f"{daemon['instance']}: {state}, watching by {daemon.get('watching', '-')}")
    if not document["daemons"]:
        typer.echo("no daemon has run on this root yet: tamis run")
    counts = ", ".join(f"{count} {state}" for state, count in document["states_24h"].items() if count) or "nothing"
    typer.echo(f"last 24 hours: {counts}; {document['anomalies_24h']} anomalies")
    typer.echo(f"last image: {document['last_received_at'] or '-'}")
    rows = [
        {
            "product": product,
            "waiting": document["incoming"].get(product, 0),
            "champion": document["champions"].get(product),
            "drift": document["drift"].get(product, {}).get("state"),
        }
        for product in sorted(document["incoming"].keys() | document["champions"].keys() | document["drift"].keys())
    ]
    print_table(rows, ("product", "waiting", "champion", "drift"))
    _print_odd_entries(document["odd_entries"])
    for product, found in document["drift"].items():
        if found["state"] == "drifting":
            began = f"{found['began_at']:%Y-%m-%d %H:%M:%S} UTC" if found["began_at"] else "a time not known"
            typer.echo(
                f"{product} drifts since {began}: {CAUSES[found['cause']]}; "
                f"first {found['first_image_path'] or found['first_image_id']}"
            )
    for product, choice in document["thresholds_chosen"].items():
        who = f" by {choice['chosen_by']}" if choice["chosen_by"] else ""
        held = "over the settings'" if choice["in_force"] else "without effect, as the policy is another"
        typer.echo(
            f"{product}: false-alarm rate {choice['false_alarm_rate']:g}, chosen{who} at "
            f"{choice['chosen_at']:%Y-%m-%d %H:%M:%S} UTC, {held}"
        )
    if document["retention"]["rules"]:
        for line in shown(document["retention"]):
            typer.echo(line)
    for product, guess in document["did_you_mean"].items():
        typer.echo(f"{printable(product)} has no model of its own; did you mean {printable(guess)}?", err=True)
    if document["waiting_for_model"]:
        names = ", ".join(document["waiting_for_model"])
        typer.echo(f"no model: {names}; train one: tamis train --product NAME --from FOLDER", err=True)


def _print_odd_entries(odd: dict[str, Any]) -> None:
    if not odd["files"]:
        return
    reasons = ", ".join(f"{files} {reason}" for reason, files in sorted(odd["by_reason"].items()))
    typer.echo(f"waiting, since they cannot be worked on now: {odd['files']} files ({printable(reasons)})")
    for one in odd["first"]:
        typer.echo(f"  {printable(sentence(one))}")
        if one["advice"]:
            typer.echo(f"    → {printable(one['advice'])}")
