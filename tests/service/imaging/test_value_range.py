"""Images of more than 8 bits a sample: what of their values is seen, and what is said of the rest."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from service.imaging.decode import DecodeError, check, decode, measure
from service.imaging.samples import to_8_bits
from tests.support.pixel_matrix import noise, saved, smooth, written

SIZE = (37, 23)


def grey_of(bits: int) -> np.ndarray:
    return smooth(1)[..., 0].astype(np.uint16) << (bits - 8)


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_image_of_any_depth_is_that_of_8_bits_once_its_range_is_known(bits: int) -> None:
    found = decode(written(grey_of(bits)), SIZE, value_range=(0.0, 2.0**bits - 1))
    np.testing.assert_array_equal(found.pixels[..., 0], smooth(1)[..., 0])
    assert found.deep and found.remark is None


def test_range_changes_nothing_for_images_of_8_bits() -> None:
    for data in (saved(Image.fromarray(smooth(3)), "JPEG"), written(smooth(3), photometric="rgb", compression="lzw")):
        plain, other = decode(data, (20, 30)), decode(data, (20, 30), value_range=(0.0, 4095.0))
        np.testing.assert_array_equal(plain.pixels, other.pixels)
        assert not other.deep and other.remark is None


def test_image_of_8_bits_for_a_model_of_counts_says_so() -> None:
    found = decode(saved(Image.fromarray(smooth(3)), "PNG"), SIZE, value_range=(28_490.0, 31_550.0))
    assert found.remark_code == "out_of_range" and "28490 to 31550" in found.remark and "8 bits" in found.remark


def test_image_beyond_the_range_says_by_how_much() -> None:
    values = np.full(SIZE, 30_000, np.uint16)
    values[:10] = 32_000
    values[36] = 100
    found = decode(written(values), SIZE, value_range=(29_000.0, 31_000.0))
    assert found.remark_code == "out_of_range"
    assert "2.70% below" in found.remark and "27.03% above" in found.remark and "100 to 32000" in found.remark
    assert set(np.unique(found.pixels)) == {0, 127, 255}


def test_a_hot_pixel_is_no_reason_for_a_remark() -> None:
    values = np.full((100, 100), 30_000, np.uint16)
    values[3, 4] = 65_535
    assert decode(written(values), SIZE, value_range=(29_000.0, 31_000.0)).remark is None


def test_image_that_uses_little_of_16_bits_says_so_where_the_model_has_no_range() -> None:
    found = decode(written(grey_of(12)), SIZE)
    assert found.remark_code == "out_of_range" and "0 to 65535" in found.remark
    assert decode(written(noise("uint16", 1)[..., 0]), SIZE).remark is None


@pytest.mark.parametrize("dtype", ["uint16", "int16", "uint32", "float32"])
def test_what_is_measured_are_the_values_of_all_shown_pixels(dtype: str) -> None:
    values = noise(dtype, 1)[..., 0]
    found = measure(written(values, compression="lzw", rowsperstrip=7))
    assert (found.least, found.greatest) == (values.min(), values.max())
    assert found.low == np.quantile(values, 0.001, method="lower")
    assert found.high == np.quantile(values, 0.999, method="higher")


def test_pixels_that_are_not_shown_are_not_measured() -> None:
    values = np.full((*SIZE, 2), 1000, np.uint16)
    values[:, :, 1] = 65_535
    values[0] = (60_000, 0)
    found = measure(written(values, photometric="minisblack", planarconfig="contig", extrasamples=["unassalpha"]))
    assert (found.least, found.greatest) == (1000, 1000)


def test_images_of_8_bits_are_not_measured_and_yet_checked() -> None:
    data = saved(Image.fromarray(smooth(3)), "PNG")
    assert measure(data) is None and check(data, (8, 8)) is None
    with pytest.raises(DecodeError, match="cannot decode PNG"):
        check(data[: len(data) // 2], (8, 8))
    assert check(written(noise("float32", 1)[..., 0]), (8, 8)) is not None


def test_steps_of_whole_numbers_hold_as_many_values_each() -> None:
    values = np.arange(4096, dtype=np.uint16)
    counts = np.bincount(to_8_bits(values, 0, 4095, whole_numbers=True))
    assert counts.tolist() == [16] * 256
    np.testing.assert_array_equal(to_8_bits(np.arange(65536), 0, 65535, whole_numbers=True), np.arange(65536) >> 8)
