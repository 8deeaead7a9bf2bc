"""Calibration with tiny networks: folds where there are few images, their units, known anomalies."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from models.appearance import appearance_of
from models.calibration.thresholds import threshold_at
from models.data.select_images import ProductImages
from models.errors import DatasetError, ModelError
from models.evaluation.metrics import image_auroc
from models.registry import WEIGHTS, ModelVersion, verify
from models.runtime.openvino_detector import OpenVinoDetector
from models.training.calibrate import in_unit_of
from tests.support import trainings
from tests.support.made_images import image_size, make_normals, read
from tests.support.trainings import list_versions

OPTIONS: dict[str, Any] = {
    "kind": "pixel",
    "profile": "fast",
    "seed": 3,
    "read": read,
    "image_size": image_size,
    "minutes_max": 5,
    "report": lambda progress: None,
    "steps": 8,
    "side": 64,
}


def train(images: list[Path], destination: Path, **changes: Any) -> ModelVersion:
    given = {"product": "bar", "false_alarm_rate": 0.05, **OPTIONS, **changes}
    return trainings.train(images, destination=destination, **given)


def make_anomalies(folder: Path, count: int) -> list[Path]:
    """Save images like the normal ones, with a red square where the bar is."""
    paths = make_normals(folder, count)
    for number, path in enumerate(paths):
        pixels = np.asarray(Image.open(path)).copy()
        pixels[24:34, 20 + number : 32 + number] = [230, 20, 20]
        Image.fromarray(pixels).save(path)
    return paths


def darker(images: list[Path], folder: Path) -> list[Path]:
    """Save `images` with a third of their brightness: as unlike them as another product is."""
    folder.mkdir()
    for path in images:
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(folder / path.name)
    return sorted(folder.iterdir())


def roles(version: ModelVersion) -> list[tuple[str, Path]]:
    with (version.folder / "images.csv").open(newline="") as file:
        return [(row["role"], Path(row["path"])) for row in csv.DictReader(file)]


def test_twenty_normals_do_for_a_false_alarm_rate_of_5_percent(tmp_path: Path) -> None:
    version = train(make_normals(tmp_path / "good", 20), tmp_path)
    calibration = version.manifest.calibration
    assert (calibration.method, calibration.images) == ("cross", 20)
    assert version.manifest.training.images == 20
    assert calibration.fold_steps == (8,) * 5
    image_statistics = version.calibration_look
    assert image_statistics is not None and image_statistics.shape == (calibration.images, 3)
    seen = [appearance_of(read(path, version.input_size)).as_row() for _, path in roles(version)]
    np.testing.assert_allclose(np.sort(image_statistics, axis=0), np.sort(np.asarray(seen), axis=0), atol=1e-3)
    assert calibration.threshold == threshold_at(version.calibration_scores, 0.05)
    assert {role for role, _ in roles(version)} == {"train+calibrate"}
    assert sorted(path.name for path in version.folder.iterdir()) == [
        "images.csv", "model.bin", "model.json", "model.safetensors", "model.xml"
    ]  # fmt: skip
    # No image calibrates with a network that saw it: the network that ships, which saw all, scores otherwise.
    own = OpenVinoDetector(version).score(np.stack([read(path, version.input_size) for _, path in roles(version)]))
    assert not np.isclose(np.sort(own.scores), version.calibration_scores).any()


def test_scores_of_a_fold_come_in_the_unit_of_the_network_that_ships() -> None:
    rng = np.random.default_rng(0)
    wanted = rng.gamma(3.0, size=(50, 2)).astype(np.float32)
    shared = np.arange(50) % 5 != 0
    own = wanted * [3, 0.1] + [7, -2]
    np.testing.assert_allclose(in_unit_of(wanted, own.astype(np.float32), shared), wanted, rtol=1e-4, atol=1e-4)
    unseen = own.copy()
    unseen[~shared, 0] += 6.0
    moved = in_unit_of(wanted, unseen.astype(np.float32), shared)
    np.testing.assert_allclose(moved[~shared, 0], wanted[~shared, 0] + 2.0, rtol=1e-4)
    constant = np.ones((50, 2), dtype=np.float32)
    assert np.isfinite(in_unit_of(wanted, constant, shared)).all()


def test_known_anomalies_are_scored_and_never_trained_on(normals: list[Path], tmp_path: Path) -> None:
    anomalies = make_anomalies(tmp_path / "bad", 4)
    plain = train(normals, tmp_path / "plain", false_alarm_rate=0.1, method="split")
    known = train(normals, tmp_path / "known", false_alarm_rate=0.1, method="split", anomalies=anomalies)
    assert (known.folder / "model.safetensors").read_bytes() == (plain.folder / "model.safetensors").read_bytes()
    assert {path for role, path in roles(known) if role == "calibrate-anomaly"} == set(anomalies)
    scored = OpenVinoDetector(known).score(np.stack([read(path, known.input_size) for path in anomalies]))
    calibration = known.manifest.calibration
    np.testing.assert_array_equal(np.float32(calibration.anomaly_scores), np.sort(scored.scores))
    assert calibration.image_auroc == np.mean(scored.scores[:, None] > known.calibration_scores)
    assert plain.manifest.calibration.anomaly_scores == ()
    assert plain.manifest.calibration.image_auroc is None


def test_a_image_that_is_normal_and_anomaly_at_once_is_an_error(normals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"same bytes as both in .*007\.png and .*007\.png"):
        train(normals, tmp_path, anomalies=[normals[7]])


def test_one_network_for_several_products_with_a_threshold_for_each(normals: list[Path], tmp_path: Path) -> None:
    bolts = make_anomalies(tmp_path / "bolts", 21)
    told: list[int] = []

    def meter(images: int) -> dict[str, Any]:
        told.append(images)
        return {"total_wh": 3.0, "cpu_wh": 2.0, "emissions_g": None, "duration_s": 60.0, "source": "estimated"}

    products = [ProductImages("bar", normals, 0.1), ProductImages("bolt", bolts, 0.05)]
    trained = trainings.train_jointly(products, destination=tmp_path / "models", meter=meter, **OPTIONS)
    bar, bolt = (each.manifest for each in trained)
    assert [list_versions(tmp_path / "models", name) for name in ("bar", "bolt")] == [[trained[0].version]] * 2
    assert [each.product for each in trained] == ["bar", "bolt"]
    for each in trained:
        assert verify(each.folder, each.sha256) == each
        assert each.manifest.joint == ("bar", "bolt")
        assert each.manifest.as_plain()["energy"] == {
            "total_wh": 1.5, "cpu_wh": 1.0, "emissions_g": None, "duration_s": 60.0, "source": "estimated"
        }  # fmt: skip
    for name in ("model.xml", "model.bin", "model.safetensors"):
        assert (trained[0].folder / name).samefile(trained[1].folder / name)
        assert bar.files[name] == bolt.files[name]
    assert (bar.calibration.images, bar.calibration.false_alarm_rate) == (30, 0.1)
    assert (bolt.calibration.images, bolt.calibration.false_alarm_rate) == (21, 0.05)
    assert bar.calibration.threshold != bolt.calibration.threshold
    assert {path for _, path in roles(trained[1])} == set(bolts)
    assert told == [51]


@pytest.mark.long
def test_one_network_measures_each_product_by_its_own_ordinary_images(normals: list[Path], tmp_path: Path) -> None:
    dark = darker(normals, tmp_path / "dark")
    options = OPTIONS | {"kind": "feature", "steps": 20, "method": "split"}
    products = [ProductImages("light", normals, 0.2), ProductImages("dark", dark, 0.2)]
    light_version, dark_version = trainings.train_jointly(products, destination=tmp_path / "models", **options)

    light_tensors, dark_tensors = (load_file(version.folder / WEIGHTS) for version in (light_version, dark_version))
    shared = {name for name, tensor in light_tensors.items() if torch.equal(tensor, dark_tensors[name])}
    own = set(light_tensors) - shared
    assert {name.split(".")[1] for name in shared} >= {"seen", "head"}
    assert own <= {"middle", "spread", "start", "scale", "evidence.overview.mean", "evidence.overview.matrix"}
    assert {"spread", "scale", "evidence.overview.mean"} <= own

    for version, mine, others in ((light_version, normals, dark), (dark_version, dark, normals)):
        detector, size = OpenVinoDetector(version, 1), version.input_size
        scores = detector.score(np.stack([read(path, size) for path in mine])).scores
        strange = detector.score(np.stack([read(path, size) for path in others])).scores
        auroc = image_auroc(np.concatenate([scores, strange]), np.repeat([0, 1], [len(mine), len(others)]))
        assert auroc is not None and auroc > 0.9


def test_no_product_gets_a_version_where_one_cannot_have_it(normals: list[Path], tmp_path: Path) -> None:
    products = [
        ProductImages("bar", normals, 0.1),
        ProductImages("a/b", make_normals(tmp_path / "more", 26), 0.1),
    ]
    with pytest.raises(ModelError, match="plain name"):
        trainings.train_jointly(products, destination=tmp_path / "models", **OPTIONS, method="split")
    assert [path for path in (tmp_path / "models").rglob("*") if path.is_file()] == []
