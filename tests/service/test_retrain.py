"""Retraining for real: a child that trains, a gate that judges, rows, files and a report that tell of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from models.progress import Progress
from models.registry import ModelVersion
from service import settings as settings_module
from service.gather import read_images
from service.retrain import LOCK_NAME, retrain
from service.storage import retrainings, versions
from service.storage.engine import open_database
from tests.service.labelled_root import PRODUCT, label, train_champion

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = "energy_cpu_max_w = 20.0\nfree_bytes_min = 0\n"
STEPS = 60


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


@pytest.fixture
def champion(root: Path, engine: Engine, tmp_path: Path) -> ModelVersion:
    (root / "tamis.toml").write_text(SETTINGS)
    return train_champion(root, engine, tmp_path / "good")


def labelled(root: Path, engine: Engine) -> None:
    label(root, engine, range(100, 130), "normal", "train")
    label(root, engine, range(130, 145), "normal", "calibrate")
    label(root, engine, range(145, 165), "normal", "golden")
    label(root, engine, range(200, 212), "anomaly", "golden")
    label(root, engine, range(212, 218), "anomaly", "train")


def run(root: Path, engine: Engine, **changes: Any) -> retrainings.RetrainingRow:
    given: dict[str, Any] = {"trigger": "command", "steps": STEPS}
    return retrain(root, engine, settings_module.load(root), PRODUCT, **given | changes)


def states(engine: Engine) -> dict[str, str]:
    with engine.connect() as connection:
        return {row.version: row.state for row in versions.versions(connection, PRODUCT)}


def leftovers(root: Path) -> list[str]:
    return [path.name for path in (root / "models").iterdir() if path.name not in (PRODUCT, LOCK_NAME)]


def test_a_better_challenger_becomes_champion_and_the_report_says_why(
    root: Path, engine: Engine, champion: ModelVersion
) -> None:
    labelled(root, engine)
    told: list[Progress] = []
    row = run(root, engine, report=told.append)
    assert (row.state, row.outcome, row.champion) == ("done", "promoted", champion.version), row.reason
    assert row.challenger is not None and "better in" in (row.reason or "")
    assert states(engine) == {row.challenger: "champion", champion.version: "retired"}
    gate = json.loads(row.gate or "")
    figures = {figure["name"]: figure for figure in gate["figures"]}
    assert (gate["normals"], gate["normals_from"]) == (20, "golden")
    assert (gate["anomalies"], gate["anomalies_from"]) == (12, "golden")
    assert figures["image_auroc"]["challenger"] > figures["image_auroc"]["champion"]
    assert figures["cpu_ms_per_image"]["challenger"] > 0 and figures["wh_per_1000_images"]["challenger"] > 0
    page = (root / (row.report or "")).read_text()
    assert row.report == f"reports/{PRODUCT}/{row.challenger}.html"
    assert (
        "it is the champion now" in page
        and page.count("<svg") == 3
        and "http" not in re.sub("http-equiv|xmlns[^ >]*", "", page)
    )
    listed = {picture.path: picture.role for picture in read_images(root / "models" / PRODUCT / row.challenger)}
    golden = {path for path in listed if int(path.stem[1:]) in (*range(145, 165), *range(200, 212))} if False else set()
    assert not golden
    manifest = json.loads((root / "models" / PRODUCT / row.challenger / "model.json").read_text())
    assert manifest["training"]["warm_start"] == champion.version
    with engine.connect() as connection:
        kinds = [kind for (kind,) in connection.exec_driver_sql("SELECT kind FROM energy_rows ORDER BY id")]
    assert kinds[:2] == ["training", "training"] and set(kinds[2:]) == {"evaluation"}
    assert row.total_wh is not None and row.total_wh > 0
    assert {progress.stage for progress in told} >= {"training", "calibrating", "judging"}
    assert leftovers(root) == []
