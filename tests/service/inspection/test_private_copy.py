"""What was judged is what is kept: whoever has another name of a file, or owns it, changes nothing of it any more."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from service.imaging.decode import FileBytes, StillChanging, read_file
from service.inspection.private_copy import PREFIX, keep_private, remove_left, take_place
from tests.conftest import REPOSITORY, image_bytes
from tests.faults.root_for_faults import drop_good, make_root, problems, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until

ID = "01K0000000000000000000000A"
PATH = f"processing/main/lid/{ID}--1--a.png"


@pytest.fixture
def claimed(root: Path) -> Path:
    path = root / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(b"as it was judged")
    return path


def read(path: Path) -> FileBytes:
    return read_file(path, durable=True)


def keep_another_name(path: Path) -> None:
    os.link(path, path.parents[3] / "kept")


def give_away(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize("by", [keep_another_name, give_away])
def test_file_that_others_can_change_is_kept_as_it_was_read(
    root: Path, claimed: Path, by: Callable[[Path], None]
) -> None:
    by(claimed)
    claimed.chmod(0o664)
    os.utime(claimed, ns=(1_000_000_000, 2_000_000_000))
    file = read(claimed)
    assert keep_private(root, PATH, ID, file)
    # Until the verdict is on record, a writer is seen by the file itself.
    with claimed.open("r+b") as theirs:
        assert take_place(root, PATH, ID)
        theirs.write(b"XXXX")
    assert claimed.read_bytes() == b"as it was judged" and list(claimed.parent.iterdir()) == [claimed]
    status = claimed.stat()
    assert (status.st_uid, status.st_nlink, status.st_mtime_ns) == (os.geteuid(), 1, 2_000_000_000)
    assert stat.S_IMODE(status.st_mode) == 0o644


def test_file_of_the_service_alone_is_only_looked_at_and_closed_to_other_writers(root: Path, claimed: Path) -> None:
    before = claimed.stat()
    claimed.chmod(0o666)
    assert not keep_private(root, PATH, ID, read(claimed))
    after = claimed.stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert stat.S_IMODE(after.st_mode) == 0o644 and list(claimed.parent.iterdir()) == [claimed]


def test_member_of_the_group_who_has_it_open_for_writing_is_waited_for(root: Path, claimed: Path) -> None:
    claimed.chmod(0o660)
    file = read(claimed)
    with claimed.open("r+b"), pytest.raises(StillChanging):
        keep_private(root, PATH, ID, file)
    assert stat.S_IMODE(claimed.stat().st_mode) == 0o640
    assert not keep_private(root, PATH, ID, file)


def test_file_that_changed_since_it_was_read_is_not_copied(root: Path, claimed: Path) -> None:
    keep_another_name(claimed)
    file = read(claimed)
    claimed.write_bytes(b"more than there was")
    with pytest.raises(StillChanging):
        keep_private(root, PATH, ID, file)
    assert list(claimed.parent.iterdir()) == [claimed]


def test_copy_that_a_crash_left_is_made_anew_or_removed(root: Path, claimed: Path) -> None:
    (root / f"processing/main/{PREFIX}02").write_bytes(b"of a file right below incoming/")
    keep_another_name(claimed)
    left = claimed.with_name(f"{PREFIX}{ID}")
    left.write_bytes(b"half")
    assert keep_private(root, PATH, ID, read(claimed)) and left.read_bytes() == b"as it was judged"
    assert remove_left(root, "processing/main") == 2 and list(claimed.parent.iterdir()) == [claimed]
    assert not take_place(root, PATH, ID)


def test_writing_through_another_name_after_the_verdict_changes_nothing_that_is_kept(tmp_path: Path) -> None:
    root, kept = make_root(tmp_path / "root"), tmp_path / "kept"
    dropped = drop_good(root, 4)
    kept.mkdir()
    for path in (root / "incoming").iterdir():
        os.link(path, kept / path.name)
    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(settled(root, 4), "all placed")
        for path in kept.iterdir():
            path.write_bytes(image_bytes(200, seed=77))
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []
    assert all(row["state"] == "placed" for row in query(root, "SELECT state FROM results"))
    command = [sys.executable, "-m", "service", "db", "check", "--files", "--root", str(root)]
    told = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0 and "files_changed: 0" in told.stdout
