from __future__ import annotations

import pytest
from pydantic import ValidationError

from models.data.value_range import ValueStatistics, measured_range
from models.manifest import ValueRange


def image(low: float, high: float, least: float | None = None, greatest: float | None = None, kind: str = "u"):
    return ValueStatistics(kind, low if least is None else least, high if greatest is None else greatest, low, high)


@pytest.mark.parametrize(
    ("images", "expected"),
    [
        # Sensors of 8 to 16 bits: the whole scale
        ([image(3, 250)], (0, 255)),
        ([image(3, 1020)], (0, 1023)),
        ([image(100, 3900), image(90, 2000)], (0, 4095)),
        ([image(100, 3900, greatest=4095)], (0, 4095)),
        ([image(0, 16000)], (0, 16383)),
        ([image(0, 60000)], (0, 65535)),
        # A dim image of 12 bits has a pixel that shows how many there are
        ([image(10, 1200, greatest=4095)], (0, 4095)),
        # Thermal counts, of which an image uses little: with a quarter of the span on either side
        ([image(29_000, 31_040)], (28_490, 31_550)),
        ([image(29_000, 30_000), image(30_000, 31_040)], (28_490, 31_550)),
        # Never below 0 for unsigned values, and as wide all the same
        ([image(20, 1020, greatest=16000)], (0, 1500)),
        ([image(-300, 700, kind="i")], (-550, 950)),
        ([image(0.1, 0.9, kind="f")], (0, 1)),
        ([image(20.0, 24.0, kind="f")], (19, 25)),
        # No finer than whole numbers are
        ([image(30_000, 30_010)], (29_877, 30_133)),
        # One odd image in a hundred does not stretch the range
        ([image(29_000, 31_040)] * 99 + [image(0, 65_535)], (28_490, 31_550)),
    ],
)
def test_range_is_the_scale_that_images_use_or_what_they_use_of_it(images, expected) -> None:
    assert measured_range(images) == expected


def test_images_of_up_to_8_bits_have_no_range() -> None:
    assert measured_range([]) is None


def test_images_all_of_one_value_have_a_range() -> None:
    low, high = measured_range([image(0.0, 0.0, kind="f")])
    assert low < 0 < high


def test_range_that_is_upside_down_is_refused() -> None:
    with pytest.raises(ValidationError, match="low below"):
        ValueRange(low=10, high=10, source="setting", images=0)
