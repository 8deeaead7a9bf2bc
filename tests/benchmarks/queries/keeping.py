"""Times the queries of retention and of shadow scores on the database of a million rows of `rows.fill`.

A quarter of the images have a shadow score, one in fifty of which disagrees. Prints JSON; with --root a database that
is there is used again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(Path(__file__).parent))

from rows import fill  # noqa: E402
from run import NOW, measure  # noqa: E402
from sqlalchemy import Connection  # noqa: E402

from service.operations.retention import Retention  # noqa: E402
from service.operations.retention_plan import Rule  # noqa: E402
from service.root import DATABASE_FILE  # noqa: E402
from service.storage import retention, shadow  # noqa: E402
from service.storage.database.driver import sqlite3  # noqa: E402
from service.storage.database.open import open_database  # noqa: E402

VERSION = ("bracket", "v2")
MIDDLE = (NOW - timedelta(days=50), "")

QUERIES: dict[str, Callable[[Connection], list[object]]] = {
    "retention: first slice of normal": lambda c: retention.removable(c, "normal", 25),
    "retention: a slice in the middle": lambda c: retention.removable(c, "normal", 25, MIDDLE),
    "retention: first slice of anomaly, all labelled": lambda c: retention.removable(c, "anomaly", 25),
    "retention: bytes of normal": lambda c: [retention.total_bytes(c, "normal")],
    "retention: left by a crash": lambda c: retention.marked(c, 25),
    "doctor: bytes of 7 days": lambda c: [retention.received_bytes(c, NOW - timedelta(days=7))],
    "shadow: summary": lambda c: [shadow.summary(c, *VERSION)],
    "shadow: first 50 disagreements": lambda c: shadow.disagreements(c, *VERSION, 50),
    "shadow: next 50": lambda c: shadow.disagreements(c, *VERSION, 50, (False, f"{500_000:026d}")),
    "shadow: enough seen": lambda c: [shadow.has_scored(c, *VERSION, 30)],
}


def shade(root: Path) -> None:
    """Give every fourth image a shadow score."""
    with sqlite3.connect(root / DATABASE_FILE) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "INSERT INTO shadow_scores SELECT id, ?, ?, 0.5, 1.0, iif(rowid % 200 = 0, 'anomaly', 'normal'), 'normal'"
            " FROM images WHERE rowid % 4 = 0",
            VERSION,
        )


def take_half_away(root: Path) -> None:
    """Have the older half removed by retention: the rows that a later run must not walk over."""
    with sqlite3.connect(root / DATABASE_FILE) as connection:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(
            "UPDATE images SET state = 'missing', error_code = 'removed_by_retention' WHERE verdict = 'normal'"
            " AND received_at < ?",
            ((NOW - timedelta(days=50)).isoformat(),),
        )


def foreseen(root: Path, images_max: int) -> Callable[[Connection], list[object]]:
    """Return the forecast of `tamis status`, which makes its own connections."""
    engine = open_database(root, read_only=True)
    rules = [Rule("normal", timedelta(days=10), None), Rule("anomaly", None, 1)]
    found = Retention(root, engine, rules)
    return lambda _connection: list(found.preview(datetime.now(UTC), images_max=images_max))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--root", type=Path, help="keep the database there, and use the one that is there")
    parser.add_argument("--output", type=Path, help="save the figures to this file, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        if not (root / DATABASE_FILE).exists():
            fill(root, arguments.rows, NOW)
            shade(root)
        engine = open_database(root, read_only=True)
        figures = {name: measure(engine, query, arguments.runs) for name, query in QUERIES.items()}
        figures["status: foresees 2,000 images"] = measure(engine, foreseen(root, 2000), arguments.runs)
        engine.dispose()
        take_half_away(root)
        engine = open_database(root, read_only=True)
        figures["retention: first slice, half the rows removed before"] = measure(
            engine, QUERIES["retention: first slice of normal"], arguments.runs
        )
        engine.dispose()
    document = {"benchmark": "keeping", "rows": arguments.rows, "sqlite": sqlite3.sqlite_version, "queries": figures}
    print(json.dumps(document, indent=2))
    if arguments.output:
        arguments.output.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
