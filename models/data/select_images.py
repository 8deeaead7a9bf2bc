"""Chooses the images of a training: which can be read, which train, which calibrate, at what size.

Names do not matter: images are told apart by their bytes and divided by a seeded hash of them. Knows no
network; reading is done by the functions that it is given, how many go where is `models.calibration.split`'s.
"""

from __future__ import annotations

import hashlib
import math
import statistics
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from models.calibration.split import (
    ANOMALIES_MAX,
    CALIBRATION_IMAGES_MAX,
    TRAINING_IMAGES_MAX,
    Method,
    anomalies_held_out,
    fixed_calibration,
    split,
)
from models.calibration.thresholds import calibration_images_needed
from models.detector import UInt8Array
from models.errors import DatasetError
from models.manifest import ValueRange
from models.progress import Progress
from models.registry import file_sha256

Read = Callable[[Path, tuple[int, int]], UInt8Array]
ImageSize = Callable[[Path], tuple[int, int]]

SIDE_MULTIPLE = 32
SIDE_MIN = 64
# Of an image's own side: nearer to that, what is finest is the sensor's noise and the compression's.
OWN_SIDE_SHARE = 0.85
OWN_SIDE_KEPT = 128  # smaller images stay as they are: there is nothing to spare
UNREADABLE_SHARE_MAX = 0.1


@dataclass(frozen=True)
class ProductImages:
    """What one product brings to a training: its normal images, its anomalies if any, its false-alarm rate.

    `calibrate` are normals that are to calibrate and not to train, where there are enough of them for the rate; the
    `normals` then all train. Where there are not, the two are one and divided as if nothing had been said.
    `value_range` is the range of values, low and high, where a person sets it.
    """

    product: str
    normals: Sequence[Path]
    false_alarm_rate: float
    anomalies: Sequence[Path] = ()
    calibrate: Sequence[Path] = ()
    value_range: tuple[float, float] | None = None


@dataclass(frozen=True)
class TrainingImage:
    """An image that can be read: where it lies, the sha256 of its bytes."""

    path: Path
    sha256: str


@dataclass(frozen=True)
class Chosen:
    """The images of one product in a training, in the order of their seeded hashes.

    With the method `split` no image is in both `train` and `calibrate`, with `cross` the two are the same. The
    network never sees `held_out_anomalies`. `skipped` are path and reason, `trimmed` what a fit left out of `train`.
    `roles_given` says that those who calibrate were set apart for it beforehand, and never trained anything.
    `value_range` is for images of more than 8 bits a sample; None where none of those that train has them.
    """

    product: str
    false_alarm_rate: float
    method: Method
    train: tuple[TrainingImage, ...]
    calibrate: tuple[TrainingImage, ...]
    train_anomalies: tuple[TrainingImage, ...]
    held_out_anomalies: tuple[TrainingImage, ...]
    input_size: tuple[int, int]
    skipped: tuple[tuple[Path, str], ...]
    roles_given: bool = False
    trimmed: tuple[TrainingImage, ...] = ()
    value_range: ValueRange | None = None

    def without(self, left_out: Collection[Path]) -> Chosen:
        """Return the same, with the images `left_out` trimmed from those that train."""
        kept = tuple(image for image in self.train if image.path not in left_out)
        return replace(self, train=kept, trimmed=tuple(p for p in self.train if p.path in left_out))


def choose_images(
    products: Sequence[ProductImages],
    *,
    kind: str,
    side: int,
    seed: int,
    read: Read,
    image_size: ImageSize,
    unreadable: tuple[type[Exception], ...],
    report: Callable[[Progress], None],
    method: Method | None = None,
) -> list[Chosen]:
    """Return for each product which of its images train and which calibrate, each read once to know that it can be.

    All have one input size. `unreadable` are the exceptions by which `read` and `image_size` say that an image is
    to blame; it is then skipped. Raises DatasetError for a product without normal images, with more than 10 %
    unreadable ones or with one that is normal and anomaly at once, TooFewImages if what is left does not do.
    """
    found = [_Found(each, seed, image_size, unreadable) for each in products]
    input_size = fitting_size([size for each in found for size in each.sizes_alike(found)], side)
    return [each.choose(kind, input_size, read, report, method) for each in found]


