"""The classifier: what it learns, that its probabilities and maps mean what they say, where its network comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from scipy.special import expit

from models.errors import BackboneUnavailable, TooFewImages
from models.fitting import logistic_regression as linear_head
from models.fitting.logistic_regression import fit_linear_head, platt
from models.networks.classifier import POOLS, ClassifierScoringGraph, pooled
from models.networks.pretrained import BackboneSource, load_pretrained
from models.registry import ModelVersion
from models.runtime.openvino_detector import OpenVinoDetector
from tests.models.training.test_calibrate import OPTIONS, make_anomalies, roles
from tests.support import trainings
from tests.support.made_images import make_normals, read

CHOICE: dict[str, Any] = OPTIONS | {"kind": "classifier", "steps": None, "false_alarm_rate": 0.1, "product": "bar"}


@pytest.fixture(scope="module")
def trained(normals: list[Path], tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    folder = tmp_path_factory.mktemp("classifier")
    anomalies = make_anomalies(folder / "bad", 10)
    return trainings.train(normals, destination=folder / "models", anomalies=anomalies, method="split", **CHOICE)


def test_held_out_anomalies_are_told_from_held_out_normals(trained: ModelVersion) -> None:
    manifest = trained.manifest
    assert (manifest.training.images, manifest.training.anomalies) == (21, 8)
    assert [role for role, _ in roles(trained)].count("calibrate-anomaly") == 2
    assert manifest.calibration.image_auroc == 1.0
    assert 0 < manifest.calibration.threshold < min(manifest.calibration.anomaly_scores) < 1
    assert manifest.architecture["pool"] in POOLS
    assert manifest.architecture["probability"]["anomaly_share"] == 8 / 29


def test_map_is_never_negative_and_highest_at_the_defect(trained: ModelVersion, tmp_path: Path) -> None:
    size = trained.input_size
    image = read(make_anomalies(tmp_path, 12)[11], size)[np.newaxis]
    scored = OpenVinoDetector(trained).score(image)
    stride = trained.manifest.stride
    assert scored.maps.shape == (1, size[0] // stride, size[1] // stride)
    assert (scored.maps >= 0).all() and scored.maps.max() > 0
    row, column = np.unravel_index(scored.maps[0].argmax(), scored.maps[0].shape)
    assert abs((row + 0.5) / scored.maps.shape[1] - 29 / 64) < 0.35
    assert abs((column + 0.5) / scored.maps.shape[2] - 37 / 96) < 0.35


def test_map_adds_up_to_the_log_odds_where_pools_are_averages() -> None:
    torch.manual_seed(0)
    backbone, channels, _ = load_pretrained(BackboneSource())
    parts = POOLS["average of three levels"]
    count = sum(channels)
    graph = ClassifierScoringGraph(backbone, channels, parts, torch.randn(count), torch.randn(count), 0.3).eval()
    images = torch.randint(0, 255, (2, 64, 96, 3), dtype=torch.uint8)
    levels = backbone(images)
    features = torch.cat([pooled(levels, part) for part in parts], dim=1)
    wanted = torch.sigmoid((features - graph.centre) @ graph.weight + 0.3)
    score, activation = graph(images)
    torch.testing.assert_close(score, wanted)
    assert activation.shape == (2, 8, 12)


def test_fewer_than_two_anomalies_are_refused(normals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(TooFewImages, match="at least 2 different images of anomalies"):
        trainings.train(normals, destination=tmp_path, anomalies=make_anomalies(tmp_path / "bad", 1), **CHOICE)


def test_two_anomalies_and_twenty_normals_are_enough(tmp_path: Path) -> None:
    normals, anomalies = make_normals(tmp_path / "good", 20), make_anomalies(tmp_path / "bad", 2)
    version = trainings.train(
        normals, destination=tmp_path / "models", anomalies=anomalies, **CHOICE | {"false_alarm_rate": 0.05}
    )
    assert version.manifest.calibration.method == "cross"
    assert version.manifest.calibration.image_auroc is None
    assert version.manifest.architecture["cross_validation"]["folds"] == 2


def test_probabilities_are_calibrated_on_images_that_were_left_out() -> None:
    rng = np.random.default_rng(1)
    decisions = rng.normal(size=4000)
    anomalies = rng.random(4000) < expit(0.5 * decisions - 1.5)
    slope, intercept = platt(decisions, anomalies)
    assert slope == pytest.approx(0.5, abs=0.1) and intercept == pytest.approx(-1.5, abs=0.1)
    backwards, _ = platt(-decisions, anomalies)
    assert 0 < backwards < 0.01


def test_penalty_and_pool_are_chosen_by_what_was_left_out() -> None:
    rng = np.random.default_rng(2)
    anomalies = np.arange(60) >= 40
    features = rng.normal(size=(60, 30))
    features[:, :3] += 2.0 * anomalies[:, None]
    pools = {"noise": np.arange(10, 30), "signal": np.arange(10)}
    head = fit_linear_head(features, anomalies, pools, seed=0, iterations_max=200, deadline=np.inf)
    assert head.pool == "signal" and head.auroc > 0.9
    assert head.inverse_penalty in linear_head.INVERSE_PENALTIES
    again = fit_linear_head(features, anomalies, pools, seed=0, iterations_max=200, deadline=np.inf)
    np.testing.assert_array_equal(head.weight, again.weight)
    cut = fit_linear_head(features, anomalies, pools, seed=0, iterations_max=200, deadline=-np.inf)
    assert cut.pool == "noise", "after the deadline the first that was tried is taken"


def test_a_resnet_comes_from_a_local_file(tmp_path: Path) -> None:
    whole = timm.create_model("resnet18", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "resnet18.safetensors")
    levels, channels, about = load_pretrained(BackboneSource("resnet18", tmp_path / "resnet18.safetensors"))
    assert channels == (128, 256, 512) and about["name"] == "resnet18" and len(about["weights_sha256"]) == 64
    shapes = [tuple(level.shape) for level in levels(torch.zeros(1, 64, 96, 3, dtype=torch.uint8))]
    assert shapes == [(1, 128, 8, 12), (1, 256, 4, 6), (1, 512, 2, 3)]
    assert levels.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_weights_that_are_not_there_say_what_was_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(BackboneUnavailable, match=r"resnet18: no weights; tried --backbone-weights .* and the hub"):
        load_pretrained(BackboneSource("resnet18"))


def test_files_and_names_that_do_not_fit_are_named(tmp_path: Path) -> None:
    with pytest.raises(BackboneUnavailable, match="backbone resnot: expected a convolutional network of timm"):
        load_pretrained(BackboneSource("resnot"))
    with pytest.raises(BackboneUnavailable, match="vit_tiny"):
        load_pretrained(BackboneSource("vit_tiny_patch16_224"))
    with pytest.raises(BackboneUnavailable, match=r"gone\.safetensors; found no file"):
        load_pretrained(BackboneSource("resnet18", tmp_path / "gone.safetensors"))
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(BackboneUnavailable, match="expected a safetensors file"):
        load_pretrained(BackboneSource("resnet18", tmp_path / "text.safetensors"))
    save_file({"conv1.weight": torch.zeros(2, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(BackboneUnavailable, match=r"expected conv1\.weight of shape \(64, 3, 7, 7\) .* found \(2, 2\)"):
        load_pretrained(BackboneSource("resnet18", tmp_path / "other.safetensors"))
