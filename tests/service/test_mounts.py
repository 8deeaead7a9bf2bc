"""Which mounts below a root were there and are gone, read from tables in the kernel's form."""

from __future__ import annotations

from pathlib import Path

import pytest

from service.mounts import Mounts

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


@pytest.fixture
def table(tmp_path: Path) -> Table:
    return Table(tmp_path / "mountinfo")


def test_mount_that_was_seen_and_is_not_there_is_gone_until_it_is_back(table: Table) -> None:
    mounts = Mounts(ROOT, FOLDERS, mountinfo=table.path)
    assert mounts.look() == [] and not mounts.any_gone()
    table.set("normal", "anomaly/lid")
    assert mounts.look() == [] and mounts.seen == {"normal", "anomaly/lid"}
    table.set("anomaly/lid")
    assert mounts.look() == ["normal"] and mounts.any_gone()
    table.set("normal", "anomaly/lid")
    assert mounts.look() == [] and not mounts.any_gone()


def test_mount_that_an_earlier_run_saw_is_gone(table: Table) -> None:
    assert Mounts(ROOT, FOLDERS, ["normal"], table.path).look() == ["normal"]


def test_root_itself_and_mounts_elsewhere_are_no_matter(table: Table) -> None:
    table.set("incoming", "normality", "../other/normal")
    mounts = Mounts(ROOT, FOLDERS, mountinfo=table.path)
    assert mounts.look() == [] and mounts.seen == frozenset()


def test_without_a_table_nothing_is_gone(tmp_path: Path) -> None:
    assert Mounts(ROOT, FOLDERS, ["normal"], tmp_path / "none").look() == []
