"""What is refused before it is decoded, and the JPEG that lacks nothing but its end."""

from __future__ import annotations

import io
import itertools
import struct
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from service.imaging.decode import DecodeError, decode, decode_within, image_size
from tests.support.pixel_matrix import chunk, png_by_hand, saved, smooth, tiff_by_hand, written

SIZE = (37, 23)


def refused(data: bytes, **options: object) -> DecodeError:
    with pytest.raises(DecodeError) as caught:
        decode(data, (20, 30), **options)
    return caught.value


def test_tile_much_larger_than_its_image_is_refused() -> None:
    data = bytearray(written(np.zeros((128, 128), np.uint8), tile=(16, 16), compression="adobe_deflate"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        tags = file.pages[0].tags
        for code in (322, 323):
            kind = "<H" if tags[code].dtype == 3 else "<I"
            struct.pack_into(kind, data, tags[code].valueoffset, 46_000)
        # One tile, as the image then has
        for code in (324, 325):
            struct.pack_into("<I", data, tags[code].offset + 4, 1)
    error = refused(bytes(data))
    assert error.code == "damaged" and "46000 x 46000" in str(error)


def test_pixels_are_counted_by_their_bytes() -> None:
    """60 megapixels of grey and alpha in 60 kB take as much as 120 of RGB."""
    rows = zlib.compress(bytes(1 + 2 * 7746) * 100)
    header = struct.pack(">IIBBBBB", 7746, 7745, 8, 4, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    data += bytes(2000)
    error = refused(data)
    assert error.code == "too_many_pixels" and "mode LA" in str(error) and "8 each" in str(error)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_as_many_rgb_pixels_as_allowed_are_read(mode: str) -> None:
    data = saved(Image.new(mode, (600, 400)), "PNG")
    assert decode(data, (20, 30), pixels_max=240_000).width == 600
    assert refused(data, pixels_max=239_999).code == "too_many_pixels"


def test_endless_chain_of_tiff_pages_is_refused() -> None:
    data = bytearray(written(np.zeros((3, 37, 23), np.uint8), photometric="minisblack"))
    with tifffile.TiffFile(io.BytesIO(data)) as file:
        first, last = file.pages[0].offset, file.pages[2].offset
    entries = struct.unpack_from("<H", data, last)[0]
    struct.pack_into("<I", data, last + 2 + 12 * entries, first)
    error = refused(bytes(data))
    assert error.code == "damaged" and "comes again" in str(error)


def test_more_tiff_pages_than_a_camera_writes_are_refused() -> None:
    page = tiff_by_hand(np.zeros((1, 1, 1), np.uint16), 8, 1)
    at = struct.unpack_from("<I", page, 4)[0]
    directory, content = page[at:], bytearray(page)
    for _ in range(1001):
        struct.pack_into("<I", content, len(content) - 4, len(content))
        content += directory
    error = refused(bytes(content))
    assert error.code == "damaged" and "pages" in str(error)


def scans(number: int) -> bytes:
    """Return a progressive JPEG with `number` empty scans more than it needs."""
    whole = saved(Image.fromarray(smooth(1)[..., 0]), "JPEG", progressive=True)
    end = whole.rindex(b"\xff\xd9")
    # One more refinement of nothing: an end of band that covers all blocks
    table = b"\xff\xc4" + struct.pack(">HB", 2 + 17 + 1, 0x10) + bytes([1] + [0] * 15) + b"\x40"
    empty = b"\xff\xda" + struct.pack(">HBBBBBB", 8, 1, whole[whole.index(b"\xff\xc2") + 10], 0, 1, 63, 0) + b"\x7f"
    return whole[:end] + table + empty * number + whole[end:]


def test_more_scans_than_an_encoder_writes_are_refused() -> None:
    error = refused(scans(200))
    assert error.code == "damaged" and "scans" in str(error)


def test_more_segments_than_a_camera_writes_are_refused() -> None:
    whole = saved(Image.fromarray(smooth(3)), "JPEG")
    assert decode(whole[:2] + b"\xff\xe5\x00\x04ab" * 500 + whole[2:], SIZE).width == 23
    error = refused(whole[:2] + b"\xff\xe5\x00\x04ab" * 2000 + whole[2:])
    assert error.code == "damaged" and "segments" in str(error)


def test_more_chunks_than_an_encoder_writes_are_refused() -> None:
    rows = [row.tobytes() for row in smooth(3)]
    error = refused(png_by_hand(rows, 8, 2, chunk(b"teSt", b"") * 200_001))
    assert error.code == "damaged" and "chunks" in str(error)


def test_webp_with_a_large_canvas_is_refused_before_it_is_allocated() -> None:
    frames = [Image.fromarray(smooth(3)), Image.fromarray(255 - smooth(3))]
    data = bytearray(saved(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    data[24:30] = b"\xfe\x3f\0\xfe\x3f\0"
    assert refused(bytes(data)).code == "too_many_pixels"


def test_tiff_of_strips_that_are_cut_off_is_refused_whatever_its_compression() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (64, 48, 3), dtype=np.uint16)
    for compression in (None, "lzw", "adobe_deflate", "packbits", "zstd"):
        data = written(values, photometric="rgb", compression=compression)
        with tifffile.TiffFile(io.BytesIO(data)) as file:
            tag = file.pages[0].tags[279]
        for share in (0.2, 0.9, 0.999):
            cut = bytearray(data)
            struct.pack_into("<I", cut, tag.valueoffset, int(tag.value[0] * share))
            assert refused(bytes(cut)).code == "damaged", (compression, share)


def test_limit_of_the_settings_is_the_only_one(tmp_path) -> None:
    """Pillow by itself warns at 89 megapixels and refuses at 179, and the header of a file is read before its limit."""
    header = struct.pack(">IIBBBBB", 20_000, 10_000, 1, 0, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(5000)) + chunk(b"IEND", b"")
    assert refused(data).code == "too_many_pixels"
    path = tmp_path / "a.png"
    path.write_bytes(data)
    assert image_size(path, pixels_max=400_000_000) == (10_000, 20_000)


MUTATED = {
    "lzw": {"compression": "lzw", "predictor": True},
    "tiles": {"compression": "adobe_deflate", "tile": (16, 16)},
    "stored": {"rowsperstrip": 4},
    "jpeg": {"compression": "jpeg"},
}


@pytest.mark.parametrize("kind", [*MUTATED, "pages", "packed"])
def test_mutated_tiff_is_decoded_or_refused_and_nothing_else(kind: str) -> None:
    if kind == "packed":
        content = tiff_by_hand(np.zeros((37, 23, 3), np.uint16), 12, 2)
    elif kind == "pages":
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer, bigtiff=True) as file:
            file.write(smooth(3), photometric="rgb", subifds=1, metadata=None)
            file.write(smooth(3)[::2, ::2].copy(), photometric="rgb", subfiletype=1, metadata=None)
        content = buffer.getvalue()
    else:
        values = smooth(3) if kind == "jpeg" else smooth(3).astype(np.uint16) * 257
        content = written(values, photometric="rgb", **MUTATED[kind])
    rng = np.random.default_rng(len(kind))
    for _ in range(150):
        mutated = bytearray(content)
        # Among the tags, where it hurts, or anywhere
        reach = rng.choice([len(content), 400])
        for position in rng.integers(0, reach, size=rng.integers(1, 12)):
            mutated[position if reach == len(content) else -1 - position] = rng.integers(0, 256)
        try:
            found = decode(bytes(mutated), (20, 30), pixels_max=1_000_000, value_range=(0.0, 65535.0))
        except DecodeError as error:
            assert error.code in ("damaged", "format", "too_many_pixels", "mode")
        else:
            assert found.pixels.shape == (20, 30, 3)


JPEGS = [
    (mode, subsampling, progressive, restart)
    for mode, subsampling, progressive, restart in itertools.product(("L", "RGB"), (0, 2), (False, True), (0, 1, 4))
    if mode == "RGB" or not subsampling
]


@pytest.mark.parametrize(("mode", "subsampling", "progressive", "restart"), JPEGS)
def test_jpeg_that_lacks_its_end_marker_is_read_and_one_that_lacks_more_is_not(
    mode: str, subsampling: int, progressive: bool, restart: int
) -> None:
    """Of what lacks more, no pixel may be another than the whole image's."""
    for image in (
        Image.fromarray(smooth(3)),
        Image.new("RGB", (23, 37), (128, 128, 128)),
        Image.effect_noise(SIZE, 90),
    ):
        data = saved(
            image.convert(mode), "JPEG", subsampling=subsampling, progressive=progressive, restart_marker_blocks=restart
        )
        whole = decode(data, SIZE)
        assert whole.remark is None
        for cut in (1, 2):
            ended = decode(data[:-cut], SIZE)
            np.testing.assert_array_equal(ended.pixels, whole.pixels)
            assert ended.remark_code == "no_end_marker" and ended.remark is not None
        np.testing.assert_array_equal(decode_within(data[:-2]), decode_within(data))
        for cut in (4, 5, 6, 9, 17, 40, len(data) // 3, len(data) // 2):
            try:
                found = decode(data[:-cut], SIZE)
            except DecodeError as error:
                assert error.code == "damaged"
            else:
                np.testing.assert_array_equal(found.pixels, whole.pixels)


def test_jpeg_cut_between_scans_or_restarts_is_refused() -> None:
    """There a decoder finds nothing amiss but that the file ends."""
    image = Image.effect_noise((200, 150), 90)
    progressive = saved(image, "JPEG", progressive=True)
    between = progressive.rindex(b"\xff\xda")
    assert refused(progressive[:between]).code == "damaged"
    restarts = saved(image, "JPEG", restart_marker_blocks=10)
    places = [at for at in range(len(restarts)) if restarts[at] == 0xFF and 0xD0 <= restarts[at + 1] <= 0xD7]
    for at in (places[-1], places[-2], places[len(places) // 2]):
        assert refused(restarts[:at]).code == "damaged"
        assert refused(restarts[: at + 2]).code == "damaged"


def test_bytes_after_the_end_of_a_jpeg_are_no_trouble() -> None:
    data = saved(Image.fromarray(smooth(3)), "JPEG")
    assert decode(data + b"\0" * 100, SIZE).remark is None
    assert decode(data + b"trailer", SIZE).remark is None
