"""`tamis review` and `tamis import` as processes: what they change, what they print, what they refuse."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from sqlalchemy import text

from service.labelling.import_images import Imported, import_images
from service.storage import reviews
from service.storage import training_images as training_images
from service.storage.database.open import open_database
from service.storage.training_images import TrainingImageRow
from tests.conftest import image_bytes
from tests.service.commands.test_cli import REPOSITORY, tamis
from tests.service.labelling.test_label import House


@pytest.fixture
def house(root: Path) -> Iterator[House]:
    engine = open_database(root)
    yield House(root, engine)
    engine.dispose()


def uncertain(house: House, count: int, product: str = "lid") -> list[str]:
    """Return ids of images in the review queue, in its order."""
    ids = [house.image("anomaly", name=f"{n}.png", seed=n, product=product) for n in range(count)]
    with house.engine.begin() as connection:
        for number, id in enumerate(ids):
            connection.execute(
                text("UPDATE images SET uncertainty = :u, uncertain = 1 WHERE id = :id"),
                {"u": 0.9 - number / 100, "id": id},
            )
    return ids


def answer(house: House, keys: str, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "service", "review", "--next", "--root", str(house.root), *options],
        cwd=REPOSITORY, input="\n".join(keys) + "\n", capture_output=True, text=True, check=False,
    )  # fmt: skip


# tamis review ID…


def test_review_labels_by_id_and_says_where_files_are_now(house: House) -> None:
    ids = [house.image("anomaly", name=f"{n}.png", seed=n) for n in range(2)]
    ended = tamis("review", *ids, "--label", "normal", "--by", "Ada", "--note", "light", "--root", house.root, "--json")
    assert ended.returncode == 0, ended.stderr
    labelled = json.loads(ended.stdout)["labelled"]
    assert [one["id"] for one in labelled] == ids and all((house.root / one["path"]).is_file() for one in labelled)
    assert all(one["path"].startswith("normal/") and one["state"] == "placed" for one in labelled)
    with house.engine.connect() as connection:
        [said] = reviews.history(connection, ids[0])
    assert (said.label, said.labelled_by, said.source, said.note) == ("normal", "Ada", "command", "light")
    ended = tamis("review", ids[0], "--label", "none", "--root", house.root)
    assert ended.returncode == 0 and "anomaly/" in ended.stdout and house.said(ids[0]) == ["normal", None]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "expected ids of images with --label, or --next; found neither"),
        (("X",), 2, "no --label"),
        (("X", "--next"), 2, "found both"),
        (("X", "--label", "good"), 2, "good"),
        (("X", "--label", "normal", "--product", "lid"), 2, "--product"),
        (("--next", "--label", "normal"), 2, "each image is asked for"),
        (("X", "--label", "normal"), 1, "found no image X"),
    ],
)
def test_review_refuses_and_names_what_it_expected(
    root: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    ended = tamis("review", *arguments, "--root", root)
    assert ended.returncode == code and message in ended.stderr and "Traceback" not in ended.stderr


# tamis review --next


def test_next_walks_the_queue_from_piped_answers_with_skip_and_undo(house: House) -> None:
    ids = uncertain(house, 5)
    ended = answer(house, "nasunaq", "--json")
    # 0 normal, 1 anomaly, 2 skipped, undone, 2 normal, 3 anomaly, then the end.
    assert ended.returncode == 0, ended.stderr
    assert [house.said(id) for id in ids] == [["normal"], ["anomaly"], ["normal"], ["anomaly"], []]
    assert [one["label"] for one in json.loads(ended.stdout)["labelled"]] == ["normal", "anomaly", "normal", "anomaly"]
    assert ids[0] in ended.stderr and "score 1, threshold 2" in ended.stderr


def test_undo_takes_the_label_back_and_asks_again(house: House) -> None:
    ids = uncertain(house, 2)
    assert answer(house, "nua").returncode == 0
    assert house.said(ids[0]) == ["normal", None, "anomaly"] and house.said(ids[1]) == []


def test_undo_goes_back_over_several_and_says_when_there_is_nothing_left(house: House) -> None:
    ids = uncertain(house, 2)
    ended = answer(house, "nauuuq")
    assert "nothing to undo" in ended.stderr and ended.stdout == "0 labelled\n"
    assert [house.said(id)[-1] for id in ids] == [None, None]


def test_next_ends_with_the_queue_or_the_input_and_asks_again_after_a_wrong_key(house: House) -> None:
    ids = uncertain(house, 2)
    uncertain(house, 1, product="cup")
    ended = answer(house, "xnn", "--product", "lid")
    assert ended.returncode == 0 and "nothing more to review" in ended.stderr and "found 'x'" in ended.stderr
    assert [house.said(id) for id in ids] == [["normal"], ["normal"]] and ended.stdout == "2 labelled\n"
    assert answer(house, "").returncode == 0


# tamis import


def originals(folder: Path, count: int = 3) -> list[Path]:
    folder.mkdir(exist_ok=True)
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        path.write_bytes(image_bytes(200, seed=number))
    return paths


def training_rows(house: House) -> list[TrainingImageRow]:
    with house.engine.connect() as connection:
        return training_images.page(connection, 0, 1000)


def take(house: House, files: list[Path], label: str = "normal", product: str = "lid") -> list[Imported]:
    limits = {"file_bytes_max": 10**8, "pixels_max": 10**8}
    return list(import_images(house.root, house.engine, files, label, product, by="ada", burst_gap_s=1.0, **limits))


def test_import_copies_and_leaves_the_originals_and_skips_what_cannot_be_read(house: House, tmp_path: Path) -> None:
    paths = originals(tmp_path / "old")
    (tmp_path / "old/broken.png").write_bytes(b"no image")
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}
    ended = tamis(
        "import",
        tmp_path / "old",
        "--label",
        "anomaly",
        "--product",
        "lid",
        "--by",
        "Ada",
        "--root",
        house.root,
        "--json",
    )
    assert ended.returncode == 0, ended.stderr
    report = json.loads(ended.stdout)
    assert (report["added"], report["skipped"]) == (3, 1) and "broken.png" in ended.stderr
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths} == before
    for row in training_rows(house):
        assert (row.label, row.image_id, row.added_by) == ("anomaly", None, "Ada")
        assert row.path.startswith("training/lid/anomaly/") and (house.root / row.path).stat().st_nlink == 1
    again = tamis("import", tmp_path / "old", "--label", "anomaly", "--product", "lid", "--root", house.root, "--json")
    assert json.loads(again.stdout)["unchanged"] == 3 and len(training_rows(house)) == 3


def test_import_with_another_label_moves_what_is_kept(house: House, tmp_path: Path) -> None:
    paths = originals(tmp_path / "old")
    take(house, paths)
    roles = [row.role for row in training_rows(house)]
    assert [one.outcome for one in take(house, paths[:1], "anomaly")] == ["relabelled"]
    assert [row.label for row in training_rows(house)] == ["anomaly", "normal", "normal"]
    assert [row.role for row in training_rows(house)] == roles
    kept = sorted(path.parent.name for path in (house.root / "training").rglob("*.png"))
    assert kept == ["anomaly", "normal", "normal"]


def test_import_of_bytes_that_went_through_is_a_label_on_that_image(house: House, tmp_path: Path) -> None:
    id = house.image("anomaly", seed=7)
    (tmp_path / "again.png").write_bytes((house.root / house.row(id).path).read_bytes())
    assert [one.outcome for one in take(house, [tmp_path / "again.png"])] == ["labelled"]
    assert house.said(id) == ["normal"] and house.row(id).path.startswith("normal/")
    assert [one.outcome for one in take(house, [tmp_path / "again.png"])] == ["unchanged"]
    assert house.said(id) == ["normal"] and [row.image_id for row in training_rows(house)] == [id]


def test_import_again_restores_what_was_lost_from_the_folder(house: House, tmp_path: Path) -> None:
    paths = originals(tmp_path / "old", 1)
    take(house, paths)
    [row] = training_rows(house)
    (house.root / row.path).unlink()
    take(house, paths)
    assert (house.root / row.path).read_bytes() == paths[0].read_bytes() and training_rows(house) == [row]


def test_import_that_was_ended_before_its_row_is_taken_up_by_the_next(house: House, tmp_path: Path) -> None:
    paths = originals(tmp_path / "old", 1)
    take(house, paths)
    [row] = training_rows(house)
    with house.engine.begin() as connection:
        connection.execute(text("DELETE FROM training_pictures"))
    take(house, paths)
    assert [path.relative_to(house.root) for path in (house.root / "training").rglob("*.png")] == [Path(row.path)]


def test_files_written_in_one_second_have_roles_of_their_own_and_a_cameras_burst_shares_one(
    house: House, tmp_path: Path
) -> None:
    plain = originals(tmp_path / "plain", 40)
    for path in plain:
        os.utime(path, ns=(0, 10**18))
    take(house, plain)
    assert {row.role for row in training_rows(house)} == {"train", "calibrate", "golden"}
    burst = []
    for number in range(20):
        image = Image.new("RGB", (40, 30), (number, 100, 100))
        exif = Image.Exif()
        exif.get_ifd(0x8769)[0x9003] = f"2025:06:01 10:00:{number:02d}"
        path = tmp_path / f"{number}.jpg"
        image.save(path, exif=exif)
        burst.append(path)
    take(house, burst, product="cup")
    cups = [row for row in training_rows(house) if row.product == "cup"]
    assert len({row.role for row in cups}) == 1 and cups[3].taken_at.isoformat() == "2025-06-01T10:00:03+00:00"


@pytest.mark.parametrize(
    ("make", "arguments", "code", "message"),
    [
        (lambda folder: None, ("--label", "normal"), 1, "expected images"),
        (lambda folder: (folder / "a.png").write_bytes(b"x"), ("--label", "normal"), 1, "none of 1 can be read"),
        (lambda folder: None, ("--label", "none"), 2, "found none"),
        (lambda folder: None, ("--label", "normal", "--product", "../up"), 2, "product"),
    ],
)
def test_import_refuses_and_names_what_it_expected(
    root: Path, tmp_path: Path, make, arguments: tuple[str, ...], code: int, message: str
) -> None:
    folder = tmp_path / "given"
    folder.mkdir()
    make(folder)
    ended = tamis("import", folder, *arguments, "--root", root)
    assert ended.returncode == code and message in ended.stderr and "Traceback" not in ended.stderr
