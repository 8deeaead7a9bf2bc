"""Orientation: which way up an image is stored, from its EXIF data or XMP, and how it is turned upright."""

from __future__ import annotations

from numbers import Real

from PIL import Image

TAG = 0x0112
"""Of EXIF and TIFF alike."""

SWAPS_SIDES = frozenset({5, 6, 7, 8})

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def orientation_of(image: Image.Image) -> int:
    """Return the orientation of `image`, 1 to 8, by its EXIF data, else its XMP; 1 where neither says one."""
    try:
        return valid(image.getexif().get(TAG, 1))
    except Exception:  # noqa: BLE001  (a damaged EXIF block says nothing of the pixels; they are taken as they lie)
        return 1


def valid(value: object) -> int:
    """Return `value` as an orientation; 1 for what is none, whatever its type."""
    return next((one for one in range(1, 9) if isinstance(value, Real) and value == one), 1)


def turned_upright(image: Image.Image, orientation: int) -> Image.Image:
    """Return `image`, stored with `orientation`, upright; the same object where it is so already."""
    return image.transpose(_TURNS[orientation]) if orientation in _TURNS else image
