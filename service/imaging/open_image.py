"""Opening: from the first bytes of a file, and before any pixel is decoded, which format it is and whether it is read.

Owns the limits on pixels and on the memory that they take. How pixels are decoded is `service.imaging.decode`'s.
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

from service.imaging import jpeg, png, tiff_pages, tiff_pixels, webp
from service.imaging.decode_error import DecodeError, told
from service.imaging.orientation import orientation_of
from service.imaging.samples import Samples

FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")
_OF_PILLOW = ("JPEG", "PNG", "BMP", "WEBP")

# More than any image comes to: 12 megapixels of one colour in the format that packs it best are 23,000. What claims
# more has a damaged header, and would take the memory of the largest image before that shows.
PIXELS_A_BYTE_MAX = 50_000
# What a pixel takes while it is decoded: that of an RGB image 4 bytes, of one with alpha 8, of 16-bit RGB more. The
# limit on pixels is one on memory as well: for the kinds that take more, it is met with fewer of them.
BYTES_A_PIXEL_MAX = 5
_BYTES_A_PIXEL = {"1": 1, "L": 1, "P": 5, "RGB": 4, "RGB;16": 12, "RGBA;16": 16, "LA;16": 5, "I;16": 3}
_BYTES_A_PIXEL_OTHERWISE = 8
JPEG_SIGNATURE = b"\xff\xd8\xff"
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


@dataclass
class Opened:
    """An image whose header was read and checked; sides as stored. Either `image` or `samples` has its pixels."""

    format: str
    height: int
    width: int
    mode: str
    orientation: int
    image: Image.Image | None = None
    samples: Samples | None = None

    @property
    def deep(self) -> bool:
        return self.samples is not None and self.samples.deep

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *_: object) -> None:
        if self.image is not None:
            self.image.close()


def open_image(data: bytes, pixels_max: int) -> Opened:
    """Return the image in `data`, its header read. Raises DecodeError for what is not to be decoded."""
    # Pillow's own limit is one of the whole process, and would come before ours, or warn.
    Image.MAX_IMAGE_PIXELS = None
    if data[:4] in tiff_pages.SIGNATURES:
        return _open_tiff(data, pixels_max)
    if data[:3] == JPEG_SIGNATURE:
        jpeg.check_jpeg(data)
    elif data[:8] == _PNG_SIGNATURE:
        png.check_png(data)
    elif data[:4] == b"RIFF" and (canvas := webp.canvas_size(data)) is not None:
        _check_size(data, *canvas, pixels_max)
    try:
        image = Image.open(io.BytesIO(data), formats=_OF_PILLOW)
    except UnidentifiedImageError:
        # Pillow says the same of a header that is cut off.
        if data[:3] == JPEG_SIGNATURE or data[:8] == _PNG_SIGNATURE or (data[:4], data[8:12]) == (b"RIFF", b"WEBP"):
            raise DecodeError("damaged", f"cannot read the header in {len(data)} bytes") from None
        raise DecodeError(
            "format", f"expected one of {', '.join(FORMATS)}; found a file beginning {data[:8]!r}"
        ) from None
    except Exception as error:  # noqa: BLE001  (as below)
        raise DecodeError("damaged", f"cannot read the header: {told(error)}") from None
    try:
        width, height = image.size
        _check_size(data, height, width, pixels_max)
        # A phone's JPEG of several images is one of Pillow's formats, and a JPEG.
        kind = "JPEG" if image.format == "MPO" else str(image.format)
        samples = None
        if kind == "PNG":
            png.scale_transparency(data, image)
            samples = png.deep_samples(data)
        mode = image.mode if samples is None else samples.mode
        _check_bytes(height, width, mode, _BYTES_A_PIXEL.get(mode, _BYTES_A_PIXEL_OTHERWISE), pixels_max)
        return Opened(kind, height, width, mode, orientation_of(image), image, samples)
    except BaseException:
        image.close()
        raise


def _open_tiff(data: bytes, pixels_max: int) -> Opened:
    page = tiff_pages.main_page(data)
    _check_size(data, page.height, page.width, pixels_max)
    opened = Opened("TIFF", page.height, page.width, "", page.orientation)
    with as_damaged("TIFF"):
        opened.image = tiff_pixels.plain_image(data, page)
        opened.samples = tiff_pixels.samples_of(data, page) if opened.image is None else None
    opened.mode = opened.image.mode if opened.image is not None else opened.samples.mode if opened.samples else ""
    _check_bytes(page.height, page.width, opened.mode, tiff_pixels.bytes_a_pixel(page), pixels_max)
    return opened


def _check_size(data: bytes, height: int, width: int, pixels_max: int) -> None:
    """Raise DecodeError for more pixels than allowed, or than so many bytes of a file can hold."""
    if width * height > pixels_max:
        raise DecodeError("too_many_pixels", f"expected at most {pixels_max} pixels; found {width} x {height}")
    if width * height > len(data) * PIXELS_A_BYTE_MAX:
        found = f"{width} x {height} in {len(data)} bytes"
        raise DecodeError("damaged", f"expected at most {PIXELS_A_BYTE_MAX} pixels to a byte; found {found}")


def _check_bytes(height: int, width: int, mode: str, bytes_a_pixel: float, pixels_max: int) -> None:
    most = BYTES_A_PIXEL_MAX * pixels_max
    if width * height * bytes_a_pixel > most:
        raise DecodeError(
            "too_many_pixels",
            f"expected at most {most} bytes while decoding, {BYTES_A_PIXEL_MAX} for each of {pixels_max} pixels; "
            f"found {width} x {height} in mode {mode}, which take {bytes_a_pixel:g} each",
        )


@contextmanager
def as_damaged(image_format: str) -> Iterator[None]:
    """Turn whatever decoding raises into a DecodeError."""
    try:
        yield
    except DecodeError:
        raise
    # Pillow's decoders raise many types on damaged content (OSError, SyntaxError, struct.error, IndexError,
    # MemoryError, ...); whichever it is, this one file cannot be decoded and the service goes on.
    except Exception as error:  # noqa: BLE001
        raise DecodeError("damaged", f"cannot decode {image_format}: {told(error)}") from None
