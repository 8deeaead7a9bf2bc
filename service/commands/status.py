"""`tamis status`: how the daemons of a root are, what waits, and what came of the last day."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import typer

from service import settings as settings_module
from service.claim import INCOMING, instances, said_by
from service.commands.options import AsJson, Root, print_json, print_table
from service.names import product_of
from service.storage import energy as energy_rows
from service.storage import images
from service.storage.engine import open_database
from service.storage.versions import champions
from service.watch import NameFilter, scan

DAY = timedelta(days=1)


def status(root: Root, as_json: AsJson = False) -> None:
    """Show whether the daemon runs, what waits and what was decided in the last 24 hours."""
    root = root.resolve()
    settings = settings_module.load(root)
    document = report(root, settings.ignored_names, datetime.now(UTC))
    if as_json:
        print_json(document)
    else:
        _print(document)


def report(root: Path, ignored_names: tuple[str, ...], now: datetime) -> dict[str, Any]:
    """Return the status of `root` at `now` as one document."""
    waiting = Counter(
        product_of(path.rpartition("/")[0]) for path, _ in scan(root / INCOMING, NameFilter(ignored_names))
    )
    engine = open_database(root, migrate=False, read_only=True)
    try:
        with engine.connect() as connection:
            champion_of = champions(connection)
            newest = images.search(connection, limit=1)
            document = {
                "root": str(root),
                "daemons": [said_by(root, name) for name in instances(root)],
                "incoming": dict(sorted(waiting.items())),
                "waiting_for_model": sorted(
                    product for product in waiting if product not in champion_of and "default" not in champion_of
                ),
                "champions": {product: row.version for product, row in sorted(champion_of.items())},
                "states_24h": images.states(connection, now - DAY),
                "anomalies_24h": images.count(connection, since=now - DAY, verdict="anomaly"),
                "last_received_at": newest[0]["received_at"] if newest else None,
                "energy_24h": energy_rows.per_kind(connection, now - DAY),
            }
    finally:
        engine.dispose()
    return document


def _print(document: dict[str, Any]) -> None:
    for daemon in document["daemons"]:
        state = "running" if daemon["running"] else "not running"
        if daemon["running"] and daemon.get("paused"):
            state = f"paused: {daemon['paused']}"
        typer.echo(f"{daemon['instance']}: {state}, watching by {daemon.get('watching', '-')}")
    if not document["daemons"]:
        typer.echo("no daemon has run on this root yet: tamis run")
    counts = ", ".join(f"{count} {state}" for state, count in document["states_24h"].items() if count) or "nothing"
    typer.echo(f"last 24 hours: {counts}; {document['anomalies_24h']} anomalies")
    typer.echo(f"last picture: {document['last_received_at'] or '-'}")
    rows = [
        {
            "product": product,
            "waiting": document["incoming"].get(product, 0),
            "champion": document["champions"].get(product),
        }
        for product in sorted(document["incoming"].keys() | document["champions"].keys())
    ]
    print_table(rows, ("product", "waiting", "champion"))
    if document["waiting_for_model"]:
        names = ", ".join(document["waiting_for_model"])
        typer.echo(f"no model: {names}; train one: tamis train --product NAME --from FOLDER", err=True)
