"""TIFF pages: which of the images in a file is the one that was taken, and whether its description holds together.

`tifffile` reads the structure. It is imported with the first TIFF, and passes over what it cannot read; so what is
needed is checked here, before any pixel is decoded.
"""

from __future__ import annotations

import functools
import io
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import numpy as np

from service.imaging.decode_error import DecodeError, told
from service.imaging.orientation import TAG as ORIENTATION
from service.imaging.orientation import valid

SIGNATURES = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
PAGES_MAX = 1000
SEGMENTS_MAX = 1_000_000
# A tile may reach over the edges of an image: in all by so many times its area, or to that of a small image.
TILED_AREA_RATIO_MAX = 4
TILED_AREA_SMALL = 2048 * 2048
SAMPLES_MAX = 16

MIN_IS_WHITE, MIN_IS_BLACK, RGB, PALETTE, MASK, SEPARATED, YCBCR, CIELAB = 0, 1, 2, 3, 4, 5, 6, 8
RAW_PHOTOMETRICS = {32803: "colour filter array", 34892: "linear raw"}
_OTHER_PHOTOMETRICS = {
    MASK: "transparency mask",
    CIELAB: "CIELab",
    9: "ICCLab",
    10: "ITULab",
    32844: "LogL",
    32845: "LogLuv",
    51177: "depth map",
}
READ_PHOTOMETRICS = {
    MIN_IS_WHITE: "grey, 0 is white",
    MIN_IS_BLACK: "grey, 0 is black",
    RGB: "RGB",
    PALETTE: "palette",
    SEPARATED: "CMYK",
    YCBCR: "YCbCr",
}
_RAW_TAGS = {50706: "DNG", 50648: "Canon raw"}
_REDUCED_OR_MASK = ~2  # of NewSubfileType: a page of several is the only kind beside a plain image


@dataclass(frozen=True)
class Page:
    """One image of a TIFF: what its tags say, checked. `offsets` and `byte_counts` are those of strips or tiles.

    `tile` is height and width of one, None for strips, of which each has `rows`. `extra` says what the samples beyond
    the colours are. `colour_map` holds 3 x 2^bits values of 16 bits. `first` says that whoever reads the first page of
    the file as it is reads this one, and turns nothing.
    """

    height: int
    width: int
    bits: int
    samples: int
    sample_format: int
    photometric: int
    compression: int
    planar: bool
    predictor: int
    fill_order: int
    big_endian: bool
    orientation: int
    extra: tuple[int, ...]
    tile: tuple[int, int] | None
    rows: int
    offsets: tuple[int, ...]
    byte_counts: tuple[int, ...]
    colour_map: tuple[int, ...] | None
    codec_tags: dict[int, Any]
    first: bool


def main_page(data: bytes) -> Page:
    """Return the main image of the TIFF in `data`: the largest that is no thumbnail or mask, the first of several.

    Raises DecodeError: `format` for raw sensor data and for thumbnails alone, `damaged` for what does not hold
    together, `mode` for a kind of samples that is not read, each by its name.
    """
    tifffile = _tifffile()
    try:
        with tifffile.TiffFile(io.BytesIO(data), name="image", _multifile=False) as file:
            pages = list(_pages(tifffile, file))
            _refuse_raw(data, pages)
            full = [page for page in pages if not _number(page, 254, 0) & _REDUCED_OR_MASK and page.subfiletype != 1]
            if not full:
                found = f"{len(pages)} thumbnails or masks" if pages else "no image"
                raise DecodeError("format", f"expected an image in a TIFF; found {found}")
            page = max(full, key=lambda page: _number(page, 256, 0) * _number(page, 257, 0))
            turns = 700 in page.tags or page.tags.valueof(ORIENTATION) not in (None, 1)
            first = page is pages[0] and not file.is_bigtiff and not turns
            return _checked(page, data, first=first, big_endian=file.byteorder == ">")
    except DecodeError:
        raise
    except Exception as error:  # noqa: BLE001  (tifffile raises many types on damaged content)
        raise DecodeError("damaged", f"cannot read the structure of TIFF: {told(error)}") from None


@functools.cache
def _tifffile() -> ModuleType:
    import tifffile

    # What it passes over is checked here, and each file that is refused is logged once by the daemon.
    tifffile.logger().setLevel(logging.CRITICAL + 1)
    return tifffile


def _pages(tifffile: ModuleType, file: Any) -> Iterator[Any]:
    """Yield the pages of the chain, each with those below it."""
    seen: set[int] = set()
    for number in range(PAGES_MAX + 1):
        try:
            page = file.pages[number]
        except IndexError:
            return
        below = [file.pages[number]]
        offsets = page.tags.valueof(330) or ()
        for offset in offsets if isinstance(offsets, tuple) else (offsets,):
            if len(seen) > PAGES_MAX:
                break
            file.filehandle.seek(offset)
            below.append(tifffile.TiffPage(file, (number, len(below))))
        for one in below:
            if one.offset in seen:
                raise DecodeError("damaged", "expected a TIFF's pages to come to an end; found one that comes again")
            seen.add(one.offset)
            yield one
        if len(seen) > PAGES_MAX:
            break
    raise DecodeError("damaged", f"expected at most {PAGES_MAX} pages in a TIFF; found more")


