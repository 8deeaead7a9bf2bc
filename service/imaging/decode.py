"""Decode: bytes of a file become an upright RGB image at the detector's size.

Owns which formats are read, the limits on bytes and pixels, and how modes and orientations become RGB: training,
evaluation and the daemon see the same pixels.
"""

from __future__ import annotations

import hashlib
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from service.filesystem.file_state import FileState
from service.filesystem.lease import has_writer
from service.filesystem.open_below import NotRegularFile, open_file, open_file_below

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})

FILE_BYTES_MAX = 200_000_000
PIXELS_MAX = 60_000_000
# More than any image comes to: 12 megapixels of one colour in the format that packs it best are 23,000. What claims
# more has a damaged header, and would take the memory of the largest image before that shows.
PIXELS_A_BYTE_MAX = 50_000

# A JPEG may be decoded at a half, a quarter or an eighth, straight from its coefficients, as long as that leaves so
# many times the wanted height and width: the filter that follows then still sees more than it gives.
DRAFT_SCALES = (8, 4, 2)
DRAFT_OVERSAMPLING = 2

_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SWAPS_SIDES = frozenset({5, 6, 7, 8})


class DecodeError(Exception):
    """A file is not an image that can be scored. `code` is a short name for the reason."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


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
    `drafted`: less than all of it was decoded, a JPEG at a half, a quarter or an eighth.
    """

    pixels: npt.NDArray[np.uint8]
    height: int
    width: int
    mode: str
    drafted: bool = False


def read_image(path: Path, size: tuple[int, int], *, draft: bool = False) -> npt.NDArray[np.uint8]:
    """Return the image at `path` as uint8 `(H, W, 3)` RGB with `(H, W) == size`, as `decode`. Raises DecodeError."""
    return decode(read_file(path).data, size, draft=draft).pixels


def image_size(path: Path) -> tuple[int, int]:
    """Return the height and width in pixels of the upright image at `path`, from its header. Raises DecodeError."""
    with _opened(read_file(path).data, PIXELS_MAX) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _SWAPS_SIDES else (height, width)


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


def decode(data: bytes, size: tuple[int, int], *, pixels_max: int = PIXELS_MAX, draft: bool = False) -> DecodedImage:
    """Return the image in `data`, upright, RGB, resized to `size` (height, width) by an antialiased bilinear filter.

    With `draft` a JPEG of at least 4 times `size` is decoded at a half, a quarter or an eighth of its sides, the
    least that is still twice `size`: several times faster, and pixels differ by a grey level here and there.
    Raises DecodeError: `format` for anything but JPEG, PNG, BMP, TIFF and WebP, `too_many_pixels` before
    decoding, `damaged` where the content cannot be decoded whole, `mode` for pixels without a defined range.
    """
    with _opened(data, pixels_max) as image:
        mode, orientation = image.mode, _orientation(image)
        swapped = orientation in _SWAPS_SIDES
        width, height = image.size[::-1] if swapped else image.size
        upright, drafted = _upright(image, orientation, size[::-1] if swapped else size, draft)
        return DecodedImage(np.asarray(upright, dtype=np.uint8), height, width, mode, drafted)


def format_of(data: bytes, *, pixels_max: int = PIXELS_MAX) -> str:
    """Return which of FORMATS the image in `data` is, from its first bytes and not its name. Raises DecodeError."""
    with _opened(data, pixels_max) as image:
        return str(image.format)


def decode_within(data: bytes, side_max: int | None = None, *, pixels_max: int = PIXELS_MAX) -> Image.Image:
    """Return the image in `data`, upright, RGB, with sides of at most `side_max` if given, never enlarged.

    A large JPEG is decoded as a draft. Raises DecodeError as `decode`.
    """
    with _opened(data, pixels_max) as image:
        width, height = image.size
        scale = min(1.0, side_max / max(width, height)) if side_max else 1.0
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        upright, _ = _upright(image, _orientation(image), size, draft=scale < 1.0)
        return upright.copy() if upright is image else upright


def _read_exactly(file: io.FileIO, size: int) -> bytes:
    # One byte more than expected is asked for: a file that grew shows itself.
    parts = []
    left = size + 1
    while left > 0 and (part := file.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _opened(data: bytes, pixels_max: int) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise DecodeError(
            "format", f"expected one of {', '.join(FORMATS)}; found a file beginning {data[:8]!r}"
        ) from None
    except Image.DecompressionBombError as error:
        raise DecodeError("too_many_pixels", f"expected at most {pixels_max} pixels; {error}") from None
    except Exception as error:  # noqa: BLE001  (as in `_upright`)
        raise DecodeError("damaged", f"cannot read the header: {_told(error)}") from None
    width, height = image.size
    if width * height > pixels_max:
        image.close()
        raise DecodeError("too_many_pixels", f"expected at most {pixels_max} pixels; found {width} x {height}")
    if width * height > len(data) * PIXELS_A_BYTE_MAX:
        image.close()
        found = f"{width} x {height} in {len(data)} bytes"
        raise DecodeError("damaged", f"expected at most {PIXELS_A_BYTE_MAX} pixels to a byte; found {found}")
    return image


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # noqa: BLE001  (a damaged EXIF block says nothing of the pixels; they are taken as they lie)
        return 1


def _upright(image: Image.Image, orientation: int, size: tuple[int, int], draft: bool) -> tuple[Image.Image, bool]:
    """Return `image` as RGB at `size`, its height and width as stored, turned upright; and whether it was drafted."""
    try:
        drafted = draft and _draft(image, size)
        rgb = _as_rgb(image)
        if rgb.size != size[::-1]:
            rgb = rgb.resize(size[::-1], Image.Resampling.BILINEAR)
        rgb.load()
    except DecodeError:
        raise
    # Pillow's decoders raise many types on damaged content (OSError, SyntaxError, struct.error, IndexError,
    # MemoryError, ...); whichever it is, this one file cannot be decoded and the service goes on.
    except Exception as error:  # noqa: BLE001
        raise DecodeError("damaged", f"cannot decode {image.format}: {_told(error)}") from None
    return rgb.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else rgb, drafted


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
    if image.mode == "RGB":
        return image  # as it is: a conversion would copy all of it
    if image.mode == "L":
        return image.convert("RGB")
    if image.mode.startswith("I;16") or image.mode == "I":
        return _from_16_bit(image)
    if image.mode == "F":
        raise DecodeError("mode", "expected whole-numbered pixels; found floating point, whose range is not defined")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        # White, as every viewer shows it: colours under full transparency are arbitrary.
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _from_16_bit(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise DecodeError("mode", f"expected 16-bit grey; found values from {values.min()} to {values.max()}")
    return Image.fromarray((values.astype(np.uint32) >> 8).astype(np.uint8), "L").convert("RGB")


def _told(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:300]
