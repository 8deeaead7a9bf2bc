from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import cast

import pytest

from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.mount_table import mounted_below
from service.filesystem.odd_entries import OddEntries
from service.inspection.incoming_scan import IncomingScan
from service.inspection.intake import ENDED_SO_MAX, TRUNCATED_WAIT_S, Intake
from service.inspection.settle import Settling
from service.inspection.watch import Hint
from service.scoring.scorers import Scorer, ScorerCache
from tests.conftest import image_bytes

SCORER = cast(Scorer, object())


class KnownProducts:
    """Has a model for the products named; says so only once it has been asked to look."""

    def __init__(self, *products: str) -> None:
        self.wanted, self.products = products, []
        self.absent: set[str] = set()
        self.begun: list[str] = []

    def refresh(self) -> bool:
        self.products = list(self.wanted)
        return True

    def has(self, product: str) -> bool:
        return product in self.products

    def get(self, product: str) -> Scorer:
        return SCORER

    def in_memory(self, product: str, *, use: bool = False) -> Scorer | None:
        return None if product in self.absent else SCORER

    def begin_to_load(self, product: str, keep: list[str]) -> bool:
        self.begun.append(product)
        return True


def intake(root: Path, *products: str) -> Intake:
    (root / "incoming" / "gears").mkdir(parents=True)
    return Intake(root, NameFilter([".*"]), cast(ScorerCache, KnownProducts(*products)), Settling(1.0, 600.0))


