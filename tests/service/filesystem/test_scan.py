"""Listing by descriptor: what cannot be opened is told of, and no link is followed at any part of a path."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.filesystem import scan as scanning
from service.filesystem.file_state import NameFilter
from service.filesystem.open_below import HeldFolders, MissingBelow, open_file_below, open_folder_below, state_below
from service.filesystem.scan import PATH_BYTES_MAX, scan, walk

ALL = NameFilter(())


def tree(top: Path, *paths: str) -> None:
    for path in paths:
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(b"x")


def test_folder_that_cannot_be_opened_is_told_of_and_the_others_are_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "a/1.png", "b/2.png", "c/d/3.png")
    real = scanning.open_folder_below

    def refusing(folder: str, top: int) -> int:
        if folder == "b":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder, top)

    monkeypatch.setattr(scanning, "open_folder_below", refusing)
    failed: list[tuple[str, int | None]] = []
    found = [path for path, _ in scan(tmp_path, ALL, lambda path, error: failed.append((path, error.errno)))]
    assert sorted(found) == ["a/1.png", "c/d/3.png"] and failed == [("b", errno.EACCES)]


def test_folder_swapped_for_a_link_while_it_is_walked_is_not_followed(tmp_path: Path) -> None:
    tree(tmp_path, "in/s/1.png", "out/2.png")
    found = []
    for folder in walk(tmp_path / "in", ALL):
        found += [folder.path_of(entry.name) for entry in folder.files]
        if not folder.path:
            (tmp_path / "in/s").rename(tmp_path / "away")
            (tmp_path / "in/s").symlink_to(tmp_path / "out")
    assert found == []


def test_path_too_long_for_any_call_is_told_of(tmp_path: Path) -> None:
    tree(tmp_path, "short/1.png")
    at = os.open(tmp_path, os.O_RDONLY)
    for _ in range(PATH_BYTES_MAX // 200 + 2):
        os.mkdir("n" * 200, dir_fd=at)
        below = os.open("n" * 200, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(at)
    failed = []
    found = [path for path, _ in scan(tmp_path, ALL, lambda _path, error: failed.append(error.errno))]
    assert found == ["short/1.png"] and failed == [errno.ENAMETOOLONG]


def test_links_are_told_apart_from_files(tmp_path: Path) -> None:
    tree(tmp_path, "a.png")
    (tmp_path / "link").symlink_to(tmp_path)
    [folder] = walk(tmp_path, ALL)
    assert ([entry.name for entry in folder.files], folder.links) == (["a.png"], ["link"])


def test_nothing_is_opened_or_looked_at_through_a_link(tmp_path: Path) -> None:
    tree(tmp_path, "out/1.png", "in/real/1.png")
    (tmp_path / "in/link").symlink_to(tmp_path / "out")
    with pytest.raises(NotADirectoryError):
        open_file_below("link/1.png", tmp_path / "in")
    assert state_below("link/1.png", tmp_path / "in") is None and state_below("real/2.png", tmp_path / "in") is None
    assert state_below("real/1.png", tmp_path / "in") is not None
    with pytest.raises(ValueError, match="plain relative path"):
        open_folder_below("../out", tmp_path / "in")


def test_held_folder_is_one_descriptor_until_all_are_let_go(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    held, before = HeldFolders(tmp_path), len(list(Path("/proc/self/fd").iterdir()))
    assert held.open("a/b") == held.open("a/b") != held.open("")
    with pytest.raises(MissingBelow):
        held.open("gone")
    held.open("made/now", make=True)
    held.close()
    assert (tmp_path / "made/now").is_dir() and len(list(Path("/proc/self/fd").iterdir())) == before
