"""Retention on real files and a real database: what goes, what never goes, and what a crash leaves."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from typer.testing import CliRunner

from service.cli import app
from service.errors import TamisError
from service.operations.remove_file import NotRemovable
from service.operations.retention import SLICE, Retention, last_run
from service.operations.retention_plan import GB, Going, Outcome, Rule, plan, rules_of
from service.settings import Settings
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.retention import KeptImage
from service.storage.tables import time_text
from tests.conftest import REPOSITORY

NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
WEEK_OF_NORMALS = [Rule("normal", 7 * DAY, None)]


class House:
    """A root with images that were placed some days before NOW."""

    def __init__(self, root: Path, engine: Engine) -> None:
        self.root, self.engine = root, engine
        self._number = 0

    def place(
        self, *, days: float = 30.0, verdict: str = "normal", state: str = "placed", content: bytes | None = None
    ) -> str:
        """Place an image received `days` ago; return its id."""
        self._number += 1
        id = f"01ARZ3NDEKTSV4RRFFQ69G{self._number:04d}"
        content = content or b"image %d" % self._number
        at = NOW - days * DAY
        folder = "quarantine" if state == "quarantined" else verdict
        path = f"{folder}/default/{at:%Y-%m-%d}/a.{id}.png"
        (self.root / path).parent.mkdir(parents=True, exist_ok=True)
        (self.root / path).write_bytes(content)
        (self.root / f"maps/{id}.png").write_bytes(b"map")
        scored = (None, None, None) if state == "quarantined" else (verdict, 1.0, 2.0)
        self.execute(
            "INSERT INTO images (id, product, file_name, path, destination, state, verdict, score, threshold, sha256,"
            " bytes, received_at, decided_at, attempts)"
            " VALUES (?, 'default', 'a.png', ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 1)",
            (
                *(id, path, path, state, *scored, hashlib.sha256(content).hexdigest(), len(content)),
                *(time_text(at), time_text(at)),
            ),
        )
        return id

    def execute(self, statement: str, values: tuple[Any, ...] = ()) -> None:
        with sqlite3.connect(self.root / "tamis.db", timeout=60) as connection:
            connection.execute(statement, values)

    def label(self, id: str, label: str | None) -> None:
        self.execute(
            "INSERT INTO reviews (image_id, label, labelled_at, source) VALUES (?, ?, ?, 'command')",
            (id, label, time_text(NOW)),
        )

    def run(self, rules: list[Rule] | None = None) -> Outcome:
        found = WEEK_OF_NORMALS if rules is None else rules
        return Retention(self.root, self.engine, found, rest=lambda _seconds: None).run(NOW)

    def row(self, id: str) -> dict[str, Any]:
        with sqlite3.connect(self.root / "tamis.db") as connection:
            connection.row_factory = sqlite3.Row
            return dict(connection.execute("SELECT * FROM results WHERE id = ?", (id,)).fetchone())

    def file(self, id: str) -> Path:
        return self.root / str(self.row(id)["path"])

    def there(self, *ids: str) -> list[bool]:
        return [self.file(id).exists() for id in ids]

    def in_order(self) -> bool:
        """Whether each row says of its file what is so, and no image is on its way."""
        with sqlite3.connect(self.root / "tamis.db") as connection:
            rows = connection.execute("SELECT path, state, error_code, error, id FROM images").fetchall()
        return all(
            (self.root / path).exists() == (state == "placed")
            and (code, error is None) == ((None, True) if state == "placed" else ("removed_by_retention", False))
            and (state == "placed") == (self.root / f"maps/{id}.png").exists()
            for path, state, code, error, id in rows
        )


@pytest.fixture
def house(root: Path) -> Iterator[House]:
    engine = open_database(root)
    yield House(root, engine)
    engine.dispose()


def kept(number: int, days: float, size: int) -> KeptImage:
    return KeptImage(str(number), "default", "normal", f"normal/{number}", "0" * 64, size, NOW - days * DAY)


# The plan


def test_plan_takes_the_old_ones_and_stops_at_the_first_that_is_young() -> None:
    page = [kept(1, 30, 10), kept(2, 8, 10), kept(3, 7, 10), kept(4, 1, 10)]
    assert plan(page, WEEK_OF_NORMALS[0], 0, NOW) == [Going(page[0], "age"), Going(page[1], "age")]


def test_plan_takes_the_oldest_until_no_more_is_there_than_allowed() -> None:
    page = [kept(number, 30 - number, 10) for number in range(5)]
    rule = Rule("normal", None, 35)
    assert [one.image.id for one in plan(page, rule, 50, NOW)] == ["0", "1"]
    assert plan(page, rule, 35, NOW) == []
    assert [one.reason for one in plan(page, Rule("normal", 27.5 * DAY, 35), 50, NOW)] == ["age", "age", "age"]


@given(st.lists(st.integers(1, 50), max_size=30), st.integers(0, 1000), st.integers(0, 40))
def test_plan_never_takes_more_than_it_must(sizes: list[int], bytes_max: int, days: int) -> None:
    page = [kept(number, 40 - number, size) for number, size in enumerate(sizes)]
    rule, total = Rule("normal", days * DAY, bytes_max), sum(sizes)
    going = plan(page, rule, total, NOW)
    assert [one.image for one in going] == page[: len(going)]
    left = total - sum(one.image.bytes for one in going)
    if going and going[-1].reason == "size":
        assert left + going[-1].image.bytes > bytes_max
    if len(going) < len(page):
        assert left <= bytes_max and NOW - page[len(going)].received_at <= days * DAY


def test_rules_are_those_that_are_set_and_none_by_default() -> None:
    assert rules_of(Settings()) == []
    settings = Settings(keep_normal_days=7, keep_anomaly_gb=1.5)
    assert rules_of(settings) == [Rule("normal", 7 * DAY, None), Rule("anomaly", None, int(1.5 * GB))]


# What goes


def test_image_on_a_mount_that_is_gone_does_not_count_as_removed(house: House) -> None:
    id = house.place(days=8)
    house.execute("UPDATE images SET error_code = 'removing_by_retention' WHERE id = ?", (id,))
    away = house.file(id).rename(house.root / "away")
    status = house.root / "processing/main/.status.json"
    status.parent.mkdir(parents=True, exist_ok=True)
    status.write_text(json.dumps({"mounts": ["normal"]}))
    with pytest.raises(TamisError, match="mounted at normal"):
        house.run()
    assert house.row(id)["state"] == "placed"
    status.unlink()
    away.rename(house.file(id))
    house.run()
    assert house.there(id) == [False] and house.in_order()


def test_old_file_goes_and_its_row_says_so(house: House) -> None:
    old, young = house.place(days=8), house.place(days=6)
    outcome = house.run()
    assert house.there(old, young) == [False, True] and house.in_order()
    row = house.row(old)
    assert (row["state"], row["error_code"]) == ("missing", "removed_by_retention")
    assert row["error"] == "file removed by retention on 2026-06-01: received on 2026-05-24, older than is kept"
    assert (row["verdict"], row["score"], row["path"].split("/")[0]) == ("normal", 1.0, "normal")
    assert (outcome.images, outcome.bytes, outcome.complete) == (1, len(b"image 1"), True)


def test_each_verdict_has_its_own_rule(house: House) -> None:
    normal, anomaly = house.place(), house.place(verdict="anomaly")
    house.run([Rule("anomaly", 7 * DAY, None)])
    assert house.there(normal, anomaly) == [True, False]


def test_oldest_go_until_the_size_is_kept_over_many_slices(house: House) -> None:
    ids = [house.place(days=200 - number, content=b"%010d" % number) for number in range(3 * SLICE)]
    outcome = house.run([Rule("normal", None, 10 * 10)])
    assert house.there(*ids) == [False] * (3 * SLICE - 10) + [True] * 10 and house.in_order()
    assert outcome.tallies["normal"].images == {"size": 3 * SLICE - 10}
    assert house.run([Rule("normal", None, 10 * 10)]).images == 0


def test_retention_that_is_off_removes_nothing(house: House) -> None:
    id = house.place(days=4000)
    assert house.run([]).images == 0 and house.there(id) == [True]


def test_empty_dated_folders_go_and_others_stay(house: House) -> None:
    old, young = house.place(days=30), house.place(days=3)
    beside = house.file(house.place(days=20)).parent / "notes.txt"
    beside.write_text("a person's")
    mine = house.root / "normal/default/sorted by hand"
    mine.mkdir()
    emptied = house.file(old).parent
    outcome = house.run()
    assert not emptied.exists() and house.file(young).exists() and beside.exists() and mine.exists()
    assert outcome.folders == 1


# What never goes


@pytest.mark.parametrize("label", ["normal", "anomaly"])
def test_labelled_image_stays(house: House, label: str) -> None:
    id = house.place()
    house.label(id, None)
    house.label(id, label)
    house.run()
    assert house.there(id) == [True] and house.row(id)["state"] == "placed"


def test_image_whose_label_was_taken_back_goes(house: House) -> None:
    id = house.place()
    house.label(id, "normal")
    house.label(id, None)
    house.run()
    assert house.there(id) == [False]


@pytest.mark.parametrize("by", ["id", "bytes"])
def test_image_of_the_training_set_stays(house: House, by: str) -> None:
    id = house.place()
    house.execute(
        "INSERT INTO training_pictures (product, sha256, label, path, file_name, image_id, taken_at, added_at)"
        " VALUES ('default', ?, NULL, 'p', 'f', ?, ?, ?)",
        (
            "0" * 64 if by == "id" else house.row(id)["sha256"],
            id if by == "id" else None,
            time_text(NOW),
            time_text(NOW),
        ),
    )
    house.run()
    assert house.there(id) == [True]


def test_image_that_a_version_was_made_from_stays(house: House) -> None:
    used, other = house.place(), house.place()
    folder = house.root / "models/default/v1"
    folder.mkdir(parents=True)
    (folder / "images.csv").write_text(f"sha256,role,path\n{house.row(used)['sha256']},train,normal/x.png\n")
    house.run()
    assert house.there(used, other) == [True, False]


def test_list_of_training_images_that_cannot_be_read_stops_retention(house: House) -> None:
    id = house.place()
    folder = house.root / "models/default/v1"
    folder.mkdir(parents=True)
    (folder / "images.csv").write_text("path,role\nnormal/x.png,train\n")
    with pytest.raises(TamisError, match=r"images\.csv: expected the columns sha256, role, path; found path, role"):
        house.run()
    assert house.there(id) == [True]


@pytest.mark.parametrize("state", ["scored", "quarantined", "missing", "conflict"])
def test_image_that_is_not_placed_stays(house: House, state: str) -> None:
    id = house.place(state=state)
    house.run()
    assert house.there(id) == [True] and house.row(id)["state"] == state


def test_file_without_a_row_stays(house: House) -> None:
    beside = house.file(house.place()).with_name("b.01ARZ3NDEKTSV4RRFFQ69GZZZZ.png")
    beside.write_bytes(b"somebody's")
    house.run()
    assert beside.exists()


@pytest.mark.parametrize("content", [b"IMAGE 1", b"of another size"])
def test_file_that_somebody_replaced_stays_and_is_told_of(house: House, content: bytes) -> None:
    id = house.place()
    house.file(id).write_bytes(content)
    outcome = house.run()
    assert house.file(id).read_bytes() == content and outcome.left == {"replaced": 1}
    assert (house.row(id)["state"], house.row(id)["error_code"]) == ("placed", None)
    assert (house.root / f"maps/{id}.png").exists()


@pytest.mark.parametrize("kind", ["link", "folder", "fifo"])
def test_what_is_no_regular_file_stays(house: House, kind: str) -> None:
    id = house.place(content=b"x" * 64)
    path = house.file(id)
    elsewhere = house.root / "elsewhere.png"
    path.rename(elsewhere)
    if kind == "link":
        path.symlink_to(elsewhere)
    elif kind == "folder":
        path.mkdir()
    else:
        os.mkfifo(path)
    assert house.run().left == {"replaced": 1}
    assert os.path.lexists(path) and elsewhere.exists()


def test_folder_that_is_a_link_is_not_followed(house: House, tmp_path: Path) -> None:
    id = house.place()
    folder = house.file(id).parent
    folder.rename(tmp_path / "archive")
    folder.symlink_to(tmp_path / "archive")
    assert house.run().left == {"elsewhere": 1}
    assert len(list((tmp_path / "archive").iterdir())) == 1 and folder.is_symlink()


@pytest.mark.parametrize("path", ["quarantine/a.png", "training/default/normal/a.png", "normal/../tamis.toml", "a.png"])
def test_row_that_leads_elsewhere_removes_nothing(house: House, path: str) -> None:
    id = house.place()
    target = house.root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"image 1")
    house.execute("UPDATE images SET path = ? WHERE id = ?", (path, id))
    assert house.run().left == {"elsewhere": 1} and target.exists()


ERRNOS = ("EACCES", "EPERM", "ENOTDIR", "ELOOP", "EXDEV", "EROFS", "EINVAL", "ENAMETOOLONG", "EIO", "ESTALE", "ETXTBSY")


@pytest.mark.parametrize("code", ERRNOS)
@pytest.mark.parametrize("call", ["open", "unlink", "rmdir"])
def test_each_error_of_one_file_or_folder_keeps_no_other_from_going(
    house: House, monkeypatch: pytest.MonkeyPatch, call: str, code: str
) -> None:
    odd, good = house.place(), house.place()
    real, number = getattr(os, call), getattr(errno, code)
    # A folder without the old file is on its way out itself.
    name = house.file(odd).name if call != "rmdir" else house.file(odd).parent.name

    def failing(path: Any, *args: Any, **options: Any) -> Any:
        if (path == name and call != "unlink") or (call == "unlink" and path == name):
            raise OSError(number, os.strerror(number))
        return real(path, *args, **options)

    monkeypatch.setattr(os, call, failing)
    outcome = house.run()
    assert house.there(good) == [False]
    if call == "rmdir":
        assert outcome.images == 2 and outcome.left == {}
    else:
        assert house.there(odd) == [True] and outcome.images == 1 and outcome.left.total() == 1
    monkeypatch.setattr(os, call, real)
    house.run()
    assert house.there(odd, good) == [False, False] and house.in_order()


def test_dated_folder_behind_a_link_is_not_removed(house: House, tmp_path: Path) -> None:
    (tmp_path / "outside/2020-01-01").mkdir(parents=True)
    os.utime(tmp_path / "outside/2020-01-01", (0, 0))
    (house.root / "normal/linked").symlink_to(tmp_path / "outside")
    assert house.run().folders == 0
    assert (tmp_path / "outside/2020-01-01").is_dir()


def test_file_that_a_person_moved_away_is_told_of_and_its_row_is_not_touched(house: House) -> None:
    id = house.place()
    house.file(id).rename(house.root / "anomaly" / house.file(id).name)
    assert house.run().left == {"gone": 1}
    assert (house.row(id)["state"], house.row(id)["error_code"]) == ("placed", None)


def test_files_that_stay_do_not_keep_the_next_ones_from_going(house: House) -> None:
    ids = [house.place(days=100 - number) for number in range(2 * SLICE)]
    for id in ids[:SLICE]:
        house.file(id).write_bytes(b"replaced")
    outcome = house.run()
    assert outcome.left == {"replaced": SLICE} and outcome.images == SLICE
    assert house.there(*ids[SLICE:]) == [False] * SLICE


def test_label_that_comes_while_the_slice_is_under_way_keeps_the_file(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The label is committed after the file was read and before the write lock is taken."""
    id = house.place()
    real = Retention._unlink

    def label_first(self: Retention, *rest: Any) -> None:
        house.label(id, "anomaly")
        real(self, *rest)

    monkeypatch.setattr(Retention, "_unlink", label_first)
    assert house.run().left == {"spoken_of": 1}
    assert house.there(id) == [True] and house.row(id)["error_code"] is None


