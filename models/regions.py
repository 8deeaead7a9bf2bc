"""Turns an anomaly map into units of the calibrated pixel threshold, and into the regions that reach above it.

Pure. Maps are enlarged by a filter that never goes beyond the cells it lies between, so a map without a cell above 1.0
has no region, and a region's peak is that of its cells.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image

from models.detector import Float32Array

THRESHOLD = 1.0
"""The pixel threshold in its own units."""

GRID_SIDE_MAX = 512
"""Points of the longer side of the common grid, unless the map itself has more."""

REGIONS_MAX = 32
"""Regions kept of one image, those with the highest peaks."""

SPECK_CELLS = 0.5
"""Cells of the map; a smaller region is a speck, and dropped where the image has another region."""

# A degenerate calibration (a threshold of nearly 0) must not make values that no database column takes.
_UNITS_MAX = 1e6

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Region:
    """A connected part of an image above the pixel threshold.

    `x`, `y` (of the upper left corner), `width` and `height` are pixels of the upright image as dropped and
    enclose it; `area` is its own area in those pixels, `area_share` the same as a share of the image. `peak`
    and `mean` are in units of the pixel threshold, so above 1.
    """

    x: int
    y: int
    width: int
    height: int
    area: int
    area_share: float
    peak: float
    mean: float


def in_threshold_units(anomaly_map: Float32Array, pixel_threshold: float) -> Float32Array:
    """Return the map float32 `(h, w)` divided by `pixel_threshold`: 1.0 is the threshold; values are 0 to 1e6, NaN is
    0.
    """
    with np.errstate(over="ignore"):
        units = anomaly_map.astype(np.float64) / max(pixel_threshold, 1e-12)
    return np.clip(np.nan_to_num(units, nan=0.0, posinf=_UNITS_MAX), 0.0, _UNITS_MAX).astype(np.float32)


def on_common_grid(units: Float32Array) -> Float32Array:
    """Return the map float32 `(h, w)` enlarged `f` times to `(f h, f w)`, bilinear between the centres of its cells.

    `f` is the largest odd number that keeps the longer side within GRID_SIDE_MAX, at least 1: with an odd
    number the centre of each cell is a point of the grid, and keeps its value.
    """
    height, width = units.shape
    factor = max(1, GRID_SIDE_MAX // max(height, width))
    factor -= 1 - factor % 2
    if factor == 1:
        return units
    image = Image.fromarray(np.ascontiguousarray(units, dtype=np.float32))
    enlarged = image.resize((width * factor, height * factor), Image.Resampling.BILINEAR)
    # Rounding in the filter may pass the highest cell by a last digit.
    return np.minimum(np.asarray(enlarged, dtype=np.float32), np.float32(units.max()), dtype=np.float32)


def find_regions(units: Float32Array, height: int, width: int) -> tuple[Region, ...]:
    """Return the 8-connected regions above 1.0 of a map in units of the threshold, float32 `(h, w)`, by peak, falling.

    The map covers the whole of an image of `height` x `width` pixels, in which the regions are given. Regions
    of less than SPECK_CELLS are dropped, unless all are: then the one with the highest peak stays. At most
    REGIONS_MAX are returned.
    """
    # Most maps of normal images end here.
    if not (units > THRESHOLD).any():
        return ()
    grid = on_common_grid(units)
    cell_points = grid.size / units.size
    found = _Components(grid)
    order = np.lexsort((found.left, found.top, -found.points, -found.peak))
    large = order[found.points[order] >= SPECK_CELLS * cell_points]
    kept = large[:REGIONS_MAX] if len(large) else order[:1]
    return tuple(found.region(int(index), height, width) for index in kept)


class _Components:
    """The 8-connected components of `grid > 1`: per component points, sum, peak and bounds, all `(n,)`.

    Found from the runs of each row: scipy.ndimage takes 18 MB and 0.4 s to import, in a process that must stay small
    and answer soon.
    """

    def __init__(self, grid: Float32Array) -> None:
        self._shape = grid.shape
        stride = grid.shape[1] + 1
        # A last column of zeros ends every run within its row.
        flat = np.pad(grid, ((0, 0), (0, 1))).ravel()
        above = np.concatenate(([False], flat > THRESHOLD))
        edges = np.flatnonzero(above[1:] != above[:-1])
        starts, ends = edges[::2], edges[1::2]
        rows = starts // stride
        component = _joined(rows, starts % stride, ends - rows * stride)
        n = int(component.max()) + 1
        values = flat.astype(np.float64)
        self.points: IntArray = np.bincount(component, ends - starts, n).astype(np.int64)
        self.total = np.bincount(component, np.add.reduceat(values, edges)[::2], n)
        self.peak = np.zeros(n)
        np.maximum.at(self.peak, component, np.maximum.reduceat(values, edges)[::2])
        self.top, self.bottom = _bounds(component, rows, rows + 1, n)
        self.left, self.right = _bounds(component, starts % stride, ends - rows * stride, n)

    def region(self, index: int, height: int, width: int) -> Region:
        grid_height, grid_width = self._shape
        x, right = _outwards(self.left[index], self.right[index], grid_width, width)
        y, bottom = _outwards(self.top[index], self.bottom[index], grid_height, height)
        points = int(self.points[index])
        share = points / (grid_height * grid_width)
        mean = float(self.total[index] / points)
        area = max(1, round(share * height * width))
        return Region(x, y, right - x, bottom - y, area, share, float(self.peak[index]), mean)


def _joined(rows: IntArray, starts: IntArray, ends: IntArray) -> IntArray:
    """Return the component, numbered from 0, of each run: of row `rows`, from `starts` to before `ends`, in order."""
    parents = list(range(len(rows)))

    def root(run: int) -> int:
        while parents[run] != run:
            parents[run] = parents[parents[run]]
            run = parents[run]
        return run

    row, start, end = rows.tolist(), starts.tolist(), ends.tolist()
    above = 0
    for run in range(len(row)):
        # Runs of the row above that end left of this one touch none that follows either.
        while row[above] < row[run] - 1 or (row[above] == row[run] - 1 and end[above] < start[run]):
            above += 1
        other = above
        while row[other] == row[run] - 1 and start[other] <= end[run]:
            parents[root(other)] = root(run)
            other += 1
    _, component = np.unique([root(run) for run in range(len(row))], return_inverse=True)
    return component.astype(np.int64).reshape(-1)


def _bounds(component: IntArray, first: IntArray, past: IntArray, n: int) -> tuple[IntArray, IntArray]:
    low, high = np.full(n, np.iinfo(np.int64).max), np.zeros(n, np.int64)
    np.minimum.at(low, component, first)
    np.maximum.at(high, component, past)
    return low, high


def _outwards(first: int, past: int, points: int, pixels: int) -> tuple[int, int]:
    """Return the pixels that enclose the points `first` to before `past`, where `points` cover `pixels`."""
    low = int(first) * pixels // points
    high = -(-int(past) * pixels // points)
    return low, max(high, low + 1)
