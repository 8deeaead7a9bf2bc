"""TIFF pixels: what a page's strips or tiles hold, by Pillow where it reads them exactly, else as samples.

Compressed bytes are always decoded by libtiff, through Pillow: kinds that Pillow has no mode for are handed to it as
rows of bytes, and the samples taken out of these here. Each strip that is short is an error.
"""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Literal

import numpy as np
from PIL import Image

from service.imaging.decode_error import DecodeError, told
from service.imaging.samples import Band, Samples, Values
from service.imaging.tiff_pages import (
    CIELAB,
    MIN_IS_BLACK,
    MIN_IS_WHITE,
    PALETTE,
    READ_PHOTOMETRICS,
    RGB,
    SEPARATED,
    YCBCR,
    Page,
)

_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS, _LZMA, _ZSTD = 1, 5, 8, 32946, 32773, 34925, 50000
_CCITT, _JPEG = (2, 3, 4), 7
# Those that know nothing of samples: any layout can be decoded as rows of bytes.
_OF_BYTES = {_NONE, _LZW, _DEFLATE, _OLD_DEFLATE, _PACKBITS, _LZMA, _ZSTD}
_NAMES = {
    _NONE: "none",
    _LZW: "LZW",
    _DEFLATE: "Deflate",
    _OLD_DEFLATE: "Deflate",
    _PACKBITS: "PackBits",
    _LZMA: "LZMA",
    _ZSTD: "ZSTD",
    2: "CCITT RLE",
    3: "CCITT group 3",
    4: "CCITT group 4",
    6: "old JPEG",
    _JPEG: "JPEG",
    50001: "WebP",
    9: "JBIG",
    10: "JBIG",
    34661: "JBIG",
    34887: "LERC",
    34892: "lossy JPEG",
    33003: "JPEG 2000",
    33004: "JPEG 2000",
    33005: "JPEG 2000",
    34712: "JPEG 2000",
    33007: "JPEG 2000",
    34933: "PNG",
    34934: "JPEG XR",
    22610: "JPEG XR",
    50002: "JPEG XL",
    52546: "JPEG XL",
    34676: "SGILog",
    32809: "ThunderScan",
    32766: "NeXT",
    34713: "Nikon NEF",
    34925: "LZMA",
}
_FORMATS: dict[int, Literal["u", "i", "f"]] = {1: "u", 2: "i", 3: "f", 4: "u"}
_DTYPES = {(8, "u"), (16, "u"), (32, "u"), (8, "i"), (16, "i"), (32, "i"), (16, "f"), (32, "f"), (64, "f")}
_PACKED_BITS = frozenset({1, 2, 4, 10, 12, 14})
_ASSOCIATED, _UNASSOCIATED = 1, 2
# Strips and rows are decoded in bands of about so many bytes, so that no more is held of what they become.
_BAND_BYTES = 2_000_000
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


def plain_image(data: bytes, page: Page) -> Image.Image | None:
    """Return `page` as an image that is yet to be loaded, if it is of a kind that Pillow reads exactly, else None."""
    if not _is_plain(page):
        return None
    if page.first and page.compression == _NONE and page.bits == 8:
        # As it lies in the file: a copy of so many bytes takes as long as decoding them.
        return Image.open(io.BytesIO(data), formats=("TIFF",))
    tags = {
        256: page.width,
        257: page.height,
        259: page.compression,
        262: page.photometric,
        277: page.samples,
        266: page.fill_order,
        258: (page.bits,) * page.samples,
        317: page.predictor,
        284: 1,
        **page.codec_tags,
    }
    if page.extra:
        tags[338] = page.extra
    if page.colour_map:
        tags[320] = page.colour_map
    return Image.open(io.BytesIO(_file(data, tags, page, page.offsets, page.byte_counts)), formats=("TIFF",))


def samples_of(data: bytes, page: Page) -> Samples:
    """Return the samples of `page`. Raises DecodeError, with the name of what is not read."""
    kind = _FORMATS.get(page.sample_format)
    if kind is None:
        raise DecodeError("mode", f"expected real numbers as samples; found sample format {page.sample_format}")
    if not ((page.bits, kind) in _DTYPES or (page.bits in _PACKED_BITS and kind == "u")):
        raise DecodeError("mode", f"expected samples of a usual type; found {page.bits} bits, {kind!r}")
    if page.compression not in _OF_BYTES:
        name = _NAMES.get(page.compression, f"number {page.compression}")
        what = f"{page.bits} bits, {READ_PHOTOMETRICS[page.photometric]}"
        raise DecodeError("format", f"expected a compression that is read for {what}; found {name}")
    _check_layout(page, kind)
    colours: Literal[1, 3, 4] = {RGB: 3, SEPARATED: 4}.get(page.photometric, 1)  # type: ignore[assignment]
    extra = page.extra[: max(0, page.samples - colours)]
    has_alpha = bool(extra) and extra[0] in (_ASSOCIATED, _UNASSOCIATED) and page.photometric != PALETTE
    return Samples(
        page.height,
        page.width,
        _mode(page, kind, colours, has_alpha),
        page.bits,
        kind,
        colours,
        lambda: _bands(data, page, colours, has_alpha),
        inverted=page.photometric == MIN_IS_WHITE,
        associated=has_alpha and extra[0] == _ASSOCIATED,
        palette=_palette(page) if page.photometric == PALETTE else None,
    )