def test_file_seen_before_the_models_are_known_settles_meanwhile(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/gears/a.jpg").write_bytes(b"whole")
    waiting.look_ahead(now=10.0)
    waiting.scan(now=10.8)
    assert list(waiting.take_ready(10.9, 8)) == []
    [ready] = waiting.take_ready(11.1, 8)
    assert (ready.path, ready.settled_at) == ("gears/a.jpg", 11.0)


def test_file_seen_before_the_models_are_known_and_without_one_stays(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/b.jpg").write_bytes(b"whole")
    waiting.look_ahead(now=10.0)
    waiting.scan(now=10.8)
    assert list(waiting.take_ready(12.0, 8)) == []
    assert waiting.waiting["default"] >= 1 and len(waiting) == 0


def test_folder_that_cannot_be_read_ahead_is_left_to_the_scan(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/gears").rmdir()
    (tmp_path / "incoming").rmdir()
    waiting.look_ahead(now=10.0)
    with pytest.raises(OSError, match="incoming"):
        waiting.scan(now=10.1)


def failing(root: Path, error: OSError) -> tuple[Intake, OddEntries]:
    """An intake of three files of one folder that have settled, and whose first claim fails with `error`."""
    odd = OddEntries()
    (root / "incoming/gears").mkdir(parents=True)
    for name in "abc":
        (root / f"incoming/gears/{name}.jpg").write_bytes(b"whole")
    known, names = cast(ScorerCache, KnownProducts("gears")), NameFilter([".*"])
    waiting = Intake(root, names, known, Settling(1.0, 600.0), odd=odd)
    waiting.scan(now=10.0)
    for ready in waiting.take_ready(11.0, 8):
        waiting.set_aside(ready.path, "claim", error)
    return waiting, odd


def test_folder_that_lies_elsewhere_is_named_once_with_its_files_and_tried_by_one_with_each_rescan(
    tmp_path: Path,
) -> None:
    waiting, odd = failing(tmp_path, OSError(errno.EXDEV, "Invalid cross-device link"))
    [one] = odd.all()
    assert (one.path, one.files, one.tries) == ("incoming/gears", 3, 1) and len(waiting) == 0
    waiting.scan(now=12.0, again=False)
    assert len(waiting) == 0
    waiting.scan(now=13.0)
    assert len(waiting) == 3 and [entry.path for entry in odd.all()] == ["incoming/gears"]
    [*taken] = waiting.take_ready(14.0, 8)
    for ready in taken:
        waiting.claimed(ready.path)
    assert len(taken) == 3 and odd.all() == []


def test_file_that_fails_alone_waits_for_the_next_rescan_and_not_for_each_scan(tmp_path: Path) -> None:
    waiting, odd = failing(tmp_path, OSError(errno.EIO, "Input/output error"))
    assert [one.path for one in odd.all()] == [f"incoming/gears/{name}.jpg" for name in "abc"]
    waiting.scan(now=12.0, again=False)
    assert len(waiting) == 0
    waiting.scan(now=13.0)
    assert len(waiting) == 3 and len(odd.all()) == 3
    for name in "abc":
        (tmp_path / f"incoming/gears/{name}.jpg").unlink()
    waiting.scan(now=14.0)
    assert odd.all() == []


def test_what_seems_cut_off_waits_and_is_taken_at_once_when_its_end_comes(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    data, path = image_bytes(20, size=(300, 200)), tmp_path / "incoming/gears/a.png"
    path.write_bytes(data[:-20])
    waiting.scan(now=10.0)
    assert list(waiting.take_ready(11.5, 8)) == []
    assert waiting.next_settled_at() == 10.0 + TRUNCATED_WAIT_S
    path.write_bytes(data)
    waiting.take_hints([Hint("gears/a.png", closed=True)], now=12.0)
    assert [ready.path for ready in waiting.take_ready(12.0, 8)] == ["gears/a.png"]


def test_what_stays_cut_off_is_taken_after_its_wait(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/gears/a.png").write_bytes(image_bytes(20, size=(300, 200))[:-20])
    waiting.scan(now=10.0)
    assert list(waiting.take_ready(11.5, 8)) == []
    assert [ready.path for ready in waiting.take_ready(10.1 + TRUNCATED_WAIT_S, 8)] == ["gears/a.png"]


def test_product_that_is_called_almost_as_a_trained_one_is_said_with_the_guess(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = intake(tmp_path, "gear box")
    (tmp_path / "incoming/gears").rename(tmp_path / "incoming/Gearbox")
    (tmp_path / "incoming/Gearbox/a.jpg").write_bytes(b"whole")
    for now in (10.0, 11.0):
        waiting.scan(now=now)
    [record] = [one for one in caplog.records if one.getMessage() == "no model; files wait"]
    assert record.fields == {"product": "Gearbox", "advice": "did you mean gear box?"}  # type: ignore[attr-defined]


def test_link_for_the_folder_of_a_product_is_said_and_one_to_an_image_ignored(tmp_path: Path) -> None:
    odd = OddEntries()
    (tmp_path / "incoming").mkdir()
    (tmp_path / "incoming/flange").symlink_to(tmp_path)
    (tmp_path / "incoming/latest.jpg").symlink_to(tmp_path)
    known, names = cast(ScorerCache, KnownProducts("gears")), NameFilter([".*"])
    waiting = Intake(tmp_path, names, known, Settling(1.0, 600.0), odd=odd)
    waiting.scan(now=1.0)
    assert [(one.path, one.errno) for one in odd.all()] == [("incoming/flange", errno.ELOOP)]
    (tmp_path / "incoming/flange").unlink()
    waiting.scan(now=2.0)
    assert odd.all() == []


def test_camera_whose_files_all_end_so_waits_for_no_more(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    for number in range(ENDED_SO_MAX + 1):
        (tmp_path / f"incoming/gears/{number}.png").write_bytes(image_bytes(20, size=(300, 200))[:-20])
    waiting.scan(now=10.0)
    assert list(waiting.take_ready(11.5, 8)) == []
    taken = list(waiting.take_ready(10.1 + TRUNCATED_WAIT_S, ENDED_SO_MAX))
    assert [ready.seems_cut for ready in taken] == [True] * ENDED_SO_MAX
    for _ in taken:
        waiting.ended_so("gears")
    (tmp_path / "incoming/gears/new.png").write_bytes(image_bytes(20, size=(300, 200))[:-20])
    waiting.take_hints([Hint("gears/new.png", closed=True)], now=30.0)
    assert [ready.path for ready in waiting.take_ready(30.0, 8)] == [f"gears/{ENDED_SO_MAX}.png", "gears/new.png"]


def fill(root: Path, folder: str, files: int, prefix: str = "") -> None:
    (root / "incoming" / folder).mkdir(parents=True, exist_ok=True)
    for number in range(files):
        (root / "incoming" / folder / f"{prefix}{number:04}.jpg").write_bytes(b"whole")


def intake_of(root: Path, candidates_max: int, *products: str) -> tuple[Intake, KnownProducts]:
    (root / "incoming").mkdir(parents=True, exist_ok=True)
    known = KnownProducts(*products)
    settling = Settling(1.0, 600.0, candidates_max)
    return Intake(root, NameFilter([".*"]), cast(ScorerCache, known), settling, truncated_wait_s=0.0), known


def taken(waiting: Intake, now: float, limit: int) -> list[str]:
    """Take up to `limit` files, which leave `incoming/` as by a claim."""
    paths = []
    for ready in waiting.take_ready(now, limit):
        paths.append(ready.path)
        (waiting._incoming / ready.path).unlink()
    return paths


def test_product_with_few_files_is_served_at_once_whatever_another_has(tmp_path: Path) -> None:
    fill(tmp_path, "many", 300)
    fill(tmp_path, "few", 3)
    waiting, _ = intake_of(tmp_path, 64, "many", "few")
    waiting.scan(10.0)
    assert taken(waiting, 12.0, 5)[:3] == ["few/0000.jpg", "few/0001.jpg", "few/0002.jpg"]
    fill(tmp_path, "few", 2, "new")
    waiting.scan(12.5)
    assert sorted(taken(waiting, 14.0, 5))[:2] == ["few/new0000.jpg", "few/new0001.jpg"]


def test_every_file_comes_once_and_in_order_however_little_room_there_is(tmp_path: Path) -> None:
    for folder, files in (("a", 70), ("", 50), ("b/day", 9), ("c", 1)):
        fill(tmp_path, folder, files)
    waiting, _ = intake_of(tmp_path, 16, "a", "default", "b", "c")
    seen: list[str] = []
    now = 10.0
    waiting.scan(now)
    while len(waiting):
        assert len(waiting._settling) <= 16
        now += 2.0
        if waiting.scan_needed:
            waiting.scan(now, again=False)
            now += 2.0
        seen += taken(waiting, now, 8)
    assert len(seen) == len(set(seen)) == 130
    for folder in ("a/", "b/day/", ""):
        own = [path for path in seen if path.rpartition("/")[0] == folder.rstrip("/")]
        assert own == sorted(own)


def test_how_many_wait_is_known_though_not_all_are_held(tmp_path: Path) -> None:
    fill(tmp_path, "a", 40)
    fill(tmp_path, "without", 7)
    waiting, _ = intake_of(tmp_path, 16, "a")
    waiting.scan(10.0)
    assert len(waiting) == 40 and waiting.more_left_out and waiting.waiting == {"without": 7}
    shutil.rmtree(tmp_path / "incoming/a")
    shutil.rmtree(tmp_path / "incoming/without")
    waiting.scan(20.0)
    assert taken(waiting, 22.0, 99) == [] and len(waiting) == 0
    assert not waiting.more_left_out and waiting.waiting == {}


def test_files_that_wait_for_their_turn_are_not_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(tmp_path, "a", 40)
    fill(tmp_path, "b", 3)
    waiting, _ = intake_of(tmp_path, 16, "a", "b")
    waiting.scan(10.0)
    listed: list[str] = []
    scandir = os.scandir

    def noted(folder: int) -> object:
        listed.append(Path(f"/proc/self/fd/{folder}").readlink().name)
        return scandir(folder)

    monkeypatch.setattr("service.filesystem.scan.os.scandir", noted)
    monkeypatch.setattr(IncomingScan, "_status", lambda *_: pytest.fail("looked at"))
    waiting.scan(12.0)
    assert sorted(listed) == ["b", "incoming"]


def test_file_that_was_empty_is_looked_at_again(tmp_path: Path) -> None:
    (tmp_path / "incoming/a").mkdir(parents=True)
    (tmp_path / "incoming/a/0.jpg").touch()
    waiting, _ = intake_of(tmp_path, 16, "a")
    waiting.scan(10.0)
    fill(tmp_path, "a", 1)
    (tmp_path / "incoming/a/0.jpg").write_bytes(b"whole")
    waiting.scan(12.0)
    assert sorted(taken(waiting, 13.0, 9)) == ["a/0.jpg", "a/0000.jpg"]


def test_folder_that_takes_long_to_list_is_listed_seldom_and_its_files_stay_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.inspection.incoming_scan.COSTLY_S", 0.0)
    monkeypatch.setattr("service.inspection.incoming_scan.COST_RATIO", 1e6)
    fill(tmp_path, "without", 5)
    waiting, known = intake_of(tmp_path, 16, "a")
    waiting.scan(10.0)
    fill(tmp_path, "without", 1, "new")
    fill(tmp_path, "a", 1)
    waiting.scan(12.0)
    assert waiting.waiting == {"without": 5} and taken(waiting, 14.0, 9) == ["a/0000.jpg"]
    known.wanted = ("a", "without")
    waiting.scan(1e9)
    assert len(taken(waiting, 1e9 + 2, 9)) == 6 and waiting.waiting == {}


def test_scan_goes_on_where_it_was_and_others_may_work_meanwhile(tmp_path: Path) -> None:
    fill(tmp_path, "a", 600)
    waiting, _ = intake_of(tmp_path, 4096, "a")
    waiting.begin_scan()
    steps = 0
    while not waiting.go_on_scanning(10.0, seconds=0.0):
        steps += 1
    assert steps > 3 and len(waiting) == 600 and not waiting.scanning


def test_product_whose_model_is_not_in_memory_waits_for_that_and_for_nobody_else(tmp_path: Path) -> None:
    fill(tmp_path, "a", 2)
    fill(tmp_path, "b", 2)
    waiting, known = intake_of(tmp_path, 16, "a", "b")
    known.absent = {"b"}
    waiting.scan(10.0)
    assert taken(waiting, 12.0, 9) == ["a/0000.jpg", "a/0001.jpg"] and known.begun == ["b"]
    assert waiting.next_settled_at() is None
    known.absent = set()
    assert taken(waiting, 12.5, 9) == ["b/0000.jpg", "b/0001.jpg"]


def test_folder_whose_files_cannot_be_looked_at_is_named_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = OddEntries()
    (tmp_path / "incoming/gears").mkdir(parents=True)
    for name in "abc":
        (tmp_path / f"incoming/gears/{name}.jpg").write_bytes(b"whole")
    known, names = cast(ScorerCache, KnownProducts("gears")), NameFilter([".*"])
    waiting = Intake(tmp_path, names, known, Settling(1.0, 600.0), odd=odd)

    def denied(_status: object) -> FileState:
        raise PermissionError(errno.EACCES, "Permission denied")

    # As where a folder may be listed (r) and not be entered (x).
    monkeypatch.setattr(FileState, "of", denied)
    monkeypatch.setattr(os, "access", lambda *_args, **_kwargs: False)
    waiting.scan(now=1.0)
    [one] = odd.all()
    assert (one.path, one.files) == ("incoming/gears", 3)


def test_what_is_mounted_below_is_named_and_not_touched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = OddEntries()
    for name in ("gears/a.jpg", "gears/share/b.jpg"):
        (tmp_path / "incoming" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "incoming" / name).write_bytes(b"whole")
    table = tmp_path / "mountinfo"
    table.write_text(f"36 35 98:0 / {tmp_path.resolve()}/incoming/gears/share rw - nfs4 server:/ rw\n")
    monkeypatch.setattr("service.inspection.incoming_scan.mounted_below", lambda top: mounted_below(top, table))
    known, names = cast(ScorerCache, KnownProducts("gears")), NameFilter([".*"])
    waiting = Intake(tmp_path, names, known, Settling(1.0, 600.0), odd=odd)
    waiting.scan(now=1.0)
    assert len(waiting) == 1 and [(one.path, one.errno) for one in odd.all()] == [("incoming/gears/share", errno.EXDEV)]
