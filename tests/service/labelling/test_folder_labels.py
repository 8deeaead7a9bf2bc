"""What a person drags on the shared drive is a label; what the service moves, and what is only copied, is none."""

from __future__ import annotations

import errno
import os
import pwd
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.filesystem.file_state import NameFilter
from service.labelling.folder_index import FolderIndex
from service.labelling.folder_labels import FolderLabels
from service.settings import IGNORED_NAMES
from service.storage import images, reviews
from service.storage import training_images as training_images
from service.storage.database.open import open_database
from service.storage.reviews import ReviewRow
from tests.conftest import image_bytes
from tests.service.daemon.test_daemon import SETTINGS, rows
from tests.service.labelling.test_label import House
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, finished, wait_until

NAMES = NameFilter(IGNORED_NAMES)


class Watched(House):
    """A house whose folders are looked at."""

    def __init__(self, root: Path, engine) -> None:
        super().__init__(root, engine)
        self.labels = FolderLabels(root, engine, NAMES, 1.0)

    def scan(self) -> int:
        """Look once; return how many were labelled."""
        before = self.labels_by_folder()
        for _ in self.labels.scan():
            pass
        return self.labels_by_folder() - before

    def labels_by_folder(self) -> int:
        with self.engine.connect() as connection:
            statement = "SELECT count(*) FROM reviews WHERE source = 'folder'"
            return int(connection.exec_driver_sql(statement).scalar_one())

    def drag(self, source: str, target: str) -> str:
        (self.root / target).parent.mkdir(parents=True, exist_ok=True)
        (self.root / source).rename(self.root / target)
        return target

    def review(self, id: str) -> ReviewRow:
        with self.engine.connect() as connection:
            return reviews.history(connection, id)[0]


@pytest.fixture
def house(root: Path) -> Iterator[Watched]:
    engine = open_database(root)
    yield Watched(root, engine)
    engine.dispose()


@pytest.mark.parametrize(
    ("verdict", "to"),
    [("normal", "anomaly"), ("anomaly", "normal"), (None, "normal"), (None, "anomaly")],
)
@pytest.mark.parametrize("place", ["{name}", "lid/2026-01-31/{name}", "checked by Ada/more/{name}", "x {id}.png"])
def test_file_dragged_to_another_side_is_a_label_and_stays_where_it_was_put(
    house: Watched, verdict: str | None, to: str, place: str
) -> None:
    id = house.image(verdict, state="placed" if verdict else "quarantined")
    house.scan()
    here = house.row(id).path
    there = house.drag(here, f"{to}/" + place.format(name=Path(here).name, id=id.lower()))
    assert house.scan() == 1
    row = house.row(id)
    assert (row.path, row.destination, row.state) == (there, there, "placed") and house.files == [there]
    assert (house.review(id).label, house.review(id).source) == (to, "folder")
    assert house.scan() == 0
    with house.engine.connect() as connection:
        [kept] = training_images.vouched(connection, "lid")
    assert kept.label == to and (house.root / kept.path).is_file()


def test_file_dragged_before_the_first_look_is_found_by_it(house: Watched) -> None:
    id = house.image("normal")
    house.drag(house.row(id).path, f"anomaly/{id}.png")
    assert house.scan() == 1 and house.said(id) == ["anomaly"]


def test_dragged_back_is_a_label_too(house: Watched) -> None:
    id = house.image("normal")
    here = house.row(id).path
    house.drag(here, f"anomaly/a.{id}.png")
    house.scan()
    house.drag(f"anomaly/a.{id}.png", here)
    assert house.scan() == 1 and house.said(id) == ["anomaly", "normal"] and house.row(id).path == here


@pytest.mark.parametrize("first", ["dragged", "labelled"])
def test_dragged_back_before_its_folder_was_read_again_is_a_label_too(house: Watched, first: str) -> None:
    id = house.image("normal")
    here = house.row(id).path
    # In the middle of a look: the folder that it leaves was read before, the one that it goes to is read after.
    looking = house.labels.scan()
    moved = False
    for _ in looking:
        if not moved and "normal/lid/2026-01-31" in house.labels._index._folders:
            moved = True
            if first == "dragged":
                there = house.drag(here, here.replace("normal", "anomaly", 1))
            else:
                there = house.label(id, "anomaly").path
    assert moved and house.review(id).label == "anomaly" and house.row(id).path == there
    # When its folder is read next, the names in it are those that were there before.
    house.drag(there, here)
    house.scan()
    assert house.review(id).label == "normal" and house.row(id).path == here


