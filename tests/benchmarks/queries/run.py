"""Times the queries of `tamis results` on a database of a million rows, through the functions that it uses.

Prints a line per query and, with --output, saves the figures as JSON. One database file per call, in a
temporary folder, or in --root, where it is kept and used again.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

REPOSITORY = Path(__file__).parents[3]
sys.path.insert(0, str(REPOSITORY))
sys.path.insert(0, str(Path(__file__).parent))

from rows import fill  # noqa: E402
from sqlalchemy import Connection, Engine  # noqa: E402

from service.root import DATABASE_FILE  # noqa: E402
from service.storage import images  # noqa: E402
from service.storage import statistics as tallies  # noqa: E402
from service.storage.database.driver import sqlite3  # noqa: E402
from service.storage.database.journal import journal_choice  # noqa: E402
from service.storage.database.open import open_database  # noqa: E402

NOW = datetime(2026, 1, 31, 12, tzinfo=UTC)
DAY_AGO = NOW - timedelta(hours=24)


def _review(connection: Connection, condition: str) -> list[object]:
    return list(connection.exec_driver_sql(f"SELECT * FROM review_queue {condition} LIMIT 50"))


QUERIES: dict[str, Callable[[Connection], list[object]]] = {
    "since 24h, newest 100": lambda c: images.search(c, since=DAY_AGO),
    "since 24h, all": lambda c: images.search(c, since=DAY_AGO, limit=None),
    "last 100 anomalies of a product": lambda c: images.search(c, product="bracket", verdict="anomaly"),
    "last 100 quarantined": lambda c: images.search(c, state="quarantined"),
    "last 100 quarantined of a product": lambda c: images.search(c, product="default", state="quarantined"),
    "last 100 of a product": lambda c: images.search(c, product="macaroni"),
    "last 100 uncertain": lambda c: images.search(c, uncertain=True),
    "last 100 uncertain of a product": lambda c: images.search(c, uncertain=True, product="macaroni"),
    "first 50 to review": lambda c: _review(c, ""),
    "first 50 to review of a product": lambda c: _review(c, "WHERE product = 'macaroni'"),
    "first 50 to review of no product": lambda c: _review(c, "WHERE product = 'none'"),
    "count since 24h": lambda c: [images.count(c, since=DAY_AGO)],
    "count of all": lambda c: [images.count(c)],
    "states of all": lambda c: list(tallies.per_state(c, datetime(1970, 1, 1, tzinfo=UTC))),
}


def measure(engine: Engine, query: Callable[[Connection], list[object]], runs: int) -> dict[str, float | int]:
    """Return median and 95th percentile in ms over `runs` calls, each with its own transaction, and the rows."""
    times, rows = [], 0
    for _ in range(runs):
        start = time.perf_counter()
        with engine.connect() as connection:
            rows = len(query(connection))
        times.append((time.perf_counter() - start) * 1000)
    p95 = statistics.quantiles(times, n=20, method="inclusive")[-1]
    return {"median_ms": round(statistics.median(times), 3), "p95_ms": round(p95, 3), "runs": runs, "rows": rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=30)
    parser.add_argument("--root", type=Path, help="keep the database there, and use the one that is there")
    parser.add_argument("--output", type=Path, help="save the figures to this file, as JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        root = arguments.root or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        if not (root / DATABASE_FILE).exists():
            start = time.perf_counter()
            fill(root, arguments.rows, NOW)
            print(f"filled with {arguments.rows:,} rows in {time.perf_counter() - start:.0f} s", file=sys.stderr)
        report = run(root, max(20, arguments.runs))
    for name, figures in report["queries"].items():
        median, p95 = figures["median_ms"], figures["p95_ms"]
        print(f"{name:36} median {median:8.2f} ms   p95 {p95:8.2f} ms   {figures['rows']:,} rows")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text(json.dumps(report, indent=2) + "\n")


def run(root: Path, runs: int) -> dict:
    """Return the figures of all queries on the database in `root`."""
    engine = open_database(root, read_only=True)
    with engine.connect() as connection:
        total = images.count(connection)
    found = {
        "rows": total,
        "database_bytes": (root / DATABASE_FILE).stat().st_size,
        "sqlite": sqlite3.sqlite_version,
        "journal": journal_choice(sqlite3.sqlite_version_info).mode,
        "queries": {name: measure(engine, query, runs) for name, query in QUERIES.items()},
    }
    engine.dispose()
    return found


if __name__ == "__main__":
    main()
