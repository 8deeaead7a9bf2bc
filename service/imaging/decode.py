"""Decode: bytes of a file become an upright RGB image at the detector's size.

Owns which formats are read, the limits on bytes and pixels, and how modes and orientations become RGB: training,
evaluation and the daemon see the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.data.value_range import ValueStatistics
from service.filesystem.file_state import FileState
from service.filesystem.lease import has_writer
from service.filesystem.open_below import NotRegularFile, open_file, open_file_below
from service.imaging import jpeg, tiff_pages
from service.imaging.decode_error import DecodeError
from service.imaging.open_image import FORMATS, JPEG_SIGNATURE, Opened, as_damaged, open_image
from service.imaging.orientation import SWAPS_SIDES, turned_upright
from service.imaging.remark import Remark, of_range, without_end
from service.imaging.samples import render, statistics

__all__ = [
    "FORMATS",
    "DecodeError",
    "DecodedImage",
    "FileBytes",
    "StillChanging",
    "ValueRange",
    "check",
    "decode",
    "decode_within",
    "format_of",
    "image_size",
    "measure",
    "read_file",
    "read_image",
]

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

FILE_BYTES_MAX = 200_000_000
PIXELS_MAX = 60_000_000
# A JPEG may be decoded at a half, a quarter or an eighth, straight from its coefficients, as long as that leaves so
# many times the wanted height and width: the filter that follows then still sees more than it gives.
DRAFT_SCALES = (8, 4, 2)
DRAFT_OVERSAMPLING = 2

ValueRange = Sequence[float]
"""Low and high."""
T = TypeVar("T")

_BAND_ROWS = 256


class StillChanging(Exception):
    """The file changed while it was read: somebody is still writing it."""


@dataclass(frozen=True, slots=True)
class FileBytes:
    """A file read once: its content, SHA-256 in hex, and the state it was in."""

    data: bytes
    sha256: str
    state: FileState


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A decoded image: `pixels` uint8 `(H, W, 3)` RGB at the asked size; `height`, `width` as dropped, upright;
    `drafted`: less than all of it was decoded, a JPEG at a half, a quarter or an eighth; `deep`: it has more than 8
    bits a sample, so that its pixels depend on a range; `remark`: what a person should know of it, and its short name.
    """

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int
    mode: str
    drafted: bool = False
    deep: bool = False
    remark_code: str | None = None
    remark: str | None = None


def read_image(path: Path, size: tuple[int, int], *, draft: bool = False) -> npt.NDArray[np.uint8]:
    """Return the image at `path` as uint8 `(H, W, 3)` RGB with `(H, W) == size`, as `decode`. Raises DecodeError."""
    return decode(read_file(path).data, size, draft=draft).pixels


def image_size(path: Path, *, file_bytes_max: int = FILE_BYTES_MAX, pixels_max: int = PIXELS_MAX) -> tuple[int, int]:
    """Return the height and width in pixels of the upright image at `path`, from its header. Raises DecodeError."""
    with open_image(read_file(path, file_bytes_max=file_bytes_max).data, pixels_max) as opened:
        return (opened.width, opened.height) if opened.orientation in SWAPS_SIDES else (opened.height, opened.width)


def read_file(
    path: Path, *, file_bytes_max: int = FILE_BYTES_MAX, durable: bool = False, below: Path | None = None
) -> FileBytes:
    """Read the regular file at `path` once, without following a link or blocking on a FIFO.

    With `below`, a folder that holds it, no link is followed on the way from there either.

    With `durable`, for a claimed file, its content is on the disk when this returns, so that its row cannot outlive it.
    Raises DecodeError for what is not a regular file, is empty or is larger than `file_bytes_max` (unread),
    StillChanging when it changed meanwhile or, if claimed, somebody has it open for writing, FileNotFoundError when it
    is gone.
    """
    try:
        descriptor = open_file_below(str(path.relative_to(below)), below) if below else open_file(path)
    except NotRegularFile as error:
        raise DecodeError("not_a_file", f"{path.name}: {error}") from None
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        before = os.fstat(descriptor)
        if before.st_size == 0:
            raise DecodeError("empty", f"{path.name}: expected an image; found 0 bytes")
        if before.st_size > file_bytes_max:
            raise DecodeError(
                "too_many_bytes", f"{path.name}: expected at most {file_bytes_max} bytes; found {before.st_size}"
            )
        data = _read_exactly(file, before.st_size)
        if durable:
            os.fdatasync(descriptor)
            # Who opened it by its old name just before the claim may write at any time; nobody can open it so any more.
            if has_writer(descriptor):
                raise StillChanging(path.name)
        after = os.fstat(descriptor)
    if len(data) != before.st_size or FileState.of(before) != FileState.of(after):
        raise StillChanging(path.name)
    return FileBytes(data, hashlib.sha256(data).hexdigest(), FileState.of(after))


