"""The demo's parts: what is asked for is what is drawn, and the same seed draws it again."""

from __future__ import annotations

import numpy as np
import pytest

from service.commands.demo import Drop, plan, report
from service.imaging.synthetic_parts import DEFECTS, draw

SIZE = (240, 320)  # a rectangle: swapped height and width must show


def generator(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_image_and_mask_have_the_asked_size_and_types(defect: str | None) -> None:
    drawn = draw(generator(), defect, SIZE)
    assert drawn.image.shape == (240, 320, 3)
    assert drawn.image.dtype == np.uint8
    assert drawn.mask.shape == (240, 320)
    assert drawn.mask.dtype == np.bool_


@pytest.mark.parametrize("defect", [None, *DEFECTS])
def test_same_seed_draws_the_same_image(defect: str | None) -> None:
    first, second = draw(generator(), defect, SIZE), draw(generator(), defect, SIZE)
    assert np.array_equal(first.image, second.image)
    assert np.array_equal(first.mask, second.mask)


def test_good_parts_differ_from_each_other_a_little() -> None:
    rng = generator()
    first, second = (draw(rng, None, SIZE).image.astype(np.int16) for _ in range(2))
    difference = float(np.abs(first - second).mean())
    assert 0.5 < difference < 25


def test_good_part_has_an_empty_mask() -> None:
    assert not draw(generator(), None).mask.any()


@pytest.mark.parametrize("defect", DEFECTS)
@pytest.mark.parametrize("seed", range(6))
def test_defect_covers_some_of_the_part_and_little_of_the_image(defect: str, seed: int) -> None:
    share = float(draw(generator(seed), defect).mask.mean())
    assert 0.0001 < share < 0.06


@pytest.mark.parametrize("defect", DEFECTS)
def test_defects_come_in_several_sizes(defect: str) -> None:
    sizes = [int(draw(generator(seed), defect, SIZE).mask.sum()) for seed in range(8)]
    assert max(sizes) > min(sizes)


@pytest.mark.parametrize("defect", DEFECTS)
def test_mask_lies_where_the_image_changed(defect: str) -> None:
    """Against twelve good parts, the masked pixels are unlike any of them more than the others are."""
    rng = generator(11)
    good = np.stack([draw(rng, None, SIZE).image.mean(axis=2) for _ in range(12)])
    inside, outside = [], []
    for seed in range(8):
        drawn = draw(generator(100 + seed), defect, SIZE)
        unlike = np.abs(drawn.image.mean(axis=2)[None] - good).min(axis=0)
        inside.append(float(unlike[drawn.mask].mean()))
        outside.append(float(unlike[~drawn.mask].mean()))
    assert np.mean(inside) > 2 * np.mean(outside)


def test_images_are_neither_black_nor_burnt_out() -> None:
    image = draw(generator(), None).image
    assert 30 < float(image.mean()) < 200
    assert float((image >= 254).mean()) < 0.05


def test_unknown_defect_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"expected one of scratch.*found 'rust'"):
        draw(generator(), "rust", SIZE)


# --- what the demo makes of the parts -------------------------------------------------------------------------


def results(verdicts: dict[str, str], state: str = "placed") -> list[dict[str, str]]:
    return [{"file_name": name, "verdict": verdict, "state": state} for name, verdict in verdicts.items()]


def test_plan_is_a_third_bad_with_every_kind_and_no_name_twice() -> None:
    drops = plan(60, generator())
    assert len(drops) == len({drop.file_name for drop in drops}) == 60
    assert sum(drop.defect is not None for drop in drops) == 20
    assert {drop.defect for drop in drops} == {None, *DEFECTS}
    assert drops == plan(60, generator())


def test_report_counts_each_of_the_four_outcomes_and_each_kind() -> None:
    drops = [Drop("a", None), Drop("b", None), Drop("c", "dent"), Drop("d", "dent"), Drop("e", "chip")]
    verdicts = {"a": "normal", "b": "anomaly", "c": "anomaly", "d": "normal", "e": "anomaly"}
    found = report(drops, results(verdicts))
    assert found["unplaced"] == 0
    assert found["confusion"] == {
        "tp": 2,
        "fp": 1,
        "fn": 1,
        "tn": 1,
        "precision": pytest.approx(2 / 3),
        "recall": pytest.approx(2 / 3),
        "f1": pytest.approx(2 / 3),
    }
    assert found["defects"]["dent"] == {"pictures": 2, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    assert found["defects"]["chip"]["recall"] == 1.0


def test_image_without_a_placed_row_counts_as_unplaced_and_nothing_else() -> None:
    drops = [Drop("a", None), Drop("b", "dent")]
    found = report(drops, results({"b": "anomaly"}, state="quarantined"))
    assert found["unplaced"] == 2
    assert found["confusion"]["recall"] is None
    assert found["confusion"]["f1"] is None
