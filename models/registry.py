"""Owns a model version on disk: the folder `<models>/<product>/<version>`, written elsewhere on the same file system,
renamed into place, never changed afterwards.

`model.json` lists the sha256 of every other file, and the sha256 of its own bytes stands for the whole. Which version
is in use is not a matter of this folder.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from models.appearance import FIGURES
from models.detector import Float32Array
from models.errors import ModelCorrupt, ModelError
from models.manifest import Manifest, parse_manifest

ROLE_TRAIN = "train"
ROLE_CALIBRATE = "calibrate"
ROLE_TRAIN_AND_CALIBRATE = "train+calibrate"  # in folds: no network calibrated with an image that it had seen
ROLE_TRIMMED = "trimmed"  # given to the training, which left it out: its label may be wrong
ROLE_TRAIN_ANOMALY = "train-anomaly"
ROLE_CALIBRATE_ANOMALY = "calibrate-anomaly"

MANIFEST = "model.json"
GRAPH = "model.xml"
GRAPH_WEIGHTS = "model.bin"
WEIGHTS = "model.safetensors"
IMAGES = "images.csv"
REQUIRED = (GRAPH, GRAPH_WEIGHTS, WEIGHTS, IMAGES)
BUILD_PREFIX = ".tmp-"

_READ_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelVersion:
    """A published version whose files were checked when this was made."""

    folder: Path
    manifest: Manifest
    sha256: str

    @property
    def product(self) -> str:
        return self.manifest.product

    @property
    def version(self) -> str:
        """Its name, `YYYYMMDDTHHMMSSZ-<kind>-<6 hex>`; names sort by time."""
        return self.manifest.version

    @property
    def kind(self) -> str:
        return self.manifest.kind

    @property
    def input_size(self) -> tuple[int, int]:
        """Height and width in pixels of the images that it takes."""
        return self.manifest.input_size

    @property
    def calibration_scores(self) -> Float32Array:
        """Scores of the held-out normal images, float32 `(n,)`, ascending."""
        return np.sort(np.asarray(self.manifest.calibration.scores, dtype=np.float32))

    @property
    def calibration_look(self) -> Float32Array | None:
        """How those images look, float32 `(n, 3)` of `models.appearance.FIGURES`, NaN where one is not known, in an
        order of its own; None for versions from before this was kept.
        """
        statistics = self.manifest.calibration.image_statistics
        if statistics is None:
            return None
        return np.array([statistics[name] for name in FIGURES], dtype=np.float32).T

    @property
    def trained_false_alarm_rate(self) -> float:
        """The false-alarm rate asked for in training; another may be applied to `calibration_scores`."""
        return self.manifest.calibration.false_alarm_rate

    @property
    def draft(self) -> bool:
        """Whether its images are read as drafts; versions from before there were any say nothing of it."""
        return self.manifest.decode.draft

    @property
    def value_range(self) -> tuple[float, float] | None:
        """Which values of images of more than 8 bits a sample become 0 to 255, low and high; None where none is known,
        as of versions from before there were any: then 0 to 65535 do.
        """
        return None if self.manifest.value_range is None else self.manifest.value_range.ends

    @property
    def created_at(self) -> datetime:
        """When it was made, UTC."""
        return datetime.fromisoformat(self.manifest.created_at).astimezone(UTC)


def verify(folder: Path, sha256: str | None = None) -> ModelVersion:
    """Return the version in `folder`, having read all its files and compared their hashes; `sha256` is that of
    `model.json`, if known.

    Raises ModelCorrupt naming the file, what was expected and what was found.
    """
    version = read_manifest(folder, sha256)
    files = version.manifest.files
    for name in sorted(set(files) | set(REQUIRED)):
        _check_file(folder, name, files.get(name))
    return version


def read_manifest(folder: Path, sha256: str | None = None) -> ModelVersion:
    """Return the version in `folder`, of whose files only `model.json` was read.

    Arguments and errors as of `verify`.
    """
    path = folder / MANIFEST
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ModelCorrupt(f"{path}: expected a readable file; found {error.strerror or error}") from None
    found = hashlib.sha256(content).hexdigest()
    if sha256 is not None and found != sha256:
        raise ModelCorrupt(f"{path}: expected sha256 {sha256}; found {found}")
    return ModelVersion(folder=folder, manifest=parse_manifest(path, content), sha256=found)


def unpublished(build: Path, input_size: tuple[int, int]) -> ModelVersion:
    """Return the version that is being made in `build`, of which no more is known than how its graph can be loaded."""
    return ModelVersion(build, Manifest.model_construct(input_size=input_size), "")


def write_manifest(manifest: Manifest, build: Path) -> None:
    """Write `model.json`, the last file of a version to be written."""
    (build / MANIFEST).write_bytes(manifest.as_json())


def file_hashes(build: Path) -> dict[str, str]:
    """Return the sha256 of every file in `build` by its name, as `model.json` lists them."""
    return {path.name: file_sha256(path) for path in sorted(build.iterdir())}


def publish(build: Path, destination_root: Path) -> ModelVersion:
    """Move the finished folder `build` to `destination_root/<product>/<version>`; return it as a version.

    `build` lies on the file system of `destination_root`. Every file is checked against `model.json` and
    fsynced first. Raises ModelError if that version exists already, ModelCorrupt if `build` is not whole.
    """
    built = verify(build)
    for part in (built.product, built.version):
        if not part or Path(part).name != part or part.startswith("."):
            raise ModelError(f"{build / MANIFEST}: expected a plain name for a folder; found {part!r}")
    for path in build.iterdir():
        _fsync(path)
    _fsync(build)
    target = destination_root / built.product / built.version
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists():
        raise ModelError(f"{target}: this version exists already; a version is never overwritten")
    build.rename(target)
    _fsync(target.parent)
    _fsync(destination_root)
    return ModelVersion(folder=target, manifest=built.manifest, sha256=built.sha256)


def publish_all(builds: Sequence[Path], destination_root: Path) -> list[ModelVersion]:
    """Publish each of `builds`, or none: what was published before one that fails is removed again."""
    published: list[ModelVersion] = []
    try:
        for build in builds:
            published.append(publish(build, destination_root))
    except BaseException:
        for version in published:
            shutil.rmtree(version.folder, ignore_errors=True)
        raise
    return published


def share_files(shared: Path, build: Path) -> None:
    """Make the folder `build` and put every file of `shared` there, as the same file on the disk where it can be."""
    build.mkdir(parents=True)
    for path in sorted(shared.iterdir()):
        try:
            (build / path.name).hardlink_to(path)
        except OSError:  # a file system without hard links
            shutil.copy2(path, build / path.name)


def remove_build(build: Path) -> None:
    """Remove an unpublished folder of `publish`, whatever it holds; nothing happens if it is gone already."""
    if not build.name.startswith(BUILD_PREFIX):
        raise ValueError(f"{build}: expected a name that begins with {BUILD_PREFIX!r}")
    shutil.rmtree(build, ignore_errors=True)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file's bytes, 64 hex digits."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_READ_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _check_file(folder: Path, name: str, expected: str | None) -> None:
    path = folder / name
    if Path(name).name != name:
        raise ModelCorrupt(f"{folder / MANIFEST}: expected plain file names; found {name!r}")
    if expected is None:
        raise ModelCorrupt(f"{folder / MANIFEST}: expected a sha256 for {name}; found none")
    try:
        found = file_sha256(path)
    except OSError as error:
        raise ModelCorrupt(f"{path}: expected a file with sha256 {expected}; found {error.strerror or error}") from None
    if found != expected:
        raise ModelCorrupt(f"{path}: expected sha256 {expected}; found {found}")


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
