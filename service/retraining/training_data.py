"""Training data: which images a retraining learns from, and which ones the gate may compare on.

What people last said of an image overrules the role that an earlier version gave it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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
from service.filesystem.place import place_of
from service.names import shown_name
from service.root import TRAINING
from service.storage.retrainings import KnownImage

_ANOMALIES = frozenset({ROLE_TRAIN_ANOMALY, ROLE_CALIBRATE_ANOMALY})


@dataclass(frozen=True)
class TrainingData:
    """The images to learn from; `gone` are missing or changed, `overruled` champion's normals that people undid,
    `unreadable` those that are there and cannot be read now, each with the reason.
    """

    normals: tuple[Path, ...]
    calibrate: tuple[Path, ...]
    anomalies: tuple[Path, ...]
    gone: int
    overruled: int
    unreadable: tuple[str, ...] = ()


def select_training_data(root: Path, champion: Path, known: Mapping[str, KnownImage]) -> TrainingData:
    """Return what a retraining of the version in the folder `champion` learns from, given the labelled images `known`.

    The version's own images keep their roles, except those that people labelled. An image that any earlier version was
    fitted to does not calibrate: weights may have come down from that version.
    """
    fitted = fitted_to(champion)
    normals: list[Path] = []
    calibrate: list[Path] = []
    anomalies: list[Path] = []
    unreadable: list[str] = []
    gone = overruled = 0
    for listed in read_image_list(champion):
        image, path = known.get(listed.sha256), root / listed.path
        if image is not None:
            overruled += listed.role not in _ANOMALIES and (image.label != "normal" or image.role == "golden")
        elif not _is_unchanged(path, listed.sha256, unreadable):
            gone += 1
        elif listed.role in _ANOMALIES:
            anomalies.append(path)
        else:
            (calibrate if listed.role == ROLE_CALIBRATE else normals).append(path)
    for image in known.values():
        if image.label is None or image.role == "golden":
            continue
        path = path_of(root, image)
        if not _is_unchanged_below(root, image, unreadable):
            gone += 1
        elif image.label == "anomaly":
            anomalies.append(path)
        else:
            (calibrate if image.role == "calibrate" and image.sha256 not in fitted else normals).append(path)
    return TrainingData(
        tuple(normals), tuple(calibrate), tuple(anomalies), gone - len(unreadable), overruled, tuple(unreadable)
    )


def golden(root: Path, versions: list[Path], known: Mapping[str, KnownImage]) -> dict[str, list[Path]]:
    """Return the golden images, by `normal` and `anomaly`, that no version in the folders `versions` has seen.

    Nor may a version that these started from. They are sorted by hash, so that the order is always the same.
    """
    seen = set().union(*(fitted_to(folder) | {each.sha256 for each in read_image_list(folder)} for folder in versions))
    found: dict[str, list[Path]] = {"normal": [], "anomaly": []}
    for sha256, image in sorted(known.items()):
        if image.role != "golden" or image.label is None or sha256 in seen:
            continue
        if _is_unchanged_below(root, image):
            found[image.label].append(path_of(root, image))
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
    return root / _in_training(image.path)


def _in_training(path: str) -> str:
    return path if path.split("/")[0] == TRAINING else f"{TRAINING}/{path}"


def _is_unchanged_below(root: Path, image: KnownImage, unreadable: list[str] | None = None) -> bool:
    """Return whether the file of `image` has its bytes, without following a link or a path that leads elsewhere."""

    def sha256() -> str:
        with place_of(root, _in_training(image.path), (TRAINING,)) as place:
            return place.sha256()

    return _has(sha256, image.sha256, image.path, unreadable)


def _is_unchanged(path: Path, sha256: str, unreadable: list[str] | None = None) -> bool:
    return _has(lambda: file_sha256(path), sha256, str(path), unreadable)


def _has(hash_of: Callable[[], str], sha256: str, name: str, unreadable: list[str] | None) -> bool:
    """Return whether the file has that hash; what is there and cannot be read is added to `unreadable`."""
    try:
        return hash_of() == sha256
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        if unreadable is not None:
            unreadable.append(f"{shown_name(name)}: {error.strerror or error}")
        return False
