"""Promotion and roll-back while images flow through the real daemon: each is scored, by one of the two versions."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

from service.storage.database.driver import sqlite3
from service.storage.tables import time_text
from tests.conftest import image_bytes
from tests.support.brightness_version import install
from tests.support.daemon_process import REPOSITORY, DaemonProcess, finished, nothing_left, wait_until

EFFECTIVE_WITHIN_S = 5.0
IMAGES_PER_S = 40
SWAPS = 3


class Flow:
    """Drops images without a pause, until told to end."""

    def __init__(self, root: Path) -> None:
        self.dropped = 0
        self._incoming = root / "incoming"
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._drop, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _drop(self) -> None:
        while not self._ending.wait(1 / IMAGES_PER_S):
            partial = self._incoming / f".{self.dropped}.part"
            partial.write_bytes(image_bytes(10, seed=self.dropped))
            partial.rename(self._incoming / f"{self.dropped:06}.png")
            self.dropped += 1


def test_each_image_is_scored_by_one_of_two_versions_and_a_roll_back_holds_within_5_s(root: Path) -> None:
    install(root, version="v1")
    install(root, version="v2", state="challenger", graph_offset=1.0)
    (root / "tamis.toml").write_text("settle_time_s = 0.2\nrescan_interval_s = 1.0\nfree_bytes_min = 0\n")
    took: dict[str, list[float]] = {"promote": [], "rollback": []}
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        flow = Flow(root)
        wait_until(lambda: finished(root) > 50, "images that flow")
        for _ in range(SWAPS):
            took["promote"].append(_swap(root, "promote", "v2"))
            took["rollback"].append(_swap(root, "rollback", "v1"))
        flow.end()
        wait_until(lambda: finished(root) == flow.dropped and nothing_left(root), "every image at its place")
        assert daemon.stop() == 0, daemon.log_text()
    rows = _rows(root, "SELECT model_version, score, state FROM images")
    assert len(rows) == flow.dropped
    assert {state for _, _, state in rows} == {"placed"}
    assert {version for version, _, _ in rows} == {"v1", "v2"}
    # By the score itself too: what v2 says is 1 above what is there, and no batch is scored by half of each.
    fractions = {version: {round(score) for of, score, _ in rows if of == version} for version in ("v1", "v2")}
    assert min(fractions["v2"]) > min(fractions["v1"]), fractions
    print(f"{flow.dropped} images; seconds from the swap to the last verdict of the version before: {took}")
    assert max(took["rollback"] + took["promote"]) <= EFFECTIVE_WITHIN_S


def _swap(root: Path, action: str, version: str) -> float:
    """Swap by the command; return the seconds until the version before gave its last verdict, 0 if at once."""
    options = ["default", *([version] if action == "promote" else []), "--root", str(root), "--json"]
    before = datetime.now(UTC)
    ended = subprocess.run(
        [sys.executable, "-m", "service", "models", action, *options],
        cwd=REPOSITORY, check=True, capture_output=True, text=True,
    )  # fmt: skip
    assert json.loads(ended.stdout)["version"] == version
    count = "SELECT count(*) FROM images WHERE model_version = ? AND decided_at > ?"

    def seen() -> bool:
        return bool(_rows(root, count, version, time_text(before))[0][0] >= 20)

    wait_until(seen, f"20 verdicts of {version}")
    [(at,)] = _rows(root, "SELECT at FROM promotions ORDER BY id DESC LIMIT 1")
    [(last,)] = _rows(root, "SELECT max(decided_at) FROM images WHERE model_version <> ?", version)
    return max(0.0, (datetime.fromisoformat(last) - datetime.fromisoformat(at)).total_seconds())


def _rows(root: Path, statement: str, *values: object) -> list[tuple]:
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
        return connection.execute(statement, values).fetchall()
