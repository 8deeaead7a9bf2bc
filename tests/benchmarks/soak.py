"""A long run of the real daemon at a steady rate, with or without kills: does it grow, slow down, or lose anything?

The rate is a share of what this machine does at once, measured first. Sampled all the while: resident memory and open
files of the daemon; at the end the latency of each image, over time, and whether every file that was dropped is at
its place once. Images that are through are taken away as they come, so that a long run needs no large disk.
"""

from __future__ import annotations

import collections
import hashlib
import statistics
import tempfile
import time
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from service.storage.database.driver import sqlite3
from tests.benchmarks import captures
from tests.support.daemon_process import DaemonProcess, finished, wait_until

FULL_RATE_IMAGES = 600
SAMPLE_S = 5.0
WARM_UP_SHARE = 0.1
GROWTH_MAX, OPEN_FILES_MORE_MAX, LATENCY_FACTOR_MAX = 0.03, 2, 1.25
PATIENCE_S = 600.0


def full_rate(root: Path) -> float:
    """Return images per second with all files there at once."""
    contents = list(captures.variants(FULL_RATE_IMAGES))
    with DaemonProcess(root) as process:
        process.wait_ready()
        for number, content in enumerate(contents):
            drop(root, f"full-{number:06}.jpg", content)
        wait_until(lambda: finished(root) > 50, "images that flow", PATIENCE_S, poll_s=0.1)
        before, began = finished(root), time.perf_counter()
        wait_until(lambda: finished(root) == len(contents), "all placed", PATIENCE_S, poll_s=0.2)
        rate = (len(contents) - before) / (time.perf_counter() - began)
        assert process.stop() == 0, process.log_text()
    return rate


def drop(root: Path, name: str, content: bytes) -> None:
    partial = root / "incoming" / f".{name}.part"
    partial.write_bytes(content)
    partial.rename(root / "incoming" / name)


