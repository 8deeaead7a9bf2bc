"""Gather: which images a retraining learns from, and which the gate may judge by.

What people last said of an image goes over what an earlier version took it for. Reads rows and lists, hashes files,
writes nothing.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from models.registry import (
    IMAGES,
    ROLE_CALIBRATE,
    ROLE_CALIBRATE_ANOMALY,
    ROLE_TRAIN,
    ROLE_TRAIN_AND_CALIBRATE,
    ROLE_TRAIN_ANOMALY,
    ROLE_TRIMMED,
    file_sha256,
    read_manifest,
)
from service.root import TRAINING
from service.storage.retrainings import KnownImage

FITTED_TO = frozenset({ROLE_TRAIN, ROLE_TRAIN_AND_CALIBRATE, ROLE_TRIMMED, ROLE_TRAIN_ANOMALY})
_ANOMALIES = frozenset({ROLE_TRAIN_ANOMALY, ROLE_CALIBRATE_ANOMALY})


@dataclass(frozen=True)
class ListedImage:
    """A row of a version's `images.csv`."""

    sha256: str
    role: str
    path: Path


@dataclass(frozen=True)
class TrainingData:
    """What there is to learn from. `gone` are images of the champion's that are not there any more or changed since,
    `overruled` such of its normals that a person calls an anomaly, or golden, or takes back.
    """

    normals: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    anomalies: tuple[Path, ...]
    gone: int
    overruled: int


def select_training_data(root: Path, champion: Path, known: Mapping[str, KnownImage]) -> TrainingData:
    """Return what a retraining of the version in the folder `champion` learns from, given what people said.

    Its own images keep their roles, but for those that people spoke of. What any version before it was fitted to
    does not calibrate: weights may have come down from that.
    """
    fitted = fitted_to(champion)
    normals: list[Path] = []
    calibrate: list[Path] = []
    anomalies: list[Path] = []
    gone = overruled = 0
    for listed in read_images(champion):
        said = known.get(listed.sha256)
        if said is not None:
            overruled += listed.role not in _ANOMALIES and (said.label != "normal" or said.role == "golden")
        elif not _is_still(listed.path, listed.sha256):
            gone += 1
        elif listed.role in _ANOMALIES:
            anomalies.append(listed.path)
        else:
            (calibrate if listed.role == ROLE_CALIBRATE else normals).append(listed.path)
    for said in known.values():
        if said.label is None or said.role == "golden":
            continue
        path = path_of(root, said)
        if not _is_still(path, said.sha256):
            gone += 1
        elif said.label == "anomaly":
            anomalies.append(path)
        else:
            (calibrate if said.role == "calibrate" and said.sha256 not in fitted else normals).append(path)
    return TrainingData(tuple(normals), tuple(calibrate), tuple(anomalies), gone, overruled)


def golden(root: Path, versions: list[Path], known: Mapping[str, KnownImage]) -> dict[str, list[Path]]:
    """Return the golden images, by `normal` and `anomaly`, that no version of the folders `versions` has seen.

    Nor may one have seen them that they began with. In the order of their hashes, so that it is always the same.
    """
    seen = set().union(*(fitted_to(folder) | {each.sha256 for each in read_images(folder)} for folder in versions))
    found: dict[str, list[Path]] = {"normal": [], "anomaly": []}
    for sha256, said in sorted(known.items()):
        if said.role == "golden" and said.label is not None and sha256 not in seen:
            path = path_of(root, said)
            if _is_still(path, sha256):
                found[said.label].append(path)
    return found


def calibration_images(versions: list[Path], known: Mapping[str, KnownImage]) -> list[Path]:
    """Return the normals that calibrated the first of `versions` and that none of them was fitted to."""
    fitted = set().union(*(fitted_to(folder) for folder in versions))
    return [
        listed.path
        for listed in sorted(read_images(versions[0]), key=lambda listed: listed.sha256)
        if listed.role == ROLE_CALIBRATE
        and listed.sha256 not in fitted
        and (known[listed.sha256].label == "normal" if listed.sha256 in known else True)
        and _is_still(listed.path, listed.sha256)
    ]


def fitted_to(version: Path) -> set[str]:
    """Return the sha256 of all that the version in the folder `version`, or one that it began with, was fitted to."""
    found: set[str] = set()
    seen: set[Path] = set()
    folder: Path | None = version
    while folder is not None and folder not in seen and folder.is_dir():
        seen.add(folder)
        found |= {listed.sha256 for listed in read_images(folder) if listed.role in FITTED_TO}
        before = read_manifest(folder).manifest.training.warm_start
        folder = folder.with_name(before) if before else None
    return found


def read_images(version: Path) -> list[ListedImage]:
    """Return the rows of `images.csv` in the folder `version`."""
    with (version / IMAGES).open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return [ListedImage(row["sha256"], row["role"], Path(row["path"])) for row in csv.DictReader(file)]


def path_of(root: Path, said: KnownImage) -> Path:
    """Return where the file of an image of the training set lies; its row names it from the root."""
    path = Path(said.path)
    return root / path if path.parts[:1] == (TRAINING,) else root / TRAINING / path


def _is_still(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False