def _refuse_raw(data: bytes, pages: list[Any]) -> None:
    found = next((name for page in pages for tag, name in _RAW_TAGS.items() if tag in page.tags), None)
    photometrics = (_number(page, 262, -1) for page in pages)
    found = found or next((RAW_PHOTOMETRICS[one] for one in photometrics if one in RAW_PHOTOMETRICS), None)
    if found or data[8:10] == b"CR":
        raise DecodeError("format", f"expected an image; found raw sensor data ({found or 'Canon raw'}), not developed")


def _checked(page: Any, data: bytes, *, first: bool, big_endian: bool) -> Page:
    height, width = _number(page, 257, 0), _number(page, 256, 0)
    samples = _number(page, 277, 1)
    if not (0 < height < 2**31 and 0 < width < 2**31):
        raise DecodeError("damaged", f"expected a height and a width in a TIFF; found {height} x {width}")
    if (depth := _number(page, 32997, 1)) != 1:
        raise DecodeError("mode", f"expected a flat image; found a volume of {depth} planes")
    if not 1 <= samples <= SAMPLES_MAX:
        raise DecodeError("mode", f"expected 1 to {SAMPLES_MAX} samples a pixel; found {samples}")
    photometric = _number(page, 262, -1)
    if photometric not in READ_PHOTOMETRICS:
        other = _OTHER_PHOTOMETRICS.get(photometric, "none" if photometric < 0 else f"number {photometric}")
        raise DecodeError("mode", f"expected a photometric of {', '.join(READ_PHOTOMETRICS.values())}; found {other}")
    tiled = page.tags.valueof(322) is not None
    tile = (_number(page, 323, 0), _number(page, 322, 0)) if tiled else None
    rows = min(height, _number(page, 278, height))
    planes = samples if _number(page, 284, 1) == 2 else 1
    offsets, counts = (_numbers(page, tag) for tag in ((324, 325) if tiled else (273, 279)))
    _check_segments(data, (height, width), tile, rows, planes, offsets, counts)
    return Page(
        height=height,
        width=width,
        bits=_same(page, 258, 1, samples, "bits"),
        samples=samples,
        sample_format=_same(page, 339, 1, samples, "sample formats"),
        photometric=photometric,
        compression=_number(page, 259, 1),
        planar=planes > 1,
        predictor=_number(page, 317, 1),
        fill_order=_number(page, 266, 1),
        big_endian=big_endian,
        orientation=valid(page.tags.valueof(ORIENTATION) or 1),
        extra=_numbers(page, 338),
        tile=tile,
        rows=rows,
        offsets=offsets,
        byte_counts=counts,
        colour_map=_numbers(page, 320) or None,
        codec_tags={tag: value for tag in (292, 293, 347, 530) if (value := page.tags.valueof(tag)) is not None},
        first=first,
    )


def _check_segments(
    data: bytes,
    size: tuple[int, int],
    tile: tuple[int, int] | None,
    rows: int,
    planes: int,
    offsets: tuple[int, ...],
    counts: tuple[int, ...],
) -> None:
    height, width = size
    if tile is not None:
        if min(tile) <= 0:
            raise DecodeError("damaged", f"expected tiles with sides; found {tile[1]} x {tile[0]}")
        down, across = -(-height // tile[0]), -(-width // tile[1])
        if down * tile[0] * across * tile[1] > max(TILED_AREA_RATIO_MAX * height * width, TILED_AREA_SMALL):
            raise DecodeError(
                "damaged",
                f"expected tiles that fit an image of {width} x {height}; found {tile[1]} x {tile[0]}",
            )
        number = down * across * planes
    else:
        if rows <= 0:
            raise DecodeError("damaged", "expected strips of at least one row; found none in them")
        number = -(-height // rows) * planes
    part = "strips" if tile is None else "tiles"
    if number > SEGMENTS_MAX or not len(offsets) == len(counts) == number:
        found = f"{len(offsets)} and the lengths of {len(counts)}"
        raise DecodeError("damaged", f"expected {number} {part}, at most {SEGMENTS_MAX}; found {found}")
    for offset, count in zip(offsets, counts, strict=True):
        if count <= 0 or offset <= 0 or offset + count > len(data):
            found = f"{count} bytes at {offset} of {len(data)}"
            raise DecodeError("damaged", f"expected {part} within the file; found one of {found}")


def _number(page: Any, tag: int, default: int) -> int:
    value = page.tags.valueof(tag)
    if value is None:
        return default
    if isinstance(value, tuple) and len(value) == 1:
        value = value[0]
    if not isinstance(value, int):
        raise DecodeError("damaged", f"expected a number in tag {tag}; found {value!r:.60}")
    return int(value)


def _numbers(page: Any, tag: int) -> tuple[int, ...]:
    value = page.tags.valueof(tag)
    if value is None:
        return ()
    # tifffile gives a number, some of them, or an array where it knows of one.
    found = np.atleast_1d(np.asarray(value)).ravel()
    if found.dtype.kind not in "ui":
        raise DecodeError("damaged", f"expected numbers in tag {tag}; found {value!r:.60}")
    return tuple(found.tolist())


def _same(page: Any, tag: int, default: int, samples: int, name: str) -> int:
    """Return what the tag says of all samples alike."""
    found = set(_numbers(page, tag)[:samples]) or {default}
    if len(found) > 1:
        raise DecodeError("mode", f"expected the same {name} for all samples; found {sorted(found)}")
    return found.pop()
