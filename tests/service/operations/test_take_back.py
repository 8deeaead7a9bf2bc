"""After a restore, images without a row go back for scoring; what cannot be looked through stays and stops nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from service.inspection.claim import Claims
from service.names import new_id
from service.operations.restore import mark_restored, take_back
from service.storage.database.open import open_database


def place(folder: Path) -> str:
    folder.mkdir(parents=True, exist_ok=True)
    id = new_id()
    (folder / f"a.{id}.png").write_bytes(b"bytes")
    return id


def test_images_without_a_row_are_taken_back_from_wherever_they_can_be(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, device = place(root / "normal/lid/2026-11-22"), place(root / "anomaly/%61ux/2026-11-22")
    closed, outside = place(root / "normal/closed/2026-11-22"), place(tmp_path / "outside/2026-11-22")
    (root / "normal/linked").symlink_to(tmp_path / "outside")
    real = os.open

    def open_(path: object, *args: object, **options: object) -> int:
        if path == "closed":
            raise OSError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "open", open_)
    mark_restored(root)
    with open_database(root) as engine:
        assert take_back(root, engine, Claims(root, "main")) == 2
    there = sorted(str(path.relative_to(root)) for path in (root / "processing").rglob("*.png"))
    # The product of an image in a plainer folder is the one that it had.
    assert there == [f"processing/main/aux/{device}--1--a.png", f"processing/main/lid/{plain}--1--a.png"]
    assert (root / f"normal/closed/2026-11-22/a.{closed}.png").exists()
    assert (tmp_path / f"outside/2026-11-22/a.{outside}.png").exists()
