"""Regions of anomaly maps: the same as scipy's, in pixels of the image, never from a map below the threshold."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy import ndimage

from models.regions import (
    GRID_SIDE_MAX,
    REGIONS_MAX,
    SPECK_CELLS,
    _Components,
    find_regions,
    in_threshold_units,
    on_common_grid,
)

MAPS = arrays(
    np.float32, array_shapes(min_dims=2, max_dims=2, max_side=12), elements=st.floats(0, 4, width=32).map(np.float32)
)


def blank(height: int = 8, width: int = 12) -> np.ndarray:
    return np.zeros((height, width), np.float32)


def test_units_are_of_the_pixel_threshold() -> None:
    np.testing.assert_allclose(in_threshold_units(np.array([[0.5, 1.0, 3.0]], np.float32), 0.5), [[1, 2, 6]])


@pytest.mark.parametrize("threshold", [1.0, 1e-30, 0.0])
def test_units_are_finite_whatever_the_map_holds(threshold: float) -> None:
    units = in_threshold_units(np.array([[math.nan, math.inf, -math.inf, -1.0, 3e38]], np.float32), threshold)
    assert np.isfinite(units).all() and units.min() >= 0 and units[0, 0] == 0
    assert all(math.isfinite(region.mean) for region in find_regions(units, 10, 50))


@given(MAPS)
def test_grid_keeps_the_value_of_each_cell_at_its_centre_and_its_longer_side_is_bounded(units: np.ndarray) -> None:
    grid = on_common_grid(units)
    factor = grid.shape[0] // units.shape[0]
    assert factor % 2 == 1 and grid.shape == (units.shape[0] * factor, units.shape[1] * factor)
    assert max(grid.shape) <= GRID_SIDE_MAX and grid.max() == units.max()
    np.testing.assert_allclose(grid[factor // 2 :: factor, factor // 2 :: factor], units, atol=1e-5)


def test_map_larger_than_the_grid_stays_as_it_is() -> None:
    units = np.random.default_rng(0).random((3, GRID_SIDE_MAX + 1), np.float32)
    assert on_common_grid(units) is units


@settings(deadline=None, max_examples=60)
@given(MAPS, st.integers(1, 700), st.integers(1, 700))
def test_regions_lie_in_the_image_and_their_figures_hold_together(units: np.ndarray, height: int, width: int) -> None:
    regions = find_regions(units, height, width)
    assert bool(regions) == bool((units > 1).any())
    assert [region.peak for region in regions] == sorted((region.peak for region in regions), reverse=True)
    for region in regions:
        assert 0 <= region.x < region.x + region.width <= width
        assert 0 <= region.y < region.y + region.height <= height
        assert 1 < region.mean <= region.peak * (1 + 1e-6) and region.peak <= units.max()
        assert 0 < region.area_share <= 1 and 1 <= region.area <= max(1, height * width)
    if regions:
        assert regions[0].peak == pytest.approx(units.max(), rel=1e-5)


@settings(deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, max_side=15)))
def test_components_are_those_of_scipy(mask: np.ndarray) -> None:
    if not mask.any():
        return
    grid = np.where(mask, np.arange(2, mask.size + 2).reshape(mask.shape), 0).astype(np.float32)
    labels, n = ndimage.label(mask, structure=np.ones((3, 3)))
    expected = set()
    for label, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        inside = grid[labels == label]
        bounds = (rows.start, rows.stop, columns.start, columns.stop)
        expected.add((*bounds, inside.size, float(inside.sum(dtype=np.float64)), float(inside.max())))
    found = _Components(grid)
    assert len(found.peak) == n
    fields = (found.top, found.bottom, found.left, found.right, found.points, found.total, found.peak)
    assert set(zip(*(field.tolist() for field in fields), strict=True)) == expected


def test_box_is_in_pixels_of_the_image_upright() -> None:
    units = blank(10, 30)
    units[2:4, 21:27] = 5.0  # 6 cells wide, 2 high, of an image ten times as large
    [region] = find_regions(units, 100, 300)
    # The slope from 5 to 0 is above 1 for some pixels around the cells.
    assert 205 <= region.x < 210 and 270 < region.x + region.width <= 275
    assert 15 <= region.y < 20 and 40 < region.y + region.height <= 45
    assert region.area == pytest.approx(region.area_share * 100 * 300, abs=1)
    assert 60 * 20 < region.area <= region.width * region.height
    assert region.peak == 5.0


def test_two_defects_are_two_regions_the_worse_first() -> None:
    units = blank()
    units[1:3, 1:3], units[5:7, 8:11] = 2.0, 4.0
    worse, other = find_regions(units, 80, 120)
    assert (worse.peak, other.peak) == (4.0, 2.0)
    assert worse.x > other.x and worse.y > other.y and worse.area > other.area


def test_specks_are_dropped_beside_a_region_and_the_highest_stays_where_all_are_specks() -> None:
    units = blank()
    units[1, 1] = 1.05
    units[6, 3] = 1.08
    [only] = find_regions(units, 80, 120)
    assert only.peak == pytest.approx(1.08) and only.area_share * units.size < SPECK_CELLS
    units[4:6, 7:9] = 3.0
    [region] = find_regions(units, 80, 120)
    assert region.peak == 3.0


def test_no_more_regions_than_the_limit_those_with_the_highest_peaks() -> None:
    units = blank(40, 40)
    units[1::4, 1::4] = 2.0 + np.arange(100, dtype=np.float32).reshape(10, 10) / 100
    regions = find_regions(units, 400, 400)
    assert len(regions) == REGIONS_MAX
    assert min(region.peak for region in regions) == pytest.approx(2.68)


def test_map_of_nothing_but_noise_takes_no_longer_than_a_image() -> None:
    units = np.random.default_rng(0).random((64, 64), np.float32) * 2
    started = time.process_time()
    assert len(find_regions(units, 1000, 1000)) == REGIONS_MAX
    assert time.process_time() - started < 1.0
