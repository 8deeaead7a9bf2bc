"""What cameras write, before a real daemon: deep samples, turned TIFFs, thumbnails, raw data, a JPEG cut at its end."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import tifffile
from PIL import Image

from tests.faults.root_for_faults import make_root, query, run_until_settled
from tests.support.brightness_version import install

COUNTS = (28_490.0, 31_550.0)
SIDES = (40, 60)


def tiff(values: np.ndarray, **options: object) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, values, metadata=None, **options)
    return buffer.getvalue()


def grey(value: float) -> np.ndarray:
    return np.full(SIDES, value, np.uint16)


def counts(brightness: int) -> np.ndarray:
    """Return counts that become `brightness` in the range of the thermal version."""
    return grey(COUNTS[0] + (brightness + 0.5) * (COUNTS[1] - COUNTS[0] + 1) / 256)


def with_thumbnail() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(np.full((10, 15), 250, np.uint8), subfiletype=1, metadata=None)
        file.write(np.full(SIDES, 20, np.uint8), metadata=None)
    return buffer.getvalue()


def without_end() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.full(SIDES, 20, np.uint8)).save(buffer, "JPEG")
    return buffer.getvalue()[:-2]


IMAGES = {
    # Name: content, verdict, score or code of the refusal, and what the row says besides
    "twelve/dark.tif": (tiff(grey(20 * 16)), "normal", 20, None),
    "twelve/bright.tif": (tiff(grey(200 * 16), compression="lzw"), "anomaly", 200, None),
    "thermal/cold.tif": (tiff(counts(20)), "normal", 20, None),
    "thermal/hot.tif": (tiff(counts(200)), "anomaly", 200, None),
    "thermal/burning.tif": (tiff(grey(40_000)), "anomaly", 255, "out_of_range"),
    "turned.tif": (tiff(np.full(SIDES[::-1], 20, np.uint8), extratags=[(274, "H", 1, 6, True)]), "normal", 20, None),
    "thumbnail.tif": (with_thumbnail(), "normal", 20, None),
    "cut.jpg": (without_end(), "normal", 20, "no_end_marker"),
    "dim.tif": (tiff(grey(20 * 16)), "normal", 1, "out_of_range"),
    "raw.dng.tif": (tiff(grey(20), extratags=[(50706, "B", 4, (1, 4, 0, 0), True)]), None, "format", "format"),
    "float.tif": (tiff(grey(1).astype(np.float32)), None, "mode", "mode"),
}


def test_images_as_cameras_write_them_are_judged_as_they_were_meant(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    install(root, "twelve", value_range=(0.0, 4095.0))
    install(root, "thermal", value_range=COUNTS)
    for name, (content, *_) in IMAGES.items():
        path = root / "incoming" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
    run_until_settled(root, len(IMAGES))
    rows = {(row["product"], row["file_name"]): row for row in query(root, "SELECT * FROM results")}
    for name, (_, verdict, expected, remark) in IMAGES.items():
        product, _, file_name = name.rpartition("/")
        row = rows[product or "default", file_name]
        assert (row["verdict"], row["error_code"]) == (verdict, remark), row
        if verdict is not None:
            assert abs(row["score"] - expected) < 1, row
            assert (row["state"], row["height"], row["width"]) == ("placed", *SIDES), row
