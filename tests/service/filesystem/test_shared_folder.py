"""Folders that the service makes for people: writable by the group where the one above is, and nowhere else."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from service.filesystem import shared_folder
from service.filesystem.open_below import open_folder


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(autouse=True)
def umask_of_the_service():
    before = os.umask(0o027)
    yield
    os.umask(before)


@pytest.mark.parametrize(
    ("above", "made"), [(0o2770, 0o2770), (0o770, 0o770), (0o2750, 0o2750), (0o700, 0o750), (0o2775, 0o2770)]
)
def test_folder_gives_the_group_what_the_one_above_gives(tmp_path: Path, above: int, made: int) -> None:
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal").chmod(above)
    os.close(open_folder(tmp_path / "normal/flange/2026-11-28", tmp_path, make=True))
    assert (mode(tmp_path / "normal/flange"), mode(tmp_path / "normal/flange/2026-11-28")) == (made, made)


def test_sandbox_that_forbids_the_bit_of_the_group_is_no_hindrance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(folder: int, wanted: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(shared_folder.os, "fchmod", forbidden)
    (tmp_path / "normal").mkdir()
    (tmp_path / "normal").chmod(0o2770)
    os.close(open_folder(tmp_path / "normal/flange", tmp_path, make=True))
    if mode(tmp_path / "normal/flange") == 0o2750:
        pytest.skip("no access control lists on this file system")
    assert mode(tmp_path / "normal/flange") == 0o2770


def test_folder_that_is_there_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "normal/flange").mkdir(parents=True)
    (tmp_path / "normal").chmod(0o2770)
    (tmp_path / "normal/flange").chmod(0o2750)
    os.close(open_folder(tmp_path / "normal/flange", tmp_path, make=True))
    assert mode(tmp_path / "normal/flange") == 0o2750
