from pathlib import Path

import numpy as np
from PIL import Image

from service.maps import overlay, save_overlay


def test_map_is_drawn_upright_where_the_anomaly_is() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    anomaly_map = np.zeros((4, 6), dtype=np.float32)
    anomaly_map[0, 5] = 10.0
    drawn = overlay(image, anomaly_map, pixel_threshold=2.0)
    assert drawn.shape == (40, 60, 3) and drawn.dtype == np.uint8
    assert drawn[2, 57, 0] > 150
    np.testing.assert_array_equal(drawn[20:, :40], image[20:, :40])


def test_what_normal_pictures_reach_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, np.full((4, 6), 0.4, np.float32), 1.0), image)


def test_png_is_written_whole(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    save_overlay(tmp_path / "a.png", drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn)
