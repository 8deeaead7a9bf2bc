"""Training data: which images a retraining learns from, and which ones the gate may compare on.

What people last said of an image overrules the role that an earlier version gave it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.data.image_list import FITTED_TO, read_image_list
from models.registry import (
    ROLE_CALIBRATE,
    ROLE_CALIBRATE_ANOMALY,
    ROLE_TRAIN_ANOMALY,
    file_sha256,
    read_manifest,
)
from service.root import TRAINING
from service.storage.retrainings import KnownImage

_ANOMALIES = frozenset({ROLE_TRAIN_ANOMALY, ROLE_CALIBRATE_ANOMALY})


@dataclass(frozen=True)
class TrainingData:
    """The images to learn from; `gone` are missing or changed, `overruled` champion's normals that people undid."""

    normals: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    anomalies: tuple[Path, ...]
    gone: int
    overruled: int


def select_training_data(root: Path, champion: Path, known: Mapping[str, KnownImage]) -> TrainingData:
    """Return what a retraining of the version in the folder `champion` learns from, given the labelled images `known`.

    The version's own images keep their roles, except those that people labelled. An image that any earlier version was
    fitted to does not calibrate: weights may have come down from that version.
    """
    fitted = fitted_to(champion)
    normals: list[Path] = []
    calibrate: list[Path] = []
    anomalies: list[Path] = []
    gone = overruled = 0
    for listed in read_image_list(champion):
        image, path = known.get(listed.sha256), root / listed.path
        if image is not None:
            overruled += listed.role not in _ANOMALIES and (image.label != "normal" or image.role == "golden")
        elif not _is_unchanged(path, listed.sha256):
            gone += 1
        elif listed.role in _ANOMALIES:
            anomalies.append(path)
        else:
            (calibrate if listed.role == ROLE_CALIBRATE else normals).append(path)
    for image in known.values():
        if image.label is None or image.role == "golden":
            continue
        path = path_of(root, image)
        if not _is_unchanged(path, image.sha256):
            gone += 1
        elif image.label == "anomaly":
            anomalies.append(path)
        else:
            (calibrate if image.role == "calibrate" and image.sha256 not in fitted else normals).append(path)
    return TrainingData(tuple(normals), tuple(calibrate), tuple(anomalies), gone, overruled)


def golden(root: Path, versions: list[Path], known: Mapping[str, KnownImage]) -> dict[str, list[Path]]:
    """Return the golden images, by `normal` and `anomaly`, that no version in the folders `versions` has seen.

    Nor may a version that these started from. They are sorted by hash, so that the order is always the same.
    """
    seen = set().union(*(fitted_to(folder) | {each.sha256 for each in read_image_list(folder)} for folder in versions))
    found: dict[str, list[Path]] = {"normal": [], "anomaly": []}
    for sha256, image in sorted(known.items()):
        if image.role == "golden" and image.label is not None and sha256 not in seen:
            path = path_of(root, image)
            if _is_unchanged(path, sha256):
                found[image.label].append(path)
    return found


def calibration_images(root: Path, versions: list[Path], known: Mapping[str, KnownImage]) -> list[Path]:
    """Return the normals that calibrated the first of `versions` and that none of them was fitted to."""
    fitted = set().union(*(fitted_to(folder) for folder in versions))
    return [
        path
        for listed in sorted(read_image_list(versions[0]), key=lambda listed: listed.sha256)
        if listed.role == ROLE_CALIBRATE
        and listed.sha256 not in fitted
        and (known[listed.sha256].label == "normal" if listed.sha256 in known else True)
        and _is_unchanged(path := root / listed.path, listed.sha256)
    ]


def fitted_to(version: Path) -> set[str]:
    """Return the sha256 of each image that the version in the folder `version`, or one before it, was fitted to."""
    found: set[str] = set()
    seen: set[Path] = set()
    folder: Path | None = version
    while folder is not None and folder not in seen and folder.is_dir():
        seen.add(folder)
        found |= {listed.sha256 for listed in read_image_list(folder) if listed.role in FITTED_TO}
        before = read_manifest(folder).manifest.training.warm_start
        folder = folder.with_name(before) if before else None
    return found


def path_of(root: Path, image: KnownImage) -> Path:
    """Return where an image of the training set lies; its row names it relative to the root."""
    path = Path(image.path)
    return root / path if path.parts[:1] == (TRAINING,) else root / TRAINING / path


def _is_unchanged(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False
