"""Repeats a version: which images it was made from, in which roles and in which order, as `images.csv` lists them.

Knows files of a version, and neither where its images are by now nor how one is trained. No torch.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
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
ROLES = frozenset(
    {
        ROLE_TRAIN,
        ROLE_CALIBRATE,
        ROLE_TRAIN_AND_CALIBRATE,
        ROLE_TRIMMED,
        ROLE_TRAIN_ANOMALY,
        ROLE_CALIBRATE_ANOMALY,
    }
)


@dataclass(frozen=True)
class ListedImage:
    """A line of `images.csv`: `path` as it was given, relative to the root where it lay under it."""

    sha256: str
    role: str
    path: str


def listed_images(version: ModelVersion) -> list[ListedImage]:
    """Return the images of `version` in the order in which they are listed. Raises DatasetError for no such list."""
    path = version.folder / IMAGES
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        if head != COLUMNS:
            raise DatasetError(f"{path}: expected the columns {', '.join(COLUMNS)}; found {', '.join(head) or 'none'}")
        listed = [ListedImage(*line) for line in reader]
    if not listed:
        raise DatasetError(f"{path}: expected the images that the version was made from; found none")
    if strange := sorted({one.role for one in listed} - ROLES):
        raise DatasetError(f"{path}: expected roles {', '.join(sorted(ROLES))}; found {strange[0]!r}")
    return listed


def chosen_again(version: ModelVersion, listed: Sequence[ListedImage], found: Mapping[str, Path]) -> Chosen:
    """Return the images of `version` as they were chosen; `found` says by sha256 where each lies now."""
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
    )
