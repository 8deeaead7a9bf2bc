"""What the figures rest on: runs that survive a kill, test images that never train, rates over divisions."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.benchmarks import calibration, learning_curve
from tests.benchmarks.detection import data, judge
from tests.benchmarks.run_file import RunFile, spread


def test_runs_of_a_killed_benchmark_are_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    RunFile("detection", path, resume=False).add({"key": {"seed": 0}, "image_auroc": 0.9})

    resumed = RunFile("detection", path, resume=True)

    assert resumed.has({"seed": 0})
    assert not resumed.has({"seed": 1})


def test_a_failed_run_is_done_again_and_takes_its_own_place(tmp_path: Path) -> None:
    path = tmp_path / "runs.json"
    runs = RunFile("detection", path, resume=False)
    runs.add({"key": {"seed": 0}, "error": "TooFewImages"})
    assert not runs.has({"seed": 0})

    runs.add({"key": {"seed": 0}, "image_auroc": 0.9})

    assert json.loads(path.read_text())["runs"] == [{"key": {"seed": 0}, "image_auroc": 0.9}]


@pytest.mark.parametrize(("benchmark", "resume"), [("detection", False), ("calibration", True)])
def test_runs_are_neither_overwritten_nor_mixed(tmp_path: Path, benchmark: str, resume: bool) -> None:
    path = tmp_path / "runs.json"
    RunFile("detection", path, resume=False).add({"key": {"seed": 0}})

    with pytest.raises(SystemExit, match="expected"):
        RunFile(benchmark, path, resume=resume)


def test_a_mean_over_seeds_is_unknown_where_one_seed_is() -> None:
    assert spread([0.9, None])["mean"] is None
    assert spread([0.9, 0.7])["mean"] == pytest.approx(0.8)


def test_a_test_cell_neither_trains_nor_develops_under_any_seed() -> None:
    pytest.importorskip("elpv_dataset", reason="the package elpv-dataset is not installed")
    tasks = [data.solar(seed, Path()) for seed in range(3)]
    tested = {sample.path for task in tasks for sample in task.test}
    used = {path for task in tasks for path in (*task.train, *task.spare, *task.suspects)}

    assert not tested & used
    assert len(tested) == 800
    assert [len(tasks[0].train), len(tasks[0].spare)] == [800, 308]
    assert set(tasks[0].train) != set(tasks[1].train)


@pytest.mark.realdata
@pytest.mark.parametrize("name", ["macaroni1", "aliens"])
def test_development_looks_at_no_test_image(name: str, tmp_path: Path) -> None:
    task = data.DATA[name](0, tmp_path)
    development = data.development(task, 0)
    tested = {sample.path for sample in task.test}

    assert not tested & {*development.train, *development.normals}
    assert not set(development.train) & set(development.normals)


@pytest.mark.parametrize(("calibrating", "rate"), [(99, 0.01), (19, 0.05), (119, 0.05)])
def test_exchangeable_normals_realise_the_promised_rate_over_divisions(calibrating: int, rate: float) -> None:
    scores = np.random.default_rng(5).lognormal(size=1000)

    realised = calibration.divisions(scores, calibrating, rate, times=400, seed=0)

    assert realised is not None
    assert len(realised) == 400
    assert np.mean(realised) == pytest.approx(rate, rel=0.15)


def test_too_few_to_calibrate_realise_nothing() -> None:
    assert calibration.divisions(np.arange(100.0), 18, 0.05, times=3, seed=0) is None


def test_a_learning_curve_ends_with_all_that_there_is() -> None:
    assert learning_curve.sizes([20, 60, 300, 3000], 900) == [20, 60, 300, 900]
    assert learning_curve.sizes([20, 60, 300], 46) == [20, 46]


def test_a_field_of_training_that_is_not_there_is_named() -> None:
    assert judge.overrides(["steps=7", "method=cross"]) == {"steps": 7, "method": "cross"}
    with pytest.raises(ValueError, match="--job stepps=7: expected NAME=VALUE"):
        judge.overrides(["stepps=7"])
