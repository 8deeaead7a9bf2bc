"""`images.csv`: what is written is read again, and a damaged list is named with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from models.data.image_list import ListedImage, read_image_list, write_image_list
from models.data.select_images import Chosen, TrainingImage
from models.errors import DatasetError


def test_list_is_read_as_it_was_written_with_paths_from_the_root(tmp_path: Path) -> None:
    inside = TrainingImage(tmp_path / "training" / 'a, "b"\udc80.png', "aa")
    outside = TrainingImage(Path("/elsewhere/c.png"), "bb")
    chosen = Chosen("lid", 0.1, "split", (inside,), (outside,), (), (), (64, 96), (), trimmed=(outside,))
    write_image_list(chosen, tmp_path, tmp_path)
    assert read_image_list(tmp_path) == [
        ListedImage("aa", "train", Path('training/a, "b"\udc80.png')),
        ListedImage("bb", "calibrate", Path("/elsewhere/c.png")),
        ListedImage("bb", "trimmed", Path("/elsewhere/c.png")),
    ]


def test_damaged_list_is_an_error_and_an_empty_file_is_none(tmp_path: Path) -> None:
    (tmp_path / "images.csv").write_bytes(b"")
    assert read_image_list(tmp_path) == []
    for content, message in [
        (b"sha256,path\n", r"images\.csv: expected the columns sha256, role, path; found sha256, path"),
        (b"sha256,role,path\naa,train\n", r"images\.csv, line 2: expected sha256, role, path; found"),
        (b"sha256,role,path\naa,train,a,b\n", r"images\.csv, line 2: expected sha256, role, path; found"),
    ]:
        (tmp_path / "images.csv").write_bytes(content)
        with pytest.raises(DatasetError, match=message):
            read_image_list(tmp_path)
    (tmp_path / "images.csv").unlink()
    with pytest.raises(DatasetError, match=r"expected the images that a version was made from; found .*No such file"):
        read_image_list(tmp_path)