def decode(
    data: bytes,
    size: tuple[int, int],
    *,
    pixels_max: int = PIXELS_MAX,
    draft: bool = False,
    value_range: ValueRange | None = None,
) -> DecodedImage:
    """Return the image in `data`, upright, RGB, resized to `size` (height, width) by an antialiased bilinear filter.

    With `draft` a JPEG of at least 4 times `size` is decoded at a half, a quarter or an eighth of its sides, the
    least that is still twice `size`: several times faster, and pixels differ by a grey level here and there.
    Of more than 8 bits a sample `value_range`, low and high, becomes 0 to 255; without it, 0 to 65535 do.
    Raises DecodeError: `format` for anything but JPEG, PNG, BMP, TIFF and WebP, or a kind of these that is not read,
    `too_many_pixels` before decoding, `damaged` where the content cannot be decoded whole, `mode` for pixels that are
    not read, or have no defined range.
    """

    def whole(content: bytes) -> tuple[DecodedImage, Remark | None]:
        with open_image(content, pixels_max) as opened:
            swapped = opened.orientation in SWAPS_SIDES
            width, height = (opened.height, opened.width) if swapped else (opened.width, opened.height)
            shown = _upright(opened, size[::-1] if swapped else size, draft, value_range)
            pixels = np.asarray(shown.image, dtype=np.uint8)
            return DecodedImage(pixels, height, width, opened.mode, shown.drafted, opened.deep), shown.remark

    (image, of_values), of_end = _completed_if_cut(data, whole)
    remark = of_end.with_other(of_values) if of_end else of_values
    return image if remark is None else replace(image, remark_code=remark.code, remark=remark.text)


def measure(data: bytes, *, pixels_max: int = PIXELS_MAX) -> ValueStatistics | None:
    """Return what values the image in `data` has, None for one of up to 8 bits a sample, which is not decoded.

    Raises DecodeError as `decode`.
    """
    with open_image(data, pixels_max) as opened:
        if opened.samples is None or not opened.samples.deep:
            return None
        with as_damaged(opened.format):
            return statistics(opened.samples)


def check(data: bytes, size: tuple[int, int], *, pixels_max: int = PIXELS_MAX) -> ValueStatistics | None:
    """Decode the image in `data` to know that it can be; return what values it has, None for up to 8 bits a sample.

    Raises DecodeError as `decode`, but not for values without a defined range.
    """
    statistics_found = measure(data, pixels_max=pixels_max)
    if statistics_found is None:
        decode(data, size, pixels_max=pixels_max)
    return statistics_found


def format_of(data: bytes, *, pixels_max: int = PIXELS_MAX) -> str:
    """Return which of FORMATS the image in `data` is, from its first bytes and not its name. Raises DecodeError.

    Of a TIFF no more than its signature is read.
    """
    if data[:4] in tiff_pages.SIGNATURES:
        return "TIFF"
    with open_image(data, pixels_max) as opened:
        return opened.format


