"""Draws an anomaly map over its image, in units of the calibrated pixel threshold, so that colours mean the same for
every image and model: nothing below half of it, yellow at it, red from three times it on.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from isal import isal_zlib
from PIL import Image, ImageDraw

from models.detector import Float32Array, UInt8Array
from models.evaluation.metrics import common_size
from models.regions import Region, find_regions, in_threshold_units, on_common_grid

DRAWN_SIDE_MAX = 1600
"""Pixels of the longer side of an overlay, at most."""

PANEL_SIDE_MAX = 1024
"""Pixels of the longer side of each of the three images side by side, at most."""

_FADE_FROM = 0.5
_FULL_AT = 3.0
_OPACITY = 0.65
# Visible on yellow and red, on dark parts and light.
_BOX_COLOUR = (0, 230, 255)
_GAP = 8
_REACH = 3  # cells
_PNG_FILTER_UP = 2
_PNG_ROWS = 64

# For each of 256 steps from 0 to `_FULL_AT`, in units of the threshold: how strong, how opaque, and which colour.
_UNITS = np.arange(256) * _FULL_AT / 255
_STRENGTH = np.clip((_UNITS - _FADE_FROM) / (_FULL_AT - _FADE_FROM), 0, 1)
_ALPHA = np.rint(255 * _OPACITY * np.sqrt(_STRENGTH)).astype(int).tolist()
_WARM = np.stack([np.full(256, 255.0), 220 * (1 - _STRENGTH), np.zeros(256)], axis=1)
_ON_DARK = np.minimum(1, _UNITS)[:, np.newaxis] * _WARM


def drawn_size(height: int, width: int, side_max: int = DRAWN_SIDE_MAX) -> tuple[int, int]:
    """Return the height and width at which an image of `height` x `width` is drawn: its own, or bounded."""
    return common_size(height, width, side_max)


def regions_of(anomaly_map: Float32Array, pixel_threshold: float, height: int, width: int) -> tuple[Region, ...]:
    """Return the regions of `anomaly_map`, float32 `(h, w)`, in pixels of its image of `height` x `width`."""
    return find_regions(in_threshold_units(anomaly_map, pixel_threshold), height, width)


def overlay(
    image: UInt8Array,
    anomaly_map: Float32Array,
    pixel_threshold: float,
    regions: Sequence[Region] = (),
    image_size: tuple[int, int] | None = None,
) -> UInt8Array:
    """Return `image`, uint8 `(H, W, 3)`, with `anomaly_map`, float32 `(h, w)`, drawn over it in units of
    `pixel_threshold`.

    `regions` are framed; they are in pixels of an image of `image_size` (height, width), of `image` if not given.
    """
    canvas = Image.fromarray(np.ascontiguousarray(image))
    draw_over(canvas, anomaly_map, pixel_threshold, regions, image_size or image.shape[:2])
    return np.asarray(canvas)


def draw_over(
    canvas: Image.Image,
    anomaly_map: Float32Array,
    pixel_threshold: float,
    regions: Sequence[Region],
    image_size: tuple[int, int],
) -> None:
    """Draw as `overlay` does, but into `canvas`, of mode RGB: copies of a large one are slow."""
    size = (canvas.height, canvas.width)
    grey = _grey_grid(in_threshold_units(anomaly_map, pixel_threshold))
    box = _box_above(grey, size)
    # Most of an image shows nothing of its map: only the box around what does is enlarged and blended.
    if box is not None:
        colours = _enlarged(grey, size, box)
        mask = colours.point(_ALPHA)
        colours.putpalette(np.rint(_WARM).astype(np.uint8).tobytes())
        canvas.paste(colours.convert("RGB"), box[:2], mask)
    _draw_boxes(canvas, regions, image_size)


def side_by_side(
    image: UInt8Array,
    anomaly_map: Float32Array,
    pixel_threshold: float,
    regions: Sequence[Region] = (),
    image_size: tuple[int, int] | None = None,
) -> UInt8Array:
    """Return image, map and overlay with framed regions, each uint8 `(H, W, 3)`, from left to right with gaps.

    Arguments as of `overlay`. The map's scale is the overlay's, on dark.
    """
    height, width = image.shape[:2]
    grey = _grey_grid(in_threshold_units(anomaly_map, pixel_threshold))
    steps = _enlarged(grey, (height, width), (0, 0, width, height))
    steps.putpalette(np.rint(_ON_DARK).astype(np.uint8).tobytes())
    drawn = overlay(image, anomaly_map, pixel_threshold, regions, image_size)
    panels = (image, np.asarray(steps.convert("RGB")), drawn)
    gap = np.full((height, _GAP, 3), 255, np.uint8)
    return np.hstack([panels[0], gap, panels[1], gap, panels[2]])


def save_overlay(path: Path, drawn: UInt8Array) -> None:
    """Write `drawn`, uint8 `(H, W, 3)`, as the PNG `path`, whole or not at all."""
    partial = path.with_name(f".tmp.{path.name}")
    try:
        partial.write_bytes(_png(drawn))
        partial.replace(path)
    except OSError:
        with suppress(OSError):
            partial.unlink()
        raise


def _png(drawn: UInt8Array) -> bytes:
    """Return `drawn` as a PNG (ISO/IEC 15948): each row as its difference from the one above, runs compressed.

    Pillow tries five filters for each row, and zlib searches longer for repeats, which photographs do not have: nine
    times slower for a file of the same size, in a daemon that has images to score.
    """
    height, width, _ = drawn.shape
    rows = drawn.reshape(height, 3 * width)
    packer = isal_zlib.compressobj(1, isal_zlib.DEFLATED, isal_zlib.MAX_WBITS)
    packed = []
    # A few rows at a time: the daemon never gives memory back.
    for top in range(0, height, _PNG_ROWS):
        band = rows[top : top + _PNG_ROWS]
        above = rows[top - 1 : top - 1 + len(band)] if top else np.vstack((np.zeros_like(band[:1]), band[:-1]))
        filtered = np.full((len(band), 3 * width + 1), _PNG_FILTER_UP, np.uint8)
        np.subtract(band, above, out=filtered[:, 1:])
        packed.append(packer.compress(filtered.data))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", b"".join([*packed, packer.flush()])), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(data, zlib.crc32(kind)))
        for kind, data in chunks
    )


def _grey_grid(units: Float32Array) -> UInt8Array:
    """Return the map in units of the threshold, 0 to `_FULL_AT`, as grey levels, on the grid of the regions."""
    grid = np.minimum(on_common_grid(units), np.float32(_FULL_AT)) * np.float32(255 / _FULL_AT)
    return np.rint(grid).astype(np.uint8)


def _box_above(grey: UInt8Array, size: tuple[int, int]) -> tuple[int, int, int, int] | None:
    """Return left, top, right and bottom, in an image of `size` (H, W), of what shows of `grey`; None if nothing."""
    shows = grey > _FADE_FROM * 255 / _FULL_AT
    rows, columns = np.flatnonzero(shows.any(axis=1)), np.flatnonzero(shows.any(axis=0))
    if not len(rows):
        return None
    # Bicubic enlarging reaches two cells beyond, and its overshoot may show where no cell does.
    sides = []
    for found, cells, pixels in ((columns, grey.shape[1], size[1]), (rows, grey.shape[0], size[0])):
        first, last = max(0, int(found[0]) - _REACH), min(cells, int(found[-1]) + 1 + _REACH)
        sides.append((first * pixels // cells, -(-last * pixels // cells)))
    (left, right), (top, bottom) = sides
    return left, top, right, bottom


def _enlarged(grey: UInt8Array, size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    """Return the part in `box` of `grey` enlarged to `size` (H, W), the same as of the whole except for rounding."""
    left, top, right, bottom = box
    down, across = grey.shape[0] / size[0], grey.shape[1] / size[1]
    part = (left * across, top * down, right * across, bottom * down)
    return Image.fromarray(grey).resize((right - left, bottom - top), Image.Resampling.BICUBIC, box=part)


def _draw_boxes(canvas: Image.Image, regions: Sequence[Region], image_size: tuple[int, int]) -> None:
    draw = ImageDraw.Draw(canvas)
    across, down = canvas.width / image_size[1], canvas.height / image_size[0]
    line = max(1, round(max(canvas.size) / 500))
    for region in regions:
        # Around the region, not over its edge.
        left, top = region.x * across - line, region.y * down - line
        right, bottom = (region.x + region.width) * across + line - 1, (region.y + region.height) * down + line - 1
        draw.rectangle((left, top, max(left, right), max(top, bottom)), outline=_BOX_COLOUR, width=line)
