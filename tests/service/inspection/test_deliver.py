import errno
import os
from dataclasses import replace
from pathlib import Path

import pytest

from models.registry import file_sha256
from service.filesystem.mounts import Mounts
from service.filesystem.odd_entries import OddEntries
from service.filesystem.place import Place
from service.inspection.deliver import Delivery, Move, deliver, readdressed

SOURCE = "processing/main/01--1--a.png"
DESTINATION = "normal/default/2026-11-22/a.01.png"
ID = "01K0000000000000000000000A"


@pytest.fixture
def move(root: Path) -> Move:
    (root / SOURCE).parent.mkdir(parents=True)
    (root / SOURCE).write_bytes(b"bytes")
    return Move("01", SOURCE, DESTINATION, file_sha256(root / SOURCE))


@pytest.fixture
def other_device(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Place.rename

    def rename(self: Place, target: Place) -> None:
        if not self.name.startswith(".tmp."):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        real(self, target)

    monkeypatch.setattr(Place, "rename", rename)


@pytest.fixture
def bare(root: Path, tmp_path: Path) -> Mounts:
    """What knows of a mount at `normal/` that was there when it last looked, and is gone."""
    table = tmp_path / "mountinfo"
    table.write_text(f"999999 1 0:1 / {root}/normal rw - ext4 source rw\n")
    mounts = Mounts(root, ["normal", "anomaly"], mountinfo=table)
    mounts.find_gone()
    table.write_text("")
    return mounts


def test_nothing_is_made_or_left_in_a_bare_mount_point(root: Path, move: Move, bare: Mounts) -> None:
    assert deliver(root, [move], bare) == {"01": Delivery.WAITS}
    assert (root / SOURCE).read_bytes() == b"bytes"
    assert list((root / "normal").iterdir()) == []


def test_what_goes_elsewhere_does_not_wait_for_a_mount_that_is_gone(root: Path, move: Move, bare: Mounts) -> None:
    there = replace(move, destination="anomaly/default/2026-11-22/a.01.png")
    assert deliver(root, [there], bare) == {"01": Delivery.DONE}


def test_file_that_lies_on_a_mount_that_is_gone_is_not_missing(root: Path, bare: Mounts) -> None:
    move = Move("01", DESTINATION, "anomaly/default/2026-11-22/a.01.png", None)
    assert deliver(root, [move], bare) == {"01": Delivery.WAITS}


def test_file_goes_where_its_row_says(root: Path, move: Move) -> None:
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert (root / DESTINATION).read_bytes() == b"bytes" and not (root / SOURCE).exists()


def test_delivery_repeated_changes_nothing(root: Path, move: Move) -> None:
    deliver(root, [move])
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert (root / DESTINATION).read_bytes() == b"bytes"


def test_crash_before_the_unlink_is_finished(root: Path, move: Move) -> None:
    (root / DESTINATION).parent.mkdir(parents=True)
    (root / DESTINATION).write_bytes(b"bytes")
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert (root / DESTINATION).read_bytes() == b"bytes" and not (root / SOURCE).exists()


def test_two_files_that_differ_are_a_conflict_and_neither_is_touched(root: Path, move: Move) -> None:
    (root / DESTINATION).parent.mkdir(parents=True)
    (root / DESTINATION).write_bytes(b"other")
    assert deliver(root, [move]) == {"01": Delivery.CONFLICT}
    assert (root / DESTINATION).read_bytes() == b"other" and (root / SOURCE).read_bytes() == b"bytes"


def test_same_file_that_is_not_the_one_on_record_is_a_conflict(root: Path, move: Move) -> None:
    (root / DESTINATION).parent.mkdir(parents=True)
    for path in (SOURCE, DESTINATION):
        (root / path).write_bytes(b"not as recorded")
    assert deliver(root, [move]) == {"01": Delivery.CONFLICT}
    assert (root / SOURCE).exists() and (root / DESTINATION).exists()


def test_file_removed_by_someone_is_missing(root: Path, move: Move) -> None:
    (root / SOURCE).unlink()
    assert deliver(root, [move]) == {"01": Delivery.MISSING}


def test_link_at_the_destination_is_a_conflict(root: Path, move: Move, tmp_path: Path) -> None:
    (root / DESTINATION).parent.mkdir(parents=True)
    (root / DESTINATION).symlink_to(tmp_path / "elsewhere")
    assert deliver(root, [move]) == {"01": Delivery.CONFLICT}
    assert (root / SOURCE).exists() and not (tmp_path / "elsewhere").exists()


def test_destination_folder_swapped_for_a_link_is_refused(root: Path, move: Move, tmp_path: Path) -> None:
    (root / "normal").rmdir()
    (root / "normal").symlink_to(tmp_path)
    odd = OddEntries()
    assert deliver(root, [move], odd=odd) == {"01": Delivery.WAITS}
    assert (root / SOURCE).exists() and list(tmp_path.rglob("*.png")) == [root / SOURCE]
    assert [(one.path, one.errno) for one in odd.all()] == [("normal", errno.ENOTDIR)]


def test_destination_folder_swapped_for_a_link_in_the_last_moment_takes_nothing_outside(
    root: Path, move: Move, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outside = tmp_path / "outside"
    (outside / "2026-11-22").mkdir(parents=True)
    real = Place.rename

    def swap_and_rename(self: Place, target: Place) -> None:
        (root / "normal/default").rename(root / "normal/aside")
        (root / "normal/default").symlink_to(outside)
        real(self, target)

    monkeypatch.setattr(Place, "rename", swap_and_rename)
    deliver(root, [move])
    assert [path for path in outside.rglob("*") if path.is_file()] == []
    assert (root / "normal/aside/2026-11-22/a.01.png").read_bytes() == b"bytes"


@pytest.mark.usefixtures("other_device")
def test_file_is_copied_whole_to_another_device_and_keeps_its_mtime(root: Path, move: Move) -> None:
    os.utime(root / SOURCE, ns=(1_000_000_000, 2_000_000_000))
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert (root / DESTINATION).read_bytes() == b"bytes" and not (root / SOURCE).exists()
    assert (root / DESTINATION).stat().st_mtime_ns == 2_000_000_000
    assert [p.name for p in (root / DESTINATION).parent.iterdir()] == ["a.01.png"]


@pytest.mark.usefixtures("other_device")
def test_crash_in_the_middle_of_a_copy_copies_again(root: Path, move: Move) -> None:
    (root / DESTINATION).parent.mkdir(parents=True)
    (root / DESTINATION).with_name(".tmp.01").write_bytes(b"by")
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert (root / DESTINATION).read_bytes() == b"bytes"
    assert [p.name for p in (root / DESTINATION).parent.iterdir()] == ["a.01.png"]


def test_folders_are_synced_once_each(root: Path, move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    second = Move("02", SOURCE.replace("01", "02"), DESTINATION.replace("01", "02"), None)
    (root / second.source).write_bytes(b"2")
    (root / DESTINATION).parent.mkdir(parents=True)
    synced: list[Path] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(Path(f"/proc/self/fd/{descriptor}").readlink()))
    deliver(root, [move, second])
    assert sorted(synced) == sorted({(root / SOURCE).parent, (root / DESTINATION).parent})


def test_destination_folder_that_was_taken_away_meanwhile_is_made_again(
    root: Path, move: Move, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Retention removes empty folders, perhaps between the making of this one and the rename into it."""
    real = Place.rename
    taken = []

    def rename(self: Place, target: Place) -> None:
        if not taken:
            taken.append(target)
            (root / DESTINATION).parent.rmdir()
        real(self, target)

    monkeypatch.setattr(Place, "rename", rename)
    assert deliver(root, [move]) == {"01": Delivery.DONE}
    assert taken and (root / DESTINATION).read_bytes() == b"bytes"


@pytest.mark.usefixtures("other_device")
def test_file_that_is_gone_is_missing_also_where_its_folder_lies_on_another_device(root: Path, move: Move) -> None:
    (root / SOURCE).unlink()
    assert deliver(root, [move]) == {"01": Delivery.MISSING}


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENAMETOOLONG, errno.EILSEQ])
@pytest.mark.parametrize("across", [False, True])
def test_name_that_the_destination_refuses_is_said_and_nothing_is_moved_or_left(
    root: Path, move: Move, monkeypatch: pytest.MonkeyPatch, code: int, across: bool
) -> None:
    odd_name = replace(move, id=ID, destination=f"normal/default/2026-11-22/\u00e4.{ID}.png")
    real = Place.rename

    def rename(self: Place, target: Place) -> None:
        if across and not self.name.startswith(".tmp."):
            raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))
        if not target.name.isascii():
            raise OSError(code, os.strerror(code))
        real(self, target)

    monkeypatch.setattr(Place, "rename", rename)
    assert deliver(root, [odd_name]) == {ID: Delivery.NAME_REFUSED}
    assert (root / SOURCE).read_bytes() == b"bytes" and list((root / DESTINATION).parent.iterdir()) == []
    plainer = readdressed(odd_name.destination, ID, Delivery.NAME_REFUSED)
    assert plainer == f"normal/default/2026-11-22/%C3%A4.{ID}.png"
    assert deliver(root, [replace(odd_name, destination=plainer)]) == {ID: Delivery.DONE}
    assert (root / plainer).read_bytes() == b"bytes"


@pytest.mark.parametrize(
    "path", ["../outside/key", "/etc/passwd", "normal/../../key", "normal", "models/p/v/model.json", "tamis.db",
             "normal//a.png", "normal/./a.png", "normal/a\0.png", "", "processing/main/.lock", "incoming/a.png"],
)  # fmt: skip
@pytest.mark.parametrize("end", ["source", "destination"])
def test_row_that_names_a_place_elsewhere_is_left_alone(
    root: Path, move: Move, tmp_path: Path, path: str, end: str
) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside/key").write_bytes(b"bytes")
    before = {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()}
    odd = OddEntries()
    assert deliver(root, [replace(move, **{end: path})], odd=odd) == {"01": Delivery.WAITS}
    assert {each: each.read_bytes() for each in tmp_path.rglob("*") if each.is_file()} == before
    assert [one.errno for one in odd.all()] == [errno.EINVAL] and "on record" in odd.all()[0].reason


@pytest.mark.usefixtures("other_device")
def test_copy_that_is_not_what_was_judged_takes_nothing_s_place(root: Path, move: Move) -> None:
    (root / SOURCE).write_bytes(b"other")
    odd = OddEntries()
    assert deliver(root, [move], odd=odd) == {"01": Delivery.WAITS}
    assert (root / SOURCE).read_bytes() == b"other" and list((root / DESTINATION).parent.iterdir()) == []
    assert "judged" in odd.all()[0].reason


def test_error_that_is_not_of_one_entry_is_raised(root: Path, move: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    def rename(self: Place, target: Place) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(Place, "rename", rename)
    with pytest.raises(OSError, match="Too many open files"):
        deliver(root, [move])