def bytes_a_pixel(page: Page) -> float:
    """Return how many bytes a pixel of `page` takes while it is decoded, beside the bytes of the file."""
    if _is_plain(page):
        return {1: 1 if page.photometric != PALETTE else 5, 2: 8, 3: 4}.get(page.samples, 8)
    one_strip = page.compression != _NONE
    stored = page.samples * page.bits / 8 if one_strip else 0
    return stored + (4 if page.photometric in (RGB, SEPARATED, PALETTE) else 1)


def _is_plain(page: Page) -> bool:
    """Return whether Pillow reads `page` exactly: up to 8 bits, in the usual layouts."""
    if page.planar or page.sample_format not in (1, 4) or page.predictor not in (1, 2):
        return False
    if page.predictor == 2 and page.bits != 8:
        return False
    if page.compression in _CCITT:
        return page.bits == page.samples == 1 and page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK)
    if page.compression == _JPEG:
        kinds = {(MIN_IS_BLACK, 1), (RGB, 3), (YCBCR, 3)}
        return page.bits == 8 and (page.photometric, page.samples) in kinds
    if page.compression not in _OF_BYTES or page.fill_order != 1:
        return False
    if page.samples == 1:
        if page.photometric == PALETTE:
            return page.bits == 8 and page.colour_map is not None and max(page.colour_map) > 255
        return page.photometric in (MIN_IS_WHITE, MIN_IS_BLACK) and page.bits in (1, 8)
    kind = (page.photometric, page.samples, page.extra)
    return page.bits == 8 and kind in {
        *((RGB, 3, ()), (RGB, 4, (0,)), (RGB, 4, (_UNASSOCIATED,)), (RGB, 4, ())),
        *((MIN_IS_BLACK, 2, (_UNASSOCIATED,)), (SEPARATED, 4, ())),
    }


def _check_layout(page: Page, kind: str) -> None:
    if page.photometric in (YCBCR, CIELAB):
        raise DecodeError("mode", f"expected YCbCr with JPEG compression; found {_NAMES.get(page.compression, '?')}")
    least = {RGB: 3, SEPARATED: 4}.get(page.photometric, 1)
    if page.samples < least:
        raise DecodeError("damaged", f"expected at least {least} samples a pixel; found {page.samples}")
    if page.photometric in (PALETTE, SEPARATED, MIN_IS_WHITE) and kind != "u":
        raise DecodeError("mode", f"expected whole numbers; found {kind!r} as {READ_PHOTOMETRICS[page.photometric]}")
    if page.photometric == SEPARATED and (page.bits not in (8, 16) or page.samples > 5):
        raise DecodeError("mode", f"expected CMYK of 8 or 16 bits; found {page.samples} inks of {page.bits} bits")
    if page.photometric == PALETTE and (page.bits > 16 or page.samples != 1):
        raise DecodeError("mode", f"expected a palette of at most 16 bits; found {page.samples} of {page.bits}")
    if page.predictor not in (1, 2, 3):
        raise DecodeError("format", f"expected predictor 1, 2 or 3; found {page.predictor}")
    if page.predictor == 2 and (page.bits not in (8, 16, 32) or kind == "f"):
        raise DecodeError("format", f"expected predictor 2 on 8, 16 or 32 bits; found it on {page.bits}, {kind!r}")
    if page.predictor == 3 and kind != "f":
        raise DecodeError("format", f"expected predictor 3 on floating point; found it on {page.bits}, {kind!r}")
    if page.fill_order not in (1, 2) or (page.fill_order == 2 and page.bits > 8):
        raise DecodeError("format", f"expected fill order 1, or 2 on up to 8 bits; found {page.fill_order}")


def _mode(page: Page, kind: str, colours: int, has_alpha: bool) -> str:
    """Return what the row says: names as of Pillow, with the bits where they are more than 8."""
    name = {1: "L", 3: "RGB", 4: "CMYK"}[colours] + ("A" if has_alpha else "")
    if page.photometric == PALETTE:
        return "P"
    if kind == "f":
        return "F" if name == "L" and page.bits == 32 else f"{name};{page.bits}F"
    if kind == "i":
        return f"{name};{page.bits}S"
    if name == "L" and page.bits in (1, 16):
        return {1: "1", 16: "I;16"}[page.bits]
    return name if page.bits <= 8 else f"{name};{page.bits}"


