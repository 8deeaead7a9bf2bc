from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from models.regions import Region
from service.imaging.overlay import drawn_size, overlay, regions_of, save_overlay, side_by_side


def test_map_is_drawn_upright_where_the_anomaly_is() -> None:
    image = np.full((40, 60, 3), 100, dtype=np.uint8)
    anomaly_map = np.zeros((4, 6), dtype=np.float32)
    anomaly_map[0, 5] = 10.0
    drawn = overlay(image, anomaly_map, pixel_threshold=2.0)
    assert drawn.shape == (40, 60, 3) and drawn.dtype == np.uint8
    assert drawn[2, 57, 0] > 150
    np.testing.assert_array_equal(drawn[20:, :40], image[20:, :40])


def test_what_normal_images_reach_changes_nothing() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    np.testing.assert_array_equal(overlay(image, np.full((4, 6), 0.4, np.float32), 1.0), image)


@pytest.mark.parametrize("size", [(40, 60), (64, 5), (129, 7), (1, 1)])
def test_png_is_written_whole(tmp_path: Path, size: tuple[int, int]) -> None:
    drawn = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    save_overlay(tmp_path / "a.png", drawn)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), drawn)


def test_regions_are_framed_where_they_lie_whatever_size_the_image_is_drawn_at() -> None:
    anomaly_map = np.zeros((4, 6), dtype=np.float32)
    region = Region(x=600, y=100, width=200, height=100, area=100, area_share=0.01, peak=2.0, mean=1.5)
    plain = np.full((100, 150, 3), 50, dtype=np.uint8)
    drawn = overlay(plain, anomaly_map, 1.0, [region], (1000, 1500))
    rows, columns = np.nonzero((drawn != plain).any(axis=2))
    # Of a tenth of the size: x 60 to 80, y 10 to 20, and a line of one pixel around it.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (9, 20, 59, 80)
    assert (drawn[10:20, 60:80] == 50).all()


def test_what_is_coloured_at_full_strength_lies_in_a_region() -> None:
    anomaly_map = np.zeros((8, 12), dtype=np.float32)
    anomaly_map[2:4, 6:9] = 4.0
    plain = np.full((160, 360, 3), 50, dtype=np.uint8)
    [region] = regions_of(anomaly_map, 1.0, 160, 360)
    red = overlay(plain, anomaly_map, 1.0)[..., 0] > 120
    rows, columns = np.nonzero(red)
    assert region.y <= rows.min() and rows.max() < region.y + region.height
    assert region.x <= columns.min() and columns.max() < region.x + region.width


def test_drawing_leaves_the_image_as_it_was() -> None:
    plain = np.full((40, 60, 3), 50, dtype=np.uint8)
    overlay(plain, np.full((4, 6), 9.0, np.float32), 1.0, regions_of(np.full((4, 6), 9.0, np.float32), 1.0, 40, 60))
    assert (plain == 50).all()


def test_large_images_are_drawn_smaller_and_small_ones_at_their_size() -> None:
    assert drawn_size(3000, 6000) == (800, 1600)
    assert drawn_size(20, 30) == (20, 30)


def test_side_by_side_are_image_map_and_overlay() -> None:
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    anomaly_map = np.zeros((4, 6), dtype=np.float32)
    anomaly_map[0, 5] = 10.0
    joined = side_by_side(image, anomaly_map, 2.0)
    assert joined.shape == (40, 3 * 60 + 2 * 8, 3)
    np.testing.assert_array_equal(joined[:, :60], image)
    np.testing.assert_array_equal(joined[:, 136:], overlay(image, anomaly_map, 2.0))
    in_the_middle = joined[:, 68:128].astype(int)
    assert in_the_middle[2, 57, 0] > 200 and in_the_middle[20:, :40].max() == 0


@pytest.mark.parametrize(("cells", "size"), [((28, 40), (1000, 1500)), ((40, 60), (333, 777)), ((7, 5), (60, 90))])
def test_what_is_drawn_of_a_part_is_as_if_the_whole_were_drawn(
    cells: tuple[int, int], size: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    image = np.full((*size, 3), 90, np.uint8)
    anomaly_map = np.full(cells, 0.2, np.float32)
    anomaly_map[2:4, 1:3] = 2.5
    part = overlay(image, anomaly_map, 1.0)
    assert (part != image).any() and (part[-1, -1] == image[-1, -1]).all()
    monkeypatch.setattr("service.imaging.overlay._box_above", lambda grey, whole: (0, 0, whole[1], whole[0]))
    whole = overlay(image, anomaly_map, 1.0)
    away = np.abs(part.astype(int) - whole).max(axis=2)
    # At the edge of what shows a grey level more or less is several of opacity.
    assert away.max() <= 8 and (away > 1).mean() < 0.001
