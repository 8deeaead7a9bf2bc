"""Training itself, on tiny images: what is chosen, what is published, and that a seed fixes it all."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.calibration.split import split
from models.calibration.thresholds import threshold_at
from models.data.select_images import Chosen, ProductImages, choose_images, fitting_size
from models.errors import DatasetError, ParityFailed
from models.progress import Progress
from models.registry import ModelVersion, verify
from models.runtime.export import check_parity
from models.runtime.openvino_detector import OpenVinoDetector
from models.training import train as training
from tests.support import trainings
from tests.support.made_images import NORMALS, image_size, make_normals, read
from tests.support.trainings import list_versions

REPORTED: list[Progress] = []


def train(images: list[Path], destination: Path, **changes: Any) -> ModelVersion:
    given: dict[str, Any] = {
        "kind": "pixel",
        "profile": "fast",
        "product": "bar",
        "seed": 3,
        "false_alarm_rate": 0.1,
        "read": read,
        "image_size": image_size,
        "minutes_max": 5,
        "report": REPORTED.append,
        "steps": 8,
        "side": 64,
        "method": "split",
    }
    return trainings.train(images, destination=destination, **given | changes)


def choose(images: list[Path], anomalies: Sequence[Path] = (), rate: float = 0.1, **changes: Any) -> Chosen:
    given: dict[str, Any] = {
        "kind": "pixel",
        "side": 64,
        "seed": 0,
        "method": "split",
        "read": read,
        "image_size": image_size,
        "unreadable": (OSError,),
        "report": lambda progress: None,
    }
    return choose_images([ProductImages("bar", images, rate, anomalies)], **given | changes)[0]


@pytest.mark.parametrize(
    ("sizes", "side", "expected"),
    [
        ([(1000, 1500)], 384, (320, 480)),
        ([(1500, 1000)], 384, (480, 320)),
        ([(380, 550)], 384, (320, 448)),
        ([(300, 300)], 256, (256, 256)),
        ([(300, 300)], 384, (256, 256)),
        ([(1080, 1920)], 512, (384, 672)),
        ([(100, 1000)], 384, (96, 864)),
        ([(10_000, 10)], 128, (256, 64)),
        ([(100, 150), (100, 150), (900, 100)], 384, (96, 160)),
        ([(20, 30)], 384, (64, 64)),
    ],
)
def test_input_keeps_area_and_median_aspect_in_multiples_of_32(
    sizes: list[tuple[int, int]], side: int, expected: tuple[int, int]
) -> None:
    assert fitting_size(sizes, side) == expected


def test_each_image_has_one_role_and_names_do_not_matter(normals: list[Path], tmp_path: Path) -> None:
    chosen = choose(normals)
    roles = [{image.sha256 for image in part} for part in (chosen.train, chosen.calibrate)]
    assert len(roles[0] | roles[1]) == NORMALS and not roles[0] & roles[1]
    assert len(roles[1]) == split(NORMALS, 0.1, "split")[1] == 9
    renamed = [Path(shutil.copy(path, tmp_path / f"{-number % 31:03}x.png")) for number, path in enumerate(normals)]
    again = choose(renamed)
    assert [image.sha256 for image in again.train] == [image.sha256 for image in chosen.train]
    assert [image.sha256 for image in again.calibrate] == [image.sha256 for image in chosen.calibrate]
    assert {image.sha256 for image in choose(normals, seed=1).calibrate} != roles[1]


def test_same_bytes_are_used_once(normals: list[Path], tmp_path: Path) -> None:
    copies = [Path(shutil.copy(path, tmp_path)) for path in normals]
    chosen = choose(normals + copies)
    assert len(chosen.train) + len(chosen.calibrate) == NORMALS


def test_unreadable_images_are_skipped_and_said(normals: list[Path], tmp_path: Path) -> None:
    text, cut, gone = tmp_path / "text.png", tmp_path / "cut.png", tmp_path / "gone.png"
    text.write_text("not an image")
    cut.write_bytes(normals[0].read_bytes()[:2000])
    notes: list[Progress] = []
    chosen = choose([*normals, text, cut, gone], report=notes.append)
    assert {path for path, _ in chosen.skipped} == {text, cut, gone}
    assert all(why for _, why in chosen.skipped)
    assert len(chosen.train) + len(chosen.calibrate) == NORMALS
    assert [progress.note for progress in notes if progress.note and "cut.png" in progress.note]


def test_too_many_unreadable_images_are_an_error(normals: list[Path], tmp_path: Path) -> None:
    broken = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(broken):
        path.write_text(f"not an image {number}")
    with pytest.raises(DatasetError, match=r"at most 10% unreadable images; found 4 of 34, the first being .*\d\.png"):
        choose(normals + broken)
    with pytest.raises(DatasetError, match="none of 4 can be read"):
        choose(broken)


def test_no_images_at_all_are_an_error() -> None:
    with pytest.raises(DatasetError, match="found none"):
        choose([])


def test_folder_holds_all_that_is_needed_to_use_and_judge_it(normals: list[Path], tmp_path: Path) -> None:
    energy = {"total_wh": 0.5, "source": "estimated"}
    asked: list[int] = []

    def meter(images: int) -> dict[str, Any]:
        asked.append(images)
        return energy

    version = train(normals, tmp_path, meter=meter, tamis_version="9.9.9")
    assert verify(version.folder, version.sha256) == version
    assert sorted(path.name for path in version.folder.iterdir()) == [
        "images.csv", "model.bin", "model.json", "model.safetensors", "model.xml"
    ]  # fmt: skip
    assert list_versions(tmp_path, "bar") == [version.version]
    assert [path.name for path in tmp_path.iterdir()] == ["bar"]
    manifest = json.loads((version.folder / "model.json").read_text())
    assert manifest["input_size"] == [64, 96] or manifest["input_size"] == list(fitting_size([(64, 96)], 64))
    assert (manifest["kind"], manifest["product"], manifest["tamis_version"]) == ("pixel", "bar", "9.9.9")
    assert manifest["energy"] == energy and asked == [NORMALS - 9]
    assert manifest["training"]["steps"] == 8 and manifest["training"]["seed"] == 3
    assert math.isfinite(manifest["training"]["final_loss"])
    assert set(manifest["training"]["libraries"]) == {"torch", "timm", "openvino", "numpy", "scikit-learn"}
    assert manifest["parity"]["images"] == 16 and manifest["parity"]["max_relative_difference"] < 1e-3
    with (version.folder / "images.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["path"] for row in rows} == {str(path) for path in normals}
    assert [row["role"] for row in rows].count("calibrate") == 9


def test_calibration_scores_are_those_of_the_graph_that_ships(normals: list[Path], tmp_path: Path) -> None:
    version = train(normals, tmp_path)
    detector = OpenVinoDetector(version)
    with (version.folder / "images.csv").open(newline="") as file:
        held_out = [Path(row["path"]) for row in csv.DictReader(file) if row["role"] == "calibrate"]
    scored = detector.score(np.stack([read(path, version.input_size) for path in held_out]))
    np.testing.assert_array_equal(np.sort(scored.scores), version.calibration_scores)
    calibration = version.manifest.calibration
    assert calibration.threshold == threshold_at(scored.scores, 0.1)
    assert calibration.pixel_threshold == pytest.approx(threshold_at(scored.maps.max(axis=(1, 2)), 0.1))


@pytest.mark.parametrize("kind", ["pixel", pytest.param("feature", marks=pytest.mark.long)])
def test_same_seed_gives_the_same_weights(normals: list[Path], tmp_path: Path, kind: str) -> None:
    def weights(name: str, seed: int) -> bytes:
        return (train(normals, tmp_path / name, kind=kind, seed=seed).folder / "model.safetensors").read_bytes()

    assert weights("one", 5) == weights("two", 5) != weights("three", 6)


@pytest.mark.parametrize("kind", ["pixel", "feature"])
def test_a_defect_scores_higher_than_any_held_out_normal(normals: list[Path], tmp_path: Path, kind: str) -> None:
    version = train(normals, tmp_path, kind=kind, steps=60)
    defective = read(normals[0], version.input_size)[np.newaxis].copy()
    height, width = version.input_size
    defective[0, height // 3 : height // 2, : width // 4] = [255, 0, 0]
    scored = OpenVinoDetector(version).score(defective)
    assert scored.scores[0] > version.calibration_scores[-1]
    row, column = np.unravel_index(scored.maps[0].argmax(), scored.maps[0].shape)
    assert row / scored.maps.shape[1] < 0.6 and column / scored.maps.shape[2] < 0.35


def test_tampered_graph_is_refused_and_nothing_is_published(
    normals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    export: Callable[..., None] = training.export_graph

    def tampered(graph: torch.nn.Module, input_size: tuple[int, int], build: Path) -> None:
        kept = {name: tensor.clone() for name, tensor in graph.state_dict().items()}
        with torch.no_grad():
            list(graph.parameters())[-1].add_(0.5)
        export(graph, input_size, build)
        graph.load_state_dict(kept)

    monkeypatch.setattr(training, "export_graph", tampered)
    with pytest.raises(ParityFailed, match="nothing was published"):
        train(normals, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_scores_that_are_no_numbers_are_no_parity(trained: ModelVersion) -> None:
    class Broken(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return torch.full((len(images),), math.nan), images.float()

    images = np.zeros((2, *trained.input_size, 3), dtype=np.uint8)
    with pytest.raises(ParityFailed):
        check_parity(Broken(), OpenVinoDetector(trained), images)


def test_time_limit_ends_the_loop_and_is_said(normals: list[Path], tmp_path: Path) -> None:
    REPORTED.clear()
    version = train(normals, tmp_path, minutes_max=1e-9, steps=500)
    assert version.manifest.training.steps == 1
    assert any("stopped after 1 of 500 steps" in (progress.note or "") for progress in REPORTED)


def test_progress_runs_through_every_stage_to_its_end(normals: list[Path], tmp_path: Path) -> None:
    REPORTED.clear()
    train(normals, tmp_path, kind="feature")
    ended = [progress.stage for progress in REPORTED if progress.done == progress.total]
    rounds = ["training the head, round 1 of 2", "looking for false alarms", "training the head, round 2 of 2"]
    drawing = ["drawing defects", "drawing defects"]
    # The second time of the images that the autoencoder is not trained on.
    assert ended == ["reading", "features", "features", "training", *drawing, *rounds, "exporting", "calibrating"]


def test_failure_leaves_nothing_behind(normals: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(training, "write_manifest", full)
    with pytest.raises(OSError, match="No space left"):
        train(normals, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_unknown_kind_or_profile_is_refused(normals: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a kind"):
        train(normals, tmp_path, kind="forest")
    with pytest.raises(ValueError, match="a profile"):
        train(normals, tmp_path, profile="best")


def test_pool_holds_positions_of_every_image_within_its_bound(tmp_path: Path) -> None:
    from models.fitting.feature_cache import FrozenNetwork, position_pool
    from models.networks.backbone import DETAIL, FEATURES, OVERVIEW, load_extractor

    images = [read(path, (64, 96)) for path in make_normals(tmp_path, 5)]
    network = FrozenNetwork(load_extractor(), (64, 96))
    bound = 5 * 7 * (FEATURES + DETAIL) * 2
    pool, overviews = position_pool(network, images, 5, 0, lambda progress: None, bound)
    assert pool.dtype == torch.float16 and pool.shape == (5 * 7, FEATURES + DETAIL)
    assert overviews.shape == (5, OVERVIEW)
    with torch.inference_mode():
        wanted, overview = load_extractor()(torch.from_numpy(images[2][np.newaxis].copy()))
    nearest = torch.cdist(pool[2 * 7 : 3 * 7].float(), wanted[0].flatten(1).T).min(dim=1)
    assert nearest.values.max() < 0.05
    assert len(set(nearest.indices.tolist())) == 7
    torch.testing.assert_close(overviews[2], overview[0], rtol=1e-3, atol=1e-3)


def test_crops_of_drawn_defects_hold_their_defects(tmp_path: Path) -> None:
    from models.fitting.feature_cache import FrozenNetwork, crop_pool
    from models.networks.backbone import DETAIL, FEATURES, load_extractor
    from models.networks.feature_autoencoder import FeatureAutoencoder, Standardisation, Whitening
    from models.networks.feature_detector import FeaturesAndResiduals

    [image] = [read(path, (224, 256)) for path in make_normals(tmp_path, 1)]
    share = np.zeros((28, 32), dtype=np.float32)
    share[27, 31] = 0.5
    seen = FeaturesAndResiduals(load_extractor(), Whitening(), FeatureAutoencoder(), Standardisation(DETAIL)).eval()
    crops = crop_pool(FrozenNetwork(seen, (224, 256)), [(image, share)] * 4, 4, 3, 0, lambda progress: None)
    assert crops.seen.shape == (12, 2 * FEATURES + DETAIL, 24, 24) and crops.seen.dtype == torch.float16
    with_defect = crops.defect_share.flatten(1).amax(1)
    assert set(with_defect.tolist()) <= {0.0, 0.5} and (with_defect > 0).sum() >= 6
    with torch.inference_mode():
        places, _ = seen(torch.from_numpy(image[np.newaxis].copy()))
    # The defect is in the last row and column, so a crop that holds it is the last one.
    last = crops.seen[int(with_defect.argmax())].float()
    torch.testing.assert_close(last, places[0, :, 4:28, 8:32], rtol=1e-2, atol=5e-2)
