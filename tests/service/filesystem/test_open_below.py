import os
from pathlib import Path

import pytest

from service.filesystem.open_below import (
    MissingBelow,
    NotRegularFile,
    WrongFolder,
    open_file,
    open_folder,
)


def test_folders_are_made_only_when_asked_for(tmp_path: Path) -> None:
    with pytest.raises(MissingBelow):
        open_folder(tmp_path / "a/b", tmp_path)
    assert not (tmp_path / "a").exists()
    os.close(open_folder(tmp_path / "a/b", tmp_path, make=True))
    os.close(open_folder(tmp_path / "a/b", tmp_path))


def test_root_that_is_gone_is_not_taken_for_a_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_folder(tmp_path / "gone/a", tmp_path / "gone", make=True)
    assert not isinstance(caught.value, MissingBelow) and not (tmp_path / "gone").exists()


@pytest.mark.parametrize("make", [False, True])
def test_link_or_file_on_the_way_is_refused(tmp_path: Path, make: bool) -> None:
    (tmp_path / "real/b").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError, match="found a link or a file"):
            open_folder(tmp_path / name / "b", tmp_path, make=make)


def test_nothing_is_made_below_a_folder_that_is_not_right(tmp_path: Path) -> None:
    with pytest.raises(WrongFolder):
        open_folder(tmp_path / "a/b", tmp_path, make=True, is_right=lambda path, _descriptor: path != "a")
    assert (tmp_path / "a").is_dir() and not (tmp_path / "a/b").exists()


def test_only_a_regular_file_is_opened_and_nothing_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "fifo")
    folder = open_folder(tmp_path, tmp_path)
    with os.fdopen(open_file("file", folder), "rb") as file:
        assert file.read() == b"content"
    os.close(folder)
    for name in ("link", "folder", "fifo"):
        with pytest.raises(NotRegularFile, match="expected a regular file"):
            open_file(tmp_path / name)