class Soak:
    """One run: the dropping, the samples, the kills, and what was found of what was dropped."""

    def __init__(self, root: Path, images_per_s: float, kill_every_s: float | None) -> None:
        self._root, self._rate, self._kill_every_s = root, images_per_s, kill_every_s
        self.dropped: dict[str, str] = {}
        self.found: collections.Counter[str] = collections.Counter()
        self.differing: list[str] = []
        self.samples: list[dict[str, float]] = []
        self.kills = 0

    def run(self, seconds: float) -> None:
        """Drop images for so long, then wait until all are at their place."""
        contents = captures.variants(10_000_000)
        began = time.monotonic()
        sample_at, kill_at = 0.0, self._kill_every_s or float("inf")
        with ExitStack() as stack:
            process = stack.enter_context(DaemonProcess(self._root))
            process.wait_ready()
            for number, content in enumerate(contents):
                now = time.monotonic() - began
                if now >= seconds:
                    break
                if now >= kill_at:
                    process.kill()
                    self.kills += 1
                    stack.pop_all().close()
                    process = stack.enter_context(DaemonProcess(self._root))
                    kill_at = now + (self._kill_every_s or 0)
                if now >= sample_at:
                    self._sample(process, now)
                    sample_at += SAMPLE_S
                self._drop(f"soak-{number:07}.jpg", content)
                time.sleep(max(0.0, (number + 1) / self._rate - (time.monotonic() - began)))
            wait_until(self._all_placed, "all placed", PATIENCE_S, poll_s=1.0)
            assert process.stop() == 0, process.log_text()
        self._take_away(every=True)

    def _drop(self, name: str, content: bytes) -> None:
        self.dropped[name] = hashlib.sha256(content).hexdigest()
        drop(self._root, name, content)
        if len(self.dropped) % 500 == 0:
            self._take_away(every=False)

    def _take_away(self, *, every: bool) -> None:
        """Take away files that are at their place, once their bytes are compared; unless `every`, of a minute ago."""
        old = time.time() - 60
        for kind in ("normal", "anomaly", "quarantine"):
            for path in (self._root / kind).rglob("*.jpg"):
                if every or path.stat().st_mtime < old:
                    name = f"{path.name.split('.')[0]}.jpg"
                    self.found[name] += 1
                    if hashlib.sha256(path.read_bytes()).hexdigest() != self.dropped.get(name):
                        self.differing.append(name)
                    path.unlink()
        # Not the hidden ones, which a daemon is about to put in place.
        for path in (self._root / "maps").glob("[!.]*.png"):
            path.unlink(missing_ok=True)

    def _sample(self, process: DaemonProcess, now: float) -> None:
        folder = Path(f"/proc/{process.process.pid}")
        [resident] = [
            int(line.split()[1])
            for line in (folder / "status").read_text().splitlines()
            if line.startswith("VmRSS:")
        ]  # fmt: skip
        waiting = sum(1 for _ in (self._root / "incoming").glob("*.jpg"))
        self.samples.append(
            {
                "s": round(now, 1),
                "resident_mb": resident / 1000,
                "open_files": sum(1 for _ in (folder / "fd").iterdir()),
                "waiting": waiting,
            }
        )

    def _all_placed(self) -> bool:
        with self._database() as connection:
            [count] = connection.execute(
                "SELECT count(*) FROM images WHERE file_name LIKE 'soak-%' AND state IN ('placed', 'quarantined')"
            ).fetchone()
        return int(count) == len(self.dropped)

    def _database(self) -> closing[sqlite3.Connection]:
        # Not read only: what a kill broke off in the middle is first rolled back by whoever opens it.
        return closing(sqlite3.connect(f"file:{self._root}/tamis.db?mode=rw", uri=True, timeout=60))

    def figures(self) -> dict[str, Any]:
        """Return what the run came to."""
        with self._database() as connection:
            rows = connection.execute(
                "SELECT file_name, count(*), max(latency_ms) FROM images"
                " WHERE file_name LIKE 'soak-%' GROUP BY file_name"
            ).fetchall()
            [quarantined] = connection.execute("SELECT count(*) FROM images WHERE state = 'quarantined'").fetchone()
        latencies = [latency for name, _, latency in sorted(rows) if latency is not None]
        warm = self.samples[round(WARM_UP_SHARE * len(self.samples)) :]
        minute = max(1, round(60 * self._rate))
        third = max(1, len(latencies) // 3)
        first, last = _medians(latencies[:third]), _medians(latencies[-third:])
        return {
            "images": len(self.dropped),
            "images_per_s": self._rate,
            "kills": self.kills,
            "lost": len(self.dropped.keys() - self.found.keys()),
            "twice": sum(count > 1 for count in self.found.values()),
            "differing": len(self.differing),
            "rows_twice": sum(count > 1 for _, count, _ in rows),
            "quarantined": quarantined,
            "without_row": len(self.dropped.keys() - {name for name, _, _ in rows}),
            "latency_ms": {"first_third": first, "last_third": last},
            "latency_ms_by_minute": [
                _medians(latencies[at : at + minute]) for at in range(0, len(latencies) - minute + 1, minute)
            ],
            "latency_factor": last["p50"] / first["p50"],
            "resident_mb": {"after_warm_up": _mean(warm[: len(warm) // 5], "resident_mb"),
                            "at_the_end": _mean(warm[-(len(warm) // 5) :], "resident_mb")},
            "open_files": {"after_warm_up": _mean(warm[: len(warm) // 5], "open_files"),
                           "at_the_end": _mean(warm[-(len(warm) // 5) :], "open_files")},
            "samples": self.samples,
        }  # fmt: skip


def _medians(latencies: list[float]) -> dict[str, float]:
    return {"p50": statistics.median(latencies), "p95": captures.percentile(latencies, 0.95)}


def _mean(samples: list[dict[str, float]], name: str) -> float:
    return statistics.fmean(sample[name] for sample in samples) if samples else float("nan")


def plot(figures: dict[str, Any], path: Path) -> None:
    """Draw memory, open files, what waits and the latency over time."""
    from matplotlib.figure import Figure

    names = ("resident_mb", "open_files", "waiting")
    figure = Figure(figsize=(9, 8), layout="constrained")
    *upper, lowest = figure.subplots(len(names) + 1, 1, sharex=True)
    for axes, name in zip(upper, names, strict=True):
        axes.plot([one["s"] / 60 for one in figures["samples"]], [one[name] for one in figures["samples"]])
        axes.set_ylabel(name.replace("_", " "))
        axes.set_ylim(bottom=0)
    for part in ("p50", "p95"):
        values = [one[part] for one in figures["latency_ms_by_minute"]]
        lowest.plot([minute + 0.5 for minute in range(len(values))], values, label=part)
    lowest.set_ylabel("latency ms")
    lowest.set_yscale("log")
    lowest.legend()
    lowest.set_xlabel("minutes")
    figure.savefig(path)


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--kill-every-s", type=float, help="kill the daemon so often, and start it again; never if not given"
    )
    parser.add_argument("--share", type=float, default=0.6, help="of the full rate")
    parser.add_argument("--plot", type=Path, help="draw the samples into this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        root = captures.trained_root(Path(name), "fast", steps=100, full_size=True)
        rate = full_rate(root)
        captures.empty(root)
        soak = Soak(root, options.share * rate, options.kill_every_s)
        soak.run(60 * options.minutes)
        figures = soak.figures()
    growth = figures["resident_mb"]["at_the_end"] / figures["resident_mb"]["after_warm_up"] - 1
    more = figures["open_files"]["at_the_end"] - figures["open_files"]["after_warm_up"]
    kept = not any(figures[name] for name in ("lost", "twice", "differing", "rows_twice", "without_row", "quarantined"))
    steady = growth < GROWTH_MAX and more < OPEN_FILES_MORE_MAX and figures["latency_factor"] < LATENCY_FACTOR_MAX
    if options.plot:
        plot(figures, options.plot)
    captures.report(
        {
            "benchmark": "soak",
            "minutes": options.minutes,
            "full_images_per_s": rate,
            **figures,
            "memory_growth": growth,
            # Each start begins anew: what grows over hours is seen without kills alone.
            "held": {"nothing_lost": kept, **({"steady": steady} if options.kill_every_s is None else {})},
        },
        options.output,
    )


if __name__ == "__main__":
    main()
