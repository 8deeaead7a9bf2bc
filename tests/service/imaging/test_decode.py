import io
import os
import struct
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.registry import file_sha256
from service.imaging.decode import DecodeError, StillChanging, decode, image_size, read_file, read_image


def encoded(image: Image.Image, image_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def landscape() -> Image.Image:
    """60 wide, 40 high: red left half, blue right half."""
    pixels = np.zeros((40, 60, 3), dtype=np.uint8)
    pixels[:, :30, 0] = 255
    pixels[:, 30:, 2] = 255
    return Image.fromarray(pixels)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF", "WEBP"])
def test_every_allowed_format_is_read_at_the_asked_height_and_width(image_format: str) -> None:
    decoded = decode(encoded(landscape(), image_format), (20, 30))
    assert decoded.pixels.shape == (20, 30, 3) and decoded.pixels.dtype == np.uint8
    assert (decoded.height, decoded.width) == (40, 60)
    assert decoded.pixels[10, 5, 0] > 200 > 100 > decoded.pixels[10, 25, 0]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_image_comes_out_upright_whatever_its_exif_says(orientation: int) -> None:
    turned_back = {
        1: None, 2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270,
    }[orientation]  # fmt: skip
    stored = landscape() if turned_back is None else landscape().transpose(turned_back)
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(encoded(stored, "PNG", exif=exif), (40, 60))
    assert (decoded.height, decoded.width) == (40, 60)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(landscape()))


def test_image_size_is_that_of_the_upright_image(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(landscape(), "JPEG", exif=exif))
    assert image_size(path) == (60, 40)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "I;16"])
def test_every_mode_becomes_rgb_and_is_recorded(mode: str) -> None:
    if mode == "I;16":
        image = Image.fromarray(np.full((40, 60), 0x8000, dtype=np.uint16))
        expected = 128
    else:
        image, expected = Image.new("RGB", (60, 40), (255, 255, 255)).convert(mode), 255
    decoded = decode(encoded(image, "TIFF" if mode == "CMYK" else "PNG"), (20, 30))
    assert decoded.mode == mode
    assert abs(int(decoded.pixels.mean()) - expected) <= 1


def test_transparent_pixels_are_white_whatever_colour_they_hide() -> None:
    image = Image.new("RGBA", (60, 40), (255, 0, 0, 0))
    assert decode(encoded(image, "PNG"), (20, 30)).pixels.min() == 255


def test_floating_point_pixels_are_refused() -> None:
    with pytest.raises(DecodeError, match="floating point"):
        decode(encoded(Image.new("F", (6, 4)), "TIFF"), (20, 30))


