"""Finds at training the range of each product's images of more than 8 bits a sample, and reads them all in it.

The images are measured as they are read for the first time. Those that train count, and not those that calibrate: to
the detector these are like images to come. What a range comes to is `models.data.value_range`'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from models.data.select_images import Chosen, ProductImages
from models.data.value_range import ValueStatistics, measured_range
from models.detector import UInt8Array
from models.manifest import ValueRange
from models.training.options import Reading


class FirstReading:
    """Reads images for the first time, and keeps what values those of more than 8 bits have. Safe for threads."""

    def __init__(self, reading: Reading) -> None:
        self._reading = reading
        self._measured: dict[Path, ValueStatistics] = {}

    def read(self, path: Path, size: tuple[int, int]) -> UInt8Array:
        """Return the image at `path`; of more than 8 bits nothing but zeros, as its range is not known yet."""
        check = self._reading.check
        if check is None:
            return self._reading.read(path, size)
        found = check(path, size)
        if found is not None:
            self._measured[path] = found
        return np.zeros((*size, 3), dtype=np.uint8)

    def with_ranges(self, chosen: Sequence[Chosen], products: Sequence[ProductImages]) -> list[Chosen]:
        """Return `chosen`, one for each of `products`, with the ranges."""
        return [
            replace(each, value_range=self._range_of(each, given)) for each, given in zip(chosen, products, strict=True)
        ]

    def _range_of(self, chosen: Chosen, given: ProductImages) -> ValueRange | None:
        images = [self._measured[image.path] for image in chosen.train if image.path in self._measured]
        if given.value_range is not None:
            low, high = given.value_range
            return ValueRange(low=low, high=high, source="setting", images=len(images))
        measured = measured_range(images)
        if measured is None:
            return None
        return ValueRange(low=measured[0], high=measured[1], source="measured", images=len(images))


def reading_in_ranges(reading: Reading, chosen: Sequence[Chosen]) -> Reading:
    """Return how the images of `chosen` are read, each in its product's range."""
    ranges = {
        image.path: each.value_range.ends
        for each in chosen
        if each.value_range is not None
        for image in (*each.train, *each.calibrate, *each.train_anomalies, *each.held_out_anomalies)
    }
    return reading if reading.in_ranges is None or not ranges else reading.in_ranges(ranges)
