"""`tamis evaluate` on a real root, database and graph whose score is brightness; only the meter is made up."""

import csv
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
import typer
from PIL import Image
from sqlalchemy import text
from typer.testing import CliRunner

from models.errors import DatasetError
from service.commands import evaluate as command
from service.errors import TamisError, UsageError
from service.evaluation.text_report import SCORE_COLUMNS
from service.storage.database.open import open_database
from service.storage.energy_sample import EnergySample
from tests.support.brightness_version import image, install, mask


class Meter:
    """Says 0.5 Wh for every take, and grams where a country is given."""

    def __init__(self, *, tracking="process", country=None, cpu_max_w=None):
        self.country = country

    def take(self, kind, images=0):
        return EnergySample(
            kind=kind,
            started_at=datetime(2026, 1, 1, tzinfo=UTC),
            duration_s=1.0,
            images=images,
            cpu_wh=0.4,
            gpu_wh=0.0,
            ram_wh=0.1,
            total_wh=0.5,
            emissions_g=0.02 if self.country else None,
            source="estimated",
            country=self.country,
        )

    def close(self, kind="idle"):
        return None


@pytest.fixture(autouse=True)
def meter(monkeypatch):
    monkeypatch.setattr(command, "EnergyMeter", Meter)


@pytest.fixture
def ready(root):
    install(root)
    return root


@pytest.fixture
def plain(tmp_path):
    """Three normals, one of them bright, and two anomalies, one of them dark; no masks."""
    folder = tmp_path / "parts"
    for index, background in enumerate((10, 20, 120)):
        image(folder / f"normal/{index}.png", background)
    image(folder / "anomaly/0.png", spot=200)
    image(folder / "anomaly/1.png", spot=90)
    return folder


def mvtec(folder: Path, *objects: str) -> Path:
    for name in objects:
        image(folder / name / "train/good/000.png")
        image(folder / name / "test/good/000.png", 10)
        image(folder / name / "test/good/001.png", 15)
        image(folder / name / "test/spot/000.png", spot=200)
        mask(folder / name / "ground_truth/spot/000_mask.png")
    return folder


def run(root: Path, *arguments: object):
    app = typer.Typer()
    app.command()(command.evaluate)
    result = CliRunner().invoke(app, ["--root", str(root), *map(str, arguments)])
    if isinstance(result.exception, Exception):
        raise result.exception
    return result


def document(root: Path, *arguments: object):
    return json.loads(run(root, "--json", *arguments).stdout)


def energy_rows(root: Path):
    engine = open_database(root, read_only=True)
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT kind, images, total_wh, emissions_g FROM energy")).all()
    engine.dispose()
    return [tuple(row) for row in rows]


def test_metrics_are_those_at_the_calibrated_threshold(ready, plain):
    (found,) = document(ready, plain)["objects"]
    assert (found["object"], found["product"], found["version"]) == ("parts", "default", "v1")
    assert (found["images"], found["normals"], found["anomalies"], found["masked"]) == (5, 3, 2, 0)
    assert (found["threshold"], found["calibrated_false_alarm_rate"]) == (100, 0.01)
    metrics = found["metrics"]
    assert (metrics["precision"], metrics["recall"], metrics["f1"]) == (0.5, 0.5, 0.5)
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["false_alarm_rate"] == pytest.approx(1 / 3)
    assert metrics["image_auroc"] == pytest.approx(5 / 6)
    assert metrics["best_f1"] == pytest.approx(0.8)
    assert (metrics["pixel_auroc"], metrics["aupro"]) == (None, None)
    assert found["images_per_second"] > 0


def test_with_masks_the_maps_are_judged_too(ready, tmp_path):
    (found,) = document(ready, mvtec(tmp_path / "sets", "bottle"))["objects"]
    assert (found["masked"], found["regions"]) == (1, 1)
    assert found["metrics"]["pixel_auroc"] > 0.99
    assert found["metrics"]["aupro"] > 0.95


def test_unknown_metrics_are_null_and_shown_as_a_dash(ready, plain):
    lines = dict(line.split(maxsplit=1) for line in run(ready, plain).stdout.splitlines() if "AUROC" not in line)
    assert lines["AUPRO"] == "–"
    assert lines["F1"] == "0.5000   0.000 to 1.000 (95 %)"
    assert lines["Wh"] == "0.5"
    assert lines["g"] == "CO2e             –"
    assert lines["threshold"] == "100 at a false-alarm rate of 0.01"


def test_energy_is_stored_as_a_row_of_kind_evaluation(ready, plain):
    (ready / "tamis.toml").write_text('energy_country = "FRA"\n')
    (found,) = document(ready, plain)["objects"]
    assert (found["total_wh"], found["emissions_g"], found["energy_source"]) == (0.5, 0.02, "estimated")
    assert energy_rows(ready) == [("evaluation", 5, 0.5, 0.02)]


def test_energy_that_cannot_be_metered_is_unknown_and_no_row(ready, plain, monkeypatch):
    monkeypatch.setattr(Meter, "take", lambda self, kind, images=0: None)
    (found,) = document(ready, plain)["objects"]
    assert (found["total_wh"], found["emissions_g"]) == (None, None)
    assert energy_rows(ready) == []


def test_nothing_else_is_changed(ready, plain):
    def state():
        files = sorted((str(p), p.stat().st_mtime_ns) for p in (ready / "models").rglob("*") if p.is_file())
        engine = open_database(ready, read_only=True)
        with engine.connect() as connection:
            rows = connection.execute(text("SELECT * FROM model_versions")).all()
            images = connection.execute(text("SELECT count(*) FROM results")).scalar_one()
        engine.dispose()
        return files, rows, images

    before = state()
    run(ready, plain)
    assert state() == before


