"""Milliseconds from the close of the writer to `placed`, with one image every 200 ms.

The writer notes the time right after closing; `placed_at` is the daemon's, from the same clock.
"""

from __future__ import annotations

import tempfile
import time
from datetime import datetime
from pathlib import Path

from service.storage.database.driver import sqlite3
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--interval-ms", type=float, default=200.0)
    parser.add_argument("--profile", default="fast")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = captures.trained_root(Path(folder), options.profile, steps=100)
        closed: dict[str, float] = {}
        with DaemonProcess(root) as process:
            process.wait_ready()
            next_at = time.monotonic()
            for number, content in enumerate(captures.variants(options.images)):
                name = f"{number:05}.jpg"
                (root / "incoming" / name).write_bytes(content)
                closed[name] = time.time()
                next_at += options.interval_ms / 1000
                time.sleep(max(0.0, next_at - time.monotonic()))
            wait_until(lambda: finished(root) == options.images, "all placed", 120)
            assert process.stop() == 0, process.log_text()
        with sqlite3.connect(root / "tamis.db") as connection:
            placed = connection.execute("SELECT file_name, placed_at, latency_ms FROM images").fetchall()
    waited = [(datetime.fromisoformat(at).timestamp() - closed[name]) * 1000 for name, at, _ in placed]
    recorded = [latency for _, _, latency in placed]
    captures.report(
        {
            "benchmark": "latency",
            "images": options.images,
            "interval_ms": options.interval_ms,
            "profile": options.profile,
            "close_to_placed_ms": {
                "p50": captures.percentile(waited, 0.5),
                "p95": captures.percentile(waited, 0.95),
                "max": max(waited),
            },
            "recorded_latency_ms": {
                "p50": captures.percentile(recorded, 0.5),
                "p95": captures.percentile(recorded, 0.95),
            },
        },
        options.output,
    )


if __name__ == "__main__":
    main()
