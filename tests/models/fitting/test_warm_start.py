"""A fit that begins with an earlier version's weights, and one that leaves out what it rebuilds worst."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from models.calibration.split import fixed_calibration
from models.data.select_images import ProductImages
from models.errors import DatasetError
from models.fitting.trim import mean_of_highest, worst
from models.fitting.warm_start import WarmStart, read_warm_start, start_features
from models.networks.backbone import DETAIL, FEATURES
from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
from models.networks.segmentation_head import SegmentationHead
from models.registry import ModelVersion
from tests.support.made_images import image_size, make_normals, read
from tests.support.trainings import train_jointly


def retrain(products: ProductImages, destination: Path, **changes: Any) -> ModelVersion:
    given: dict[str, Any] = {
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
    return train_jointly([products], destination=destination, **given | changes)[0]


def roles(version: ModelVersion) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    with (version.folder / "images.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["role"], []).append(Path(row["path"]))
    return found


def test_the_networks_say_the_same_in_a_new_whitening() -> None:
    torch.manual_seed(0)
    features, detail = torch.randn(4000, FEATURES) @ torch.randn(FEATURES, FEATURES), torch.randn(4000, DETAIL) * 3 + 1
    whitening, standardisation = Whitening(), Standardisation(DETAIL)
    whitening.fit(features)
    standardisation.fit(detail)
    autoencoder, head = FeatureAutoencoder().eval(), SegmentationHead().eval()
    parts = {"whitening": whitening, "standardisation": standardisation, "autoencoder": autoencoder, "head": head}
    tensors = {f"evidence.seen.{part}.{name}": t for part, m in parts.items() for name, t in m.state_dict().items()}
    new_whitening, new_standardisation = Whitening(), Standardisation(DETAIL)
    new_whitening.fit(features[:1000] * 1.3 + 0.5)
    new_standardisation.fit(detail[:1000] * 0.7 - 2)

    begun = start_features(WarmStart("v1", tensors), new_whitening, new_standardisation)

    assert begun is not None
    places = features[:48].T.reshape(1, FEATURES, 6, 8), detail[:48].T.reshape(1, DETAIL, 6, 8)
    said = []
    with torch.inference_mode():
        for white, standard, rebuild, find in (
            (whitening, standardisation, autoencoder, head),
            (new_whitening, new_standardisation, begun[0].eval(), begun[1].eval()),
        ):
            whitened = white(places[0])
            residuals = whitened - rebuild(whitened)
            said.append(find(torch.cat([whitened, residuals, standard(places[1])], dim=1)))
    torch.testing.assert_close(said[1], said[0], rtol=1e-3, atol=1e-3)


def test_other_shapes_are_no_start() -> None:
    tensors = {
        f"autoencoder.{name}": tensor.reshape(-1)[:1] for name, tensor in FeatureAutoencoder().state_dict().items()
    }
    before = FeatureAutoencoder()
    kept = {name: tensor.clone() for name, tensor in before.state_dict().items()}
    assert not WarmStart("v1", tensors).fill(before, "autoencoder")
    assert all(torch.equal(kept[name], tensor) for name, tensor in before.state_dict().items())
    assert start_features(WarmStart("v1", tensors), Whitening(), Standardisation(DETAIL)) is None


@pytest.mark.parametrize("kind", ["pixel", pytest.param("feature", marks=pytest.mark.long)])
def test_warm_start_takes_half_the_steps_and_says_from_whom(tmp_path: Path, kind: str) -> None:
    normals = make_normals(tmp_path / "normals")
    given = ProductImages("bar", normals[10:], 0.1, calibrate=normals[:10])
    first = retrain(given, tmp_path / "models", kind=kind)
    second = retrain(given, tmp_path / "models", kind=kind, warm=first.folder, seed=4)
    training = second.manifest.training
    assert (training.warm_start, training.steps) == (first.version, 4)
    assert first.manifest.training.warm_start is None
    assert set(roles(second)["calibrate"]) <= set(normals[:10]) and set(roles(second)["train"]) == set(normals[10:])
    assert read_warm_start(first.folder, "pixel" if kind == "feature" else "feature") is None


def test_a_warm_start_must_not_have_seen_what_calibrates(tmp_path: Path) -> None:
    normals = make_normals(tmp_path / "normals")
    first = retrain(ProductImages("bar", normals[10:], 0.1, calibrate=normals[:10]), tmp_path / "models")
    # Too few are set apart for the rate: all are divided anew, and the first version may have trained on any of them.
    second = retrain(
        ProductImages("bar", normals[4:], 0.1, calibrate=normals[:4]), tmp_path / "models", warm=first.folder, seed=4
    )
    assert second.manifest.training.warm_start is None
    assert second.manifest.calibration.images >= 9


@pytest.mark.parametrize(
    ("calibrate", "train", "rate", "expected"),
    [(99, 16, 0.01, 99), (98, 500, 0.01, None), (250, 500, 0.01, 199), (99, 15, 0.01, None), (5000, 500, 0.01, 999)],
)
def test_images_set_apart_calibrate_where_they_do(
    calibrate: int, train: int, rate: float, expected: int | None
) -> None:
    assert fixed_calibration(calibrate, train, rate) == expected


def test_a_image_that_calibrates_is_no_anomaly(tmp_path: Path) -> None:
    normals = make_normals(tmp_path / "normals")
    copy = Path(shutil.copy(normals[0], tmp_path / "copy.png"))
    with pytest.raises(DatasetError, match=r"000\.png and .*copy\.png"):
        retrain(ProductImages("bar", normals[10:], 0.1, [copy], normals[:10]), tmp_path / "models")


@pytest.mark.parametrize("kind", ["pixel", pytest.param("feature", marks=pytest.mark.long)])
def test_wrong_labels_are_left_out_and_listed(tmp_path: Path, kind: str) -> None:
    normals = make_normals(tmp_path / "normals", 60)
    wrong = []
    for number in (20, 40):
        pixels = np.asarray(Image.open(normals[number])).copy()
        pixels[26:38, 30:50] = [255, 0, 120]
        Image.fromarray(pixels).save(normals[number])
        wrong.append(normals[number])
    given = ProductImages("bar", normals[10:], 0.1, calibrate=normals[:10])
    version = retrain(given, tmp_path / "models", kind=kind, trim_fraction=0.08, steps=40)
    trimmed = {Path(one["path"]) for one in version.manifest.training.trimmed}
    assert len(trimmed) == 4 and (set(wrong) & trimmed)
    if kind == "pixel":
        assert set(wrong) <= trimmed
    listed = roles(version)
    assert set(listed["trimmed"]) == trimmed and not trimmed & set(listed["train"])
    assert version.manifest.training.images == 46 == len(listed["train"])


def test_the_worst_are_the_share_of_different_images_by_their_best_copy() -> None:
    a, b, c, d = (Path(name) for name in "abcd")
    errors = np.array([1, 9, 5, 5, 3, 3, 8, 2], dtype=np.float32)
    assert worst([a, a, b, b, c, c, d, d], errors, 0.25) == {b}
    assert worst([a, a, b, b, c, c, d, d], errors, 0.3) == {b, c}
    assert worst([a, b], errors[:2], 0.0) == frozenset()
    rows = np.array([[0, 0, 0, 10], [3, 3, 3, 3]], dtype=np.float32)
    assert mean_of_highest(rows, 0.25).tolist() == [10, 3]
