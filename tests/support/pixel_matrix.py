"""The pixel matrix: small images in every combination of format, depth and layout, each with what it should come to.

Files are written by tifffile, imagecodecs and Pillow, and by hand where none of them writes a kind; what the pixels of
a TIFF are is what tifffile reads back with imagecodecs, which Tamis itself does not use.
"""

from __future__ import annotations

import io
import itertools
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import imagecodecs
import numpy as np
import numpy.typing as npt
import tifffile
from PIL import Image, TiffImagePlugin

HEIGHT, WIDTH = 37, 23

Pixels = npt.NDArray[Any]


@dataclass(frozen=True)
class Case:
    """A file, and its pixels uint8 `(H, W, 3)`, upright, within `tolerance`; or the `code` of the refusal."""

    name: str
    data: bytes
    pixels: Pixels | None = None
    tolerance: int = 0
    value_range: tuple[float, float] | None = None
    code: str | None = None
    words: str = ""


def all_cases() -> Iterator[Case]:
    """Yield each case of the matrix."""
    yield from tiff_layouts()
    yield from tiff_kinds()
    yield from tiff_lossy()
    yield from tiff_refused()
    yield from orientations()
    yield from png_kinds()
    yield from bmp_kinds()
    yield from webp_kinds()
    yield from jpeg_kinds()


# What values come to, by the definitions


def rgb(grey: Pixels) -> Pixels:
    """Return `(H, W)` or `(H, W, 1)` as `(H, W, 3)`."""
    return np.repeat(grey.reshape(*grey.shape[:2], -1)[..., :1], 3, axis=2)


def mapped(values: Pixels, value_range: tuple[float, float] | None) -> Pixels:
    """Return `values` as 8 bits: `value_range` in 256 equal steps; without one, all that the unsigned type holds."""
    whole = values.dtype.kind != "f"
    if value_range is None:
        assert values.dtype in (np.uint8, np.uint16)
        return values if values.dtype == np.uint8 else (values >> 8).astype(np.uint8)
    low, high = value_range
    share = (values.astype(np.float64) - low) / (high - low + whole)
    return np.clip(np.floor(share * 256), 0, 255).astype(np.uint8)


def over_white(colours: Pixels, alpha: Pixels, *, premultiplied: bool = False) -> Pixels:
    """Return `colours` (0 to 255) with `alpha` (0 to 1) in front of white."""
    kept = colours if premultiplied else colours * alpha[..., np.newaxis]
    return np.clip(np.rint(kept + 255 * (1 - alpha[..., np.newaxis])), 0, 255).astype(np.uint8)