def decode_within(
    data: bytes,
    side_max: int | None = None,
    *,
    pixels_max: int = PIXELS_MAX,
    value_range: ValueRange | None = None,
) -> Image.Image:
    """Return the image in `data`, upright, RGB, with sides of at most `side_max` if given, never enlarged.

    A large JPEG is decoded as a draft. Raises DecodeError as `decode`.
    """

    def whole(content: bytes) -> Image.Image:
        with open_image(content, pixels_max) as opened:
            scale = min(1.0, side_max / max(opened.width, opened.height)) if side_max else 1.0
            size = (max(1, round(opened.height * scale)), max(1, round(opened.width * scale)))
            shown = _upright(opened, size, scale < 1.0, value_range).image
            return shown.copy() if shown is opened.image else shown

    return _completed_if_cut(data, whole)[0]


def _read_exactly(file: io.FileIO, size: int) -> bytes:
    # One byte more than expected is asked for: a file that grew shows itself.
    parts = []
    left = size + 1
    while left > 0 and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@dataclass(frozen=True)
class _Shown:
    image: Image.Image
    drafted: bool
    remark: Remark | None = None


def _completed_if_cut(data: bytes, work: Callable[[bytes], T]) -> tuple[T, Remark | None]:
    """Return what `work` gives, and a remark if that is of a JPEG that lacked its end marker and nothing else."""
    try:
        found = work(data)
    except DecodeError as error:
        if error.code != "damaged" or not _lacks_end(data):
            raise
        whole = jpeg.completed(data)
        if whole is None:
            raise
        return work(whole), without_end()
    return found, without_end() if _lacks_end(data) else None


def _lacks_end(data: bytes) -> bool:
    return data[:3] == JPEG_SIGNATURE and not data.endswith(b"\xff\xd9") and not jpeg.has_end(data)


def _upright(opened: Opened, size: tuple[int, int], draft: bool, value_range: ValueRange | None) -> _Shown:
    """Return the image as RGB at `size`, its height and width as stored, turned upright."""
    with as_damaged(opened.format):
        drafted, remark = False, None
        if opened.samples is not None:
            rendered = render(opened.samples, value_range)
            remark = of_range(opened.samples, rendered, value_range)
            image = rendered.image
        else:
            assert opened.image is not None
            drafted = draft and _draft(opened.image, size)
            image = _as_rgb(opened.image)
            remark = of_range(None, None, value_range)
        if image.size != size[::-1]:
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        if image.mode != "RGB":
            image = image.convert("RGB")
        image.load()
    return _Shown(turned_upright(image, opened.orientation), drafted, remark)


def _draft(image: Image.Image, size: tuple[int, int]) -> bool:
    """Have `image`, not yet decoded, decoded at the least scale that leaves enough for `size`; return whether at less.

    Pillow takes the largest scale at which the sides are still those asked for; the pixels are limited before.
    """
    if image.format != "JPEG":
        return False
    width, height = image.size
    room = min(height // size[0], width // size[1]) // DRAFT_OVERSAMPLING
    scale = next((scale for scale in DRAFT_SCALES if scale <= room), 1)
    if scale == 1:
        return False
    image.draft(None, (width // scale, height // scale))
    return image.size != (width, height)


def _as_rgb(image: Image.Image) -> Image.Image:
    """Return `image` as RGB, or as `L` if it is grey: each channel is resized alike, so that can come after."""
    if image.mode in ("RGB", "L") and "transparency" not in image.info:
        return image  # as it is: a conversion would copy all of it
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        return _over_white(image)
    if image.mode in ("1", "P", "CMYK", "YCbCr"):
        return image.convert("RGB")
    raise DecodeError("mode", f"expected grey, RGB, palette or CMYK; found mode {image.mode}")


def _over_white(image: Image.Image) -> Image.Image:
    # White, as every viewer shows it: colours under full transparency are arbitrary. Band by band, since all of it at
    # once would be held four times.
    image.load()
    shown = Image.new("RGB", image.size)
    for row in range(0, image.height, _BAND_ROWS):
        band = image.crop((0, row, image.width, min(image.height, row + _BAND_ROWS))).convert("RGBA")
        shown.paste(Image.alpha_composite(Image.new("RGBA", band.size, "white"), band).convert("RGB"), (0, row))
    return shown
