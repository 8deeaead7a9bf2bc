"""Changes that leave a normal part normal: which are found harmless, and that they do what they say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from models.detector import Float32Array, UInt8Array
from models.fitting.augment import OPTIONAL, harmless, light, vary


def parts(count: int, *, side: str, seed: int = 0) -> list[UInt8Array]:
    """Images with a bright bar on the left, or on either side."""
    rng = np.random.default_rng(seed)
    found = []
    for number in range(count):
        image = np.full((64, 96, 3), 90, dtype=np.uint8) + rng.integers(0, 12, (64, 96, 1), dtype=np.uint8)
        left = side == "left" or number % 2 == 0
        image[8:56, 8:20] if left else image[8:56, 76:88]
        (image[8:56, 8:20] if left else image[8:56, 76:88])[:] = 220
        found.append(image)
    return found


def unlike(known: Sequence[UInt8Array]) -> object:
    """Return a score: the distance to the most similar of `known`."""
    flat = np.stack(known).reshape(len(known), -1).astype(np.float32)

    def score(images: Sequence[UInt8Array]) -> Float32Array:
        asked = np.stack(images).reshape(len(images), -1).astype(np.float32)
        return np.asarray([np.abs(flat - one).mean(axis=1).min() for one in asked], dtype=np.float32)

    return score


def test_mirroring_is_harmless_only_where_parts_lie_both_ways() -> None:
    fixed, free = parts(12, side="left"), parts(12, side="both")
    assert "mirrored" not in harmless(parts(8, side="left", seed=1), unlike(fixed), 0)  # type: ignore[arg-type]
    assert "mirrored" in harmless(parts(8, side="both", seed=1), unlike(free), 0)  # type: ignore[arg-type]


def test_other_light_is_harmful_where_the_light_never_changed() -> None:
    assert "other light" not in harmless(parts(8, side="left", seed=1), unlike(parts(12, side="left")), 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", OPTIONAL)
def test_changes_keep_size_and_type_and_leave_the_image_itself(name: str) -> None:
    [image] = parts(1, side="left")
    before = image.copy()
    for seed in range(6):
        changed = OPTIONAL[name](image, np.random.default_rng(seed))
        assert changed.shape == image.shape and changed.dtype == np.uint8
    assert np.array_equal(image, before)


def test_small_changes_of_light_keep_grey_grey_and_are_small() -> None:
    grey = np.repeat(np.arange(96, dtype=np.uint8)[None, :, None], 64, axis=0).repeat(3, axis=2) + 80
    changed = light(grey, np.random.default_rng(0))
    assert (changed[..., 0] == changed[..., 1]).all() and (changed[..., 0] == changed[..., 2]).all()
    assert 0 < np.abs(changed.astype(int) - grey).max() < 20


def test_same_chance_varies_the_same() -> None:
    [image] = parts(1, side="left")
    names = list(OPTIONAL)
    one, other = (vary(image, names, np.random.default_rng(3)) for _ in range(2))
    assert np.array_equal(one, other)
