"""SIGKILL before every state-changing system call of a pass, and again before every one of the recovery after it.

A pass is what the threads of the daemon do, here done by one: recover, claim, read, decide, record, deliver, finish;
then a person labels. Its steps are the service's; only the detector is a stand-in, and there is no loop, so that a
pass makes the same calls each time and each can be named. The whole daemon is killed in `test_random_kill.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from service.inspection.claim import Claim, Claims
from service.inspection.inspected_image import InspectedImage
from service.inspection.private_copy import PREFIX, remove_left
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.inspection.score_batch import read_claim, score_and_decide
from service.labelling.label import label_images
from service.labelling.training_set import reconcile_all
from service.operations.restore import take_back
from service.root import ANOMALY
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.conftest import BrightnessScorers, image_bytes
from tests.faults.check_labels import problems as label_problems
from tests.faults.check_nothing_lost import problems as lost_or_twice
from tests.faults.mounts import tmpfs
from tests.faults.root_for_faults import query
from tests.faults.strace_kills import Point, killed_before, need_strace, points

FILES = {
    "normal.png": image_bytes(20, seed=1),
    "anomaly.png": image_bytes(220, seed=2),
    "gears/again.png": image_bytes(20, seed=3),
    "broken.png": b"no image",
}
LABELLED = "normal.png"
# Somebody keeps a second name of this one, so that a private copy of it takes its place.
SHARED = "again.png"
ANY_ID = re.compile(r"\.tmp\.[^ ]*|[0-9A-HJKMNP-TV-Z]{26}")
MOST_CALLS = 2000


def one_pass(root: Path) -> None:
    """What a start of the daemon does with all that lies in the root, and what a person then says of one image."""
    engine = open_database(root)
    claims = Claims(root, "main")
    remove_left(root, claims.folder)
    claims.prune()
    take_back(root, engine, claims)
    recorder = Recorder(root, engine, claims, anomaly_maps=True)
    scorers = BrightnessScorers("default")
    recovered = recover(
        root, engine, claims, recorder, in_flight=(), attempts_max=3, has_model=lambda _: True
    )  # fmt: skip
    if recovered.given_up:
        recorder.commit(recovered.given_up, None)
    for claim in recovered.again:
        recorder.commit([_inspected(root, claims.next_attempt(claim), scorers)], None)
    claimed = [claims.claim(path, 0.0) for path in _incoming(root)]
    batch = [_inspected(root, claim, scorers) for claim in claimed if claim is not None]
    if batch:
        recorder.commit(batch, None)
    for row in query(root, "SELECT id FROM results WHERE file_name = ? AND label IS NULL", LABELLED):
        label_images(root, engine, [row["id"]], ANOMALY, by="a person", source="command", burst_gap_s=1.0)
    for _ in reconcile_all(root, engine):
        pass
    engine.dispose()


def _incoming(root: Path) -> Iterator[str]:
    folder = root / "incoming"
    yield from sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def _inspected(root: Path, claim: Claim, scorers: BrightnessScorers) -> InspectedImage:
    scorer = scorers.get(claim.product)
    read = read_claim(root, claim, scorer, file_bytes_max=1_000_000, pixels_max=1_000_000)
    return read if isinstance(read, InspectedImage) else score_and_decide([read])[0]


class Course:
    """A root that is put back to how it was before any pass, or to how a kill left it."""

    def __init__(self, root: Path, tmp_path: Path) -> None:
        self.root, self._kept = root, tmp_path / "kept"
        for name, content in FILES.items():
            path = root / "incoming" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        self.keep("new")
        self._dropped = [(name, hashlib.sha256(content).hexdigest()) for name, content in FILES.items()]

    def keep(self, name: str) -> None:
        shutil.rmtree(self._kept / name, ignore_errors=True)
        shutil.copytree(self.root, self._kept / name)

    def put_back(self, name: str) -> None:
        """Make the root's content that which was kept; its folders may be mounts, so they stay."""
        for folder in self.root.iterdir():
            if folder.is_dir():
                for path in folder.iterdir():
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
            else:
                folder.unlink()
        shutil.copytree(self._kept / name, self.root, dirs_exist_ok=True)
        second = self._kept / "second name"
        second.unlink(missing_ok=True)
        for path in (*(self.root / "incoming").rglob(SHARED), *(self.root / "processing").rglob(f"[!.]*{SHARED}")):
            os.link(path, second)

    def work(self) -> None:
        one_pass(self.root)

    def check(self, *where: Point) -> None:
        """What must hold after a whole pass. The partial names of the training set belong to whoever made them."""
        for partial in (self.root / "training").rglob(".tmp.*"):
            partial.unlink()
        assert not list((self.root / "processing").rglob(f"{PREFIX}*")), f"killed before {where}"
        assert lost_or_twice(self.root, self._dropped) == [], f"killed before {where}"
        rows = {row["file_name"]: row for row in query(self.root, "SELECT * FROM results")}
        assert {name: row["verdict"] for name, row in rows.items()} == {
            "normal.png": "normal", "anomaly.png": "anomaly", "again.png": "normal", "broken.png": None
        }, f"killed before {where}"  # fmt: skip
        assert rows["broken.png"]["error_code"] != "attempts_exhausted", f"killed before {where}"
        said = [("a person", rows[LABELLED]["id"], ANOMALY)]
        assert label_problems(self.root, said) == [], f"killed before {where}"
        maps = {path.name for path in (self.root / "maps").iterdir()}
        assert f"{rows['anomaly.png']['id']}.png" in maps, f"killed before {where}"


