from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.data.select_images import Chosen, TrainingImage
from models.detector import Scored, UInt8Array
from models.training.draft_check import CHANGE_MAX, IMAGES_MAX, check_draft, check_drafts, score_change

SIZE = (4, 6)


class Brightness:
    """Scores by mean grey level less `zero`, so that what a draft changes is plain."""

    input_size = SIZE

    def __init__(self, zero: float = 0.0) -> None:
        self.zero = zero

    def score(self, images: UInt8Array) -> Scored:
        scores = (images.mean(axis=(1, 2, 3)) - self.zero).astype(np.float32)
        return Scored(scores, np.zeros((len(images), 1, 1), np.float32))


def plain(path: Path, size: tuple[int, int]) -> UInt8Array:
    return np.full((*size, 3), int(path.name), np.uint8)


def brighter(by: int):
    return lambda path, size: np.full((*size, 3), int(path.name) + by, np.uint8)


IMAGES = [Path(str(level)) for level in range(100, 201, 5)]


def test_drafts_that_change_no_score_are_used() -> None:
    check = check_draft(Brightness(), IMAGES, plain, brighter(0), 0.05)
    assert check.model_dump(exclude_unset=True) == {"draft": True, "images": len(IMAGES), "max_score_change": 0.0}


@pytest.mark.parametrize(("change", "used"), [(1, True), (2, True), (3, False)])
def test_drafts_are_used_up_to_a_hundredth_of_the_threshold(change: int, used: bool) -> None:
    check = check_draft(Brightness(), IMAGES, plain, brighter(change), 0.01)
    assert check.draft is used
    assert check.max_score_change == pytest.approx(change / 200)
    assert (check.reason is None) is used


def test_where_the_threshold_is_about_zero_its_distance_from_a_usual_score_counts() -> None:
    # Scores from -100 to 0: a hundredth of the threshold is nothing, a hundredth of the way to it is half a level.
    check = check_draft(Brightness(zero=200.0), IMAGES, plain, brighter(1), 0.01)
    assert check.max_score_change == pytest.approx(1 / 50)
    assert not check.draft


def test_no_draft_where_no_image_has_one() -> None:
    check = check_draft(Brightness(), IMAGES, plain, lambda path, size: None, 0.05)
    assert not check.draft and check.max_score_change is None and check.images == 0
    assert "JPEG" in str(check.reason)


def test_no_draft_where_nobody_can_read_one() -> None:
    assert not check_draft(Brightness(), IMAGES, plain, None, 0.05).draft


def test_only_images_that_have_a_draft_are_counted() -> None:
    def some(path: Path, size: tuple[int, int]) -> UInt8Array | None:
        return plain(path, size) if int(path.name) >= 150 else None

    check = check_draft(Brightness(), IMAGES, plain, some, 0.05)
    assert check.draft and check.images == sum(int(path.name) >= 150 for path in IMAGES)


def test_check_takes_at_most_64_images() -> None:
    check = check_draft(Brightness(), [Path(str(level)) for level in range(1, 200)], plain, plain, 0.05)
    assert check.images == IMAGES_MAX


def test_score_that_is_not_finite_refuses_drafts() -> None:
    assert score_change(np.float32([1, 2]), np.float32([1, np.nan]), 0.1) == float("inf") > CHANGE_MAX


def test_calibration_reads_as_drafts_what_will_be_read_so_and_nothing_else() -> None:
    def chosen(product: str, levels: range) -> Chosen:
        images = tuple(TrainingImage(Path(str(level)), str(level)) for level in levels)
        return Chosen(product, 0.05, "split", (), images, (), (), SIZE, ())

    def read_draft(path: Path, size: tuple[int, int]) -> UInt8Array:
        return brighter(1 if int(path.name) > 100 else 50)(path, size)

    products = [chosen("good", range(150, 180)), chosen("bad", range(50, 80))]
    checks, read = check_drafts([Brightness()] * len(products), products, plain, read_draft)
    assert [check.draft for check in checks] == [True, False]
    assert read(Path("150"), SIZE)[0, 0, 0] == 151
    assert read(Path("50"), SIZE)[0, 0, 0] == 50
