"""A state machine does to a real daemon what cameras, people and failures do, in any order, beside a small model of it.

The model holds what was dropped, what was said of it, and nothing else; when all has settled, every content that was
dropped lies in the root as often as it was dropped, each file has one row that names it, each row the verdict of the
version that it names, and each file the folder that the latest label or else the verdict says.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from service.labelling.label import label_images
from service.storage import versions
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.conftest import image_bytes
from tests.faults.root_for_faults import KINDS, make_root
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, nothing_left, wait_until

NAMES = ("part.png", "part (1).png", "bracket/part.png", "-rf.png", "größe.png", "bracket/a'b\"c.png")
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
HOURS = (-26, -2, 3, 500)
PATIENCE_S = 60.0
SETTINGS = "anomaly_maps = false\nburst_gap_s = 0.0\n"


class Line(RuleBasedStateMachine):
    """What may happen to a root, and the model of what must come of it."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="tamis-model-"))
        self.root = self.folder / "root"
        # The model: how often each content must be there, what was said last of each image, how many were made.
        self.contents: collections.Counter[str] = collections.Counter()
        self.labels: dict[str, str] = {}
        self.made = 0
        self.daemon: DaemonProcess | None = None
        self.hours = 0

    @initialize()
    def begin(self) -> None:
        make_root(self.root, SETTINGS)
        (self.root / "incoming/bracket").mkdir()
        self.engine = open_database(self.root)
        # Finds an image twice as bright as v1 does, so that the two differ on some.
        install(self.root, version="v2", state="challenger", graph_offset=60.0)
        self.start()

    # Cameras

    @rule(
        name=st.sampled_from(NAMES), brightness=st.sampled_from([20, 60, 90, 200]), away_h=st.sampled_from([0, *HOURS])
    )
    def drop(self, name: str, brightness: int, away_h: int) -> None:
        self.made += 1
        self._put(name, image_bytes(brightness, seed=self.made), away_h)

    @rule(name=st.sampled_from(NAMES))
    def drop_the_same_again(self, name: str) -> None:
        self._put(name, image_bytes(20, seed=0))

    @rule(name=st.sampled_from(NAMES))
    def drop_what_is_no_image(self, name: str) -> None:
        self.made += 1
        self._put(name, f"no image {self.made}".encode())

    @rule(name=st.sampled_from(NAMES), to=st.sampled_from(NAMES))
    def rename(self, name: str, to: str) -> None:
        incoming = self.root / "incoming"
        # The service takes names away and makes none: what is not there now is not there in a moment.
        if not (incoming / to).exists():
            with contextlib.suppress(FileNotFoundError):
                (incoming / name).rename(incoming / to)

    @precondition(lambda self: self.daemon is None)
    @rule(name=st.sampled_from(NAMES))
    def overwrite(self, name: str) -> None:
        path = self.root / "incoming" / name
        if path.exists():
            self.made += 1
            self.contents[_sha256(path)] -= 1
            path.write_bytes(image_bytes(60, seed=self.made))
            self.contents[_sha256(path)] += 1

    @rule(name=st.sampled_from(NAMES))
    def delete(self, name: str) -> None:
        path = self.root / "incoming" / name
        with contextlib.suppress(FileNotFoundError):
            sha256 = _sha256(path)
            with path.open("rb") as held:
                path.unlink()
                # What was claimed meanwhile is another file, or none.
                assert os.fstat(held.fileno()).st_nlink == 0
            self.contents[sha256] -= 1

    # People

    @rule(number=st.integers(0, 10_000), label=st.sampled_from(["normal", "anomaly"]))
    def label(self, number: int, label: str) -> None:
        if ids := self._ids("state IN ('placed', 'quarantined')"):
            id = ids[number % len(ids)]
            label_images(self.root, self.engine, [id], label, by="ada", source="web")
            self.labels[id] = label

    @rule(number=st.integers(0, 10_000))
    def drag(self, number: int) -> None:
        """Drags a file to the other side; the daemon has to find it."""
        with contextlib.closing(self._connect()) as connection:
            rows = connection.execute("SELECT id, path FROM images WHERE state = 'placed' ORDER BY id").fetchall()
        if rows:
            id, path = rows[number % len(rows)]
            other = "anomaly" if path.startswith("normal/") else "normal"
            target = self.root / path.replace(path.partition("/")[0], other, 1)
            target.parent.mkdir(parents=True, exist_ok=True)
            (self.root / path).rename(target)
            self.labels[id] = other
            # The next drag or label of it builds on this one's being found.
            self._settle()

    @rule(version=st.sampled_from(["v1", "v2"]))
    def promote(self, version: str) -> None:
        with self.engine.begin() as connection:
            if versions.champions(connection)["default"].version != version:
                versions.promote(connection, "default", version, "as the model says")

    # The machine

    @precondition(lambda self: self.daemon is not None)
    @rule(after_ms=st.integers(0, 300))
    def kill(self, after_ms: int) -> None:
        assert self.daemon is not None
        time.sleep(after_ms / 1000)
        self.daemon.kill()
        self._close()

    @precondition(lambda self: self.daemon is not None)
    @rule()
    def stop(self) -> None:
        assert self.daemon is not None
        assert self.daemon.stop() == 0, self.daemon.log_text()
        self._close()

    @precondition(lambda self: self.daemon is None)
    @rule()
    def start(self) -> None:
        environment = {}
        if FAKETIME is not None and self.hours:
            # Only the clock on the wall; what waits for a time to pass has another.
            environment = {
                "LD_PRELOAD": str(FAKETIME),
                "FAKETIME": f"{self.hours:+d}h",
                "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            }
        self.daemon = DaemonProcess(self.root, environment=environment)
        self.daemon.wait_ready()

    @precondition(lambda self: FAKETIME is not None)
    @rule(hours=st.sampled_from([0, *HOURS]))
    def jump(self, hours: int) -> None:
        """The clock is another at the next start."""
        self.hours = hours

    @rule()
    def wait(self) -> None:
        self._settle()

    def teardown(self) -> None:
        try:
            if hasattr(self, "engine"):
                self._settle()
                self.stop()
        finally:
            if self.daemon is not None:
                self._close()
            if hasattr(self, "engine"):
                self.engine.dispose()
            shutil.rmtree(self.folder)

    # What must be true

    def _settle(self) -> None:
        if self.daemon is None:
            self.start()
        assert self.daemon is not None
        try:
            wait_until(self._is_settled, "all at its place", PATIENCE_S, poll_s=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self._differences()}\n{self.daemon.log_text()}") from None
        assert not self._differences()

    def _is_settled(self) -> bool:
        return nothing_left(self.root) and not self._differences()

    def _differences(self) -> list[str]:
        """Return what is not as the model says, by the files and by SQL alone."""
        with contextlib.closing(self._connect()) as connection:
            rows = connection.execute(
                "SELECT id, path, state, verdict, score, threshold, model_version, sha256, label FROM results"
            ).fetchall()
        files = {
            str(path.relative_to(self.root)): _sha256(path)
            for kind in KINDS
            for path in (self.root / kind).rglob("*")
            if path.is_file()
        }
        found = []
        there = collections.Counter(files.values())
        if there != +self.contents:
            found.append(f"contents: expected {sum(self.contents.values())}, found {sum(there.values())}")
        if {row[1]: row[7] for row in rows} != files or len(rows) != len(files):
            found.append("rows and files do not name each other")
        for id, path, state, verdict, score, threshold, version, _, label in rows:
            wanted = self.labels.get(id) or verdict or "quarantine"
            if label != self.labels.get(id) or path.split("/")[0] != wanted:
                found.append(f"{id}: expected label {self.labels.get(id)} in {wanted}/; found {label} at {path}")
            if state != ("quarantined" if wanted == "quarantine" else "placed"):
                found.append(f"{id}: found {state} at {path}")
            if verdict is not None and (version not in ("v1", "v2") or (score > threshold) != (verdict == "anomaly")):
                found.append(f"{id}: {verdict} by {version} at {score} of {threshold}")
        return found

    def _put(self, name: str, content: bytes, away_h: int = 0) -> None:
        """Drop a file as a camera does, whole by a rename, its clock `away_h` hours off."""
        path = self.root / "incoming" / name
        partial = path.with_name(f".{path.name}.part")
        partial.write_bytes(content)
        at = time.time() + 3600 * away_h
        os.utime(partial, (at, at))
        with contextlib.ExitStack() as stack:
            replaced = None
            with contextlib.suppress(FileNotFoundError):
                replaced = stack.enter_context(path.open("rb"))
            partial.rename(path)
            self.contents[hashlib.sha256(content).hexdigest()] += 1
            # A camera that uses a name again before the first was claimed takes its own image away.
            if replaced is not None and os.fstat(replaced.fileno()).st_nlink == 0:
                self.contents[hashlib.sha256(replaced.read()).hexdigest()] -= 1

    def _ids(self, condition: str) -> list[str]:
        with contextlib.closing(self._connect()) as connection:
            return [id for (id,) in connection.execute(f"SELECT id FROM images WHERE {condition} ORDER BY id")]

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.root}/tamis.db?mode=ro", uri=True, timeout=60)

    def _close(self) -> None:
        assert self.daemon is not None
        self.daemon.__exit__(None, None, None)
        self.daemon = None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("examples", "steps"),
    [pytest.param(3, 15, id="short"), pytest.param(60, 40, id="long", marks=pytest.mark.long)],
)
def test_whatever_happens_in_whatever_order_the_root_agrees_with_the_model(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        Line, settings=settings(max_examples=examples, stateful_step_count=steps, deadline=None, derandomize=True)
    )  # fmt: skip
