"""Small files that take much of what decodes them, seeded: memory by what their headers or their streams claim, time by
how often something is to be done.
"""

from __future__ import annotations

import io
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from PIL import Image

_STEP = 1 << 20


def bombs(count: int, seed: int = 1) -> Iterator[tuple[str, bytes]]:
    """Yield `count` files, each with the name of its kind, of all kinds in turn; no two have the same bytes."""
    rng = random.Random(seed)
    kinds = list(KINDS.items())
    for number in range(count):
        kind, make = kinds[number % len(kinds)]
        # What follows the end of an image is read by nobody.
        yield kind, make(rng) + number.to_bytes(4, "big")


def tile(rng: random.Random) -> bytes:
    """A TIFF of 128 x 128 pixels in one tile of up to 46,000 x 46,000."""
    side = rng.choice([8000, 20_000, 46_000]) // 16 * 16
    return _tiff([(256, 128), (257, 128), (258, 8), (259, 8), (262, 1), (322, side), (323, side)], _zeros(side * side))


def alpha(rng: random.Random) -> bytes:
    """A PNG of 50 to 60 megapixels with alpha, of one colour."""
    side = rng.randrange(7100, 7740)
    samples, colour = rng.choice([(2, 4), (4, 6)])
    return _png(side, side, colour, _zeros(side * (1 + samples * side)))


def one_row(rng: random.Random) -> bytes:
    """A PNG with all its pixels in one row, or in one column."""
    pixels = rng.randrange(20_000_000, 59_000_000)
    if rng.random() < 0.5:
        return _png(pixels, 1, 2, _zeros(1 + 3 * pixels))
    return _png(1, pixels, 0, _zeros(2 * pixels))


def scans(rng: random.Random) -> bytes:
    """A progressive JPEG with thousands of scans in which nothing is."""
    side = rng.choice([512, 1024, 2048])
    buffer = io.BytesIO()
    Image.new("L", (side, side), 90).save(buffer, "JPEG", progressive=True)
    whole = buffer.getvalue()
    end = whole.rindex(b"\xff\xd9")
    # A table whose only code ends a band of all blocks, and refinements that use it at once.
    table = b"\xff\xc4" + struct.pack(">HB", 2 + 17 + 1, 0x10) + bytes([1] + [0] * 15) + b"\x40"
    component = whole[whole.index(b"\xff\xc2") + 10]
    empty = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, component, 0, 1, 63, 0) + b"\x7f"
    return whole[:end] + table + empty * rng.choice([2000, 20_000, 50_000]) + whole[end:]


def directories(rng: random.Random) -> bytes:
    """A TIFF with thousands of directories, or with one that is its own next."""
    tags = [(256, 8), (257, 8), (258, 8), (259, 1), (262, 1)]
    if rng.random() < 0.3:
        return _tiff(tags, bytes(64), following=8)
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in [*tags, (273, 8), (279, 64)])
    length = 2 + len(entries) + 4
    content = bytearray(struct.pack("<2sHI", b"II", 42, 72) + bytes(64))
    for number in range(rng.choice([2000, 20_000])):
        content += struct.pack("<H", 7) + entries + struct.pack("<I", 72 + (number + 1) * length)
    content[-4:] = bytes(4)
    return bytes(content)


def exif(rng: random.Random) -> bytes:
    """A JPEG with an EXIF block whose entries claim much, or a PNG with one of many megabytes."""
    count = rng.choice([1, 1 << 20, 1 << 31])
    entries = b"".join(struct.pack("<HHII", 0x8769 + number % 3, 5, count, 8) for number in range(5000))
    block = b"II*\0\x08\0\0\0" + struct.pack("<H", 5000) + entries + bytes(4)
    if rng.random() < 0.5:
        data = _jpeg()
        payload = b"Exif\0\0" + block
        return data[:2] + b"\xff\xe1" + struct.pack(">H", 2 + len(payload)) + payload + data[2:]
    return _png(64, 64, 0, _zeros(64 * 65), _chunk(b"eXIf", block * rng.randrange(50, 500)))


def profile(rng: random.Random) -> bytes:
    """A PNG whose colour profile is 100 to 400 MB of nothing, or a JPEG with all the parts that one may have."""
    if rng.random() < 0.7:
        packed = b"profile\0\0" + _zeros(rng.randrange(100, 400) * _STEP)
        return _png(64, 64, 0, _zeros(64 * 65), _chunk(b"iCCP", packed))
    data = _jpeg()
    parts = b"".join(
        b"\xff\xe2" + struct.pack(">H", 2 + 14 + 65_000) + b"ICC_PROFILE\0" + bytes([number, 255]) + bytes(65_000)
        for number in range(1, 256)
    )
    return data[:2] + parts + data[2:]


def text(rng: random.Random) -> bytes:
    """A PNG with hundreds of megabytes of text, in pieces that are each allowed."""
    piece = _chunk(b"zTXt", b"comment\0\0" + _zeros(_STEP - 1000))
    return _png(64, 64, 0, _zeros(64 * 65), piece * rng.randrange(60, 400))


KINDS: Mapping[str, Callable[[random.Random], bytes]] = {
    "tile": tile,
    "alpha": alpha,
    "one_row": one_row,
    "scans": scans,
    "directories": directories,
    "exif": exif,
    "profile": profile,
    "text": text,
}


def camera_image(seed: int, size: tuple[int, int] = (1500, 1000), image_format: str = "JPEG") -> bytes:
    """An image as a camera would write it, dark enough to be normal to a version that scores by brightness."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 60, (size[1] // 8, size[0] // 8, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    small.resize(size, Image.Resampling.BICUBIC).save(buffer, image_format, quality=85)
    return buffer.getvalue()


def _zeros(length: int) -> bytes:
    """Return so many zeros as zlib packs them, put together from one piece, so that it takes no time."""
    packer = zlib.compressobj(9)
    head = packer.compress(bytes(_STEP)) + packer.flush(zlib.Z_FULL_FLUSH)
    piece = packer.compress(bytes(_STEP)) + packer.flush(zlib.Z_FULL_FLUSH)
    whole, rest = divmod(length, _STEP)
    if whole < 2:
        return zlib.compress(bytes(length), 9)
    last = zlib.compressobj(9, zlib.DEFLATED, -15)
    tail = last.compress(bytes(rest)) + last.flush()
    # Adler-32 of zeros: the sum of all bytes is 0, and 1 is added once for each.
    return head + piece * (whole - 1) + tail + struct.pack(">I", length % 65521 << 16 | 1)


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _png(width: int, height: int, colour: int, packed: bytes, before: bytes = b"") -> bytes:
    header = _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _tiff(tags: list[tuple[int, int]], content: bytes, following: int = 0) -> bytes:
    """A TIFF of one directory, at 8, whose strip or tile is `content`."""
    tiled = any(tag == 322 for tag, _ in tags)
    at = 8 + 2 + 12 * (len(tags) + 2) + 4
    places = [(324, at), (325, len(content))] if tiled else [(273, at), (279, len(content))]
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in sorted(tags + places))
    head = struct.pack("<2sHI", b"II", 42, 8) + struct.pack("<H", len(tags) + 2)
    return head + entries + struct.pack("<I", following) + content


def _jpeg() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (64, 64), 90).save(buffer, "JPEG")
    return buffer.getvalue()
