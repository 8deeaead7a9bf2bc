"""Brightness, contrast and sharpness of an image: defined to the grey level, for every image there is."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image, ImageFilter

from models.appearance import appearance_of

images = arrays.arrays(
    np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9), st.just(3)), elements=st.integers(0, 255)
)


def grey(values: object) -> np.ndarray:
    return np.repeat(np.asarray(values, np.uint8)[:, :, None], 3, axis=2)


@given(images)
def test_every_image_has_figures_that_can_be_stored(pixels: np.ndarray) -> None:
    found = appearance_of(pixels)
    assert 0 <= found.brightness <= 255 and 0 <= found.contrast <= 127.5
    if min(pixels.shape[:2]) < 3:
        assert found.sharpness is None
    else:
        assert found.sharpness is not None and 0 <= found.sharpness <= 4 * 255
    assert all(type(value) is float and math.isfinite(value) for value in (found.brightness, found.contrast))


@given(images.filter(lambda pixels: min(pixels.shape[:2]) >= 3))
def test_figures_are_those_of_the_definition(pixels: np.ndarray) -> None:
    luma = np.asarray(Image.fromarray(pixels).convert("L")).astype(float)
    laplacian = 4 * luma[1:-1, 1:-1] - luma[:-2, 1:-1] - luma[2:, 1:-1] - luma[1:-1, :-2] - luma[1:-1, 2:]
    found = appearance_of(pixels)
    assert found.brightness == pytest.approx(luma.mean(), abs=1e-9)
    assert found.contrast == pytest.approx(luma.std(), abs=1e-6)
    assert found.sharpness == pytest.approx(np.abs(laplacian).mean(), abs=1e-9)


def test_flat_image_has_its_grey_level_and_nothing_else() -> None:
    found = appearance_of(grey(np.full((7, 11), 80)))
    assert (found.brightness, found.contrast, found.sharpness) == (80.0, 0.0, 0.0)


def test_one_light_pixel_counts_with_those_neighbours_that_have_four() -> None:
    image = np.zeros((5, 6))
    image[1, 3] = 100
    found = appearance_of(grey(image))
    assert found.brightness == pytest.approx(100 / 30) and found.sharpness == pytest.approx((400 + 3 * 100) / 12)


def test_blur_takes_sharpness_and_leaves_brightness() -> None:
    generator = np.random.default_rng(3)
    image = Image.fromarray(generator.integers(60, 200, (60, 80, 3), dtype=np.uint8))
    sharp = appearance_of(np.asarray(image))
    blurred = appearance_of(np.asarray(image.filter(ImageFilter.GaussianBlur(2))))
    assert sharp.sharpness is not None and blurred.sharpness is not None
    assert blurred.sharpness < sharp.sharpness / 4 and abs(blurred.brightness - sharp.brightness) < 2


def test_light_scales_brightness_and_contrast() -> None:
    pixels = np.random.default_rng(4).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    full, half = appearance_of(pixels), appearance_of((pixels // 2).astype(np.uint8))
    assert half.brightness == pytest.approx(full.brightness / 2, abs=1)
    assert half.contrast == pytest.approx(full.contrast / 2, abs=1)
