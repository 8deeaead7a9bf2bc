"""What rows say of files: places outside the folders of images are refused by row, and other bytes are found."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
from typer.testing import CliRunner

from service.commands import database
from service.errors import TamisError
from service.operations.restore import restore
from service.storage.database.driver import sqlite3
from tests.conftest import REPOSITORY
from tests.faults.root_for_faults import drop_good, query, run_until_settled
from tests.faults.root_for_faults import make_root as make
from tests.support.daemon_process import DaemonProcess, wait_until

OUTSIDE = ("../outside/key", "{root}/../outside/key", "normal/../../outside/key", "models/default/v/model.json")


@pytest.fixture(scope="module")
def sorted_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with six sorted images, and a file beside it that is nobody's business; each test takes a copy."""
    folder = tmp_path_factory.mktemp("sorted")
    root = make(folder / "root")
    drop_good(root, 6)
    run_until_settled(root, 6)
    (folder / "outside").mkdir()
    (folder / "outside/key").write_bytes(b"secret")
    return folder


@pytest.fixture
def folder(sorted_root: Path, tmp_path: Path) -> Path:
    shutil.copytree(sorted_root, tmp_path / "copy", symlinks=True)
    return tmp_path / "copy"


def db(root: Path, *words: str) -> tuple[int, dict[str, object], str]:
    command = [sys.executable, "-m", "service", "db", *words, "--root", str(root), "--json"]
    ended = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=60)
    return ended.returncode, json.loads(ended.stdout) if ended.stdout else {}, ended.stderr


def point(database: Path, paths: list[str], column: str = "path", state: str = "placed") -> None:
    """Have the first rows name `paths`."""
    with sqlite3.connect(database) as connection:
        ids = [row[0] for row in connection.execute("SELECT id FROM images ORDER BY id")]
        for id, path in zip(ids, paths, strict=False):
            connection.execute(f"UPDATE images SET {column} = ?, state = ? WHERE id = ?", (path, state, id))
    connection.close()


def every_file(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name not in (".lock", "tamis.db-wal", "tamis.db-shm")
    }


@pytest.mark.parametrize("column", ["path", "destination"])
def test_database_whose_rows_name_places_outside_is_not_restored_and_nothing_is_touched(
    folder: Path, tmp_path: Path, column: str
) -> None:
    root, backup = folder / "root", tmp_path / "backup.db"
    shutil.copy(root / "tamis.db", backup)
    point(backup, [path.format(root=root) for path in OUTSIDE], column)
    before = every_file(folder)
    with pytest.raises(TamisError, match=r"found 4 that do not: .*\.\./outside/key"):
        restore(root, backup)
    assert every_file(folder) == before


def test_check_names_rows_that_lead_outside_and_fails(folder: Path) -> None:
    root = folder / "root"
    point(root / "tamis.db", [path.format(root=root) for path in OUTSIDE])
    code, found, _ = db(root, "check", "--no-files")
    assert code == 1 and found["sound"] is False and found["rows_refused"] == 4
    assert any("../outside/key" in one for one in found["refused"])  # type: ignore[attr-defined]
    code, found, _ = db(root, "check")
    assert code == 1 and (found["rows"], found["rows_without_file"], found["files_unreadable"]) == (6, 0, 4)


def test_daemon_leaves_rows_that_lead_outside_alone_and_sorts_on(folder: Path) -> None:
    root = folder / "root"
    for column in ("path", "destination"):
        point(root / "tamis.db", [path.format(root=root) for path in OUTSIDE], column, "scored")
    (root / "incoming/later.png").write_bytes((next((root / "normal").rglob("*.png"))).read_bytes())
    outside = every_file(folder / "outside")
    models = every_file(root / "models")
    with DaemonProcess(root) as process:
        process.wait_ready()
        placed = "SELECT count(*) AS n FROM images WHERE file_name = 'later.png' AND state = 'placed'"
        wait_until(lambda: query(root, placed)[0]["n"] == 1, "a later one placed")
        wait_until(lambda: process.log_text().count("entry waits") >= 4, "the rows named")
        assert process.stop() == 0, process.log_text()
    assert every_file(folder / "outside") == outside and every_file(root / "models") == models
    assert query(root, "SELECT count(*) AS n FROM images WHERE state = 'scored'")[0]["n"] == 4


def test_check_of_files_names_those_that_are_not_what_was_judged(folder: Path) -> None:
    root = folder / "root"
    first, second, third, *_ = sorted((root / "normal").rglob("*.png"))
    data = bytearray(first.read_bytes())
    data[-1] ^= 1
    first.write_bytes(data)  # as long as it was
    second.write_bytes(second.read_bytes() + b"x")
    third.unlink()
    code, found, _ = db(root, "check", "--files")
    assert code == 1 and found["files_changed"] == 2 and found["rows_without_file"] == 1
    assert found["changed"] == [str(path.relative_to(root)) for path in (first, second)]
    # Without being asked no file is read.
    code, found, _ = db(root, "check")
    assert code == 0 and found["files_changed"] is None and found["rows_without_file"] == 1


