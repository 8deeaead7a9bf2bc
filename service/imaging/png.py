"""PNG: how many chunks a file may have, and samples of 16 bits in full, of which Pillow keeps the upper half.

Pillow inflates and unfilters; where it has no mode for the samples it is asked twice, for the upper bytes and for the
lower ones. gAMA and iCCP are left unused, as for every format: cameras and training images are alike in them.
"""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageFile

from service.imaging.decode_error import DecodeError
from service.imaging.samples import Band, Samples, Values

# An interpreter steps through them; encoders write one for each 8 kB or more.
CHUNKS_MAX = 200_000

_SIGNATURE = 8
_GREY, _RGB, _GREY_ALPHA, _RGBA = 0, 2, 4, 6
# By colour type: the names of 16-bit samples, and how Pillow reads the upper and the lower bytes of them.
_DEEP = {
    _RGB: ("RGB;16", "RGB", "RGB;16B", "RGB;16L"),
    _RGBA: ("RGBA;16", "RGBA", "RGBA;16B", "RGBA;16L"),
}
_BAND_PIXELS = 250_000


def check_png(data: bytes) -> None:
    """Raise DecodeError for a PNG of more chunks than any encoder writes."""
    at, count = _SIGNATURE, 0
    while at + 12 <= len(data):
        count += 1
        if count > CHUNKS_MAX:
            raise DecodeError("damaged", f"expected at most {CHUNKS_MAX} chunks in a PNG; found more")
        at += 12 + int.from_bytes(data[at : at + 4], "big")


def scale_transparency(data: bytes, image: Image.Image) -> None:
    """Have the grey that is not shown in `image` scaled as Pillow scales greys of 2 and 4 bits."""
    value = image.info.get("transparency")
    if data[25] == _GREY and data[24] in (2, 4) and isinstance(value, int):
        image.info["transparency"] = value * 255 // (2 ** data[24] - 1)


def deep_samples(data: bytes) -> Samples | None:
    """Return the samples of the PNG in `data` if they have 16 bits, else None."""
    if len(data) < 33 or data[12:16] != b"IHDR" or data[24] != 16:
        return None
    colour_type = data[25]
    width, height = int.from_bytes(data[16:20], "big"), int.from_bytes(data[20:24], "big")
    if colour_type == _GREY:
        mode, colours = "I;16", 1
    elif colour_type == _GREY_ALPHA:
        mode, colours = "LA;16", 1
    elif colour_type in _DEEP:
        mode, colours = _DEEP[colour_type][0], 3
    else:
        return None
    with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
        transparency = image.info.get("transparency")
    transparent = transparency if isinstance(transparency, tuple) else (transparency,)
    return Samples(
        height,
        width,
        mode,
        16,
        "u",
        3 if colours == 3 else 1,
        lambda: _bands(data, colour_type, height, width),
        transparent=None if colour_type in (_GREY_ALPHA, _RGBA) or transparency is None else transparent,
    )


def _bands(data: bytes, colour_type: int, height: int, width: int) -> Iterator[Band]:
    if colour_type == _GREY:
        parts = [_read(data, None, None)]
    elif colour_type == _GREY_ALPHA:
        # Four bytes a pixel, as they are: grey and alpha, each with its upper byte first
        parts = [_read(data, "RGBA", "RGBA")]
    else:
        _, mode, upper, lower = _DEEP[colour_type]
        parts = [_read(data, mode, upper), _read(data, mode, lower)]
    rows = max(1, _BAND_PIXELS // width)
    for row in range(0, height, rows):
        box = (0, row, width, min(height, row + rows))
        cut: list[Values] = [np.asarray(part.crop(box)) for part in parts]
        if colour_type == _GREY:
            yield row, cut[0][..., np.newaxis], None
            continue
        if colour_type == _GREY_ALPHA:
            values = np.ascontiguousarray(cut[0]).view(">u2")
        else:
            values = cut[0].astype(np.uint16) << 8 | cut[1]
        if colour_type == _RGB:
            yield row, values, None
        else:
            yield row, values[..., :-1], values[..., -1] / 65535


def _read(data: bytes, mode: str | None, rawmode: str | None) -> Image.Image:
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if rawmode is not None:
        assert isinstance(image, ImageFile.ImageFile) and mode is not None
        image._mode = mode
        image.tile = [one._replace(args=rawmode) for one in image.tile]
    image.load()
    return image
