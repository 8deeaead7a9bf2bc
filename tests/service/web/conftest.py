"""A root that looks as if a daemon had sorted images in it, and somebody who looks at its page."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.visitor import Visitor

IMAGES = 30


@pytest.fixture
def ids(root: Path) -> list[str]:
    """Ids of images of `default`, oldest first, in a root with a champion and a challenger."""
    install(root)
    install(root, version="v2", state="challenger", graph_offset=1.0)
    return fill(root, IMAGES)


@pytest.fixture
def visitor(root: Path, ids: list[str]) -> Iterator[Visitor]:
    """Somebody at the page of the root."""
    with Visitor(root) as visitor:
        yield visitor