@pytest.mark.parametrize(("mode", "umask", "expected"), [(0o600, 0o022, 0o600), (0o640, 0o000, 0o640),
                                                        (0o660, 0o027, 0o640), (0o644, 0o077, 0o600)])  # fmt: skip
def test_backup_has_the_mode_of_the_original_or_a_narrower_one(
    folder: Path, tmp_path: Path, mode: int, umask: int, expected: int
) -> None:
    root = folder / "root"
    (root / "tamis.db").chmod(mode)
    before = os.umask(umask)
    try:
        code, _, said = db(root, "backup", str(tmp_path / "backup.db"))
    finally:
        os.umask(before)
    assert code == 0, said
    assert stat.S_IMODE((tmp_path / "backup.db").stat().st_mode) == expected


def test_restored_database_keeps_mode_and_owner_of_the_one_before(folder: Path, tmp_path: Path) -> None:
    root, backup = folder / "root", tmp_path / "backup.db"
    shutil.copy(root / "tamis.db", backup)
    backup.chmod(0o666)
    (root / "tamis.db").chmod(0o640)
    owner = 12345 if os.geteuid() == 0 else os.geteuid()
    os.chown(root / "tamis.db", owner, -1)
    before = os.umask(0)
    try:
        kept = restore(root, backup)
    finally:
        os.umask(before)
    for path in (root / "tamis.db", kept):
        assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_uid) == (0o640, owner)


ERRNOS = (
    "EACCES", "EPERM", "ENOENT", "ENOTDIR", "ELOOP", "EXDEV", "EROFS", "EINVAL", "ENAMETOOLONG", "EIO", "ESTALE",
    "ETXTBSY", "ENOSPC",
)  # fmt: skip


@pytest.mark.parametrize(
    ("command", "call"),
    [("backup", "replace"), ("restore", "replace"), ("restore", "rename"), ("restore", "chmod")],
)
def test_backup_or_restore_that_fails_says_why_and_leaves_all_as_it_was(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, call: str
) -> None:
    root, backup = folder / "root", folder / "backup.db"
    beside = root / "tamis.db-wal"
    if command == "restore":
        shutil.copy(root / "tamis.db", backup)
        # What lies beside the database belongs to it.
        beside.write_bytes(b"the last transactions")
    before = every_file(folder)
    for code in ERRNOS:
        error = OSError(getattr(errno, code), os.strerror(getattr(errno, code)))
        with monkeypatch.context() as patched:
            patched.setattr(Path, call, Mock(side_effect=error))
            said = CliRunner().invoke(database.app, [command, str(backup), "--root", str(root)])
        assert isinstance(said.exception, TamisError) and str(error.strerror) in str(said.exception), code
        # One look through the folders too many does no harm.
        (root / ".restored").unlink(missing_ok=True)
        assert every_file(folder) == before, code
        assert command == "backup" or beside.read_bytes() == b"the last transactions", code


def test_backup_to_a_disk_without_modes_is_made_all_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "chmod", Mock(side_effect=PermissionError(errno.EPERM, "Operation not permitted")))
    said = CliRunner().invoke(database.app, ["backup", str(folder / "backup.db"), "--root", str(folder / "root")])
    assert said.exit_code == 0 and (folder / "backup.db").stat().st_size > 0, said.output


SLOW_BACKUP = """
import sys, time
from service.operations import backup
from service.cli import main
def slowly(source, target):
    source.backup(target, pages=1)
    print("copying", flush=True)
    time.sleep(60)
backup._in_steps = slowly
sys.argv = ["tamis", "db", "backup", "--root", sys.argv[1], sys.argv[2]]
main()
"""


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_signal_during_a_backup_leaves_no_part_of_it(folder: Path, tmp_path: Path, name: str) -> None:
    target = tmp_path / "to/backup.db"
    target.parent.mkdir()
    # What a kill left before goes as well.
    (target.parent / ".backup.db.4194305.part").touch()
    command = [sys.executable, "-c", SLOW_BACKUP, str(folder / "root"), str(target)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "copying\n"
        assert len(list(target.parent.iterdir())) == 1
        process.send_signal(getattr(signal, name))
        assert process.wait(30) != 0
    assert list(target.parent.iterdir()) == []


def test_hash_on_record_is_that_of_the_bytes(folder: Path) -> None:
    for row in query(folder / "root", "SELECT path, sha256 FROM results"):
        assert hashlib.sha256((folder / "root" / row["path"]).read_bytes()).hexdigest() == row["sha256"]
