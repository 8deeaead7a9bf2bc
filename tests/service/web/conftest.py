"""A root that looks as if a daemon had sorted images in it, and somebody who looks at its page.

Both are made once. Tests that change nothing share `reader`; all others have a copy of the root.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.root import FOLDERS
from service.storage.database.open import open_database
from tests.support.brightness_version import install
from tests.support.made_root import fill
from tests.support.visitor import Visitor

IMAGES = 30


@pytest.fixture(scope="session")
def empty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root without images, to be copied: making the database takes longer than copying it."""
    root = tmp_path_factory.mktemp("empty") / "root"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tamis.toml").write_text("")
    open_database(root, create=True).dispose()
    return root


@pytest.fixture(scope="session")
def filled_root(empty_root: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A root with images, a champion and a challenger, to be read or copied, and the ids of its images."""
    root = Path(shutil.copytree(empty_root, tmp_path_factory.mktemp("filled") / "root"))
    install(root)
    install(root, version="v2", state="challenger", graph_offset=1.0)
    return root, fill(root, IMAGES)


@pytest.fixture
def root(tmp_path: Path, empty_root: Path) -> Path:
    """An empty root with its folders, an empty tamis.toml and a database."""
    return Path(shutil.copytree(empty_root, tmp_path / "root"))


@pytest.fixture
def ids(request: pytest.FixtureRequest, filled_root: tuple[Path, list[str]]) -> list[str]:
    """Ids of images of `default`, oldest first; they, a champion and a challenger are in the root of the test."""
    filled, ids = filled_root
    if "root" in request.fixturenames:
        shutil.copytree(filled, request.getfixturevalue("root"), dirs_exist_ok=True)
    return ids


@pytest.fixture
def visitor(root: Path, ids: list[str]) -> Iterator[Visitor]:
    """Somebody at the page of the root."""
    with Visitor(root) as visitor:
        yield visitor


@pytest.fixture(scope="session")
def page_of_filled(filled_root: tuple[Path, list[str]]) -> Iterator[Visitor]:
    """Somebody at the page of the root that is shared; tests ask for `reader`."""
    with Visitor(filled_root[0]) as visitor:
        yield visitor


@pytest.fixture
def reader(page_of_filled: Visitor) -> Iterator[Visitor]:
    """Somebody who changes nothing, at a page that tests share."""
    yield page_of_filled
    page_of_filled.client.cookies.clear()
