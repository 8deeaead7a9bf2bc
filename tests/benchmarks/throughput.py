"""Images per second of the daemon against the bound of the same run.

A rate that lasts: the daemon has started, with all that it does once.
The bound is decode and graph in a bare loop over the same threads, on the same files, with nothing written; both
decode drafts where the version does.
Bound and daemon are measured in turn, several times; the ratio is taken pair by pair.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from models.registry import verify
from models.runtime.openvino_detector import OpenVinoDetector
from service import settings as settings_module
from service.imaging.decode import decode
from service.storage.database.driver import sqlite3
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until

PATIENCE_S = 900.0
BATCH = 16


def bound(root: Path, files: list[Path], threads: int, batch: int) -> float:
    """Images per second of decode and graph alone: the decoders run ahead by at most two batches."""
    [folder] = (root / "models" / "default").iterdir()
    version = verify(folder)
    detector = OpenVinoDetector(version)
    began = time.perf_counter()

    def pixels_of(path: Path) -> Any:
        return decode(path.read_bytes(), detector.input_size, draft=version.draft).pixels

    with ThreadPoolExecutor(threads) as pool:
        ahead: list[Any] = []
        upcoming = iter(files)

        def refill() -> None:
            while len(ahead) < 3 * batch and (path := next(upcoming, None)) is not None:
                ahead.append(pool.submit(pixels_of, path))

        refill()
        while ahead:
            pixels = [future.result() for future in ahead[:batch]]
            del ahead[:batch]
            refill()
            detector.score(np.stack(pixels))
    return len(files) / (time.perf_counter() - began)


def drafts(root: Path) -> bool:
    """Whether the model decodes drafts."""
    [folder] = (root / "models" / "default").iterdir()
    return verify(folder).draft


def daemon(root: Path, files: list[Path]) -> dict[str, float]:
    """Images per second of the daemon, from the first claim to the last file placed."""
    captures.empty(root)
    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until_idle(process.process.pid)
        began, dropping = time.time(), time.perf_counter()
        for number, path in enumerate(files):
            # A rename, as a camera's upload ends: nothing is copied while the clock runs.
            path.rename(root / "incoming" / f"{number:05}.jpg")
        dropped = time.perf_counter()
        # Asked seldom: each question takes a core from what is measured, and the rollback journal from its writer.
        wait_until(lambda: finished(root) == len(files), "all placed", PATIENCE_S, poll_s=0.5)
        assert process.stop() == 0, process.log_text()
    took = last_placed(root) - began
    # The way back, so that the next run reads the same files.
    for number, path in enumerate(files):
        [placed] = [*root.glob(f"normal/*/*/{number:05}.*"), *root.glob(f"anomaly/*/*/{number:05}.*")]
        placed.rename(path)
    return {"images_per_s": len(files) / took, "dropping_s": dropped - dropping}


def wait_until_idle(pid: int) -> None:
    """Wait until the process has hardly used a core for 0.5 s: the meter first looks at the hardware."""
    daemon = psutil.Process(pid)
    wait_until(lambda: daemon.cpu_percent(interval=0.5) < 5, "the daemon idle", PATIENCE_S)


def last_placed(root: Path) -> float:
    """When the last image was placed by the daemon's own record, s since the epoch; asking comes later."""
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True) as connection:
        [at] = connection.execute("SELECT max(placed_at) FROM images").fetchone()
    return datetime.fromisoformat(at).timestamp()


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--full-size", action="store_true", help="train on the captures, so that drafts are tried")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = captures.trained_root(Path(folder), options.profile, steps=100, full_size=options.full_size)
        drafted = drafts(root)
        settings = settings_module.load(root)
        store = Path(folder) / "captures"
        store.mkdir()
        files = []
        for number, content in enumerate(captures.variants(options.images)):
            files.append(store / f"{number:05}.jpg")
            files[-1].write_bytes(content)
        pairs = []
        for _ in range(options.pairs):
            bare = bound(root, files, settings.decoders, settings.batch_size_max or BATCH)
            served = daemon(root, files)
            pairs.append({"bound_images_per_s": bare, **served, "ratio": served["images_per_s"] / bare})
    captures.report(
        {
            "benchmark": "throughput",
            "images": options.images,
            "size": "1500x1000",
            "profile": options.profile,
            "draft": drafted,
            "pairs": pairs,
            "median_ratio": statistics.median(pair["ratio"] for pair in pairs),
            "median_images_per_s": statistics.median(pair["images_per_s"] for pair in pairs),
        },
        options.output,
    )


if __name__ == "__main__":
    main()
