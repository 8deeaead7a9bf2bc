"""Drawn defects: what is marked is what changed, and grey stays grey."""

from __future__ import annotations

import numpy as np
import pytest

from models.detector import UInt8Array
from models.synthetic_defects import draw as drawn_defects
from models.synthetic_defects.draw import CHANGE_MIN, KINDS, draw_defects, is_grey, share_by_position


def image(height: int = 96, width: int = 160, *, grey: bool = False, seed: int = 0) -> UInt8Array:
    rng = np.random.default_rng(seed)
    rough = rng.integers(60, 200, (height // 8, width // 8, 1 if grey else 3), dtype=np.uint8)
    return np.ascontiguousarray(np.broadcast_to(rough.repeat(8, 0).repeat(8, 1), (height, width, 3)))


def test_only_what_is_marked_changed_visibly() -> None:
    normal, others = image(), [image(seed=1)]
    for seed in range(40):
        drawn, mask = draw_defects(normal, others, np.random.default_rng(seed))
        assert drawn.shape == normal.shape and drawn.dtype == np.uint8 and mask.shape == normal.shape[:2]
        change = np.abs(drawn.astype(int) - normal).max(axis=2)
        # A later defect may change an earlier one back, never something unmarked.
        assert change[~mask].max(initial=0) <= 4 * CHANGE_MIN
        assert mask.mean() < 1
    assert np.array_equal(normal, image())


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_changes_a_image_with_structure(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drawn_defects, "KINDS", {kind: KINDS[kind]})
    normal, others = image(256, 384), [image(256, 384, seed=1)]
    marked = [draw_defects(normal, others, np.random.default_rng(seed))[1].sum() for seed in range(12)]
    assert sum(count > 0 for count in marked) >= 9


def test_grey_images_stay_grey() -> None:
    normal, others = image(grey=True), [image(grey=True, seed=1)]
    assert is_grey(normal) and not is_grey(image())
    for seed in range(60):
        assert is_grey(draw_defects(normal, others, np.random.default_rng(seed))[0])


@pytest.mark.parametrize("size", [(64, 64), (64, 512), (320, 64)])
def test_smallest_and_longest_images_can_be_drawn_on(size: tuple[int, int]) -> None:
    normal = image(*size)
    marked = [draw_defects(normal, [normal], np.random.default_rng(seed))[1].any() for seed in range(30)]
    assert sum(marked) >= 25


def test_same_chance_draws_the_same() -> None:
    normal, others = image(), [image(seed=1)]
    one, other = (draw_defects(normal, others, np.random.default_rng(5)) for _ in range(2))
    assert np.array_equal(one[0], other[0]) and np.array_equal(one[1], other[1])


def test_plain_image_is_no_error() -> None:
    plain = np.full((96, 96, 3), 128, dtype=np.uint8)
    drawn, mask = draw_defects(plain, [plain], np.random.default_rng(0))
    assert drawn.shape == plain.shape and mask.shape == (96, 96)


def test_share_of_a_position_counts_its_pixels() -> None:
    mask = np.zeros((16, 24), dtype=bool)
    mask[0:4, 8:16] = True
    share = share_by_position(mask, 8)
    assert share.tolist() == [[0, 0.5, 0], [0, 0, 0]]
