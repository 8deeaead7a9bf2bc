"""What the page costs: its answers over a million rows, a label's answer, and what an open page takes from scoring.

All of it through a real `tamis web` over HTTP on this machine, so that a time is the server's and a little more.
Labels are of real captures with files of their own: half of them stay in their folder, half of them are moved. The
rates are windows of one daemon's run on the same database, files waiting all the time, with the page *Today* fetched
anew as an open page does it, and without, in turn.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import statistics
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service.storage.database.driver import sqlite3
from service.storage.tables import time_text
from tests.benchmarks import captures
from tests.benchmarks.queries.rows import fill
from tests.benchmarks.retraining import WAITING, Feed, rate
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.web_process import WebProcess

PAGE_MS, LABEL_MS, SHARE = 300.0, 50.0, 0.95
TICK_S = 5.0  # as often as page.js says that it is time
PATIENCE_S = 900.0
WALLS = (
    "/review",
    "/review?product=macaroni",
    "/review?verdict=anomaly",
    "/review?verdict=anomaly&reviewed=yes",
    "/review?order=newest",
    "/review?score_min=0.9&score_max=1.1",
    "/review?verdict=quarantined",
)


class Client:
    """One connection to the page that is kept, as a browser keeps it."""

    def __init__(self, web: WebProcess) -> None:
        self._connection = http.client.HTTPConnection("localhost", web.port, timeout=60)

    def get(self, address: str, **headers: str) -> tuple[str, float]:
        """Return the body and how long it took to come, ms."""
        return self._ask("GET", address, None, headers)

    def post(self, address: str, body: Any) -> tuple[str, float]:
        """The same of a write through the JSON API."""
        return self._ask("POST", address, json.dumps(body), {"content-type": "application/json"})

    def _ask(self, method: str, address: str, body: str | None, headers: dict[str, str]) -> tuple[str, float]:
        began = time.perf_counter()
        self._connection.request(method, address, body, headers)
        answer = self._connection.getresponse()
        content = answer.read().decode()
        took = (time.perf_counter() - began) * 1000
        if answer.status != 200:
            raise AssertionError(f"{method} {address}: expected 200; found {answer.status}: {content[:500]}")
        return content, took


def walls(web: WebProcess, runs: int, pages: int) -> dict[str, Any]:
    """Return the times of the first and of the next pages of each wall, ms."""
    found = {}
    for address in WALLS:
        first, following = [], []
        for _ in range(runs):
            client = Client(web)
            content, took = client.get(address)
            first.append(took)
            for _ in range(pages):
                more = _between(content, 'hx-get="/review', '"')
                if more is None:
                    break
                # What the wall fetches at its end: the next cards alone.
                content, took = client.get("/review" + more.replace("&amp;", "&"), **{"hx-request": "true"})
                following.append(took)
        found[address] = {"first": _times(first), "next": _times(following) if following else None}
    return found


def labels(root: Path, web: WebProcess, count: int) -> dict[str, Any]:
    """Return the times of `count` labels that say what was decided, and of as many that say the opposite, ms."""
    with sqlite3.connect(root / "tamis.db", timeout=60) as connection:
        rows = connection.execute(
            "SELECT id, path, verdict FROM images WHERE verdict = 'normal' AND state = 'placed'"
            " ORDER BY received_at DESC LIMIT ?",
            (2 * count,),
        ).fetchall()
        for (id, path, _), content in zip(rows, captures.variants(len(rows)), strict=True):
            place = root / path
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
            connection.execute(
                "UPDATE images SET sha256 = ?, bytes = ? WHERE id = ?",
                (hashlib.sha256(content).hexdigest(), len(content), id),
            )
    os.sync()
    client = Client(web)
    stays, moves = [], []
    for number, (id, path, _) in enumerate(rows):
        label = "normal" if number % 2 else "anomaly"
        answer, took = client.post(f"/api/v1/images/{id}/label", {"label": label, "by": "ada"})
        (stays if number % 2 else moves).append(took)
        assert (root / json.loads(answer)["path"]).is_file() and ((root / path).exists() == bool(number % 2)), answer
    return {"stays": _times(stays), "moves": _times(moves)}


def sync_ms(folder: Path, count: int = 50) -> float:
    """Return how long this disk takes to make one small write durable, ms: what a label waits for most."""
    times = []
    with (folder / "sync").open("wb", buffering=0) as file:
        for _ in range(count):
            file.write(b"x" * 4096)
            began = time.perf_counter()
            os.fsync(file.fileno())
            times.append((time.perf_counter() - began) * 1000)
    (folder / "sync").unlink()
    return statistics.median(times)


class OpenPage:
    """Somebody who has *Today* open: fetches its figures anew at every tick while it is looked at."""

    def __init__(self, web: WebProcess) -> None:
        self._client = Client(web)
        self._looking, self._ending = threading.Event(), threading.Event()
        self.times: list[float] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def look(self, looking: bool) -> None:
        """Begin or cease to look."""
        (self._looking.set if looking else self._looking.clear)()

    def end(self) -> None:
        """Close the page."""
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(TICK_S):
            if self._looking.is_set():
                self.times.append(self._client.get("/", **{"hx-request": "true"})[1])


def rates(root: Path, web: WebProcess, pairs: int, window_s: float) -> dict[str, Any]:
    """Return images per second with the page open and without, in turn, and the times of its figures."""
    began = time_text(datetime.now(UTC))

    def placed() -> int:
        with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
            [count] = connection.execute(
                "SELECT count(*) FROM images WHERE received_at >= ? AND state = 'placed'", (began,)
            ).fetchone()
        return int(count)

    with DaemonProcess(root) as process:
        process.wait_ready()
        feed, page = Feed(root, placed), OpenPage(web)
        wait_until(lambda: placed() >= 3 * WAITING, "images that flow", PATIENCE_S, poll_s=0.5)
        measured: list[dict[str, float]] = []
        for number in range(pairs):
            one = {}
            # Which of the two comes first changes, so that what drifts over the run favours neither.
            for looking in (True, False) if number % 2 else (False, True):
                page.look(looking)
                one["open" if looking else "closed"] = rate(placed, window_s)
            measured.append({**one, "ratio": one["open"] / one["closed"]})
        feed.end()
        page.end()
        process.kill()
    return {
        "pairs": measured,
        "median_ratio": statistics.median(one["ratio"] for one in measured),
        "figures": _times(page.times),
    }


def _between(content: str, before: str, after: str) -> str | None:
    at = content.rfind(before)
    return None if at < 0 else content[at + len(before) :].split(after, 1)[0]


def _times(times: list[float]) -> dict[str, float | int]:
    return {
        "median_ms": round(statistics.median(times), 1),
        "p95_ms": round(captures.percentile(times, 0.95), 1),
        "max_ms": round(max(times), 1),
        "count": len(times),
    }


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=10, help="of each wall")
    parser.add_argument("--pages", type=int, default=5, help="after the first, in each run")
    parser.add_argument("--labels", type=int, default=50, help="of each kind")
    parser.add_argument("--pairs", type=int, default=4, help="of windows with the page open and without")
    parser.add_argument("--window-s", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        root = folder / "root"
        root.mkdir()
        fill(root, options.rows, datetime.now(UTC))
        captures.trained_root(folder, "fast", steps=30, full_size=True)
        with WebProcess(root) as web:
            first = Client(web).get("/")[1]
            found = {
                "today": {"first_ms": round(first, 1), "next": _times([Client(web).get("/")[1] for _ in range(20)])},
                "walls": walls(web, options.runs, options.pages),
                "labels": labels(root, web, options.labels),
                "sync_ms": round(sync_ms(root), 2),
                "open_page": rates(root, web, options.pairs, options.window_s),
            }
    slowest = max(each[part]["p95_ms"] for each in found["walls"].values() for part in each if each[part])
    slowest_label = max(each["p95_ms"] for each in found["labels"].values())
    captures.report(
        {
            "benchmark": "web",
            "rows": options.rows,
            **found,
            "required": {"page_ms": PAGE_MS, "label_ms": LABEL_MS, "ratio": SHARE},
            "held": {
                "pages": slowest <= PAGE_MS,
                "labels": slowest_label <= LABEL_MS,
                "ratio": found["open_page"]["median_ratio"] >= SHARE,
            },
        },
        options.output,
    )


if __name__ == "__main__":
    main()