def test_copy_is_no_move_until_the_first_is_gone(house: Watched) -> None:
    id = house.image("normal")
    here, there = house.row(id).path, f"anomaly/a.{id}.png"
    shutil.copy(house.root / here, house.root / there)
    assert house.scan() == 0 and house.scan() == 0 and house.said(id) == []
    assert house.files == sorted([here, there])
    # As a program does that moves by copying.
    (house.root / here).unlink()
    assert house.scan() == 1 and house.row(id).path == there


def test_renamed_file_without_its_id_is_found_by_its_bytes(house: Watched) -> None:
    ids = [house.image("normal", name=f"{n}.png", seed=n) for n in range(3)]
    house.drag(house.row(ids[1]).path, "anomaly/scratch on the left.png")
    assert house.scan() == 1
    assert [house.said(id) for id in ids] == [[], ["anomaly"], []]
    assert house.row(ids[1]).path == "anomaly/scratch on the left.png"


def test_renamed_duplicate_is_the_one_that_is_gone(house: Watched) -> None:
    first, second, third = (house.image("normal", name=f"{n}.png", seed=5) for n in range(3))
    house.drag(house.row(second).path, "anomaly/renamed.png")
    assert house.scan() == 1
    assert [house.said(id) for id in (first, second, third)] == [[], ["anomaly"], []]


def test_copy_under_another_name_is_no_move_until_the_first_is_gone(house: Watched) -> None:
    id = house.image("normal")
    shutil.copy(house.root / house.row(id).path, house.root / "anomaly/copy.png")
    assert house.scan() == 0
    (house.root / house.row(id).path).unlink()
    assert house.scan() == 1 and house.row(id).path == "anomaly/copy.png"


def test_copy_that_was_read_half_is_read_again_once_it_is_whole(house: Watched) -> None:
    id = house.image("normal")
    content = (house.root / house.row(id).path).read_bytes()
    (house.root / house.row(id).path).unlink()
    (house.root / "anomaly/slow.png").write_bytes(content[:20])
    assert house.scan() == 0
    with (house.root / "anomaly/slow.png").open("ab") as file:
        file.write(content[20:])
    assert house.scan() == 1 and house.said(id) == ["anomaly"]


def test_whole_folder_dragged_is_many_labels(house: Watched) -> None:
    ids = [house.image("anomaly", name=f"{n}.png", seed=n) for n in range(200)]
    house.scan()
    house.drag("anomaly/lid/2026-01-31", "normal/all fine")
    assert house.scan() == 200
    assert all(house.row(id).path.startswith("normal/all fine/") and house.said(id) == ["normal"] for id in ids)


def test_moved_within_a_side_is_no_label_and_its_path_follows(house: Watched) -> None:
    id = house.image("normal")
    house.drag(house.row(id).path, f"normal/box 7/a.{id}.png")
    assert house.scan() == 0
    assert house.said(id) == [] and house.row(id).path == f"normal/box 7/a.{id}.png"


def test_dragged_into_quarantine_or_away_is_no_label(house: Watched, tmp_path: Path) -> None:
    one, other = house.image("normal"), house.image("normal", name="b.png", seed=1)
    house.drag(house.row(one).path, f"quarantine/a.{one}.png")
    (house.root / house.row(other).path).rename(tmp_path / "away.png")
    assert house.scan() == 0
    assert house.said(one) == house.said(other) == []
    assert house.row(one).state == house.row(other).state == "placed"
    house.drag(f"quarantine/a.{one}.png", f"anomaly/a.{one}.png")
    assert house.scan() == 1 and house.said(one) == ["anomaly"]


def test_what_the_service_is_moving_is_nobodys_label(house: Watched) -> None:
    id = house.image("normal")
    here = house.row(id).path
    there = here.replace("normal", "anomaly")
    with house.engine.begin() as connection:
        images.send(connection, [images.Sent(id, "scored", here, there)])
    house.drag(here, there)  # as a crash would leave it: moved, and not finished
    assert house.scan() == 0 and house.said(id) == []
    assert house.recover() == 1
    assert house.scan() == 0 and house.said(id) == []


