"""`tamis train --from-version`: a version is made once more, bit for bit, from the images that it was made from."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from models.registry import IMAGES, WEIGHTS
from service.labelling.import_images import import_images
from service.storage.database.open import open_database
from tests.service.commands.test_cli import tamis
from tests.support.made_images import make_normals

PIXEL = ("--kind", "pixel", "--steps", 5, "--false-alarm-rate", 0.1, "--seed", 4)


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


def trained(root: Path, *arguments: object) -> dict[str, Any]:
    ended = tamis("train", "--root", root, "--product", "bar", *map(str, arguments), "--json")
    assert ended.returncode == 0, ended.stderr
    return dict(json.loads(ended.stdout))


def listed(root: Path, version: dict[str, Any]) -> list[dict[str, str]]:
    with (root / "models/bar" / version["version"] / IMAGES).open(newline="") as file:
        return list(csv.DictReader(file))


def files(root: Path, version: dict[str, Any]) -> tuple[bytes, list[float]]:
    folder = root / "models/bar" / version["version"]
    manifest = json.loads((folder / "model.json").read_text())
    return (folder / WEIGHTS).read_bytes(), manifest["calibration"]["scores"]


def import_normals(root: Path, engine: Engine, folder: Path) -> None:
    limits = {"file_bytes_max": 10**8, "pixels_max": 10**8}
    list(import_images(root, engine, make_normals(folder), "normal", "bar", by=None, burst_gap_s=1.0, **limits))


def test_version_is_repeated_bit_for_bit_wherever_its_images_are_now(
    root: Path, engine: Engine, tmp_path: Path
) -> None:
    import_normals(root, engine, tmp_path / "good")
    first = trained(root, "--from", root / "training/bar/normal", *PIXEL)
    assert all(line["path"].startswith("training/bar/normal/") for line in listed(root, first))
    # A label has moved one of them since, and there are more images now than there were.
    original = next(path for path in (tmp_path / "good").iterdir())
    assert tamis(
        "import", _folder_with(tmp_path / "one", original), "--label", "anomaly", "--product", "bar", "--root", root
    ).returncode == 0  # fmt: skip
    again = trained(root, "--from-version", first["version"])
    assert (again["repeats"], again["identical"], again["state"]) == (first["version"], True, "challenger")
    assert files(root, again) == files(root, first) and again["version"] != first["version"]
    roles = [{line["sha256"]: line["role"] for line in listed(root, version)} for version in (first, again)]
    assert roles[0] == roles[1]
    twice = trained(root, "--from-version", again["version"])
    assert twice["identical"] and files(root, twice) == files(root, first)


@pytest.mark.long
def test_version_in_folds_with_known_anomalies_is_repeated_with_all_its_roles(root: Path, tmp_path: Path) -> None:
    make_normals(tmp_path / "good", 20)
    bad = make_normals(tmp_path / "bad", 24)[20:]
    folder = _folder_with(tmp_path / "defects", *bad)
    first = trained(root, "--from", tmp_path / "good", "--anomalies", folder, *PIXEL[:4], "--false-alarm-rate", 0.05)
    assert first["calibration_method"] == "cross" and first["calibration_anomalies"] == 4
    again = trained(root, "--from-version", first["version"])
    assert again["identical"] and files(root, again) == files(root, first)
    assert listed(root, again) == listed(root, first) and again["image_auroc"] == first["image_auroc"]


def test_image_that_is_changed_or_gone_is_named(root: Path, tmp_path: Path) -> None:
    make_normals(tmp_path / "good")
    first = trained(root, "--from", tmp_path / "good", *PIXEL)
    spoilt = tmp_path / "good/003.png"
    for spoil, message in (
        (lambda: spoilt.write_bytes(b"retouched"), "003.png has changed, its sha256 is"),
        (spoilt.unlink, "003.png is gone"),
    ):
        spoil()
        ended = tamis("train", "--root", root, "--product", "bar", "--from-version", first["version"])
        assert ended.returncode == 1 and message in ended.stderr and "Traceback" not in ended.stderr
        assert len(list((root / "models/bar").iterdir())) == 1


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ((), 2, "found neither"),
        (("--from", ".", "--from-version", "v1"), 2, "found both"),
        (("--from-version", "v1", "--seed", "3"), 2, "expected no --seed"),
        (("--from-version", "v1"), 1, "model default/v1: product default has no versions"),
    ],
)
def test_what_cannot_be_repeated_is_refused(root: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    ended = tamis("train", "--root", root, *arguments)
    assert ended.returncode == code and message in ended.stderr and "Traceback" not in ended.stderr


def _folder_with(folder: Path, *images: Path) -> Path:
    folder.mkdir()
    for path in images:
        (folder / path.name).write_bytes(path.read_bytes())
    return folder
