"""SIGKILL before every call that changes something: of sorting a picture, of labelling it, of recovering from either.

Not sampled: strace ends the process right before the n-th call of each kind, for each n that there is; then the
recovery that follows is ended likewise, before each call of its own; then one that is left in peace puts it right.
Judged by `check_nothing_lost`, which knows nothing of the service.
"""

from __future__ import annotations

import collections
import hashlib
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, picture_bytes
from tests.faults.check_nothing_lost import problems
from tests.faults.root_for_faults import make_root

CALLS = (
    "rename", "renameat", "renameat2", "link", "linkat", "unlink", "unlinkat", "mkdir", "mkdirat",
    "write", "pwrite64", "ftruncate", "fsync", "fdatasync",
)  # fmt: skip
MARKER = "the protocol begins"
CONTENT = picture_bytes(200, seed=1)
DROPPED = [("part.png", hashlib.sha256(CONTENT).hexdigest())]
Point = tuple[str, int]

pytestmark = pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")


class Stage:
    """Roots in the states in which a step begins, and runs of steps on copies of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.fresh = make_root(folder / "fresh")
        (self.fresh / "incoming/part.png").write_bytes(CONTENT)
        self.sorted = self.copy(self.fresh, "sorted")
        assert self.run(self.sorted, "sort") == 0

    def copy(self, root: Path, name: str) -> Path:
        target = self.folder / name
        shutil.rmtree(target, ignore_errors=True)
        return Path(shutil.copytree(root, target))

    def run(self, root: Path, step: str, point: Point | None = None) -> int:
        """Run `step`, ended before the call `point` if given; return the exit code, negative of a signal."""
        command = [sys.executable, "-m", "tests.faults.deliver_one", str(root), step]
        if point is not None:
            call, number = point
            inject = f"inject={call}:signal=SIGKILL:when={number}"
            log = str(self.folder / "killed.log")
            command = ["strace", "-f", "-qq", "-o", log, "-e", f"trace={call}", "-e", inject, *command]
        ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120)
        assert ended.returncode in (0, -9, 137), ended.stderr
        return ended.returncode

    def points(self, root: Path, step: str) -> list[Point]:
        """Return every call that `step` makes on a copy of `root` once the protocol begins, numbered from its start."""
        log = self.folder / "calls.log"
        command = [sys.executable, "-m", "tests.faults.deliver_one", str(self.copy(root, "counted")), step]
        trace = ["strace", "-f", "-qq", "-s", "80", "-o", str(log), "-e", f"trace={','.join(CALLS)}"]
        subprocess.run([*trace, *command], cwd=REPOSITORY, check=True, capture_output=True, timeout=120)
        found: list[Point] = []
        numbers: collections.Counter[str] = collections.Counter()
        began = False
        for line in log.read_text(errors="replace").splitlines():
            if (match := re.match(r"\d+ +([a-z0-9_]+)\(", line)) is None:
                continue
            numbers[match[1]] += 1
            if began:
                found.append((match[1], numbers[match[1]]))
            began = began or MARKER in line
        assert began
        return found

    def verify(self, root: Path, step: str) -> list[str]:
        """Go on in peace, and return what is wrong then."""
        self.run(root, "recover")
        if (root / "incoming/part.png").exists():
            # It was never claimed: nothing happened.
            self.run(root, "sort")
        return problems(root, DROPPED) if step == "sort" else _label_problems(root)


def _label_problems(root: Path) -> list[str]:
    """Return what is wrong with a picture that was labelled normal, or about to be."""
    with closing(sqlite3.connect(root / "tamis.db")) as connection:
        [(id, path, state)] = connection.execute("SELECT id, path, state FROM images").fetchall()
        labels = [label for (label,) in connection.execute("SELECT label FROM reviews WHERE image_id = ?", (id,))]
        [(integrity,)] = connection.execute("PRAGMA integrity_check").fetchall()
    files = [
        str(file.relative_to(root))
        for kind in ("incoming", "processing", "normal", "anomaly", "quarantine")
        for file in (root / kind).rglob("*.png")
    ]
    wanted = "normal" if labels else "anomaly"
    found = [] if labels in ([], ["normal"]) and integrity == "ok" else [f"labels {labels}, database {integrity}"]
    if files != [path] or state != "placed" or path.split("/")[0] != wanted:
        found.append(f"expected one file, placed in {wanted}/; found {files} and a row of {path}, {state}")
    elif (root / path).read_bytes() != CONTENT:
        found.append(f"{path}: other bytes")
    return found


def each(points: list[Point], every: int) -> Iterator[Point]:
    """Every so many of `points`, the first and the last among them."""
    yield from (point for number, point in enumerate(points) if number % every == 0 or number == len(points) - 1)


@pytest.mark.parametrize("step", ["sort", "label"])
@pytest.mark.parametrize(
    ("every", "every_again"),
    [
        pytest.param(12, 0, id="sampled"),
        pytest.param(1, 0, id="each", marks=pytest.mark.long),
        pytest.param(1, 1, id="each-and-each-again", marks=pytest.mark.long),
    ],
)
def test_killed_before_any_call_and_again_before_any_of_its_recovery_nothing_is_lost_or_there_twice(
    tmp_path: Path, step: str, every: int, every_again: int
) -> None:
    stage = Stage(tmp_path)
    begins_at = stage.fresh if step == "sort" else stage.sorted
    points = stage.points(begins_at, step)
    kills = killed_again = 0
    wrong = []
    for number, point in enumerate(each(points, every)):
        left = stage.copy(begins_at, "left")
        kills += stage.run(left, step, point) != 0
        again = stage.points(left, "recover") if every_again or number % 3 == 0 else []
        # Where only a sample is asked for, one call of the recovery, another one each time.
        chosen = list(each(again, every_again)) if every_again else again[number % max(1, len(again)) :][:1]
        for second in chosen:
            root = stage.copy(left, "again")
            killed_again += stage.run(root, "recover", second) != 0
            wrong += [f"{point}, then {second}: {one}" for one in stage.verify(root, step)]
        wrong += [f"{point}: {one}" for one in stage.verify(stage.copy(left, "once"), step)]
    print(f"{step}: {len(points)} calls, {kills} kills, {killed_again} more in recovery; {len(wrong)} problems")
    assert wrong == []
    assert kills >= len(points) // every
