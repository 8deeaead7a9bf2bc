"""An empty root with its database, and records with only what a test cares about."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from service.root import DATABASE_FILE
from service.storage.database.open import open_database
from service.storage.images import ImageRecord

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(
    request: pytest.FixtureRequest, tmp_path: Path, empty_root: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Engine]:
    """A new database of each kind: what is stored is stored alike."""
    if request.param == "postgresql":
        monkeypatch.setenv("TAMIS_DATABASE_URL", request.getfixturevalue("postgres").url())
    else:
        shutil.copy(empty_root / DATABASE_FILE, tmp_path)
    engine = open_database(tmp_path, create=True)
    yield engine
    engine.dispose()


# For what holds of SQLite alone, as the ways in which it finds rows.
on_sqlite = pytest.mark.parametrize("engine", ["sqlite"], indirect=True)


@pytest.fixture
def record_of() -> Callable[..., ImageRecord]:
    """Return a maker of records: `number` orders them by time, the rest overrides."""

    def make(number: int = 0, **values: Any) -> ImageRecord:
        at = NOON + timedelta(minutes=number)
        plain = ImageRecord(
            id=f"{number:026d}",
            product="lid",
            file_name=f"{number}.png",
            path=f"processing/main/{number}.png",
            destination=f"normal/lid/2026-01-31/{number}.png",
            state="scored",
            verdict="normal",
            score=0.25,
            threshold=0.5,
            p_value=0.75,
            model_version="v1",
            sha256=f"{number:064x}",
            width=640,
            height=480,
            mode="RGB",
            bytes=1234,
            received_at=at,
            decided_at=at + timedelta(milliseconds=80),
            attempts=1,
            error_code=None,
            error=None,
        )
        return replace(plain, **values)

    return make