def test_first_delivery_is_nobodys_label(house: Watched) -> None:
    id = house.image("normal", state="scored")
    house.drag(house.row(id).path, house.row(id).destination)
    assert house.scan() == 0
    house.recover()
    assert house.scan() == 0 and house.said(id) == []


def test_missing_image_that_comes_back_is_placed_again(house: Watched) -> None:
    id = house.image("normal", state="missing")
    assert house.scan() == 0
    assert house.row(id).state == "placed" and house.said(id) == []


@pytest.mark.parametrize("name", [".hidden.{id}.png", "a.{id}.png.part", "@eaDir/a.{id}.png"])
def test_ignored_names_are_not_looked_at(house: Watched, name: str) -> None:
    id = house.image("normal")
    house.drag(house.row(id).path, "anomaly/" + name.format(id=id))
    assert house.scan() == 0


def test_foreign_files_links_and_odd_names_are_left_alone(house: Watched, tmp_path: Path) -> None:
    id = house.image("normal")
    (house.root / "anomaly/foreign.png").write_bytes(image_bytes(99))
    (house.root / "anomaly/empty.png").write_bytes(b"")
    (tmp_path / "elsewhere").mkdir()
    (house.root / "anomaly/link").symlink_to(tmp_path / "elsewhere")
    (house.root / f"anomaly/{id}.png").symlink_to(house.root / house.row(id).path)
    odd = os.fsencode(house.root) + b"/anomaly/\xff." + id.encode() + b".png"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    assert house.scan() == 0 and house.scan() == 0


def test_owner_of_the_file_is_who_labelled_unless_it_is_the_service_itself(house: Watched) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may give files away")
    known = next(user for user in pwd.getpwall() if user.pw_uid not in (0, os.geteuid()))
    unknown = next(uid for uid in range(50_000, 60_000) if uid not in {user.pw_uid for user in pwd.getpwall()})
    for seed, (uid, name) in enumerate([(known.pw_uid, known.pw_name), (unknown, None), (os.geteuid(), None)]):
        id = house.image("normal", name=f"{seed}.png", seed=seed)
        there = house.drag(house.row(id).path, f"anomaly/{seed}.{id}.png")
        os.chown(house.root / there, uid, -1)
        house.scan()
        assert house.review(id).labelled_by == name


@pytest.mark.parametrize("copied", [False, True])
def test_last_id_in_a_name_counts(house: Watched, copied: bool) -> None:
    """An image that was sorted goes back to `incoming/`, is sorted anew, and then somebody drags the result."""
    first = house.image("normal", name="p.png")
    (house.root / house.row(first).path).unlink()  # it left for incoming/
    second = house.image("normal", name=f"p.{first}.png")
    house.scan()
    here = house.row(second).path
    assert here.endswith(f"p.{first}.{second}.png")
    there = here.replace("normal/", "anomaly/", 1)
    if copied:
        (house.root / there).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(house.root / here, house.root / there)
        # The first one's file is gone, and still this is no image of it: its second time lies where it should.
        assert house.scan() == 0
        (house.root / here).unlink()
    else:
        house.drag(here, there)
    assert house.scan() == 1 and house.said(first) == []
    assert house.review(second).label == "anomaly" and house.row(second).path == there
    assert house.row(first).path.startswith("normal/")