class _Found:
    """The different images of one product, of which those that cannot be read are weeded out step by step."""

    def __init__(
        self, given: ProductImages, seed: int, image_size: ImageSize, unreadable: tuple[type[Exception], ...]
    ) -> None:
        if not given.normals:
            raise DatasetError(f"training of product {given.product}: expected images; found none")
        self.given = given
        self.unreadable = unreadable
        self.skipped: list[tuple[Path, str]] = []
        normals = self._distinct(given.normals)
        anomalies = self._distinct(given.anomalies)
        self.calibrate = self._distinct(given.calibrate)
        normals = {sha256: path for sha256, path in normals.items() if sha256 not in self.calibrate} | self.calibrate
        if both := sorted(set(normals) & set(anomalies)):
            raise DatasetError(
                f"training of product {given.product}: expected each image to be normal or an anomaly; found the "
                f"same bytes as both in {normals[both[0]]} and {anomalies[both[0]]}"
                + (f" and {len(both) - 1} more" if len(both) > 1 else "")
            )
        most = TRAINING_IMAGES_MAX + max(CALIBRATION_IMAGES_MAX, calibration_images_needed(given.false_alarm_rate))
        self.sizes = self._sizes(in_seeded_order(normals, seed)[:most], image_size)
        if not self.sizes:
            raise DatasetError(
                f"training of product {given.product}: expected images; none of {len(given.normals)} can be read, "
                f"{_first(self.skipped)}"
            )
        self.anomalies = list(self._sizes(in_seeded_order(anomalies, seed)[:ANOMALIES_MAX], image_size))

    def sizes_alike(self, others: Sequence[_Found]) -> list[tuple[int, int]]:
        """Return this product's sizes; only the one of median aspect where there are others, as all count alike."""
        sizes = sorted(self.sizes.values(), key=lambda size: size[1] / size[0])
        return sizes if len(others) == 1 else [sizes[len(sizes) // 2]]

    def choose(
        self,
        kind: str,
        input_size: tuple[int, int],
        read: Read,
        report: Callable[[Progress], None],
        method: Method | None,
    ) -> Chosen:
        """Return how the images that can be read at `input_size` are divided."""
        candidates = [*self.sizes, *self.anomalies]
        readable = set(_readable(candidates, input_size, read, self.unreadable, self.skipped, report))
        if len(self.skipped) > UNREADABLE_SHARE_MAX * (len(readable) + len(self.skipped)):
            raise DatasetError(
                f"training of product {self.given.product}: expected at most {UNREADABLE_SHARE_MAX:.0%} unreadable "
                f"images; found {len(self.skipped)} of {len(readable) + len(self.skipped)}, {_first(self.skipped)}"
            )
        normals = [image for image in self.sizes if image in readable]
        anomalies = [image for image in self.anomalies if image in readable]
        fixed = [image for image in normals if image.sha256 in self.calibrate]
        free = [image for image in normals if image.sha256 not in self.calibrate]
        given = fixed_calibration(len(fixed), len(free), self.given.false_alarm_rate) if method is None else None
        if given is not None:
            normals, method = fixed[:given] + free, "split"
        used, calibration = split(len(normals), self.given.false_alarm_rate, method)
        calibration = calibration if given is None else given
        # With folds every image is fitted and scored again for each, so no more than train are of use.
        train = normals[:TRAINING_IMAGES_MAX] if used == "cross" else normals[calibration:][:TRAINING_IMAGES_MAX]
        held_out = anomalies_held_out(len(anomalies), kind)
        return Chosen(
            product=self.given.product,
            false_alarm_rate=self.given.false_alarm_rate,
            method=used,
            train=tuple(train),
            calibrate=tuple(train if used == "cross" else normals[:calibration]),
            train_anomalies=tuple(anomalies[held_out:]),
            held_out_anomalies=tuple(anomalies[:held_out]),
            input_size=input_size,
            skipped=tuple(self.skipped),
            roles_given=given is not None,
        )

    def _distinct(self, paths: Sequence[Path]) -> dict[str, Path]:
        found: dict[str, Path] = {}
        for path in sorted(paths):
            try:
                found.setdefault(file_sha256(path), path)
            except self.unreadable as error:
                self.skipped.append((path, str(error)))
        return found

    def _sizes(self, images: Sequence[TrainingImage], image_size: ImageSize) -> dict[TrainingImage, tuple[int, int]]:
        sizes = {}
        for image in images:
            try:
                sizes[image] = image_size(image.path)
            except self.unreadable as error:
                self.skipped.append((image.path, str(error)))
        return sizes


def fitting_size(sizes: Sequence[tuple[int, int]], side: float) -> tuple[int, int]:
    """Return height and width for images of `sizes` (height, width): area about side², their median aspect.

    Both are multiples of 32 and at least 64: 3:2 landscape at a side of 384 gives (320, 480). Images are never
    enlarged, and come to 85 % of their own side or to 128 at most: what lens and sensor have not resolved costs time
    and accuracy. Strips longer than the area allows are squeezed.
    """
    own = math.sqrt(statistics.median(height * width for height, width in sizes))
    side = min(side, max(SIDE_MIN, min(own, OWN_SIDE_KEPT), OWN_SIDE_SHARE * own))
    aspect = statistics.median(width / height for height, width in sizes)
    longest = (side / SIDE_MIN) ** 2  # beyond it the short side could not shrink any more, and the area would grow
    aspect = min(max(aspect, 1 / longest), longest)
    return _rounded(side / math.sqrt(aspect)), _rounded(side * math.sqrt(aspect))


def in_seeded_order(found: dict[str, Path], seed: int) -> list[TrainingImage]:
    """Return the images of `found`, paths by sha256, in the order of a hash that `seed` goes into."""

    def key(sha256: str) -> bytes:
        return hashlib.sha256(f"{seed}|{sha256}".encode()).digest()

    return [TrainingImage(found[sha256], sha256) for sha256 in sorted(found, key=key)]


def _readable(
    images: Sequence[TrainingImage],
    size: tuple[int, int],
    read: Read,
    unreadable: tuple[type[Exception], ...],
    skipped: list[tuple[Path, str]],
    report: Callable[[Progress], None],
) -> Iterator[TrainingImage]:
    def failure(image: TrainingImage) -> str | None:
        try:
            read(image.path, size)
        except unreadable as error:
            return str(error) or type(error).__name__
        return None

    with ThreadPoolExecutor(2) as pool:
        for done, (image, why) in enumerate(zip(images, pool.map(failure, images), strict=True), start=1):
            if why is None:
                yield image
            else:
                skipped.append((image.path, why))
            note = None if why is None else f"skipped {image.path}: {why}"
            report(Progress("reading", done, len(images), note))


def _rounded(side: float) -> int:
    return max(SIDE_MIN, SIDE_MULTIPLE * round(side / SIDE_MULTIPLE))


def _first(skipped: Sequence[tuple[Path, str]]) -> str:
    path, why = skipped[0]
    return f"the first being {path}: {why}"
