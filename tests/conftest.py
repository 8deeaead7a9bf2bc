"""Fixtures that several folders of tests share: roots, made images, a detector whose score is the brightness."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from PIL import Image

from models.calibration.thresholds import AtFalseAlarmRate
from models.detector import Scored
from service.root import DATABASE_FILE, FOLDERS
from service.scoring.decide import ThresholdDecider
from service.scoring.scorers import Scorer
from service.storage.database.open import open_database
from tests.support.postgres_server import PostgresServer

REPOSITORY = Path(__file__).resolve().parent.parent
REAL_DATA = REPOSITORY.parent / "shared" / "data"
LONG_TIMEOUT_S = 4 * 3600
# The same examples in every run, and no failure because the machine was busy meanwhile.
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    skip = pytest.mark.skip(reason=f"the real images are not at {REAL_DATA}")
    for item in items:
        if item.get_closest_marker("realdata") and not REAL_DATA.is_dir():
            item.add_marker(skip)
        if item.get_closest_marker("long"):
            item.add_marker(pytest.mark.timeout(LONG_TIMEOUT_S))


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "root" in metafunc.fixturenames and getattr(metafunc.module, "EACH_DATABASE", False):
        metafunc.parametrize("root", ["sqlite", "postgresql"], indirect=True)


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith("TAMIS_"):
            monkeypatch.delenv(variable)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A server for tests that do not stop it; it syncs nothing."""
    pytest.importorskip("psycopg")
    with PostgresServer(lasting=False) as server:
        yield server


@pytest.fixture(scope="session")
def empty_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root of which each test that wants one gets a copy: its database is made by the migrations once."""
    root = tmp_path_factory.mktemp("empty") / "root"
    for folder in FOLDERS:
        (root / folder).mkdir(parents=True)
    (root / "tamis.toml").touch()
    open_database(root, create=True).dispose()
    return root


@pytest.fixture
def root(request: pytest.FixtureRequest, tmp_path: Path, empty_root: Path) -> Path:
    """An empty root with its folders, an empty tamis.toml and a database.

    In modules that set EACH_DATABASE, of both kinds in turn; tamis.toml then names that of a server.
    """
    root = tmp_path / "root"
    shutil.copytree(empty_root, root)
    if getattr(request, "param", "sqlite") == "postgresql":
        (root / DATABASE_FILE).unlink()
        url = request.getfixturevalue("postgres").url()
        (root / "tamis.toml").write_text(f'database_url = "{url}"\n')
        open_database(root, create=True).dispose()
    return root


def image_bytes(brightness: int, size: tuple[int, int] = (30, 20), image_format: str = "PNG", seed: int = 0) -> bytes:
    """An image of `size` (width, height) that is `brightness` all over, but for one pixel that `seed` sets apart."""
    import io

    pixels = np.full((size[1], size[0], 3), brightness, dtype=np.uint8)
    pixels[0, 0] = [seed % 256, seed // 256 % 256, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, image_format)
    return buffer.getvalue()


@pytest.fixture
def drop(root: Path) -> Callable[..., Path]:
    """Puts an image into `incoming/` under a name, with a brightness."""

    def put(name: str, brightness: int = 10, seed: int = 0) -> Path:
        path = root / "incoming" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image_bytes(brightness, seed=seed))
        return path

    return put


class BrightnessDetector:
    """Scores an image by its mean brightness, 0 to 255."""

    input_size = (20, 30)

    def score(self, images: np.ndarray) -> Scored:
        scores = images.mean(axis=(1, 2, 3), dtype=np.float64).astype(np.float32)
        return Scored(scores, np.broadcast_to(scores[:, None, None], (len(images), 2, 3)).astype(np.float32))


class BrightnessScorers:
    """Stands in for `ScorerCache`: every product in `known` is judged by brightness; above 100 is an anomaly."""

    def __init__(self, *known: str, detector: object | None = None) -> None:
        self.known = set(known)
        decider = ThresholdDecider(
            np.linspace(1, 100, 100, dtype=np.float32), AtFalseAlarmRate(0.01), uncertain_band=3.0
        )
        self.scorer = Scorer(detector or BrightnessDetector(), decider, "brightness-1", 100.0)  # type: ignore[arg-type]

    @property
    def products(self) -> list[str]:
        return sorted(self.known)

    def refresh(self) -> bool:
        return False

    def has(self, product: str) -> bool:
        return product in self.known or "default" in self.known

    def get(self, product: str) -> Scorer:
        return self.scorer

    def in_memory(self, product: str, *, use: bool = False) -> Scorer | None:
        return self.scorer