def _palette(page: Page) -> Any:
    entries = 2**page.bits
    if page.colour_map is None or len(page.colour_map) != 3 * entries:
        found = 0 if page.colour_map is None else len(page.colour_map)
        raise DecodeError("damaged", f"expected {3 * entries} values in the colour map; found {found}")
    values = np.array(page.colour_map, dtype=np.uint32).reshape(3, entries).T
    # Values are of 16 bits; old programs wrote 8, which libtiff takes for such too.
    return (values if values.max() < 256 else values >> 8).astype(np.uint8)


def _bands(data: bytes, page: Page, colours: int, has_alpha: bool) -> Iterator[Band]:
    full = 2**page.bits - 1 if _FORMATS[page.sample_format] == "u" else 1.0
    planes = page.samples if page.planar else 1
    kept = (colours + has_alpha) if page.planar else 1
    parts = [_plane_bands(data, page, plane, planes) for plane in range(kept)]
    for bands in zip(*parts, strict=True):
        row = bands[0][0]
        values = np.concatenate([one for _, one in bands], axis=2) if page.planar else bands[0][1]
        alpha = values[..., colours].astype(np.float64) / full if has_alpha else None
        yield row, values[..., :colours], alpha


def _plane_bands(data: bytes, page: Page, plane: int, planes: int) -> Iterator[tuple[int, Values]]:
    """Yield the samples of a plane, or of all, band by band: the first row, and values `(rows, W, samples)`."""
    number = len(page.offsets) // planes
    offsets = page.offsets[plane * number : (plane + 1) * number]
    counts = page.byte_counts[plane * number : (plane + 1) * number]
    samples = 1 if planes > 1 else page.samples
    own = replace(page, samples=samples, offsets=offsets, byte_counts=counts)
    for row, rows_of_bytes in _byte_bands(data, own):
        yield row, _values(own, rows_of_bytes)


