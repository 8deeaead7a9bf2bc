"""The whole loop on VisA macaroni1: a champion of 60 normals, a stream that people label, a retraining on schedule.

Then labels of which one in five is wrong. Everything is real but the clock that says when the schedule is due. The
figures are printed (`pytest -s -m long`); three trainings take some minutes on two cores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

import numpy as np
import pytest
from sqlalchemy import Engine

from models.data.datasets import Sample, read_dataset
from models.data.select_images import ProductImages
from models.evaluation.metrics import image_auroc
from models.registry import verify
from models.runtime.openvino_detector import OpenVinoDetector
from service import settings as settings_module
from service.commands.init import make_root
from service.cron import parse_cron
from service.imaging.decode import read_image
from service.retraining.due import RetrainingFacts, due
from service.retraining.retrain import retrain
from service.storage import images, retrainings, versions
from service.storage.database.open import open_database
from service.storage.retrainings import RetrainingRow
from service.training.job import TrainingJob
from service.web.pages.review import LABELS_MAX
from tests.conftest import REAL_DATA
from tests.support.daemon_process import DaemonProcess, finished, wait_until
from tests.support.trainings import run_training
from tests.support.web_process import WebProcess

pytestmark = [pytest.mark.realdata, pytest.mark.long]

PRODUCT = "macaroni1"
RATE = 0.05
FEW = 60
STREAMED = 600
WRONG_SHARE = 0.2
SETTINGS = "burst_gap_s = 0.0\nenergy_cpu_max_w = 20.0\nfree_bytes_min = 0\nfree_inodes_min = 0\n"

Truth = Callable[[str], str]


@pytest.fixture(scope="module")
def line() -> tuple[list[Path], list[Path], list[Sample]]:
    """Normals to train on in a seeded order, half of the anomalies to stream, and the half of the test to judge by."""
    data = read_dataset(REAL_DATA / "visa", PRODUCT)
    normals = [sample.path for sample in data.select("train")]
    rng = np.random.default_rng(0)
    normals = [normals[index] for index in rng.permutation(len(normals))]
    test = data.select("test")
    anomalies = [sample for sample in test if sample.label == 1]
    anomalies = [anomalies[index] for index in rng.permutation(len(anomalies))]
    judged = [sample for sample in test if sample.label == 0] + anomalies[50:]
    return normals, [sample.path for sample in anomalies[:50]], judged


def test_the_model_gets_better_by_true_labels_and_no_worse_by_wrong_ones(
    line: tuple[list[Path], list[Path], list[Sample]], tmp_path: Path
) -> None:
    normals, anomalies, judged = line
    root = tmp_path / "root"
    make_root(root)
    (root / "tamis.toml").write_text(SETTINGS)
    engine = open_database(root)
    first = run_training(
        engine,
        TrainingJob(
            products=(ProductImages(PRODUCT, normals[:FEW], RATE),),
            models_root=root / "models",
            kind="feature",
            profile="fast",
            energy_cpu_max_w=20.0,
        ),
    ).version
    before = auroc(root, engine, judged)

    stream(root, [*normals[FEW : FEW + STREAMED], *anomalies])
    bad = {path.name for path in anomalies}
    said = review(root, engine, lambda name: "anomaly" if name in bad else "normal")
    assert said == STREAMED + len(anomalies)
    row = retrain_when_due(root, engine)
    after = auroc(root, engine, judged)
    figures = {figure["name"]: figure for figure in json.loads(row.gate or "{}")["figures"]}
    print(f"\nby {said} labels: image AUROC {before:.3f} -> {after:.3f}; gate: {row.outcome}, {row.reason}")
    print(f"gate's own: {figures['image_auroc']['champion']:.3f} -> {figures['image_auroc']['challenger']:.3f}")
    assert row.outcome == "promoted" and row.champion == first
    assert figures["image_auroc"]["difference"] > 0
    assert after - before >= 0.03

    # One in five of what is labelled next is wrong: a defect called normal.
    wrong = [copied(path, tmp_path / "again", number) for number, path in enumerate(anomalies)]
    right = normals[FEW + STREAMED : FEW + STREAMED + round(len(wrong) / WRONG_SHARE) - len(wrong)]
    stream(root, [*right, *wrong])
    said = review(root, engine, lambda name: "normal")
    assert len(wrong) / said == pytest.approx(WRONG_SHARE, abs=0.01)
    row = retrain_when_due(root, engine)
    last = auroc(root, engine, judged)
    print(f"by {said} labels, {len(wrong)} of them wrong: {after:.3f} -> {last:.3f}; gate: {row.outcome}, {row.reason}")
    assert row.outcome == "rejected" or after - last <= 0.01
    engine.dispose()


def copied(path: Path, folder: Path, number: int) -> Path:
    """Return a copy of a JPEG with other bytes and the same pixels, as if the same part came by again."""
    folder.mkdir(exist_ok=True)
    comment = f"again {number}".encode()
    content = path.read_bytes()
    copy = folder / f"again-{path.name}"
    copy.write_bytes(content[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + content[2:])
    return copy


def stream(root: Path, paths: Sequence[Path]) -> None:
    """Drop `paths` and have the real daemon sort them."""
    there = finished(root)
    incoming = root / "incoming" / PRODUCT
    incoming.mkdir(exist_ok=True)
    with DaemonProcess(root) as process:
        process.wait_ready()
        for path in paths:
            shutil.copyfile(path, incoming / f".{path.name}.part")
            (incoming / f".{path.name}.part").replace(incoming / path.name)
        wait_until(lambda: finished(root) == there + len(paths), "all sorted", 600.0, 0.5)
        assert process.stop() == 0


def review(root: Path, engine: Engine, truth: Truth) -> int:
    """Say of each image that nobody labelled what `truth` says of its name, through the API as a reviewer does."""
    with engine.connect() as connection:
        rows = [row for row in images.search(connection, limit=10_000) if row["label"] is None]
    with WebProcess(root) as web:
        for label in ("normal", "anomaly"):
            ids = [row["id"] for row in rows if truth(row["file_name"]) == label]
            for start in range(0, len(ids), LABELS_MAX):
                said = {"ids": ids[start : start + LABELS_MAX], "label": label, "by": "anna"}
                answer = post(f"{web.url}/api/v1/labels", said)
                assert [one["label"] for one in answer["labelled"]] == [label] * len(said["ids"])
    return len(rows)


def post(url: str, body: dict[str, Any]) -> Any:
    """Return what the API answers to `body`."""
    request = Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urlopen(request, timeout=300) as answer:
        return json.load(answer)


def retrain_when_due(root: Path, engine: Engine) -> RetrainingRow:
    """Advance the clock to the next Sunday night, ask the schedule, and retrain as it says."""
    settings = settings_module.load(root)
    cron = parse_cron(settings.retrain_cron or "")
    with engine.connect() as connection:
        runs = retrainings.runs(connection, PRODUCT)
        unlearned = retrainings.new_labels(connection, PRODUCT, retrainings.last_learned(connection, PRODUCT))
    now = datetime.now(UTC)
    facts = RetrainingFacts(runs, unlearned, unlearned)
    assert due(facts, now + timedelta(days=8), cron=cron) == "cron"
    row = retrain(root, engine, settings, PRODUCT, trigger="cron")
    assert row.state == "done", row.reason
    return row


def auroc(root: Path, engine: Engine, judged: Sequence[Sample]) -> float:
    """Return the image AUROC of the present champion on images that nobody trained on, nor labelled."""
    with engine.connect() as connection:
        champion = versions.champion(connection, PRODUCT)
    assert champion is not None
    version = verify(root / "models" / PRODUCT / champion.version, champion.sha256)
    detector = OpenVinoDetector(version)
    scores = [detector.score(read_image(sample.path, version.input_size)[np.newaxis]).scores for sample in judged]
    found = image_auroc(np.concatenate(scores), np.array([sample.label for sample in judged]))
    assert found is not None
    return found
