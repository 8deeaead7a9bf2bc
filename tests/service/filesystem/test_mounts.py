"""Which mounts below a root were there and are gone, read from tables in the kernel's form."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from service.filesystem.mount_table import mount_id
from service.filesystem.mounts import Mounts

ROOT = Path("/srv/tamis")
LINE = "40 22 0:41 / {at} rw,relatime - {type} source rw\n"
FOLDERS = ("normal", "anomaly", "quarantine")


class Table:
    """A mount table that a test writes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.set()

    def set(self, *points: str) -> None:
        table = "".join(LINE.format(at=f"/srv/tamis/{point}", type="ext4") for point in points)
        self.path.write_text(LINE.format(at="/", type="ext4") + LINE.format(at="/srv/tamis", type="xfs") + table)


TableOf = Callable[..., Path]


@pytest.fixture
def table_of(root: Path, tmp_path: Path) -> TableOf:
    """Writes a table of mounts at folders of `root`, with their numbers."""

    def write(*more: tuple[str, int], **mounts: int) -> Path:
        path = tmp_path / "numbered"
        lines = [f"{id} 1 0:1 / {root}/{at} rw - ext4 source rw\n" for at, id in [*more, *mounts.items()]]
        path.write_text("".join(lines))
        return path

    return write


@contextmanager
def opened(folder: Path) -> Iterator[int]:
    folder.mkdir(exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def mount_id_of(folder: Path) -> int:
    with opened(folder) as descriptor:
        id = mount_id(descriptor)
    assert id is not None
    return id


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "mountinfo")


def test_mount_that_was_seen_and_is_not_there_is_gone_until_it_is_back(table: Table) -> None:
    mounts = Mounts(ROOT, FOLDERS, mountinfo=table.path)
    assert mounts.find_gone() == [] and not mounts.any_gone()
    table.set("normal", "anomaly/lid")
    assert mounts.find_gone() == [] and mounts.seen == {".", "normal", "anomaly/lid"}
    table.set("anomaly/lid")
    assert mounts.find_gone() == ["normal"] and mounts.any_gone()
    table.set("normal", "anomaly/lid")
    assert mounts.find_gone() == [] and not mounts.any_gone()


def test_mount_that_an_earlier_run_saw_is_gone(table: Table) -> None:
    assert Mounts(ROOT, FOLDERS, ["normal"], table.path).find_gone() == ["normal"]


def test_mounts_elsewhere_are_no_matter(table: Table) -> None:
    table.set("incoming", "normality", "../other/normal")
    mounts = Mounts(ROOT, FOLDERS, mountinfo=table.path)
    assert mounts.find_gone() == [] and mounts.seen == {"."}


def test_root_itself_is_gone_when_its_mount_is(table: Table) -> None:
    mounts = Mounts(ROOT, FOLDERS, mountinfo=table.path)
    mounts.find_gone()
    table.path.write_text(LINE.format(at="/", type="ext4"))
    assert mounts.find_gone() == ["."]


def test_folder_is_what_is_mounted_there_only_if_it_lies_on_that_mount(root: Path, table_of: TableOf) -> None:
    own = mount_id_of(root)
    mounts = Mounts(root, FOLDERS, mountinfo=table_of(normal=own, anomaly=own + 1))
    mounts.find_gone()
    with opened(root / "normal") as normal, opened(root / "anomaly") as anomaly:
        assert mounts.are_under("normal", normal)
        assert not mounts.are_under("anomaly", anomaly)
        assert mounts.are_under("anomaly/elsewhere", anomaly), "nothing was ever mounted there"


def test_mount_that_is_new_since_the_last_look_is_found(root: Path, table_of: TableOf) -> None:
    own = mount_id_of(root)
    mounts = Mounts(root, FOLDERS, mountinfo=table_of(normal=own + 1))
    mounts.find_gone()
    table_of(normal=own)
    with opened(root / "normal") as normal:
        assert mounts.are_under("normal", normal)


def test_one_of_several_mounts_at_one_place_is_enough(root: Path, table_of: TableOf) -> None:
    mounts = Mounts(root, FOLDERS, mountinfo=table_of(("normal", mount_id_of(root) + 1), normal=mount_id_of(root)))
    with opened(root / "normal") as normal:
        assert mounts.are_under("normal", normal)


def test_without_a_table_a_folder_is_taken_for_what_it_should_be(root: Path) -> None:
    mounts = Mounts(root, FOLDERS, ["normal"], root / "none")
    with opened(root / "normal") as normal:
        assert mounts.are_under("normal", normal)


def test_without_a_table_nothing_is_gone(tmp_path: Path) -> None:
    assert Mounts(ROOT, FOLDERS, ["normal"], tmp_path / "none").find_gone() == []