def state_of(root: Path, scratch: Path) -> str:
    """Return what a kill left, as text: files, rows and journals, with their ids and times left out."""
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    files = []
    for path in sorted(root.rglob("*")):
        # A folder that is there or not is a state, too.
        size = path.stat().st_size if path.is_file() else "folder"
        files.append(f"{path.relative_to(root)} {size}")
        if path.parent == root and path.name.startswith("tamis.db"):
            shutil.copy(path, scratch)
    # A copy, because whoever opens the database rolls back what was broken off.
    with contextlib.closing(sqlite3.connect(scratch / "tamis.db")) as connection:
        rows = connection.execute("SELECT file_name, state, path, destination, attempts FROM images").fetchall()
        rows += connection.execute("SELECT path, label FROM training_pictures").fetchall()
        for table in ("reviews", "regions"):
            rows += connection.execute(f"SELECT '{table}', count(*) FROM {table}").fetchall()
    return ANY_ID.sub("<id>", "\n".join([*sorted(files), *sorted(map(str, rows))]))


def every(step: int, found: list[Point], offset: int = 0) -> list[Point]:
    return found[offset % step :: step]


def each_call(found: list[Point], at: Callable[[Point], bool]) -> int:
    """Go on with each call beyond the last that was seen until the work ends unkilled; return how many more there were.

    `found` came from one run, and another may make a call or two more.
    """
    more = 0
    for call in sorted({point.call for point in found} - {"openat"}):
        last = max(point.number for point in found if point.call == call)
        while at(Point(call, last + 1)):
            last, more = last + 1, more + 1
            assert last < MOST_CALLS
    return more


@pytest.mark.parametrize("devices", ["one-device", "two-devices"])
@pytest.mark.parametrize(
    ("step", "step_again"),
    [
        pytest.param(19, 70, id="sampled"),
        # Every call, and every call of the recovery after: half an hour or more.
        pytest.param(1, 1, id="every", marks=pytest.mark.long),
    ],
)
def test_kill_before_any_call_and_again_before_any_of_recovery_loses_nothing(
    step: int, step_again: int, devices: str, root: Path, tmp_path: Path
) -> None:
    need_strace()
    with ExitStack() as stack:
        if devices == "two-devices":
            for kind in ("normal", "anomaly"):
                stack.enter_context(tmpfs(root / kind, "size=16m"))
        course = Course(root, tmp_path)
        # Whatever is loaded at the first use is loaded here, and the children make the service's calls alone.
        course.work()
        course.check()
        course.put_back("new")
        all_points = points(course.work)
        course.check()
        kills = again = 0
        # Of kills that leave the same, one recovery is as good as another.
        known: set[str] = set()
        recovered: set[str] = set()
        began = time.monotonic()

        def kill_at(point: Point) -> bool:
            nonlocal kills, again
            course.put_back("new")
            if not killed_before(point, course.work):
                course.check(point)
                return False
            kills += 1
            course.keep("killed")
            state = state_of(root, tmp_path / "scratch")
            recovery = points(course.work)
            course.check(point)
            if step == 1 and state in known:
                return True
            known.add(state)
            for second in every(step_again, recovery, offset=kills * 7):
                course.put_back("killed")
                again += killed_before(second, course.work)
                left = state_of(root, tmp_path / "scratch")
                if left not in recovered:
                    course.work()
                    course.check(point, second)
                    recovered.add(left)
            return True

        missed = [point for point in every(step, all_points) if not kill_at(point)]
        more = each_call(all_points, kill_at) if step == 1 else 0
        print(
            f"{devices}: {len(all_points)} state-changing calls, {kills} kills ({more} more calls, {len(missed)} that"
            f" did not come), {len(known)} states left, {again} kills of recovery, {len(recovered)} states left,"
            f" {time.monotonic() - began:.0f} s:"
            " 0 lost, 0 twice, 0 half-moved"
        )
        assert kills >= len(all_points) // step * 0.9 and again > 0
