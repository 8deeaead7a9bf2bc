"""Anomaly maps: draws for people where the detector looked, over an image that is an anomaly or uncertain.

A map is no reason to stop: where none can be drawn or written, the verdict stands without it.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from models.detector import UInt8Array
from models.regions import Region
from service.imaging.decode import DecodedImage, DecodeError, StillChanging, read_file
from service.imaging.decoder import Decoder
from service.imaging.overlay import DRAWN_SIDE_MAX, draw_over, drawn_size, regions_of, save_overlay
from service.inspection.claim import Claim
from service.inspection.inspected_image import InspectedImage
from service.logs import fields
from service.root import ANOMALY, MAPS, PROCESSING

log = logging.getLogger(__name__)


def regions_shown(batch: Sequence[InspectedImage]) -> dict[str, tuple[Region, ...]]:
    """Return by id the regions of those images of `batch` that people look at: anomalies and uncertain ones."""
    found = {}
    for one in batch:
        image, decision = one.image, one.decision
        if decision is None or not (decision.verdict == ANOMALY or decision.uncertain):
            continue
        if image is not None and one.anomaly_map is not None:
            found[one.claim.id] = regions_of(one.anomaly_map, one.pixel_threshold, image.height, image.width)
    return found


class AnomalyMaps:
    """The maps of `root`, in its folder `maps/`."""

    def __init__(self, root: Path, decoder: Decoder | None = None) -> None:
        self._root = root
        self._decoder = decoder or Decoder()
        self._failed_with: int | None = None

    def draw(self, batch: Sequence[InspectedImage], regions: Mapping[str, Sequence[Region]]) -> None:
        """Draw and save the map of each image of `batch` that has an entry in `regions`, by id."""
        for one in batch:
            id, image = one.claim.id, one.image
            if id in regions and image is not None and one.anomaly_map is not None:
                canvas = self._read_canvas(one.claim, image, one.value_range)
                draw_over(canvas, one.anomaly_map, one.pixel_threshold, regions[id], (image.height, image.width))
                self._save(self._root / MAPS / f"{id}.png", np.asarray(canvas))

    def _read_canvas(self, claim: Claim, image: DecodedImage, value_range: tuple[float, float] | None) -> Image.Image:
        """Return the image, RGB, as drawn: read again, since it is too small in memory to show a scratch."""
        try:
            data = read_file(self._root / claim.path, file_bytes_max=sys.maxsize, below=self._root).data
            # It was decoded a moment ago: it is within the limits, whatever these are.
            pixels = self._decoder.within(data, DRAWN_SIDE_MAX, pixels_max=sys.maxsize, value_range=value_range)
            return Image.fromarray(pixels)
        except (DecodeError, StillChanging, OSError):
            height, width = drawn_size(image.height, image.width)
            return Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BICUBIC)

    def _save(self, path: Path, drawn: UInt8Array) -> None:
        """Write the map; log why that fails once, until it succeeds again."""
        try:
            try:
                save_overlay(path, drawn)
            except FileNotFoundError:
                self._make_folder()
                save_overlay(path, drawn)
        except OSError as error:
            if self._failed_with != error.errno:
                log.error("no anomaly map; images are sorted without", extra=fields(reason=error))
            self._failed_with = error.errno
        else:
            self._failed_with = None

    def _make_folder(self) -> None:
        """Make `maps/`, which somebody removed, by way of `processing/`, which is gone too where the root is.

        Made by its path, it could land in the bare mount point and be hidden once the root is mounted again.
        """
        processing = os.open(self._root / PROCESSING, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileExistsError):
                os.mkdir(f"../{MAPS}", dir_fd=processing)
        finally:
            os.close(processing)
