"""Images that end, hang or swell what reads them, asked for at the page."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from service.root import THUMBNAILS
from service.storage.database.driver import sqlite3
from tests.conftest import REPOSITORY
from tests.support.failing_decoder import bad_image, hook
from tests.support.visitor import Visitor


@pytest.fixture
def page(root: Path, ids: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Visitor]:
    """A page whose decoder does what `bad_image` says."""
    monkeypatch.setenv("PYTHONPATH", f"{hook(tmp_path)}{os.pathsep}{REPOSITORY}")
    (root / "tamis.toml").write_text("decode_timeout_s = 1.0\n")
    with Visitor(root) as visitor:
        yield visitor


def make_bad(visitor: Visitor, id: str, how: str) -> None:
    # Another test may have asked for it while it was good.
    for kept in (visitor.root / THUMBNAILS).rglob(f"{id}.*"):
        kept.unlink()
    (visitor.root / visitor.json(f"/images/{id}")["path"]).write_bytes(bad_image(how))


@pytest.mark.parametrize("how", ["crash", "hang", "swell"])
def test_image_that_harms_its_reader_is_not_shown_and_the_page_goes_on(page: Visitor, ids: list[str], how: str) -> None:
    bad, good = ids[:2], ids[2:14]
    for id in bad:
        make_bad(page, id, how)
    with ThreadPoolExecutor(14) as pool:
        answers = list(pool.map(lambda id: page.get(f"/images/{id}/thumb"), [*bad, *good]))
    assert [answer.status_code for answer in answers] == [404] * len(bad) + [200] * len(good)
    assert "no image" in answers[0].text
    # It is known by now: nobody waits for it again.
    began = time.monotonic()
    assert page.get(f"/images/{bad[0]}/thumb").status_code == 404
    assert time.monotonic() - began < 1.0 or how != "hang"


@pytest.mark.parametrize("code", ["attempts_exhausted", "too_much_memory", "too_slow"])
def test_image_that_was_put_aside_for_what_it_does_is_never_read_here(
    visitor: Visitor, ids: list[str], code: str
) -> None:
    assert visitor.get(f"/images/{ids[0]}/picture").status_code == 200
    with sqlite3.connect(visitor.root / "tamis.db") as connection:
        connection.execute("UPDATE images SET error_code = ? WHERE id = ?", (code, ids[0]))
    for view in ("picture", "thumb"):
        answer = visitor.get(f"/images/{ids[0]}/{view}")
        assert (answer.status_code, answer.headers["content-type"]) == (404, "image/svg+xml")
    assert visitor.get(f"/images/{ids[1]}/thumb").status_code == 200


def test_image_quarantined_for_its_content_is_tried(visitor: Visitor, ids: list[str]) -> None:
    with sqlite3.connect(visitor.root / "tamis.db") as connection:
        connection.execute("UPDATE images SET error_code = 'damaged' WHERE id = ?", (ids[0],))
    assert visitor.get(f"/images/{ids[0]}/thumb").status_code == 200
