"""Whether a file seems whole, on files that Pillow writes: all of them, and none of those that were cut."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from service.imaging.looks_whole import HEAD_BYTES, TAIL_BYTES, looks_whole


def told(data: bytes) -> bool:
    return looks_whole(data[:HEAD_BYTES], data[-TAIL_BYTES:], len(data))


def written(image_format: str, **options: object) -> bytes:
    noise = np.random.default_rng(0).integers(0, 256, (90, 140, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, image_format, **options)
    return buffer.getvalue()


KINDS = {
    "jpeg": ("JPEG", {}),
    "progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "bmp": ("BMP", {}),
    "webp": ("WEBP", {}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "tiff-many-strips": ("TIFF", {"compression": "tiff_lzw", "strip_size": 420}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_whole_files_look_whole_and_cut_ones_do_not(kind: str) -> None:
    image_format, options = KINDS[kind]
    data = written(image_format, **options)
    assert told(data)
    assert [cut for cut in range(12, 100) if told(data[: len(data) * cut // 100])] == []


def test_jpeg_with_a_trailer_looks_whole_and_one_cut_after_its_thumbnail_does_not() -> None:
    data = written("JPEG")
    assert told(data + b"a trailer" * 100)
    # A header with a thumbnail of its own, as cameras write it, and the image's tables after that.
    thumbnail = b"\xff\xd8\xff\xe1Exif" + data + data[2:600]
    assert not told(thumbnail)


@pytest.mark.parametrize(
    "data", [b"", b"x", b"GIF89a", b"II*\0", b"MM\0*\0\0\0", b"BM", b"RIFF\0\0\0\0WEB", b"\xff\xd8"]
)
def test_anything_at_all_gives_an_answer(data: bytes) -> None:
    told(data)


def test_random_bytes_after_a_known_beginning_give_an_answer() -> None:
    rng = np.random.default_rng(0)
    for number in range(2000):
        begin = (b"II*\0", b"MM\0*", b"BM", b"\xff\xd8\xff", b"RIFF0000WEBP")[number % 5]
        told(begin + rng.bytes(int(rng.integers(0, 300))))
