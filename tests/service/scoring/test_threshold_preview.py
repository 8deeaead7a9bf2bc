"""The threshold explorer on a real root: what another rate would do, and that the daemon takes a choice over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine
from typer.testing import CliRunner

from service.commands.versions import app
from service.errors import ConfigurationError, TamisError, UsageError
from service.scoring.threshold_preview import choose_rate, preview, would_change
from service.settings import Settings, load
from service.storage import thresholds
from service.storage.database.open import open_database
from service.storage.images import ImageRecord, record
from tests.service.daemon.test_daemon import SETTINGS, rows
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, finished, wait_until

NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)
floats = st.floats(-1e6, 1e6, width=32)


@given(st.lists(floats, max_size=50), floats, floats)
def test_changes_are_those_whose_verdict_differs(scores: list[float], old: float, new: float) -> None:
    to_normal, to_anomaly = would_change(scores, old, new)
    assert to_normal == sum(score > old and not score > new for score in scores)
    assert to_anomaly == sum(score > new and not score > old for score in scores)
    assert (to_normal == 0 or new > old) and (to_anomaly == 0 or new < old)
    assert would_change(scores, [old] * len(scores), new) == (to_normal, to_anomaly)


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


def fill(engine: Engine, scores: list[float], **values: object) -> None:
    with engine.begin() as connection:
        record(connection, [replace(row(number, score), **values) for number, score in enumerate(scores)], None)  # type: ignore[arg-type]


def row(number: int, score: float) -> ImageRecord:
    return ImageRecord(
        id=f"{number:026d}", product="default", file_name=f"{number}.png", path=f"normal/{number}.png",
        destination=f"normal/{number}.png", state="placed", verdict="anomaly" if score > 100 else "normal", score=score,
        threshold=100.0, p_value=0.5, model_version="v1", sha256=None, width=1, height=1, mode="RGB", bytes=1,
        received_at=NOON + timedelta(seconds=number), decided_at=NOON, attempts=1, error_code=None, error=None,
    )  # fmt: skip


def settings_of(root: Path, text: str = "") -> Settings:
    (root / "tamis.toml").write_text(text)
    return load(root)


def choose(root: Path, engine: Engine, rate: float | None, product: str = "default", text: str = "") -> None:
    with engine.begin() as connection:
        choose_rate(root, connection, settings_of(root, text), product, rate, by="ann", at=NOON)


def test_preview_says_how_many_of_the_last_images_change_sides(root: Path, engine: Engine) -> None:
    install(root)  # calibrated on 1 to 100
    fill(engine, [10.0, 92.0, 95.5, 96.0, 97.0, 100.0, 120.0])
    with engine.connect() as connection:
        found = preview(root, connection, settings_of(root), "default", 0.05)
        assert (found.threshold, found.present_threshold, found.present_rate) == (96.0, 100.0, 0.01)
        assert (found.images, found.to_normal, found.to_anomaly) == (7, 0, 2)
        assert (found.version, found.policy, found.chosen) == ("v1", "false_alarm_rate", False)
        assert found.lowest_rate == 0.01  # 1 / 101, rounded up
        assert preview(root, connection, settings_of(root), "default", 0.05, last=3).images == 3
        back = preview(root, connection, settings_of(root, "false_alarm_rate = 0.1"), "default", 0.01)
        assert (back.present_threshold, back.to_normal, back.to_anomaly) == (91.0, 5, 0)


def test_preview_of_a_rate_that_the_calibration_cannot_keep_has_no_threshold(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [10.0, 120.0])
    with engine.connect() as connection:
        found = preview(root, connection, settings_of(root), "default", 0.001)
    assert (found.threshold, found.to_normal, found.to_anomaly, found.images) == (None, None, None, 2)
    assert found.lowest_rate == 0.01


def test_images_of_another_version_are_not_counted(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [97.0, 98.0], model_version="v0")
    with engine.connect() as connection:
        assert preview(root, connection, settings_of(root), "default", 0.05).images == 0


def test_product_without_a_model_of_its_own_is_previewed_by_that_of_default(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [97.0, 50.0], product="cap")
    choose(root, engine, 0.02, "cap")
    with engine.connect() as connection:
        own = preview(root, connection, settings_of(root), "cap", 0.05)
        assert (own.version, own.images, own.to_anomaly, own.present_rate, own.chosen) == ("v1", 2, 1, 0.02, True)
        assert preview(root, connection, settings_of(root), "default", 0.05).present_rate == 0.01


@pytest.mark.parametrize("rate", [0.0, 1.0, -1.0, 7.0, float("nan"), float("inf")])
def test_what_is_no_rate_is_refused(root: Path, engine: Engine, rate: float) -> None:
    install(root)
    with pytest.raises(UsageError, match="more than 0 and less than 1"):
        choose(root, engine, rate)
    with engine.connect() as connection, pytest.raises(UsageError):
        preview(root, connection, settings_of(root), "default", rate)


def test_rate_that_the_calibration_cannot_keep_is_refused_with_the_lowest_that_it_can(
    root: Path, engine: Engine
) -> None:
    install(root)
    with pytest.raises(TamisError, match=r"needs 999 held-out normal images, found 100.*lowest rate is 0\.01"):
        choose(root, engine, 0.001)
    with engine.connect() as connection:
        assert thresholds.latest(connection) == {}


@pytest.mark.parametrize("policy", ['threshold_policy = "fixed"\nthreshold_fixed = 42'])
def test_rate_is_refused_where_the_threshold_is_set_by_other_means(root: Path, engine: Engine, policy: str) -> None:
    install(root)
    with pytest.raises(TamisError, match="'fixed'"):
        choose(root, engine, 0.05, text=policy)
    choose(root, engine, 0.05)
    with engine.connect() as connection:
        found = preview(root, connection, settings_of(root, policy), "default", 0.05)
    assert (found.policy, found.present_threshold, found.present_rate, found.chosen) == ("fixed", 42.0, None, False)


@pytest.mark.parametrize("name", ["defualt", "..", "", "a/b"])
def test_misspelt_product_is_refused_though_default_has_a_model(root: Path, engine: Engine, name: str) -> None:
    install(root)
    with pytest.raises(TamisError, match="Products with a champion: default"):
        choose(root, engine, 0.05, name)
    with pytest.raises(TamisError):
        choose(root, engine, None, name)


def test_product_without_any_model_is_refused(root: Path, engine: Engine) -> None:
    (root / "incoming/cap").mkdir()
    with pytest.raises(TamisError, match="expected a champion"):
        choose(root, engine, 0.05, "cap")


def test_damaged_figures_of_a_champion_are_not_calculated_with(root: Path, engine: Engine) -> None:
    install(root)
    (root / "models/default/v1/model.json").write_text("{}")
    with pytest.raises(ConfigurationError, match=r"model\.json: expected sha256"):
        choose(root, engine, 0.05)
    choose(root, engine, None)  # what was chosen can be taken back all the same


def tamis(root: Path, *words: object) -> str:
    result = CliRunner().invoke(app, ["threshold", "--root", str(root), *map(str, words)])
    if result.exception is not None:
        raise result.exception
    return result.stdout


def test_command_shows_chooses_and_takes_back(root: Path, engine: Engine) -> None:
    install(root)
    fill(engine, [10.0, 97.0, 120.0])
    shown = json.loads(tamis(root, "--rate", 0.05, "--dry-run", "--json"))
    assert shown["applied"] is False and shown["chosen_rate"] is None
    assert shown["exploration"]["to_anomaly"] == 1
    applied = json.loads(tamis(root, "--rate", 0.05, "--by", "ann", "--json"))
    assert (applied["applied"], applied["chosen_rate"], applied["chosen_by"]) == (True, 0.05, "ann")
    assert "0.05, chosen by ann" in tamis(root)
    again = tamis(root, "--rate", 0.05, "--dry-run")
    assert "threshold 96 → 96" in again and "0 would become normal and 0 anomalies" in again
    assert "the settings hold" in tamis(root, "--reset")
    with engine.connect() as connection:
        assert thresholds.chosen(connection) == {}
    for words in (["--reset", "--rate", 0.1], ["--dry-run"], ["--rate", 2]):
        with pytest.raises(UsageError):
            tamis(root, *words)


def test_choice_takes_effect_in_the_running_daemon_and_each_row_has_its_threshold(
    root: Path, drop: Callable[..., Path]
) -> None:
    install(root)
    (root / "tamis.toml").write_text(SETTINGS)
    engine = open_database(root)
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        drop("a.png", brightness=97, seed=97 + 97 * 256)
        wait_until(lambda: finished(root) == 1, "the first finished")
        with engine.begin() as connection:
            choose_rate(root, connection, load(root), "default", 0.05, by="ann", at=NOON)
        for number in range(1, 100):
            drop("b.png", brightness=97, seed=97 + 97 * 256)
            wait_until(lambda number=number: finished(root) == 1 + number, "the next finished")
            if rows(root)[-1]["threshold"] == 96:
                break
        assert daemon.stop() == 0
        assert "rates chosen rates=default:0.05" in daemon.log_text()
    engine.dispose()
    found = rows(root)
    assert {(row["threshold"], row["verdict"]) for row in found} == {(100.0, "normal"), (96.0, "anomaly")}
    assert found[0]["threshold"] == 100.0 and found[-1]["threshold"] == 96.0
    assert np.diff([row["threshold"] for row in found]).max(initial=0) <= 0  # once taken over, it stays


def test_choice_that_a_new_champion_cannot_keep_makes_images_wait_and_says_why(
    root: Path, drop: Callable[..., Path]
) -> None:
    install(root)
    (root / "tamis.toml").write_text(SETTINGS)
    engine = open_database(root)
    with engine.begin() as connection:
        thresholds.choose(connection, "gears", 0.001, "ann", NOON)
    waiting = drop("gears/a.png")
    drop("b.png", seed=1)
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(root) == 1, "the other product's image finished")
        wait_until(lambda: "--reset` goes back" in daemon.log_text(), "word of the reason")
        assert waiting.exists()
        with engine.begin() as connection:
            thresholds.choose(connection, "gears", None, "ann", NOON)
        wait_until(lambda: finished(root) == 2, "the image that waited")
        assert daemon.stop() == 0
    engine.dispose()
    assert {row["threshold"] for row in rows(root)} == {100.0}
