"""What a program that reads the database costs the daemon: latency in pairs without and with a long transaction.

Blocks take turns, one without and one with an outside reader, on one daemon and one root; images come all the time. The
reader holds one transaction for a whole block, so that the write-ahead log cannot be emptied. Then what a commit costs
with either journal, in turns as well.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.names import new_id
from service.storage import images
from service.storage.database.driver import sqlite3
from service.storage.database.journal import JournalChoice, journal_choice
from service.storage.database.open import open_database
from service.storage.images import ImageRecord
from tests.benchmarks import captures
from tests.conftest import image_bytes
from tests.faults.root_for_faults import make_root, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.outside_reader import reading

JOURNALS = {"WAL": JournalChoice("WAL", "FULL", "measured"), "DELETE": JournalChoice("DELETE", "EXTRA", "measured")}
BATCH = 8


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, default=4)
    parser.add_argument("--block-s", type=float, default=60.0, help="s of a block, and of the reader's transaction")
    parser.add_argument("--interval-ms", type=float, default=50.0)
    parser.add_argument("--commits", type=int, default=200, help="commits with each journal, in four turns")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        result = {
            "benchmark": "reader",
            "sqlite": sqlite3.sqlite_version,
            "journal": journal_choice(sqlite3.sqlite_version_info).mode,
            "pairs": options.pairs,
            "block_s": options.block_s,
            "interval_ms": options.interval_ms,
            **latency(Path(folder) / "root", options.pairs, options.block_s, options.interval_ms / 1000),
            "commit_ms": commits(Path(folder), options.commits),
        }
    captures.report(result, options.output)


def latency(root: Path, pairs: int, block_s: float, interval_s: float) -> dict[str, Any]:
    make_root(root, "anomaly_maps = false\n")
    waited: dict[str, list[float]] = {"without": [], "with": []}
    longest_log, dropped = 0, 0
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        for block in range(2 * pairs):
            name = "with" if block % 2 else "without"
            closed: dict[str, float] = {}
            with reading(root) if name == "with" else nullcontext():
                next_at = time.monotonic()
                until = next_at + block_s
                while next_at < until:
                    file_name = f"{dropped:06}.png"
                    part = root / "incoming" / f".{file_name}.part"
                    part.write_bytes(image_bytes(20, seed=dropped))
                    part.rename(root / "incoming" / file_name)
                    closed[file_name] = time.time()
                    dropped += 1
                    next_at += interval_s
                    time.sleep(max(0.0, next_at - time.monotonic()))
                wait_until(settled(root, dropped), "all at their place", 120, poll_s=0.5)
                log = root / "tamis.db-wal"
                longest_log = max(longest_log, log.stat().st_size if log.exists() else 0)
            placed = {
                row["file_name"]: row["placed_at"] for row in query(root, "SELECT file_name, placed_at FROM images")
            }
            waited[name] += [
                (datetime.fromisoformat(placed[one]).timestamp() - at) * 1000 for one, at in closed.items()
            ]
        assert daemon.stop() == 0, daemon.log_text()
    found = {
        name: {share: captures.percentile(all_, at) for share, at in SHARES.items()} for name, all_ in waited.items()
    }
    return {
        "images": dropped,
        "close_to_placed_ms": found,
        "p95_ratio": found["with"]["p95"] / found["without"]["p95"],
        "longest_log_bytes": longest_log,
    }


SHARES = {"p50": 0.5, "p95": 0.95, "max": 1.0}


def commits(folder: Path, count: int) -> dict[str, float]:
    """Return the median ms of a transaction that records a micro-batch, by journal."""
    took: dict[str, list[float]] = {name: [] for name in JOURNALS}
    for turn in range(4):
        for name, journal in JOURNALS.items():
            root = folder / f"{name}-{turn}"
            root.mkdir()
            with open_database(root, create=True, journal=journal) as engine:
                for _ in range(count // 4):
                    records = [_record() for _ in range(BATCH)]
                    began = time.monotonic()
                    with engine.begin() as connection:
                        images.record(connection, records, None)
                    took[name].append((time.monotonic() - began) * 1000)
    return {name: statistics.median(one) for name, one in took.items()}


def _record() -> ImageRecord:
    at, id = datetime.now(UTC), new_id()
    return ImageRecord(
        id=id,
        product="default",
        file_name=f"{id}.png",
        path=f"processing/main/{id}.png",
        destination=f"normal/default/{id}.png",
        state="scored",
        verdict="normal",
        score=0.25,
        threshold=0.5,
        p_value=0.75,
        model_version="v1",
        sha256=id.lower().ljust(64, "0"),
        width=640,
        height=480,
        mode="RGB",
        bytes=1234,
        received_at=at,
        decided_at=at,
        attempts=1,
        error_code=None,
        error=None,
    )


if __name__ == "__main__":
    main()