# Crashes


@pytest.mark.parametrize("point", ["before_unlink", "between_unlinks", "after_unlinks", "after_commit"])
def test_killed_at_any_point_and_run_again_every_row_says_what_is_so(house: House, point: str) -> None:
    ids = [house.place(days=50 - number) for number in range(SLICE + 5)]
    stays = house.place(days=1)
    script = f"""
import os, signal, sys
from datetime import datetime
from pathlib import Path
from service.operations import remove_file as removal, retention
from service.storage import retention as rows
from service.storage.database.open import open_database

def kill():
    os.kill(os.getpid(), signal.SIGKILL)

point, count = {point!r}, 0
real_unlink, real_removed = removal.unlink, rows.removed

def unlink(*arguments):
    global count
    if point == "before_unlink" or (point == "between_unlinks" and count == 3):
        kill()
    real_unlink(*arguments)
    count += 1

def removed(connection, reasons):
    if point == "after_unlinks" and reasons:
        kill()
    real_removed(connection, reasons)

removal.unlink, rows.removed = unlink, removed
root = Path(sys.argv[1])
retention.Retention(
    root, open_database(root), {{"week": [retention.Rule("normal", retention.timedelta(days=7), None)]}}["week"],
    rest=lambda seconds: kill() if point == "after_commit" else None,
).run(datetime.fromisoformat({NOW.isoformat()!r}))
"""
    killed = subprocess.run(
        [sys.executable, "-c", script, str(house.root)], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    gone_then = house.there(*ids).count(False)
    assert gone_then == {"before_unlink": 0, "between_unlinks": 3, "after_unlinks": SLICE, "after_commit": SLICE}[point]
    assert all(house.row(id)["state"] == "placed" for id in ids) == (point != "after_commit")
    outcome = house.run()
    assert house.there(*ids, stays) == [False] * len(ids) + [True] and house.in_order()
    counted = outcome.tallies["normal"].images
    unfinished = gone_then if point != "after_commit" else 0
    assert (counted["unfinished"], counted["age"]) == (unfinished, len(ids) - gone_then)


def test_what_a_crash_left_is_finished_though_retention_is_off_now_and_no_file_goes(house: House) -> None:
    gone, there = house.place(), house.place()
    house.execute("UPDATE images SET error_code = 'removing_by_retention'")
    house.file(gone).unlink()
    house.run([])
    assert house.row(gone)["error_code"] == "removed_by_retention" and house.row(gone)["state"] == "missing"
    assert house.there(there) == [True] and house.row(there)["error_code"] is None


def test_stopping_ends_between_two_slices_and_the_next_run_goes_on(house: House) -> None:
    ids = [house.place(days=200 - number) for number in range(3 * SLICE)]
    rests: list[float] = []
    retention = Retention(
        house.root, house.engine, WEEK_OF_NORMALS, stopping=lambda: len(rests) >= 1, rest=rests.append
    )
    assert not retention.run(NOW).complete
    assert house.there(*ids).count(False) == SLICE and house.in_order()
    assert house.run().complete and house.in_order() and house.there(*ids).count(False) == 3 * SLICE


def test_second_run_at_the_same_time_is_refused(house: House) -> None:
    with (house.root / "processing/.retention.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(TamisError, match="found one at work"):
            house.run()


def test_folder_of_a_root_that_is_gone_is_not_made(house: House) -> None:
    (house.root / "processing").rename(house.root / "away")
    with pytest.raises(FileNotFoundError):
        house.run()
    assert not (house.root / "processing").exists()


# The command


def tamis(house: House, *arguments: str) -> Any:
    ended = CliRunner().invoke(app, ["retention", "--root", str(house.root), *arguments])
    assert ended.exit_code == 0, ended.output
    return json.loads(ended.stdout) if "--json" in arguments else ended.stdout


def test_dry_run_shows_what_a_run_then_removes_and_changes_nothing(house: House) -> None:
    (house.root / "tamis.toml").write_text("keep_normal_days = 7\nkeep_anomaly_gb = 1e-8\n")
    for number in range(4):
        house.place(days=400, verdict=("normal", "anomaly")[number % 2])
    replaced = house.place(days=300)
    house.file(replaced).write_bytes(b"longer than before, this one")
    before = (house.root / "tamis.db").read_bytes()
    shown = tamis(house, "--dry-run", "--json")
    assert (house.root / "tamis.db").read_bytes() == before and not (house.root / "processing/.retention.json").exists()
    assert (shown["next"]["pictures"], shown["next"]["left"], shown["last_run"]) == (3, {"replaced": 1}, None)
    assert [one["reason"] for one in shown["listed"]] == ["age", "age", "size"]
    done = tamis(house, "--json")
    assert done["removed"]["verdicts"] == shown["next"]["verdicts"] and done["removed"]["left"] == {"replaced": 1}
    word = last_run(house.root)
    assert word is not None and word["pictures"] == 3
    again = tamis(house, "--dry-run")
    assert "removed 1 anomaly, 0.000 GB; 2 normal" in again
    assert "would go next: no images; left where they are: 1 replaced" in again


def test_command_says_when_retention_is_off(house: House) -> None:
    house.place(days=400)
    assert "retention is off: set keep_normal_days" in tamis(house)
    assert tamis(house, "--dry-run", "--json")["rules"] == []


def test_foreseeing_looks_at_no_more_than_it_is_told(house: House) -> None:
    for _ in range(10):
        house.place()
    retention = Retention(house.root, house.engine, WEEK_OF_NORMALS)
    assert len(list(retention.preview(NOW, images_max=4))) == 4
    assert not any(isinstance(one, NotRemovable) for one in retention.preview(NOW))


def test_status_tells_of_the_last_run_and_of_what_goes_next(house: House) -> None:
    (house.root / "tamis.toml").write_text("keep_normal_days = 7\n")
    house.place(days=400)
    status = ["status", "--root", str(house.root)]
    found = json.loads(CliRunner().invoke(app, [*status, "--json"]).stdout)["retention"]
    assert (found["last_run"], found["next"]["pictures"], found["next"]["complete"]) == (None, 1, True)
    tamis(house)
    text = CliRunner().invoke(app, status).stdout
    assert "removed 1 normal" in text and "would go next: no images" in text
