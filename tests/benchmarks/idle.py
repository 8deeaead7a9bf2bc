"""The idle daemon, with what decodes for it: share of one core over a minute, memory, and seconds from start to the
first verdict.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path

import psutil

from service.storage.database.driver import sqlite3
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until


def cpu_s(process: psutil.Process) -> float:
    """What the process and its decoders have used, s; what ended meanwhile is left out."""
    return float(sum(sum(one.cpu_times()[:2]) for one in (process, *process.children(recursive=True))))


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = captures.trained_root(Path(folder), options.profile, steps=100)
        content = next(captures.variants(1))
        first_verdict_s, ready_s = [], []
        for number in range(options.starts):
            before = finished(root)
            (root / "incoming" / f"{number}.jpg").write_bytes(content)
            with DaemonProcess(root) as process:
                began = process.started_at
                ready_s.append(process.wait_ready())
                wait_until(lambda before=before: finished(root) > before, "the first verdict")
                first_verdict_s.append(time.monotonic() - began)
                assert process.stop() == 0
        with DaemonProcess(root) as process:
            process.wait_ready()
            (root / "incoming" / "last.jpg").write_bytes(content)
            before = options.starts
            wait_until(lambda: finished(root) > before, "one verdict before idling")
            time.sleep(10)
            watched = psutil.Process(process.process.pid)
            cpu, began = cpu_s(watched), time.monotonic()
            time.sleep(options.seconds)
            used, lasted = cpu_s(watched) - cpu, time.monotonic() - began
            memory = watched.memory_info().rss
            # Of what is in several processes each has its share, so that the sum is what they take together.
            together = [one.memory_full_info().pss for one in (watched, *watched.children(recursive=True))]
            assert process.stop() == 0
        with sqlite3.connect(root / "tamis.db") as connection:
            [rows] = connection.execute("SELECT count(*) FROM images WHERE state = 'placed'").fetchone()
    captures.report(
        {
            "benchmark": "idle",
            "seconds": lasted,
            "cpu_share_of_one_core": used / lasted,
            "resident_mb": memory / 1e6,
            "with_decoders_mb": sum(together) / 1e6,
            "processes": len(together),
            "load": os.getloadavg()[0],
            "ready_s": ready_s,
            "first_verdict_s": first_verdict_s,
            "profile": options.profile,
            "placed": rows,
        },
        options.output,
    )


if __name__ == "__main__":
    main()