def test_multi_page_tiff_gives_its_first_page() -> None:
    pages = encoded(landscape(), "TIFF", save_all=True, append_images=[Image.new("RGB", (10, 10))])
    assert decode(pages, (40, 60)).width == 60


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_truncated_image_is_refused(image_format: str) -> None:
    whole = encoded(Image.effect_noise((200, 150), 90).convert("RGB"), image_format)
    with pytest.raises(DecodeError) as caught:
        decode(whole[: len(whole) * 2 // 3], (20, 30))
    assert caught.value.code == "damaged"


def noise(width: int, height: int) -> Image.Image:
    return Image.effect_noise((width, height), 60).resize((width, height)).convert("RGB")


def smooth(width: int, height: int) -> Image.Image:
    across = np.linspace(0, 255, width, dtype=np.float32)[None, :]
    down = np.linspace(0, 255, height, dtype=np.float32)[:, None]
    return Image.fromarray(np.stack(np.broadcast_arrays(across, down, (across + down) / 2), -1).astype(np.uint8))


def test_draft_of_a_jpeg_tells_its_whole_size_and_nearly_the_same_pixels() -> None:
    content = encoded(smooth(603, 402), "JPEG", quality=95)
    whole, draft = decode(content, (40, 60)), decode(content, (40, 60), draft=True)
    assert draft.drafted and not whole.drafted
    assert (draft.height, draft.width, draft.mode) == (whole.height, whole.width, whole.mode) == (402, 603, "RGB")
    assert np.abs(draft.pixels.astype(int) - whole.pixels).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
def test_draft_comes_out_upright_whatever_its_exif_says(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(smooth(603, 402), "JPEG", quality=95, exif=exif)
    size = (60, 40) if orientation >= 5 else (40, 60)
    whole, draft = decode(content, size), decode(content, size, draft=True)
    assert draft.drafted and (draft.height, draft.width) == (whole.height, whole.width)
    assert np.abs(draft.pixels.astype(int) - whole.pixels).max() <= 2


@pytest.mark.parametrize(("size", "drafted"), [((100, 150), True), ((101, 150), False), ((100, 151), False)])
def test_draft_never_decodes_to_less_than_twice_the_wanted_size(size: tuple[int, int], drafted: bool) -> None:
    assert decode(encoded(smooth(600, 400), "JPEG"), size, draft=True).drafted is drafted


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "WEBP"])
def test_draft_changes_nothing_for_other_formats(image_format: str) -> None:
    content = encoded(noise(400, 300), image_format)
    draft = decode(content, (30, 40), draft=True)
    assert not draft.drafted
    np.testing.assert_array_equal(draft.pixels, decode(content, (30, 40)).pixels)


@pytest.mark.parametrize("mode", ["L", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_draft_reads_every_kind_of_jpeg(mode: str, progressive: bool) -> None:
    content = encoded(smooth(600, 400).convert(mode), "JPEG", quality=95, progressive=progressive)
    draft = decode(content, (40, 60), draft=True)
    assert draft.drafted and draft.mode == mode
    assert np.abs(draft.pixels.astype(int) - decode(content, (40, 60)).pixels).max() <= 4


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_truncated_image_is_refused_as_a_draft_too(share: float) -> None:
    content = encoded(noise(640, 480), "JPEG")
    with pytest.raises(DecodeError) as caught:
        decode(content[: int(len(content) * share)], (30, 40), draft=True)
    assert caught.value.code == "damaged"


def test_draft_does_not_go_round_the_limit_on_pixels() -> None:
    with pytest.raises(DecodeError) as caught:
        decode(encoded(noise(640, 480), "JPEG"), (30, 40), pixels_max=640 * 480 - 1, draft=True)
    assert caught.value.code == "too_many_pixels"


@pytest.mark.parametrize("content", [b"GIF89a" + bytes(40), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>", b"hello"])
def test_other_formats_are_refused_whatever_their_name(content: bytes) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(content, (20, 30))
    assert caught.value.code == "format"
    assert "JPEG, PNG" in str(caught.value)


def png_with_header(width: int, height: int, chunks: bytes = b"") -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunks + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def test_header_that_claims_more_pixels_than_its_bytes_can_hold_is_refused_before_decoding() -> None:
    content = bytearray(encoded(Image.new("RGB", (64, 48)), "WEBP", lossless=True))
    assert decode(bytes(content), (8, 8)).width == 64
    # Width and height less one, 14 bits each, follow the signature byte of a lossless WebP: now 7168 x 8192.
    content[21:25] = ((7168 - 1) | (8192 - 1) << 14).to_bytes(4, "little")
    with pytest.raises(DecodeError, match="pixels to a byte; found 7168 x 8192") as caught:
        decode(bytes(content), (8, 8))
    assert caught.value.code == "damaged"


def test_large_image_of_one_colour_in_a_few_bytes_is_scored() -> None:
    content = encoded(Image.new("RGB", (4000, 3000), (20, 20, 20)), "WEBP", lossless=True)
    assert len(content) < 1000 and int(decode(content, (8, 8)).pixels.mean()) == 20


@pytest.mark.parametrize("side", [9_000, 10_000, 20_000])
def test_too_many_pixels_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(DecodeError) as caught:
        decode(png_with_header(side, side), (20, 30))
    assert caught.value.code == "too_many_pixels"


def test_damaged_exif_does_not_hide_the_image() -> None:
    image = encoded(landscape(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff")
    assert decode(image, (20, 30)).width == 60


@pytest.mark.parametrize("seed", range(300))
def test_mutated_bytes_are_decoded_or_refused_and_nothing_else(seed: int) -> None:
    random = np.random.default_rng(seed)
    image_format = ["JPEG", "PNG", "BMP", "TIFF", "WEBP"][seed % 5]
    content = bytearray(encoded(landscape(), image_format))
    for position in random.integers(0, len(content), size=random.integers(1, 30)):
        content[position] = random.integers(0, 256)
    try:
        decoded = decode(bytes(content), (20, 30), pixels_max=1_000_000)
    except DecodeError as error:
        assert error.code in ("damaged", "format", "too_many_pixels", "mode")
    else:
        assert decoded.pixels.shape == (20, 30, 3)


def test_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "real.png").write_bytes(encoded(landscape(), "PNG"))
    (tmp_path / "link.png").symlink_to("real.png")
    with pytest.raises(DecodeError) as caught:
        read_file(tmp_path / "link.png")
    assert caught.value.code == "not_a_file"


def test_fifo_never_blocks(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo.png")
    with pytest.raises(DecodeError, match="regular file"):
        read_file(tmp_path / "fifo.png")


def test_large_file_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    with path.open("wb") as file:
        file.truncate(2_000_000_000)
    with pytest.raises(DecodeError) as caught:
        read_file(path)
    assert caught.value.code == "too_many_bytes"


def test_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(DecodeError) as caught:
        read_file(tmp_path / "a.png")
    assert caught.value.code == "empty"


def test_file_that_grows_while_it_is_read_is_still_changing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(encoded(landscape(), "PNG"))
    real = os.fstat
    calls = []

    def grow_before_the_last_look(descriptor: int) -> os.stat_result:
        calls.append(descriptor)
        if len(calls) == 3:
            with path.open("ab") as file:
                file.write(b"more")
        return real(descriptor)

    monkeypatch.setattr(os, "fstat", grow_before_the_last_look)
    with pytest.raises(StillChanging):
        read_file(path)


def test_images_are_decoded_by_several_threads_alike(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(Image.effect_noise((300, 200), 50).convert("RGB"), "JPEG"))
    expected = read_image(path, (20, 30))
    found: list[bool] = []
    threads = [
        threading.Thread(target=lambda: found.append(bool((read_image(path, (20, 30)) == expected).all())))
        for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 8


def test_claimed_file_that_a_writer_still_has_open_is_changing_until_it_is_closed(tmp_path: Path) -> None:
    """Opened by its name in `incoming/` just before the claim, and written only after it was read."""
    path = tmp_path / "claimed.png"
    path.write_bytes(encoded(landscape(), "PNG"))
    with path.open("r+b"):
        with pytest.raises(StillChanging):
            read_file(path, durable=True)
        assert read_file(path).sha256 == file_sha256(path)
    assert read_file(path, durable=True).sha256 == file_sha256(path)