def smooth(channels: int = 3) -> Pixels:
    """Return uint8 `(H, W, channels)` that lossy codecs keep well."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    planes = [128 + 90 * np.sin(down / 9 + k) * np.cos(across / 7 - k) for k in range(channels)]
    return np.stack(planes, axis=2).astype(np.uint8)


def noise(dtype: str, channels: int, seed: int = 0) -> Pixels:
    """Return `(H, W, channels)` of all values of `dtype`; floating point from -3 to 5."""
    rng = np.random.default_rng([seed, channels])
    if np.dtype(dtype).kind == "f":
        return rng.uniform(-3, 5, (HEIGHT, WIDTH, channels)).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, (HEIGHT, WIDTH, channels), dtype=dtype, endpoint=True)


def _range_for(dtype: str) -> tuple[float, float] | None:
    kind = np.dtype(dtype)
    if kind in (np.uint8,):
        return None
    if kind.kind == "f":
        return (-2.0, 4.5)
    limits = np.iinfo(dtype)
    return (float(limits.min) / 3, float(limits.max) / 2)


# TIFF

COMPRESSIONS: tuple[tuple[str, Any], ...] = (
    *(("none", None), ("lzw", "lzw"), ("deflate", "adobe_deflate"), ("packbits", "packbits")),
    *(("zstd", "zstd"), ("lzma", "lzma")),
)
LAYOUTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("one strip", {}),
    ("strips of 5", {"rowsperstrip": 5}),
    ("tiles", {"tile": (16, 32)}),
)
TYPES = ("uint8", "uint16", "uint32", "int8", "int16", "int32", "float16", "float32", "float64")


def written(values: Pixels, **options: Any) -> bytes:
    """Return the TIFF that tifffile writes of `values`."""
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **options)
    return buffer.getvalue()


def tiff_layouts() -> Iterator[Case]:
    """Yield types, photometrics, planes, compressions, predictors, byte orders and layouts in all combinations."""
    for dtype, (compression, codec), predictor, order, (layout, how) in itertools.product(
        TYPES, COMPRESSIONS, (False, True), "<>", LAYOUTS
    ):
        kind = np.dtype(dtype).kind
        if predictor and codec in (None, "packbits"):
            continue
        if codec in ("zstd", "lzma") and dtype not in ("uint8", "uint16", "float32"):
            continue
        for photometric, channels, planar in (
            ("minisblack", 1, None), ("miniswhite", 1, None), ("rgb", 3, "contig"), ("rgb", 3, "separate"),
        ):  # fmt: skip
            if photometric == "miniswhite" and kind != "u":
                continue
            values = noise(dtype, channels)
            stored = values[..., 0] if channels == 1 else np.moveaxis(values, 2, 0) if planar == "separate" else values
            name = f"tiff {dtype} {photometric} {planar or ''} {compression} predictor={predictor} {order} {layout}"
            data = written(
                stored, photometric=photometric, planarconfig=planar, compression=codec, predictor=predictor,
                byteorder=order, bigtiff=layout == "strips of 5" and order == "<", **how,
            )  # fmt: skip
            back = tifffile.imread(io.BytesIO(data))
            np.testing.assert_array_equal(back, stored)
            shown = np.iinfo(dtype).max - values if photometric == "miniswhite" else values
            ranges = [_range_for(dtype)] if dtype != "uint16" else [None, (1000.0, 40000.0)]
            for value_range in ranges:
                pixels = mapped(shown, value_range)
                yield Case(name, data, rgb(pixels) if channels == 1 else pixels, 0, value_range)


def tiff_by_hand(
    values: Pixels, bits: int, photometric: int, *, order: str = "<", fill: int = 1, extra: dict[int, Any] | None = None
) -> bytes:
    """Return an uncompressed TIFF of packed `bits`, which no library here writes: `values` are `(H, W, samples)`."""
    height, width, samples = values.shape
    packed = b"".join(
        np.packbits((row.reshape(-1, 1) >> np.arange(bits)[::-1] & 1).astype(np.uint8).ravel()).tobytes()
        for row in values
    )
    if fill == 2:
        packed = bytes(int(f"{byte:08b}"[::-1], 2) for byte in packed)
    tags: dict[int, Any] = {
        256: width,
        257: height,
        258: [bits] * samples,
        259: 1,
        262: photometric,
        266: fill,
        273: 8,
        277: samples,
        278: height,
        279: len(packed),
        **(extra or {}),
    }
    packed += b"\0" * (len(packed) % 2)
    entries, beyond = [], b""
    values_at = 8 + len(packed) + 2 + 12 * len(tags) + 4
    for tag, value in sorted(tags.items()):
        numbers = list(value) if isinstance(value, (list, tuple)) else [value]
        kind, letter = (4, "I") if tag in (256, 257, 273, 278, 279) else (3, "H")
        content = struct.pack(f"{order}{len(numbers)}{letter}", *numbers)
        if len(content) > 4:
            content, beyond = struct.pack(f"{order}I", values_at + len(beyond)), beyond + content
        entries.append(struct.pack(f"{order}HHI", tag, kind, len(numbers)) + content.ljust(4, b"\0"))
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(packed))
    return head + packed + struct.pack(f"{order}H", len(entries)) + b"".join(entries) + bytes(4) + beyond


def tiff_kinds() -> Iterator[Case]:
    """Yield packed bits, palettes, CMYK, extra samples, bilevel compressions and several pages."""
    for bits, photometric, order, fill in itertools.product((1, 2, 4, 10, 12, 14), (0, 1), "<>", (1, 2)):
        if fill == 2 and bits > 8:
            continue
        values = (noise("uint16", 1, bits) >> (16 - bits)).astype(np.uint16)
        full = 2**bits - 1
        shown = full - values if photometric == 0 else values
        value_range = (0.0, float(full)) if bits > 8 else None
        pixels = mapped(shown, value_range) if bits > 8 else (shown * 255 // full).astype(np.uint8)
        data = tiff_by_hand(values, bits, photometric, order=order, fill=fill)
        if fill == 1 and bits != 1:
            np.testing.assert_array_equal(tifffile.imread(io.BytesIO(data)), values[..., 0])
        yield Case(f"tiff {bits} bits photometric {photometric} {order} fill {fill}", data, rgb(pixels), 0, value_range)
    for bits, order in itertools.product((4, 12), "<>"):
        values = (noise("uint16", 3, bits) >> (16 - bits)).astype(np.uint16)
        value_range = (0.0, 4095.0) if bits == 12 else None
        pixels = mapped(values, value_range) if bits == 12 else (values * 17).astype(np.uint8)
        yield Case(
            f"tiff RGB of {bits} bits {order}", tiff_by_hand(values, bits, 2, order=order), pixels, 0, value_range
        )
    yield from _palettes()
    yield from _extra_samples()
    yield from _cmyk()
    bilevel = smooth(1)[..., 0] > 128
    for compression in ("group3", "group4", "tiff_ccitt", "tiff_lzw", "packbits", "tiff_adobe_deflate", "raw"):
        data = saved(Image.fromarray(bilevel), "TIFF", compression=compression)
        yield Case(f"tiff 1 bit {compression}", data, rgb(bilevel.astype(np.uint8) * 255))
    yield from _pages()


def _palettes() -> Iterator[Case]:
    for bits, order in itertools.product((1, 2, 4, 8, 16), "<>"):
        entries = 2**bits
        rng = np.random.default_rng(bits)
        colour_map = rng.integers(0, 65536, (3, entries), dtype=np.uint16)
        indices = (noise("uint16", 1, bits) >> (16 - bits)).astype(np.uint16)
        expected = (colour_map >> 8).astype(np.uint8).T[indices[..., 0]]
        data = tiff_by_hand(indices, bits, 3, order=order, extra={320: list(colour_map.ravel())}) if bits < 16 else (
            written(indices[..., 0], photometric="palette", colormap=colour_map, byteorder=order)
        )  # fmt: skip
        yield Case(f"tiff palette of {bits} bits {order}", data, expected)
    colour_map = np.random.default_rng(1).integers(0, 65536, (3, 256), dtype=np.uint16)
    indices = noise("uint8", 1)[..., 0]
    for compression, codec in COMPRESSIONS:
        data = written(indices, photometric="palette", colormap=colour_map, compression=codec)
        yield Case(f"tiff palette {compression}", data, (colour_map >> 8).astype(np.uint8).T[indices])
    small = [*range(0, 256, 17)] * 3
    data = tiff_by_hand(indices[..., np.newaxis].astype(np.uint16) >> 4, 4, 3, extra={320: small})
    yield Case("tiff palette of 8-bit values", data, rgb((indices >> 4) * 17))


def _extra_samples() -> Iterator[Case]:
    for dtype, planar, alpha, grey, compression in itertools.product(
        ("uint8", "uint16"), ("contig", "separate"), ("unassalpha", "assocalpha", "unspecified"), (False, True),
        (None, "lzw"),
    ):  # fmt: skip
        channels = 1 if grey else 3
        values = noise(dtype, channels + 1, 5)
        full = np.iinfo(dtype).max
        if alpha == "assocalpha":
            values[..., :-1] = (values[..., :-1].astype(np.float64) * values[..., -1:] / full).astype(dtype)
        stored = np.moveaxis(values, 2, 0) if planar == "separate" else values
        data = written(
            stored, photometric="minisblack" if grey else "rgb", planarconfig=planar, extrasamples=[alpha],
            compression=compression,
        )  # fmt: skip
        colours, opacity = values[..., :-1], values[..., -1] / full
        if alpha == "unspecified":
            pixels = mapped(colours, None)
        elif alpha == "unassalpha" or dtype == "uint8":
            pixels = over_white(mapped(colours, None), opacity, premultiplied=alpha == "assocalpha")
        else:
            own = np.floor(colours / np.maximum(opacity, 1e-6)[..., np.newaxis] / 256).clip(0, 255)
            pixels = over_white(own, opacity)
        tolerance = 0 if alpha == "unspecified" else 1
        name = f"tiff {dtype} {'grey' if grey else 'RGB'} and {alpha} {planar} {compression}"
        yield Case(name, data, rgb(pixels) if grey else pixels, tolerance)

    many = noise("uint8", 6, 13)
    for planar in ("contig", "separate"):
        stored = np.moveaxis(many, 2, 0) if planar == "separate" else many
        data = written(stored, photometric="rgb", planarconfig=planar, extrasamples=[0, 0, 0])
        yield Case(f"tiff RGB and three more {planar}", data, many[..., :3])
        data = written(stored, photometric="minisblack", planarconfig=planar, extrasamples=[0] * 5)
        yield Case(f"tiff grey and five more {planar}", data, rgb(many[..., :1]))


def _cmyk() -> Iterator[Case]:
    for dtype, planar, compression in itertools.product(("uint8", "uint16"), ("contig", "separate"), (None, "lzw")):
        values = noise(dtype, 4, 9)
        stored = np.moveaxis(values, 2, 0) if planar == "separate" else values
        data = written(stored, photometric="separated", planarconfig=planar, compression=compression)
        inks = (values >> (8 if dtype == "uint16" else 0)).astype(np.float64)
        pixels = (255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255
        yield Case(f"tiff CMYK {dtype} {planar} {compression}", data, np.rint(pixels).astype(np.uint8), 1)


def _pages() -> Iterator[Case]:
    image, small = noise("uint8", 3, 11), noise("uint8", 3, 12)[::3, ::3].copy()
    for order, below, flagged in itertools.product(("first", "last"), (False, True), (False, True)):
        if below and order == "first":
            continue
        buffer = io.BytesIO()
        reduced = {"subfiletype": 1} if flagged else {}
        with tifffile.TiffWriter(buffer) as file:
            if order == "first":
                file.write(small, photometric="rgb", metadata=None, **reduced)
            file.write(image, photometric="rgb", metadata=None, subifds=1 if below else 0)
            if order == "last":
                file.write(small, photometric="rgb", metadata=None, **reduced)
        yield Case(f"tiff with a thumbnail {order}, below={below}, flagged={flagged}", buffer.getvalue(), image)
    # The main image below a thumbnail, as cameras have it
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(small, photometric="rgb", metadata=None, subfiletype=1, subifds=1)
        file.write(image, photometric="rgb", metadata=None, subfiletype=0)
    yield Case("tiff with the image below its thumbnail", buffer.getvalue(), image)
    pages = np.stack([noise("uint16", 1, seed)[..., 0] for seed in range(4)])
    yield Case("tiff of four pages", written(pages, photometric="minisblack"), rgb(mapped(pages[0], None)))
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(image, photometric="rgb", metadata=None)
        file.write(np.zeros((3 * HEIGHT, 3 * WIDTH), bool), photometric="mask", subfiletype=4, metadata=None)
    yield Case("tiff with a mask", buffer.getvalue(), image)


def tiff_lossy() -> Iterator[Case]:
    """Yield JPEG compression, against tifffile."""
    for photometric, channels, layout in itertools.product(
        ("minisblack", "rgb", "ycbcr"), (1, 3), ({}, {"rowsperstrip": 16}, {"tile": (16, 32)})
    ):
        if (photometric == "minisblack") != (channels == 1):
            continue
        values = smooth(channels)
        data = written(
            values[..., 0] if channels == 1 else values, photometric=photometric, compression="jpeg", **layout
        )
        reference = tifffile.imread(io.BytesIO(data)).reshape(HEIGHT, WIDTH, channels)
        yield Case(f"tiff JPEG {photometric} {layout}", data, rgb(reference) if channels == 1 else reference, 3)


def tiff_refused() -> Iterator[Case]:
    """Yield kinds that are not read, each with the word that names it."""
    colour, grey = smooth(3), smooth(1)[..., 0]
    codecs = {"jpeg2000": "JPEG 2000", "webp": "WebP", "jpegxl": "JPEG XL", "png": "PNG", "lerc": "LERC"}
    for codec, words in {**codecs, "jpegxr": "JPEG XR"}.items():
        yield Case(f"tiff {codec}", written(colour, photometric="rgb", compression=codec), code="format", words=words)
    for values, photometric, words, code in (
        (grey, 32803, "raw sensor", "format"),
        (colour, 34892, "raw sensor", "format"),
        (grey, 4, "mask", "mode"),
        (grey, 32844, "LogL", "mode"),
        (colour, 32845, "LogLuv", "mode"),
        (grey, 51177, "depth map", "mode"),
        (grey, 77, "number 77", "mode"),
    ):
        deep = np.atleast_3d(values).astype(np.uint16)
        yield Case(f"tiff photometric {photometric}", tiff_by_hand(deep, 8, photometric), code=code, words=words)
    for compression, words in ((6, "old JPEG"), (9, "JBIG"), (34661, "JBIG"), (50002, "JPEG XL"), (34892, "lossy JPEG"),
                               (32809, "ThunderScan"), (34713, "Nikon"), (12345, "number 12345")):  # fmt: skip
        data = tiff_by_hand(np.atleast_3d(grey).astype(np.uint16), 8, 1, extra={259: compression})
        yield Case(f"tiff compression {compression}", data, code="format", words=words)
    yield Case("tiff CIELab", written(colour, photometric="cielab"), code="mode", words="CIELab")
    yield Case(
        "tiff YCbCr without JPEG", saved(Image.fromarray(colour).convert("YCbCr"), "TIFF"), code="mode", words="YCbCr"
    )
    volume = written(
        np.zeros((16, HEIGHT, WIDTH), np.uint8), photometric="minisblack", volumetric=True, tile=(16, 16, 16)
    )
    yield Case("tiff volume", volume, code="mode", words="volume")
    yield Case("tiff complex", written(grey.astype(np.complex64)), code="mode", words="sample format 6")
    yield Case("tiff 64 bits", written(grey.astype(np.uint64)), code="mode", words="64 bits")
    yield Case("tiff floating point, no range", written(grey.astype(np.float32)), code="mode", words="floating point")
    yield Case("tiff 32 bits, no range", written(grey.astype(np.uint32)), code="mode", words="32 bits")
    yield Case("tiff signed, no range", written(grey.astype(np.int16)), code="mode", words="signed")
    nan = np.full((HEIGHT, WIDTH), np.nan, np.float32)
    yield Case("tiff NaN", written(nan), value_range=(0.0, 1.0), code="mode", words="NaN")
    yield Case("tiff of a thumbnail", written(grey, subfiletype=1), code="format", words="thumbnails")
    yield Case("tiff DNG", written(grey, extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), code="format", words="DNG")
    for shape in ((HEIGHT, WIDTH, 3),):
        twelve = (noise("uint16", 3) >> 4).reshape(shape)
        yield Case(
            "tiff JPEG of 12 bits", written(twelve, photometric="rgb", compression="jpeg"), code="format", words="JPEG"
        )


# Orientation

TURNS = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


def turned(values: Pixels, orientation: int) -> Pixels:
    """Return how an upright image is stored that is marked with `orientation`."""
    turn = TURNS[orientation]
    return values if turn is None else np.asarray(Image.fromarray(values).transpose(turn))


def orientations() -> Iterator[Case]:
    """Yield the eight orientations in each format that says one, and values that are none."""
    upright = smooth(3)
    for orientation in TURNS:
        stored = np.ascontiguousarray(turned(upright, orientation))
        exif = Image.Exif()
        exif[274] = orientation
        xmp = f'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()
        image = Image.fromarray(stored)
        yield Case(f"jpeg turned {orientation}", saved(image, "JPEG", quality=95, exif=exif), upright, 12)
        yield Case(f"jpeg turned {orientation} by XMP", saved(image, "JPEG", quality=95, xmp=xmp), upright, 12)
        yield Case(f"png turned {orientation}", saved(image, "PNG", exif=exif), upright)
        yield Case(f"webp turned {orientation}", saved(image, "WEBP", lossless=True, exif=exif), upright)
        for compression in (None, "lzw", "jpeg"):
            data = written(stored, photometric="rgb", compression=compression,
                           extratags=[(274, "H", 1, orientation, True)])  # fmt: skip
            yield Case(f"tiff turned {orientation} {compression}", data, upright, 10 if compression == "jpeg" else 0)
        deep = np.stack([turned(plane, orientation) for plane in np.moveaxis(upright, 2, 0)], axis=2).astype(np.uint16)
        data = written(np.ascontiguousarray(deep) * 257, photometric="rgb", compression="lzw",
                       extratags=[(274, "H", 1, orientation, True)])  # fmt: skip
        yield Case(f"tiff of 16 bits turned {orientation}", data, upright)
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = orientation
        bilevel = Image.fromarray(stored[..., 0] > 128)
        data = saved(bilevel, "TIFF", compression="group4", tiffinfo=tags)
        yield Case(f"tiff group 4 turned {orientation}", data, rgb((upright[..., 0] > 128).astype(np.uint8) * 255))
    for value, kind in ((0, "H"), (9, "H"), (65535, "H"), (6, "I"), (b"6\0", "s"), (1.5, "d"), ((6, 1), "2I")):
        # A type that is not the one of the tag says the same, if it is a number.
        stored = np.ascontiguousarray(turned(upright, 6)) if kind == "I" else upright
        count = 2 if kind == "s" else 1
        data = written(stored, photometric="rgb", extratags=[(274, 5 if kind == "2I" else kind, count, value, True)])
        yield Case(f"tiff orientation {value!r} of type {kind}", data, upright)


# PNG, BMP, WebP, JPEG


def saved(image: Image.Image, image_format: str, **options: Any) -> bytes:
    """Return the file that Pillow writes."""
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def png_by_hand(
    rows: list[bytes], bits: int, colour_type: int, chunks: bytes = b"", *, adam7: bytes | None = None
) -> bytes:
    """Return a PNG of unfiltered `rows`; of `adam7`, the filtered bytes of seven passes, where given."""
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, colour_type, 0, 0, int(adam7 is not None))
    content = adam7 if adam7 is not None else b"".join(b"\0" + row for row in rows)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunks
        + chunk(b"IDAT", zlib.compress(content))
        + chunk(b"IEND", b"")
    )


def chunk(kind: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def png_kinds() -> Iterator[Case]:
    """Yield every bit depth and colour type, plain and interlaced, with and without transparency."""
    for (colour_type, channels), bits, interlaced in itertools.product(
        ((0, 1), (2, 3), (3, 1), (4, 2), (6, 4)), (1, 2, 4, 8, 16), (False, True)
    ):
        if (colour_type == 3 and bits == 16) or (colour_type in (2, 4, 6) and bits < 8):
            continue
        values = (noise("uint16", channels, 20 + bits) >> (16 - bits)).astype(np.uint16)
        for transparent in (False, True):
            if transparent and colour_type in (4, 6):
                continue
            yield _png(values, bits, colour_type, interlaced, transparent)
    values = noise("uint16", 3, 21)
    for level in (0, 9):
        data = imagecodecs.png_encode(values, level=level)
        yield Case(f"png RGB of 16 bits at level {level}", data, mapped(values, None))
        yield Case(
            f"png RGB of 16 bits in a range, {level}", data, mapped(values, (999.0, 33333.0)), 0, (999.0, 33333.0)
        )
    twelve = noise("uint16", 1, 22)[..., 0] >> 4
    yield Case(
        "png of 12 in 16 bits", imagecodecs.png_encode(twelve), rgb(mapped(twelve, (0.0, 4095.0))), 0, (0.0, 4095.0)
    )
    eight = Image.fromarray(smooth(3))
    for name, options in (("gAMA", chunk(b"gAMA", struct.pack(">I", 100_000))),
                          ("sRGB", chunk(b"sRGB", b"\0"))):  # fmt: skip
        rows = [row.tobytes() for row in smooth(3)]
        yield Case(f"png with {name}", png_by_hand(rows, 8, 2, options), smooth(3))
    other = Image.fromarray(255 - smooth(3))
    yield Case("png animated", saved(eight, "PNG", save_all=True, append_images=[other]), smooth(3))


def _png(values: Pixels, bits: int, colour_type: int, interlaced: bool, transparent: bool) -> Case:
    def packed(part: Pixels) -> bytes:
        flat = part.reshape(len(part), -1)
        shifts = np.arange(bits)[::-1]
        return b"".join(
            b"\0" + np.packbits((row[:, np.newaxis] >> shifts & 1).astype(np.uint8).ravel()).tobytes() for row in flat
        )

    full = 2**bits - 1
    chunks, hidden = b"", None
    if colour_type == 3:
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        chunks = chunk(b"PLTE", palette.tobytes())
        if transparent:
            chunks += chunk(b"tRNS", bytes([0, 128][: 2**bits]))
            opacity = np.array([0.0, 128 / 255, *[1.0] * (2**bits - 2)])[values[..., 0]]
            hidden = 1 - opacity
        pixels = palette[values[..., 0]]
    else:
        colours = values[..., :-1] if colour_type in (4, 6) else values
        pixels = (colours >> 8).astype(np.uint8) if bits == 16 else (colours * (255 // full)).astype(np.uint8)
        if colour_type in (4, 6):
            hidden = 1 - values[..., -1] / full
        elif transparent:
            key = values[3, 5]
            chunks = chunk(b"tRNS", struct.pack(f">{len(key)}H", *key))
            hidden = (values == key).all(axis=2).astype(np.float64)
    if hidden is not None:
        pixels = over_white(pixels, 1 - hidden)
    passes = None
    if interlaced:
        parts = (values[y::down, x::across] for x, y, across, down in _PASSES)
        passes = b"".join(packed(part) for part in parts if part.size)
    rows = [packed(values[row : row + 1])[1:] for row in range(HEIGHT)]
    data = png_by_hand(rows, bits, colour_type, chunks, adam7=passes)
    name = f"png type {colour_type} of {bits} bits interlaced={interlaced} transparent={transparent}"
    return Case(name, data, rgb(pixels) if pixels.shape[-1] == 1 else pixels, 1 if hidden is not None else 0)


def bmp_kinds() -> Iterator[Case]:
    """Yield header kinds, bit depths, row orders, run lengths and bit fields."""
    values = noise("uint8", 3, 30)
    for bits, header, top_down in itertools.product((1, 4, 8, 16, 24, 32), (12, 40, 108, 124), (False, True)):
        if header == 12 and (bits in (16, 32) or top_down):
            continue
        yield _bmp(values, bits, header, top_down)
    for masks, words in (((0xF800, 0x07E0, 0x001F), "565"), ((0x7C00, 0x03E0, 0x001F), "555")):
        yield _bmp(values, 16, 40, False, masks, words)
    yield _bmp(values, 32, 40, False, (0xFF0000, 0xFF00, 0xFF), "888")
    indices = np.repeat(noise("uint8", 1, 31)[:, ::4, 0], 4, axis=1)[:, :WIDTH]
    palette = np.random.default_rng(3).integers(0, 256, (256, 3), dtype=np.uint8)
    encoded = b""
    for row in indices[::-1]:
        for value, group in itertools.groupby(row.tolist()):
            encoded += bytes([len(list(group)), value])
        encoded += b"\0\0"
    encoded += b"\0\1"
    data = _bmp_file(encoded, 8, 40, HEIGHT, palette, compression=1)
    yield Case("bmp run lengths of 8 bits", data, palette[indices])


def _bmp(
    values: Pixels, bits: int, header: int, top_down: bool, masks: tuple[int, ...] | None = None, words: str = ""
) -> Case:
    palette = None
    if bits <= 8:
        palette = np.random.default_rng(bits).integers(0, 256, (2**bits, 3), dtype=np.uint8)
        indices = values[..., 0] >> (8 - bits)
        pixels = palette[indices]
        stored = [
            np.packbits((row[:, np.newaxis] >> np.arange(bits)[::-1] & 1).astype(np.uint8).ravel()).tobytes()
            for row in indices
        ]
    elif bits == 16:
        depth = 6 if masks and masks[1] == 0x07E0 else 5
        wide = values.astype(np.uint16)
        r, g, b = wide[..., 0] >> 3, wide[..., 1] >> (8 - depth), wide[..., 2] >> 3
        pixels = np.stack([r * 255 // 31, g * 255 // (2**depth - 1), b * 255 // 31], axis=2).astype(np.uint8)
        packed = (r << (5 + depth) | g << 5 | b).astype("<u2")
        stored = [row.tobytes() for row in packed]
    else:
        pixels = values
        parts = [values[..., ::-1]] + ([np.zeros((HEIGHT, WIDTH, 1), np.uint8)] if bits == 32 else [])
        stored = [row.tobytes() for row in np.concatenate(parts, axis=2)]
    rows = [row + bytes(-len(row) % 4) for row in stored]
    content = b"".join(rows if top_down else reversed(rows))
    data = _bmp_file(content, bits, header, -HEIGHT if top_down else HEIGHT, palette, masks)
    name = f"bmp of {bits} bits header {header} top_down={top_down} {words}"
    return Case(name, data, pixels, 1 if bits == 16 else 0)


def _bmp_file(
    content: bytes, bits: int, header: int, height: int, palette: Pixels | None, masks: tuple[int, ...] | None = None,
    compression: int = 0,
) -> bytes:  # fmt: skip
    colours = b""
    if palette is not None:
        padding = b"" if header == 12 else b"\0"
        colours = b"".join(bytes(entry[::-1]) + padding for entry in palette)
    if header == 12:
        info = struct.pack("<IHHHH", 12, WIDTH, height, 1, bits)
    else:
        kind = 3 if masks else compression
        used = len(palette) if palette is not None else 0
        info = struct.pack("<IiiHHIIiiII", header, WIDTH, height, 1, bits, kind, len(content), 2835, 2835, used, 0)
        if header == 40:
            info += struct.pack("<3I", *masks) if masks else b""
        else:
            info += struct.pack("<4I", *(masks or (0, 0, 0)), 0) + b"BGRs"[::-1] + bytes(header - 60)
    offset = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", offset + len(content), 0, 0, offset) + info + colours + content


def webp_kinds() -> Iterator[Case]:
    """Yield lossless and lossy, with alpha and animated, against imagecodecs."""
    colour = smooth(3)
    yield Case("webp lossless", saved(Image.fromarray(colour), "WEBP", lossless=True), colour)
    lossy = saved(Image.fromarray(colour), "WEBP", quality=90)
    yield Case("webp lossy", lossy, imagecodecs.webp_decode(lossy)[..., :3], 1)
    alpha = np.concatenate([colour, noise("uint8", 1)], axis=2)
    data = saved(Image.fromarray(alpha, "RGBA"), "WEBP", lossless=True, exact=True)
    yield Case("webp with alpha", data, over_white(colour, alpha[..., 3] / 255), 1)
    frames = saved(
        Image.fromarray(colour), "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(255 - colour)]
    )
    yield Case("webp animated", frames, colour)


def jpeg_kinds() -> Iterator[Case]:
    """Yield colour spaces, scans, restarts, subsampling; and what is not read."""
    colour = smooth(3)
    for mode, subsampling, progressive, restart in itertools.product(
        ("L", "RGB", "CMYK"), (0, 1, 2), (False, True), (0, 3)
    ):
        if mode == "L" and subsampling:
            continue
        image = Image.fromarray(colour).convert(mode)
        data = saved(
            image, "JPEG", quality=95, subsampling=subsampling, progressive=progressive, restart_marker_blocks=restart
        )
        expected = np.asarray(image.convert("RGB"))
        name = f"jpeg {mode} subsampling {subsampling} progressive={progressive} restarts={restart}"
        yield Case(name, data, expected, 14)
    for space, name in (("RGB", "RGB without a transform"), ("YCBCR", "YCbCr")):
        data = imagecodecs.jpeg8_encode(colour, level=97, colorspace="RGB", outcolorspace=space)
        yield Case(f"jpeg {name}", data, imagecodecs.jpeg8_decode(data, outcolorspace="RGB"), 1)
    for inks, name in (("CMYK", "CMYK"), ("YCCK", "YCCK")):
        values = smooth(4)
        data = imagecodecs.jpeg8_encode(values, level=97, colorspace="CMYK", outcolorspace=inks)
        # Adobe's inks are stored inverted: 255 is none
        back = imagecodecs.jpeg8_decode(data, outcolorspace="CMYK").astype(np.float64)
        yield Case(f"jpeg {name}, Adobe", data, np.rint(back[..., :3] * back[..., 3:] / 255).astype(np.uint8), 2)
    twelve = noise("uint16", 1)[..., 0] >> 4
    yield Case("jpeg of 12 bits", imagecodecs.jpeg8_encode(twelve, bitspersample=12), code="mode", words="12")
    yield Case("jpeg lossless", imagecodecs.ljpeg_encode(smooth(1)[..., 0]), code="format", words="lossless")
    plain = saved(Image.fromarray(colour), "JPEG")
    for marker, words in ((0xC9, "arithmetic"), (0xCA, "arithmetic"), (0xC5, "hierarchical"), (0xCB, "lossless")):
        changed = plain.replace(b"\xff\xc0", bytes([0xFF, marker]), 1)
        yield Case(f"jpeg frame {marker:x}", changed, code="format", words=words)
    yield Case("jpeg of two images", saved(Image.fromarray(colour), "MPO", save_all=True, quality=95,
               append_images=[Image.fromarray(255 - colour)]), colour, 14)  # fmt: skip
