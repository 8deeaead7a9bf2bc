"""Reads and writes `images.csv`: which images a version was made from, and in which roles.

Knows files of a version, and neither where its images are by now nor how one is trained. No torch.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from models.data.select_images import Chosen, TrainingImage, in_seeded_order
from models.errors import DatasetError
from models.registry import (
    IMAGES,
    ROLE_CALIBRATE,
    ROLE_CALIBRATE_ANOMALY,
    ROLE_TRAIN,
    ROLE_TRAIN_AND_CALIBRATE,
    ROLE_TRAIN_ANOMALY,
    ROLE_TRIMMED,
    ModelVersion,
)

COLUMNS = ["sha256", "role", "path"]
FITTED_TO = frozenset({ROLE_TRAIN, ROLE_TRAIN_AND_CALIBRATE, ROLE_TRIMMED, ROLE_TRAIN_ANOMALY})
ROLES = FITTED_TO | {ROLE_CALIBRATE, ROLE_CALIBRATE_ANOMALY}


@dataclass(frozen=True)
class ListedImage:
    """A line of `images.csv`: `path` as it was given, relative to the root where it lay under it."""

    sha256: str
    role: str
    path: Path


def write_image_list(chosen: Chosen, build: Path, root: Path | None = None) -> None:
    """Write `images.csv`: sha256, role (see docs/models.md) and path of each image used or left out.

    A path is relative to `root` where it lies under it, else as given.
    """
    roles: list[tuple[str, Sequence[TrainingImage]]]
    if chosen.method == "cross":
        roles = [(ROLE_TRAIN_AND_CALIBRATE, chosen.train)]
    else:
        roles = [(ROLE_TRAIN, chosen.train), (ROLE_CALIBRATE, chosen.calibrate)]
    roles += [
        (ROLE_TRIMMED, chosen.trimmed),
        (ROLE_TRAIN_ANOMALY, chosen.train_anomalies),
        (ROLE_CALIBRATE_ANOMALY, chosen.held_out_anomalies),
    ]
    with (build / IMAGES).open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for role, images in roles:
            for image in images:
                path = image.path
                if root is not None and path.is_relative_to(root):
                    path = path.relative_to(root)
                writer.writerow((image.sha256, role, path))


def read_image_list(folder: Path) -> list[ListedImage]:
    """Return the images of the version in `folder` in the order in which they are listed.

    Raises DatasetError where the list cannot be read.
    """
    path = folder / IMAGES
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            return parse_image_list(file, path)
    except OSError as error:
        raise DatasetError(f"{path}: expected the images that a version was made from; found {error}") from None


def parse_image_list(lines: Iterable[str], path: Path) -> list[ListedImage]:
    """Return the images listed in `lines`, those of the file `path`; none where it is empty. Raises DatasetError."""
    reader = csv.reader(lines)
    try:
        head = next(reader, COLUMNS)
        if head != COLUMNS:
            raise DatasetError(f"{path}: expected the columns {', '.join(COLUMNS)}; found {', '.join(head) or 'none'}")
        return [ListedImage(sha256, role, Path(name)) for sha256, role, name in reader]
    except (csv.Error, ValueError) as error:
        raise DatasetError(f"{path}, line {reader.line_num}: expected {', '.join(COLUMNS)}; found {error}") from None


def chosen_again(version: ModelVersion, listed: Sequence[ListedImage], found: Mapping[str, Path]) -> Chosen:
    """Return the images of `version` as they were chosen; `found` says by sha256 where each lies now.

    Raises DatasetError for an empty list, or one with a role that is not known here.
    """
    strange = sorted({one.role for one in listed} - ROLES)
    if strange or not listed:
        found_instead = repr(strange[0]) if strange else "none"
        wanted = f"images with the roles {', '.join(sorted(ROLES))}"
        raise DatasetError(f"{version.folder / IMAGES}: expected {wanted}; found {found_instead}")
    calibration, training = version.manifest.calibration, version.manifest.training
    cross = calibration.method == "cross"

    def of(*roles: str) -> tuple[TrainingImage, ...]:
        return tuple(TrainingImage(found[one.sha256], one.sha256) for one in listed if one.role in roles)

    # What a fit left out was among them when it began.
    trained = {one.sha256: one.path for one in of(ROLE_TRAIN, ROLE_TRAIN_AND_CALIBRATE, ROLE_TRIMMED)}
    train = tuple(in_seeded_order(trained, training.seed or 0))
    return Chosen(
        product=version.product,
        false_alarm_rate=version.trained_false_alarm_rate,
        method="cross" if cross else "split",
        train=train,
        calibrate=train if cross else of(ROLE_CALIBRATE),
        train_anomalies=of(ROLE_TRAIN_ANOMALY),
        held_out_anomalies=of(ROLE_CALIBRATE_ANOMALY),
        input_size=version.input_size,
        skipped=(),
        roles_given=training.warm_start is not None,
        value_range=version.manifest.value_range,
    )
