"""Many files of one product wait: how soon another's first verdict comes, and what it costs to look at them all.

First a product's backlog is worked off, and five files of another are dropped: seconds until its first and its last
verdict. Then as many files wait for a model that is not there, on a root that is polled: the share of a core that the
daemon takes, and seconds until a file of another product is sorted.
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from service.root import FOLDERS
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.benchmarks import captures
from tests.conftest import image_bytes
from tests.support import brightness_version
from tests.support.daemon_process import DaemonProcess, finished, wait_until

PATIENCE_S = 600.0
MANY, FEW, WITHOUT = "many", "few", "without"


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--files", type=int, default=97_000)
    parser.add_argument("--seconds", type=float, default=30.0, help="for how long the cost of polling is measured")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        backlog = beside_a_backlog(made_root(Path(folder) / "backlog"), options.files)
        polled = waiting_for_a_model(made_root(Path(folder) / "polled"), options.files, options.seconds)
    captures.report(
        {
            "benchmark": "waiting_files",
            "files": options.files,
            "beside_a_backlog": backlog,
            "waiting_for_a_model": polled,
            "load_average": psutil.getloadavg(),
        },
        options.output,
    )


def made_root(root: Path) -> Path:
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tamis.toml").write_text('watch_mode = "polling"\npoll_interval_s = 2.0\nretrain_cron = ""\n')
    open_database(root, create=True).dispose()
    for number, product in enumerate((MANY, FEW)):
        brightness_version.install(root, product, graph_offset=float(number))
    return root


def fill(root: Path, product: str, files: int) -> None:
    """Have `files` images wait: one content under many names."""
    folder = root / "incoming" / product
    folder.mkdir(exist_ok=True)
    content = image_bytes(20)
    for number in range(files):
        (folder / f"{number:06}.png").write_bytes(content)


def beside_a_backlog(root: Path, files: int) -> dict[str, Any]:
    fill(root, MANY, files)
    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(lambda: finished(root) > 100, "the backlog being worked off", PATIENCE_S)
        began, before = time.monotonic(), finished(root)
        fill(root, FEW, 5)
        wait_until(lambda: verdicts(root, FEW) > 0, "a first verdict", PATIENCE_S)
        first_s = time.monotonic() - began
        wait_until(lambda: verdicts(root, FEW) == 5, "all verdicts", PATIENCE_S)
        last_s = time.monotonic() - began
        rate = (finished(root) - before) / last_s
        process.stop()
    return {"first_verdict_s": first_s, "last_verdict_s": last_s, "images_per_s": rate}


def waiting_for_a_model(root: Path, files: int, seconds: float) -> dict[str, Any]:
    fill(root, WITHOUT, files)
    with DaemonProcess(root) as process:
        process.wait_ready()
        daemon = psutil.Process(process.process.pid)
        time.sleep(10.0)  # the start has its own costs
        idle = share_of_a_core(daemon, seconds)
        began = time.monotonic()
        fill(root, FEW, 1)
        wait_until(lambda: verdicts(root, FEW) == 1, "a verdict", PATIENCE_S)
        first_s = time.monotonic() - began
        process.stop()
    return {"share_of_a_core": idle, "verdict_of_another_s": first_s}


def share_of_a_core(daemon: psutil.Process, seconds: float) -> float:
    before = daemon.cpu_times()
    time.sleep(seconds)
    after = daemon.cpu_times()
    return ((after.user - before.user) + (after.system - before.system)) / seconds


def verdicts(root: Path, product: str) -> int:
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
        [count] = connection.execute(
            "SELECT count(*) FROM results WHERE product = ? AND verdict IS NOT NULL", (product,)
        ).fetchone()
    return int(count)


if __name__ == "__main__":
    main()