def _byte_bands(data: bytes, page: Page) -> Iterator[tuple[int, Values]]:
    """Yield rows of bytes, uint8 `(rows, tiles across, bytes of a tile's row)`; a strip is one tile across."""
    tile_height, tile_width = page.tile or (page.rows, page.width)
    across = -(-page.width // tile_width) if page.tile else 1
    row_bytes = -(-tile_width * page.samples * page.bits // 8)
    down = -(-page.height // tile_height)
    tiles = max(1, _BAND_BYTES // max(1, across * row_bytes * tile_height))
    for first in range(0, down, tiles):
        last = min(down, first + tiles)
        chosen = slice(first * across, last * across)
        rows = (last - first) * tile_height
        if page.tile is None:
            rows = min(rows, page.height - first * tile_height)
        top = first * tile_height
        bands = (
            _stored(data, page, chosen, rows, across, row_bytes)
            if page.compression == _NONE
            else _inflated(data, page, chosen, rows, across, row_bytes)
        )
        for row, part in bands:
            if top + row < page.height:
                yield top + row, part[: page.height - top - row]


def _stored(
    data: bytes, page: Page, chosen: slice, rows: int, across: int, row_bytes: int
) -> Iterator[tuple[int, Values]]:
    tile_height = page.tile[0] if page.tile else page.rows
    for number, (offset, count) in enumerate(zip(page.offsets[chosen], page.byte_counts[chosen], strict=True)):
        if number % across == 0:
            row = number // across * tile_height
            height = tile_height if page.tile else min(tile_height, rows - row)
            band = np.empty((height, across, row_bytes), dtype=np.uint8)
        if count < height * row_bytes:
            raise DecodeError("damaged", f"expected {height * row_bytes} bytes in a strip or tile; found {count}")
        part = np.frombuffer(data, dtype=np.uint8, count=height * row_bytes, offset=offset)
        band[:, number % across] = part.reshape(height, row_bytes)
        if number % across == across - 1:
            yield row, np.frombuffer(_REVERSED, dtype=np.uint8)[band] if page.fill_order == 2 else band


def _inflated(
    data: bytes, page: Page, chosen: slice, rows: int, across: int, row_bytes: int
) -> Iterator[tuple[int, Values]]:
    tags = {256: across * row_bytes, 257: rows, 258: 8, 259: page.compression, 262: MIN_IS_BLACK, 277: 1}
    tags |= {266: page.fill_order, 284: 1, 317: 1}
    own = replace(page, tile=(page.tile[0], row_bytes) if page.tile else None)
    content = _file(data, tags, own, page.offsets[chosen], page.byte_counts[chosen])
    with Image.open(io.BytesIO(content), formats=("TIFF",)) as image:
        try:
            image.load()
        except OSError as error:
            name = _NAMES[page.compression]
            raise DecodeError("damaged", f"cannot decode {name} in TIFF: {told(error)}") from None
        step = max(1, _BAND_BYTES // (across * row_bytes))
        for row in range(0, rows, step):
            cut = image.crop((0, row, across * row_bytes, min(rows, row + step)))
            yield row, np.asarray(cut).reshape(-1, across, row_bytes)


def _values(page: Page, rows: Values) -> Values:
    """Return the samples in `rows` of bytes `(rows, across, bytes)` as `(rows, W, samples)`, predictor undone."""
    height, across, _ = rows.shape
    kind = _FORMATS[page.sample_format]
    order = ">" if page.big_endian else "<"
    tile_width = page.tile[1] if page.tile else page.width
    if page.bits in _PACKED_BITS:
        values: Values = _unpacked(rows, page.bits)[..., : tile_width * page.samples]
    elif page.predictor == 3:
        values = _float_predicted(rows, page.bits // 8, page.samples)
    else:
        values = np.ascontiguousarray(rows).view(f"{order}{kind}{page.bits // 8}")
    values = values.reshape(height, across, tile_width, page.samples)
    if page.predictor == 2:
        plain = values.astype(f"={kind}{page.bits // 8}")
        values = np.cumsum(plain, axis=2, dtype=plain.dtype)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native.reshape(height, across * tile_width, page.samples)[:, : page.width]


def _unpacked(rows: Values, bits: int) -> Values:
    """Return values of `bits` each, uint16 `(rows, across, values)`, from rows of bytes that hold them without gaps."""
    group_bits = math.lcm(8, bits)
    size = group_bits // 8
    height, across, count = rows.shape
    groups = np.pad(rows, ((0, 0), (0, 0), (0, -count % size))).reshape(height, across, -1, size)
    values = np.empty((*groups.shape[:3], group_bits // bits), dtype=np.uint16)
    for number in range(values.shape[3]):
        first, last = number * bits // 8, ((number + 1) * bits - 1) // 8
        word = np.zeros(groups.shape[:3], dtype=np.uint32)
        for at in range(first, last + 1):
            word = word << 8 | groups[..., at]
        values[..., number] = (word >> (8 * (last + 1) - (number + 1) * bits)) & (2**bits - 1)
    return values.reshape(height, across, -1)


def _float_predicted(rows: Values, size: int, samples: int) -> Values:
    """Undo Adobe's predictor 3: differences of bytes, which lie by their significance, the highest first."""
    height, across, count = rows.shape
    steps = np.cumsum(rows.reshape(height, across, -1, samples), axis=2, dtype=np.uint8)
    planes = steps.reshape(height, across, size, count // size)
    return np.ascontiguousarray(np.moveaxis(planes, 2, 3)).reshape(height, across, count).view(f">f{size}")


def _file(data: bytes, tags: dict[int, Any], page: Page, offsets: tuple[int, ...], counts: tuple[int, ...]) -> bytes:
    """Return a TIFF of one page with `tags` and these strips or tiles of `data`."""
    parts: list[bytes | memoryview] = []
    placed, at, whole = [], 8, memoryview(data)
    for offset, count in zip(offsets, counts, strict=True):
        # Libtiff wants each to begin at an even place.
        parts += [whole[offset : offset + count], b"\0" * (count % 2)]
        placed.append(at)
        at += count + count % 2
    if page.tile is None:
        tags = {**tags, 278: page.rows, 273: tuple(placed), 279: counts}
    else:
        tags = {**tags, 322: page.tile[1], 323: page.tile[0], 324: tuple(placed), 325: counts}
    entries, beyond = [], b""
    values_at = at + 2 + 12 * len(tags) + 4
    if values_at > 2**32 - 2**24:
        raise DecodeError("too_many_bytes", f"expected a TIFF of less than 4 GB; found {len(data)} bytes")
    for tag, value in sorted(tags.items()):
        if isinstance(value, bytes):
            kind, count, content = 7, len(value), value
        else:
            numbers = value if isinstance(value, tuple) else (value,)
            kind, letter = (3, "H") if tag in (258, 320, 338, 530) else (4, "I")
            count, content = len(numbers), struct.pack(f"<{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            place = struct.pack("<I", values_at + len(beyond))
            beyond += content + b"\0" * (len(content) % 2)
        else:
            place = content.ljust(4, b"\0")
        entries.append(struct.pack("<HHI", tag, kind, count) + place)
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)
    return b"".join((b"II*\0", struct.pack("<I", at), *parts, directory, beyond))