def test_file_whose_original_cannot_be_looked_at_is_no_image_that_moved(
    house: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    id = house.image("normal")
    house.scan()
    here = house.row(id).path
    (house.root / "anomaly/copy").mkdir()
    shutil.copy(house.root / here, house.root / f"anomaly/copy/{id}.png")
    real = os.stat

    def stat(path, *args, **options):
        if path == Path(here).name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(path, *args, **options)

    monkeypatch.setattr(os, "stat", stat)
    assert house.scan() == 0
    monkeypatch.setattr(os, "stat", real)
    assert house.scan() == 0 and house.said(id) == []


# Memory of folders


def test_only_folders_that_changed_are_read_again_and_of_those_only_new_names_are_told(root: Path) -> None:
    for folder in ("normal/a", "normal/b"):
        (root / folder).mkdir()
        (root / folder / "1").touch()
    now = [(root / "normal/b").stat().st_mtime_ns + 10_000_000_000]
    memory = FolderIndex(root, ("normal",), NAMES, clock_ns=lambda: now[0])
    first = [listed for listed in memory.scan() if listed is not None]
    assert {listed.folder: listed.new for listed in first} == {"normal": [], "normal/a": ["1"], "normal/b": ["1"]}
    assert [listed for listed in memory.scan() if listed is not None] == []
    (root / "normal/b/2").touch()
    [changed] = [listed for listed in memory.scan() if listed is not None]
    assert (changed.folder, changed.new) == ("normal/b", ["2"])


def test_folder_that_changed_just_now_is_read_once_more(root: Path) -> None:
    (root / "normal/a").mkdir()
    now = [(root / "normal/a").stat().st_mtime_ns + 1_000_000]
    memory = FolderIndex(root, ("normal",), NAMES, clock_ns=lambda: now[0])
    assert sum(listed is not None for listed in memory.scan()) == 2
    now[0] += 10_000_000_000
    assert sum(listed is not None for listed in memory.scan()) == 2
    assert sum(listed is not None for listed in memory.scan()) == 0


def test_memory_of_names_is_bounded_and_forgets_what_was_read_first(root: Path) -> None:
    for folder in range(4):
        (root / f"normal/{folder}").mkdir()
        for name in range(10):
            (root / f"normal/{folder}/{name}").touch()
    memory = FolderIndex(root, ("normal",), NAMES, names_max=20, clock_ns=lambda: 0)
    list(memory.scan())
    assert memory._names_held <= 20 and len(memory) == 5
    told = {listed.folder: len(listed.new) for listed in memory.scan() if listed is not None}
    assert told["normal/0"] == 10


def test_folders_that_are_gone_are_forgotten(root: Path) -> None:
    (root / "normal/a/b").mkdir(parents=True)
    memory = FolderIndex(root, ("normal",), NAMES)
    list(memory.scan())
    shutil.rmtree(root / "normal/a")
    list(memory.scan())
    assert len(memory) == 1


# Through the real daemon


@pytest.mark.parametrize("mode", ["events", "polling"])
def test_daemon_finds_what_was_dragged_and_labels_nothing_of_its_own(root: Path, drop, mode: str) -> None:
    install(root)
    (root / "tamis.toml").write_text(SETTINGS + f'watch_mode = "{mode}"\n')
    for number in range(6):
        drop(f"{number}.png", brightness=20 if number % 2 else 220, seed=number)
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(root) == 6, "six images finished")
        found = {row["file_name"]: row["path"] for row in rows(root)}
        (root / "normal/by Ada").mkdir()
        (root / found["0.png"]).rename(root / "normal/by Ada" / Path(found["0.png"]).name)
        (root / found["1.png"]).rename(root / "anomaly/renamed.png")
        shutil.copy(root / found["3.png"], root / "anomaly/copy.png")

        def labels() -> dict[str, tuple[str, str]]:
            return {row["file_name"]: (row["label"], row["path"]) for row in rows(root) if row["label"]}

        wait_until(lambda: len(labels()) == 2, "two labels")
        drop("last.png", brightness=20, seed=99)
        wait_until(lambda: finished(root) == 7, "the last finished")
        assert daemon.stop() == 0, daemon.log_text()
        assert "labelled by folder" in daemon.log_text()
    assert labels() == {
        "0.png": ("normal", f"normal/by Ada/{Path(found['0.png']).name}"),
        "1.png": ("anomaly", "anomaly/renamed.png"),
    }
    assert {row["state"] for row in rows(root)} == {"placed"} and len(rows(root)) == 7
    assert len(list((root / "training").rglob("*.png"))) == 2


def test_daemon_makes_the_training_set_agree_when_it_starts(root: Path) -> None:
    install(root)
    (root / "tamis.toml").write_text(SETTINGS)
    engine = open_database(root)
    house = House(root, engine)
    id = house.image("normal")
    house.label(id, "normal")
    engine.dispose()
    kept = root / f"training/lid/normal/a.{id}.png"
    kept.unlink()
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(kept.is_file, "the training image")
        assert daemon.stop() == 0