def test_several_objects_have_a_row_each_and_a_mean(ready, tmp_path):
    sets = mvtec(tmp_path / "sets", "bottle", "cable")
    image(sets / "cable/test/good/002.png", 150)
    found = document(ready, sets)
    assert [one["object"] for one in found["objects"]] == ["bottle", "cable"]
    assert [one["metrics"]["false_alarm_rate"] for one in found["objects"]] == [0, pytest.approx(1 / 3)]
    assert found["mean"]["false_alarm_rate"] == pytest.approx(1 / 6)
    assert found["mean"]["best_f1_threshold"] is None
    lines = run(ready, sets).stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["object", "bottle", "cable", "mean"]
    assert energy_rows(ready) == [("evaluation", 3, 0.5, None), ("evaluation", 4, 0.5, None)] * 2


def test_an_object_with_a_champion_of_its_name_uses_that_and_the_others_the_product_given(ready, tmp_path):
    install(ready, "cable", "v5")
    install(ready, "line", "v6")
    sets = mvtec(tmp_path / "sets", "bottle", "cable")
    found = document(ready, sets, "--product", "line")
    assert [(one["product"], one["version"]) for one in found["objects"]] == [("line", "v6"), ("cable", "v5")]
    only = document(ready, sets, "--object", "cable", "--product", "line")
    assert only["objects"][0]["product"] == "line"


def test_a_version_by_name_holds_for_all_objects(ready, tmp_path):
    install(ready, "cable", "v5")
    install(ready, version="v2", state="rejected")
    found = document(ready, mvtec(tmp_path / "sets", "bottle", "cable"), "--version", "v2")
    assert [(one["product"], one["version"]) for one in found["objects"]] == [("default", "v2")] * 2


def test_scores_are_written_for_each_image(ready, tmp_path):
    out = tmp_path / "scores.csv"
    sets = mvtec(tmp_path / "sets", "bottle")
    image(sets / "bottle/test/good" / "bad\udcff.png", 10)
    run(ready, sets, "--scores", out)
    with out.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == SCORE_COLUMNS
    assert {row["path"] for row in rows} == {str(p) for p in (sets / "bottle/test").rglob("*.png")}
    (anomaly,) = [row for row in rows if row["label"] == "anomaly"]
    assert (anomaly["verdict"], anomaly["threshold"], anomaly["split"]) == ("anomaly", "100.0", "test")
    assert float(anomaly["score"]) > 100
    assert float(anomaly["p_value"]) == pytest.approx(1 / 101)


def test_scores_that_cannot_be_written_are_refused_before_the_work(ready, plain, tmp_path):
    with pytest.raises(UsageError, match="expected a file that can be written"):
        run(ready, plain, "--scores", tmp_path / "no" / "scores.csv")
    assert energy_rows(ready) == []


def test_a_image_that_cannot_be_read_is_listed_and_not_fatal(ready, plain):
    (plain / "normal/9.png").write_bytes(b"no image")
    result = run(ready, "--json", plain)
    assert result.exit_code == 0
    (found,) = json.loads(result.stdout)["objects"]
    assert found["images"] == 5
    assert [Path(failure["path"]).name for failure in found["failures"]] == ["9.png"]
    assert "9.png" in run(ready, plain).stderr


def test_no_image_that_can_be_read_is_an_error(ready, tmp_path):
    (tmp_path / "parts/normal").mkdir(parents=True)
    (tmp_path / "parts/normal/1.png").write_bytes(b"no image")
    with pytest.raises(TamisError, match="none of 1 could be scored"):
        run(ready, tmp_path / "parts")


def test_the_training_split_can_be_asked_for(ready, tmp_path):
    found = document(ready, mvtec(tmp_path / "sets", "bottle"), "--split", "train")
    assert (found["split"], found["objects"][0]["images"]) == ("train", 1)
    assert found["objects"][0]["metrics"]["image_auroc"] is None


def test_a_split_without_images_is_an_error(ready, plain):
    with pytest.raises(DatasetError, match="in the split train; found none"):
        run(ready, plain, "--split", "train")


def test_a_layout_can_be_asked_for(ready, plain):
    assert document(ready, plain, "--layout", "folders")["layout"] == "folders"
    with pytest.raises(DatasetError, match="expected the layout visa"):
        run(ready, plain, "--layout", "visa")


def test_the_rate_moves_the_threshold(ready, plain):
    (found,) = document(ready, plain, "--false-alarm-rate", "0.2")["objects"]
    assert (found["threshold"], found["calibrated_false_alarm_rate"]) == (81, 0.2)
    assert found["metrics"]["recall"] == 1


def test_a_rate_outside_0_and_1_is_wrong_usage(ready, plain):
    with pytest.raises(UsageError):
        run(ready, plain, "--false-alarm-rate", "1.5")


def test_progress_goes_to_stderr_and_leaves_stdout_to_the_document(ready, plain):
    result = run(ready, "--json", plain)
    assert "parts: 5 of 5 images" in result.stderr
    assert json.loads(result.stdout)["layout"] == "folders"


def test_images_whose_values_do_not_fit_are_counted_and_named(ready, plain):
    Image.fromarray(np.full((32, 48), 320, np.uint16)).save(plain / "normal" / "deep.png")
    result = run(ready, plain, "--json")
    (one,) = json.loads(result.stdout)["objects"]
    assert one["images"] == 6
    (remark,) = one["remarks"]
    assert remark["path"].endswith("deep.png") and "found 320 to 320" in remark["remark"]
    assert "remark: " in run(ready, plain).stderr
