from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest

from service.filesystem.file_state import NameFilter
from service.inspection.intake import Intake
from service.inspection.settle import Settling
from service.scoring.scorers import Scorer, ScorerCache

SCORER = cast(Scorer, object())


class KnownProducts:
    """Has a model for the products named; says so only once it has been asked to look."""

    def __init__(self, *products: str) -> None:
        self.wanted, self.products = products, []

    def refresh(self) -> bool:
        self.products = list(self.wanted)
        return True

    def has(self, product: str) -> bool:
        return product in self.products

    def get(self, product: str) -> Scorer:
        return SCORER

    def in_memory(self, product: str, *, use: bool = False) -> Scorer | None:
        return SCORER


def intake(root: Path, *products: str) -> Intake:
    (root / "incoming" / "gears").mkdir(parents=True)
    return Intake(root, NameFilter([".*"]), cast(ScorerCache, KnownProducts(*products)), Settling(1.0, 600.0))


def test_file_seen_before_the_models_are_known_settles_meanwhile(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/gears/a.jpg").write_bytes(b"whole")
    waiting.look_ahead(now=10.0)
    waiting.scan(now=10.8)
    assert list(waiting.take_ready(10.9, 8)) == []
    [ready] = waiting.take_ready(11.1, 8)
    assert (ready.path, ready.settled_at) == ("gears/a.jpg", 11.0)


def test_file_seen_before_the_models_are_known_and_without_one_stays(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/b.jpg").write_bytes(b"whole")
    waiting.look_ahead(now=10.0)
    waiting.scan(now=10.8)
    assert list(waiting.take_ready(12.0, 8)) == []
    assert waiting.waiting["default"] >= 1 and len(waiting) == 0


def test_folder_that_cannot_be_read_ahead_is_left_to_the_scan(tmp_path: Path) -> None:
    waiting = intake(tmp_path, "gears")
    (tmp_path / "incoming/gears").rmdir()
    (tmp_path / "incoming").rmdir()
    waiting.look_ahead(now=10.0)
    with pytest.raises(OSError, match="incoming"):
        waiting.scan(now=10.1)
