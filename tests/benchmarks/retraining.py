"""What a retraining takes from scoring: the daemon's images per second while `tamis retrain` learns beside it.

Both halves of a pair are windows of one daemon's run with files waiting all the time: one while it trains for real, of
kind `feature`, at the priority that the command gives itself, one after it was ended.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import insert

from models.registry import file_sha256
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.tables import training_images_table
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until

PATIENCE_S = 900.0
STEPS_NEVER_DONE = "1000000"
WAITING = 200  # files in incoming/ at any time: it never runs dry
REQUIRED = 0.6


class Feed:
    """Keeps files waiting in `incoming/`: variants of the captures, made as they are needed.

    `placed` says how many images have reached their place so far.
    """

    def __init__(self, root: Path, placed: Callable[[], int]) -> None:
        self._root = root
        self._placed = placed
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Drop no more."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        for number, content in enumerate(captures.variants(sys.maxsize)):
            while number >= self._placed() + WAITING and not self._ending.is_set():
                time.sleep(0.25)
            if self._ending.is_set():
                return
            partial = self._root / "incoming" / f".{number}.part"
            partial.write_bytes(content)
            partial.rename(partial.with_name(f"{number:06}.jpg"))


def vouch(root: Path) -> None:
    """Have the captures vouched for as normal, as an import does, so that there is something new to learn."""
    engine = open_database(root)
    folder = root / "training" / "default" / "normal"
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC)
    with engine.begin() as connection:
        for number, content in enumerate(captures.variants(60)):
            path = folder / f"{number:03}.jpg"
            path.write_bytes(content)
            connection.execute(
                insert(training_images_table).values(
                    product="default", sha256=file_sha256(path), label="normal", role="train",
                    path=str(path.relative_to(root)), file_name=path.name, taken_at=now, added_at=now,
                )
            )  # fmt: skip
    engine.dispose()


def rate(placed: Callable[[], int], window_s: float) -> float:
    """Images per second that are brought to their place during `window_s` from now."""
    before, began = placed(), time.perf_counter()
    time.sleep(window_s)
    return (placed() - before) / (time.perf_counter() - began)


def pair(root: Path, window_s: float, folder: Path, begun_cpu_s: float) -> dict[str, Any]:
    """Return the rate with and then without a retraining, of one daemon, and how much of a core the retraining had.

    The retraining begins first, with the machine for itself until it has used `begun_cpu_s` of processor time: beside
    a daemon that never rests it would not come to learn in the time of a window, and the figure would say nothing.
    """
    captures.empty(root)
    with DaemonProcess(root, environment={"TAMIS_RETRAIN_CRON": ""}) as process:
        process.wait_ready()
        said = folder / "retraining.log"
        command = ["retrain", "--root", str(root), "--product", "default", "--steps", STEPS_NEVER_DONE]
        with said.open("w") as log:
            retraining = subprocess.Popen(
                [sys.executable, "-m", "service", *command], cwd=captures.REPOSITORY, stderr=log, stdout=log
            )
        try:
            wait_until(lambda: _running(root), "a retraining on record", PATIENCE_S, poll_s=0.5)
            wait_until(lambda: _cpu_s(retraining.pid) >= begun_cpu_s, "a retraining under way", PATIENCE_S, poll_s=0.5)
            feed = Feed(root, lambda: finished(root))
            wait_until(lambda: finished(root) >= WAITING // 2, "images that flow", PATIENCE_S, poll_s=0.5)
            cpu_before = _cpu_s(retraining.pid)
            beside = rate(lambda: finished(root), window_s)
            used = _cpu_s(retraining.pid) - cpu_before
            assert retraining.poll() is None, said.read_text()
        finally:
            retraining.terminate()
            retraining.wait()
        without = rate(lambda: finished(root), window_s)
        feed.end()
        process.kill()
    return {
        "images_per_s_with": beside,
        "images_per_s_without": without,
        "ratio": beside / without,
        "retraining_cpu_s_before": cpu_before,
        "retraining_cores": used / window_s,
        "retraining_said": said.read_text().splitlines()[-1:],
    }


def _running(root: Path) -> bool:
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
        return bool(connection.execute("SELECT 1 FROM retraining_runs WHERE state = 'running'").fetchone())


def _cpu_s(pid: int) -> float:
    """Seconds of processor time of the process and what it started."""
    import psutil

    parent = psutil.Process(pid)
    return sum(
        sum(each.cpu_times()[:2]) for each in [parent, *parent.children(recursive=True)] if each.is_running()
    )  # fmt: skip


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--window-s", type=float, default=30.0)
    parser.add_argument("--begun-cpu-s", type=float, default=60.0, help="of the retraining, before files are dropped")
    parser.add_argument("--profile", default="fast")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        root = captures.trained_root(folder, options.profile, steps=30, full_size=True)
        vouch(root)
        pairs = [pair(root, options.window_s, folder, options.begun_cpu_s) for _ in range(options.pairs)]
        ratio = statistics.median(each["ratio"] for each in pairs)
        captures.report(
            {
                "benchmark": "retraining",
                "kind": "feature",
                "profile": options.profile,
                "size": "1500x1000",
                "window_s": options.window_s,
                "pairs": pairs,
                "median_ratio": ratio,
                "required": REQUIRED,
                "held": ratio >= REQUIRED,
            },
            options.output,
        )


if __name__ == "__main__":
    main()
