"""Thumbnails: an image and its anomaly map as data URIs, small enough that a page of them loads quickly."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

from models.data.datasets import read_mask
from models.data.select_images import ImageSize
from models.detector import UInt8Array
from models.errors import DatasetError
from models.evaluation.evaluate import Read
from models.evaluation.metrics import common_size, shrunk_mask
from service.evaluation.worst_mistakes import Mistake
from service.imaging.overlay import overlay
from service.imaging.read import UNREADABLE

SIDE_MAX = 400
_QUALITY = 85
_OUTLINE = (0, 229, 255)
_OUTLINE_PX = 2


@dataclass(frozen=True)
class Thumbnail:
    """A mistake as the page shows it: data URIs, None where the file could not be read again; `error` says why."""

    mistake: Mistake
    image: str | None
    map: str | None
    size: tuple[int, int] | None
    outlined: bool = False
    error: str | None = None


def thumbnail(mistake: Mistake, pixel_threshold: float, read: Read, size_of: ImageSize) -> Thumbnail:
    """Return `mistake` drawn, at most `SIDE_MAX` pixels on the longer side: its image, read again, with the labelled
    defect outlined, and its map over it.
    """
    try:
        size = common_size(*size_of(mistake.sample.path), SIDE_MAX)
        image = read(mistake.sample.path, size)
    except UNREADABLE as error:
        return Thumbnail(mistake, None, None, None, error=str(error))
    outlined = _outlined(image, mistake)
    return Thumbnail(
        mistake,
        image=_data_uri(image if outlined is None else outlined),
        map=_data_uri(overlay(image, mistake.map, pixel_threshold)),
        size=size,
        outlined=outlined is not None,
    )


def _outlined(image: UInt8Array, mistake: Mistake) -> UInt8Array | None:
    """Return `image` with a line around the labelled defect; None where no mask of its shape was drawn."""
    if mistake.sample.mask is None:
        return None
    from scipy import ndimage

    try:
        mask = read_mask(mistake.sample.mask)
    except DatasetError:
        return None  # listed with what was left out already
    size = image.shape[:2]
    if mask.shape[0] < size[0] or mask.shape[1] < size[1]:
        return None
    small = shrunk_mask(mask, (size[0], size[1]))
    line = ndimage.binary_dilation(small, iterations=_OUTLINE_PX + 1) & ~ndimage.binary_dilation(small)
    drawn = np.array(image)
    drawn[line] = _OUTLINE
    return drawn


def _data_uri(image: UInt8Array) -> str:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
