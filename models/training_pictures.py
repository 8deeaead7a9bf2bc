"""Chooses the pictures of a training: which can be read, which train, which calibrate, at what size.

Names do not matter: pictures are told apart by their bytes and divided by a seeded hash of them. Knows no
network; reading is done by the functions that it is given.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from models.calibrate import calibration_images_needed, lowest_rate
from models.detector import UInt8Array
from models.errors import DatasetError, TooFewImages
from models.progress import Progress
from models.registry import file_sha256

Read = Callable[[Path, tuple[int, int]], UInt8Array]
ImageSize = Callable[[Path], tuple[int, int]]

SIDE_MULTIPLE = 32
SIDE_MIN = 64
TRAINING_IMAGES_MIN = 16
CALIBRATION_SHARE = 0.2
# More pictures than these change little and cost time; a larger calibration set only if the rate asks for it.
TRAINING_IMAGES_MAX = 4000
CALIBRATION_IMAGES_MAX = 1000
UNREADABLE_SHARE_MAX = 0.1


@dataclass(frozen=True)
class TrainingPicture:
    """A picture that can be read: where it lies, the sha256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Chosen:
    """The pictures of a training, in the order of their seeded hashes; `skipped` are path and reason."""

    train: tuple[TrainingPicture, ...]
    calibrate: tuple[TrainingPicture, ...]
    input_size: tuple[int, int]
    skipped: tuple[tuple[Path, str], ...]


def choose_pictures(
    paths: Sequence[Path],
    *,
    side: int,
    seed: int,
    false_alarm_rate: float,
    read: Read,
    image_size: ImageSize,
    unreadable: tuple[type[Exception], ...],
    report: Callable[[Progress], None],
) -> Chosen:
    """Return which of `paths` train and which calibrate, each read once to know that it can be.

    `unreadable` are the exceptions by which `read` and `image_size` say that a picture is to blame; it is then
    skipped. Raises DatasetError without paths or if more than 10 % are unreadable, TooFewImages if what is left
    does not do for the rate.
    """
    if not paths:
        raise DatasetError("training: expected pictures; found none")
    skipped: list[tuple[Path, str]] = []
    ordered = _in_seeded_order(_distinct(paths, unreadable, skipped), seed)
    most = TRAINING_IMAGES_MAX + max(CALIBRATION_IMAGES_MAX, calibration_images_needed(false_alarm_rate))
    sizes = {p: size for p in ordered[:most] if (size := _size_of(p, image_size, unreadable, skipped))}
    if not sizes:
        raise DatasetError(f"training: expected pictures; none of {len(paths)} can be read, {_first(skipped)}")
    input_size = fitting_size(list(sizes.values()), side)
    readable = list(_readable(list(sizes), input_size, read, unreadable, skipped, report))
    looked_at = len(readable) + len(skipped)
    if len(skipped) > UNREADABLE_SHARE_MAX * looked_at:
        raise DatasetError(
            f"training: expected at most {UNREADABLE_SHARE_MAX:.0%} unreadable pictures; "
            f"found {len(skipped)} of {looked_at}, {_first(skipped)}"
        )
    calibration = calibration_count(len(readable), false_alarm_rate)
    return Chosen(
        train=tuple(readable[calibration : calibration + TRAINING_IMAGES_MAX]),
        calibrate=tuple(readable[:calibration]),
        input_size=input_size,
        skipped=tuple(skipped),
    )


def fitting_size(sizes: Sequence[tuple[int, int]], side: int) -> tuple[int, int]:
    """Return height and width for pictures of `sizes` (height, width): area about side², their median aspect.

    Both are multiples of 32 and at least 64: 3:2 landscape at a side of 384 gives (320, 480). Strips longer than
    the area allows are squeezed.
    """
    aspect = statistics.median(width / height for height, width in sizes)
    longest = (side / SIDE_MIN) ** 2  # beyond it the short side could not shrink any more, and the area would grow
    aspect = min(max(aspect, 1 / longest), longest)
    return _rounded(side / math.sqrt(aspect)), _rounded(side * math.sqrt(aspect))


def calibration_count(found: int, false_alarm_rate: float) -> int:
    """Return how many of `found` pictures calibrate: what the rate needs, and a fifth where that is more.

    Raises TooFewImages if fewer than 16 were left to train, naming the rate that `found` would do for.
    """
    needed = calibration_images_needed(false_alarm_rate)
    if found < needed + TRAINING_IMAGES_MIN:
        left = found - TRAINING_IMAGES_MIN
        advice = (
            f"{found} do for a rate of {lowest_rate(left):g} or more"
            if left >= 1
            else f"at least {TRAINING_IMAGES_MIN + 1} are needed at any rate"
        )
        raise TooFewImages(
            f"training at a false-alarm rate of {false_alarm_rate:g}: needs {needed + TRAINING_IMAGES_MIN} different "
            f"normal pictures ({needed} to calibrate, {TRAINING_IMAGES_MIN} to train); found {found}; {advice}"
        )
    fifth = min(math.ceil(CALIBRATION_SHARE * found), CALIBRATION_IMAGES_MAX, found - TRAINING_IMAGES_MIN)
    return max(needed, fifth)


def _distinct(
    paths: Sequence[Path], unreadable: tuple[type[Exception], ...], skipped: list[tuple[Path, str]]
) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(paths):
        try:
            found.setdefault(file_sha256(path), path)
        except unreadable as error:
            skipped.append((path, str(error)))
    return found


def _in_seeded_order(found: dict[str, Path], seed: int) -> list[TrainingPicture]:
    def key(sha256: str) -> bytes:
        return hashlib.sha256(f"{seed}|{sha256}".encode()).digest()

    return [TrainingPicture(found[sha256], sha256) for sha256 in sorted(found, key=key)]


def _size_of(
    picture: TrainingPicture,
    image_size: ImageSize,
    unreadable: tuple[type[Exception], ...],
    skipped: list[tuple[Path, str]],
) -> tuple[int, int] | None:
    try:
        return image_size(picture.path)
    except unreadable as error:
        skipped.append((picture.path, str(error)))
        return None


def _readable(
    pictures: Sequence[TrainingPicture],
    size: tuple[int, int],
    read: Read,
    unreadable: tuple[type[Exception], ...],
    skipped: list[tuple[Path, str]],
    report: Callable[[Progress], None],
) -> Iterator[TrainingPicture]:
    def failure(picture: TrainingPicture) -> str | None:
        try:
            read(picture.path, size)
        except unreadable as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(2) as pool:
        for done, (picture, why) in enumerate(zip(pictures, pool.map(failure, pictures), strict=True), start=1):
            if why is None:
                yield picture
            else:
                skipped.append((picture.path, why))
            note = None if why is None else f"skipped {picture.path}: {why}"
            report(Progress("reading", done, len(pictures), note))


def _rounded(side: float) -> int:
    return max(SIDE_MIN, SIDE_MULTIPLE * round(side / SIDE_MULTIPLE))


def _first(skipped: Sequence[tuple[Path, str]]) -> str:
    path, why = skipped[0]
    return f"the first being {path}: {why}"
