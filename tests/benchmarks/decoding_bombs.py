"""The daemon and the page among files that take much of what decodes them: memory, and how late others are.

First images as cameras drop them, at a pace that the machine keeps; then the same again with seeded bombs in between.
Memory is that of the daemon, or the page, with its processes: the sum of what is theirs alone and their shares of what
is common, looked at again and again, and its highest value. Then each image's thumbnail is asked for at the page.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.benchmarks import captures
from tests.faults.root_for_faults import drop, make_root, query, settled
from tests.support.bombs import bombs, camera_image
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.web_process import WebProcess

LOOK_EVERY_S = 0.01
PATIENCE_S = 1800.0
VIEWERS = 6
# Some bombs are large themselves, and so are images of some cameras: of every so many one has 12 megapixels and is not
# compressed, 36 MB, or it has as many in a JPEG.
LARGE_EVERY = 10
LARGE = ((4000, 3000), "BMP"), ((4000, 3000), "JPEG")


class MemoryWatch:
    """Looks at the memory of a process and its children until the end of the block; `peak_mb` is the highest."""

    def __init__(self, pid: int) -> None:
        self._process = psutil.Process(pid)
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.peak_mb = 0.0
        self.largest_child_mb = 0.0

    def __enter__(self) -> MemoryWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._ending.wait(LOOK_EVERY_S):
            of_each = [_pss_mb(one.pid) for one in (self._process, *self._process.children(recursive=True))]
            self.peak_mb = max(self.peak_mb, sum(of_each))
            self.largest_child_mb = max([self.largest_child_mb, *of_each[1:]])


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except (OSError, ProcessLookupError):  # it has ended meanwhile
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def oom_kills() -> int:
    """How many processes the kernel has ended for want of memory since it started."""
    [line] = [one for one in Path("/proc/vmstat").read_text().splitlines() if one.startswith("oom_kill ")]
    return int(line.split()[1])


def feed(root: Path, files: Sequence[tuple[str, bytes]], gap_s: float) -> None:
    """Drop `files`, one every `gap_s`."""
    for name, content in files:
        drop(root, name, content)
        time.sleep(gap_s)


def normal_images(count: int, seed: int) -> list[tuple[str, bytes]]:
    """Return names and contents of `count` images as cameras drop them."""
    return [(f"normal-{seed}-{number:05}.jpg", _normal_image(number, seed)) for number in range(count)]


def _normal_image(number: int, seed: int) -> bytes:
    nth, rest = divmod(number, LARGE_EVERY)
    return camera_image(seed + number, *(LARGE[nth % len(LARGE)] if rest == LARGE_EVERY // 2 else ()))


def sort(process: DaemonProcess, files: Sequence[tuple[str, bytes]], gap_s: float, done: int) -> dict[str, Any]:
    """Have `files` sorted; `done` images were there before."""
    root = process.root
    with MemoryWatch(process.process.pid) as watch:
        feed(root, files, gap_s)
        wait_until(settled(root, done + len(files)), "all sorted", PATIENCE_S, poll_s=0.2)
    names = [name for name, _ in files if name.startswith("normal-")]
    rows = {row["file_name"]: row for row in query(root, "SELECT file_name, state, latency_ms FROM results")}
    latencies = [rows[name]["latency_ms"] for name in names]
    return {
        "files": len(files),
        "peak_mb": watch.peak_mb,
        "largest_child_mb": watch.largest_child_mb,
        "normal_images": len(names),
        "normal_placed": sum(rows[name]["state"] == "placed" for name in names),
        "latency_ms_median": statistics.median(latencies),
        "latency_ms_max": max(latencies),
    }


def look(process: WebProcess, ids: Sequence[str]) -> dict[str, Any]:
    """Ask for the thumbnails of `ids`, as a few browsers do at once."""

    def thumbnail(id: str) -> tuple[int, float]:
        began = time.perf_counter()
        try:
            with urllib.request.urlopen(f"{process.url}/images/{id}/thumb", timeout=120) as answer:
                answer.read()
                status = answer.status
        except urllib.error.HTTPError as error:
            status = error.code
        return status, time.perf_counter() - began

    with MemoryWatch(process.process.pid) as watch, ThreadPoolExecutor(VIEWERS) as pool:
        answers = list(pool.map(thumbnail, ids))
    return {
        "thumbnails": len(ids),
        "statuses": Counter(status for status, _ in answers),
        "peak_mb": watch.peak_mb,
        "seconds_max": max(seconds for _, seconds in answers),
        "normal_seconds_max": max((seconds for status, seconds in answers if status == 200), default=None),
    }


def measure(folder: Path, count: int, gap_s: float, seed: int) -> dict[str, Any]:
    """Return the figures for `count` bombs among as many normal images."""
    root = make_root(folder / "root", "anomaly_maps = false\n")
    kills = oom_kills()
    evil = [(f"bomb-{number:05}-{kind}.png", data) for number, (kind, data) in enumerate(bombs(count, seed))]
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        before = sort(daemon, normal_images(count, 100_000), gap_s, 0)
        # Each bomb beside an image: as many images as before, at the same pace.
        mixed = [one for pair in zip(normal_images(count, 200_000), evil, strict=True) for one in pair]
        among = sort(daemon, mixed, gap_s / 2, count)
        alive = daemon.process.poll() is None
        ended = daemon.log_text().count("decoder ended")
        assert daemon.stop() == 0, daemon.log_text()
    rows = query(root, "SELECT id, file_name, state, error_code, latency_ms FROM results ORDER BY received_at")
    of_bombs = [row for row in rows if row["file_name"].startswith("bomb-")]
    of_normal = [row["id"] for row in rows if row["file_name"].startswith("normal-")]
    with WebProcess(root) as page:
        page_before = look(page, of_normal[:count])
        ids = [id for pair in zip(of_normal[count:], [row["id"] for row in of_bombs], strict=True) for id in pair]
        page_among = look(page, ids)
        page_alive = page.process.poll() is None
    return {
        "bombs": count,
        "outcomes": Counter(f"{_kind(row)}: {row['error_code'] or row['state']}" for row in of_bombs),
        "bomb_latency_ms_max": max(row["latency_ms"] for row in of_bombs),
        "before": before,
        "among_bombs": among,
        "memory_ratio": among["peak_mb"] / before["peak_mb"],
        "later_ms_max": among["latency_ms_max"] - before["latency_ms_max"],
        "daemon_alive": alive,
        "decoders_ended": ended,
        "page_before": page_before,
        "page_among_bombs": page_among,
        "page_memory_ratio": page_among["peak_mb"] / page_before["peak_mb"],
        "page_alive": page_alive,
        "killed_by_kernel": oom_kills() - kills,
    }


def _kind(row: dict[str, Any]) -> str:
    return str(row["file_name"].rpartition("-")[2].partition(".")[0])


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--bombs", type=int, default=200)
    parser.add_argument("--gap-ms", type=float, default=200.0, help="between two normal images")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        found = measure(Path(folder), options.bombs, options.gap_ms / 1000, options.seed)
    captures.report({"benchmark": "decoding_bombs", **found}, options.output)


if __name__ == "__main__":
    main()
