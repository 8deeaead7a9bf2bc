"""The end of a challenger's time in the shadow: promoted where it earned it, else left to a person, with the reason."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text
from typer.testing import CliRunner

from service.cli import app
from service.retraining.shadow_trial import DueTrial, ShadowTrial, TrialFacts, due, reason_to_wait
from service.scoring.active_versions import SHADOW_IMAGES_MIN
from service.settings import Settings, load
from service.storage import versions
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from service.storage.shadow import GatedRun, ShadowSummary
from service.storage.tables import time_text
from tests.support.brightness_version import CREATED_AT, install
from tests.support.daemon_process import DaemonProcess, finished, wait_until

OVER = CREATED_AT + timedelta(hours=24)
PASSED = GatedRun(1, "challenger", "v1", True)
SEEN = ShadowSummary(100, 4, 0.02, 0.05)


def facts(run: GatedRun | None = PASSED, **values: Any) -> TrialFacts:
    plain = {"champion": "v1", "newest_challenger": "v2", "promote_automatically": True}
    return TrialFacts(run, **(plain | values))


@pytest.mark.parametrize(
    ("seen", "known", "word"),
    [
        (SEEN, facts(), None),
        (ShadowSummary(100, 6, 0.02, 0.051), facts(), "expected at most 5.00%"),
        (ShadowSummary(100, 1, 0.0, 0.01), facts(), None),
        (ShadowSummary(100, 2, 0.0, 0.02), facts(), "expected at most 1.00%"),
        (
            ShadowSummary(SHADOW_IMAGES_MIN - 1, 0, 0.0, 0.0),
            facts(),
            "expected at least 30 images in the shadow; found 29",
        ),
        (ShadowSummary(0, 0, None, None), facts(), "found 0"),
        (SEEN, facts(None), "no retraining made it"),
        (SEEN, facts(GatedRun(1, "rejected", "v1", True)), "outcome rejected"),
        (SEEN, facts(GatedRun(1, "challenger", "v1", False)), "it did not pass its gate"),
        (SEEN, facts(GatedRun(1, "challenger", "v1", None)), "it did not pass its gate"),
        (SEEN, facts(champion="v9"), "compared it with v1; the champion is v9 now"),
        (SEEN, facts(newest_challenger="v3"), "there is a newer challenger, v3"),
        (SEEN, facts(promote_automatically=False), "promote_automatically is off"),
    ],
)
def test_what_is_promoted_and_what_waits(seen: ShadowSummary, known: TrialFacts, word: str | None) -> None:
    found = reason_to_wait(DueTrial("default", "v2", OVER, seen), known)
    assert found is None if word is None else found is not None and word in found


class Root:
    def __init__(self, root: Path, engine: Engine) -> None:
        self.root, self.engine = root, engine
        install(root)
        install(root, version="v2", state="challenger")
        self.settings = Settings(shadow_hours=24.0)

    def saw(self, images: int, *, alarms: int = 0) -> None:
        seen(self.root, images, alarms=alarms)

    def gate(self, outcome: str = "challenger", gate: str | None = '{"passed": true}', champion: str = "v1") -> None:
        with self.engine.begin() as connection:
            connection.exec_driver_sql(
                "INSERT INTO retraining_runs"
                " (product, trigger, state, requested_at, champion, challenger, outcome, gate)"
                " VALUES ('default', 'cron', 'done', ?, ?, 'v2', ?, ?)",
                (time_text(CREATED_AT), champion, outcome, gate),
            )

    def champion(self) -> tuple[str, str | None]:
        with self.engine.connect() as connection:
            row = versions.champion(connection, "default")
            assert row is not None
            return row.version, row.reason


def seen(root: Path, images: int, *, alarms: int = 0) -> None:
    """Write images that champion and challenger scored: all normal by the champion, the first `alarms` not by v2."""
    at = time_text(CREATED_AT)
    rows = [
        {"id": f"01ARZ3NDEKTSV4RRFFQ69G{number:04d}", "at": at, "verdict": "anomaly" if number < alarms else "normal"}
        for number in range(images)
    ]
    engine = open_database(root)
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO images (id, product, file_name, path, destination, state, verdict, score, threshold,"
                " received_at, decided_at, attempts)"
                " VALUES (:id, 'default', 'a', 'a', 'a', 'placed', 'normal', 1.0, 100.0, :at, :at, 1)"
            ),
            rows,
        )
        connection.execute(
            text("INSERT INTO shadow_scores VALUES (:id, 'default', 'v2', 1.0, 100.0, :verdict, 'normal')"), rows
        )
    engine.dispose()


@pytest.fixture
def house(root: Path) -> Iterator[Root]:
    engine = open_database(root)
    yield Root(root, engine)
    engine.dispose()


@pytest.mark.parametrize("gate", ['{"passed": true}', '{"decision": "better"}'])
def test_challenger_that_earned_it_is_promoted_once_its_hours_are_over(house: Root, gate: str) -> None:
    house.saw(100, alarms=1)
    house.gate(gate=gate)
    trial = ShadowTrial(house.root, house.engine, house.settings)
    assert trial.finish_due_trials(OVER - timedelta(seconds=1)) == [] and house.champion()[0] == "v1"
    [promoted] = trial.finish_due_trials(OVER)
    assert (promoted.version, promoted.summary.disagreements) == ("v2", 1)
    assert house.champion() == (
        "v2",
        "gate passed, and in the shadow it called 1.00% of 100 images anomalies, the champion 0.00%",
    )
    assert trial.finish_due_trials(OVER) == []


def test_challenger_that_waits_is_spoken_of_once(house: Root, caplog: pytest.LogCaptureFixture) -> None:
    house.saw(100, alarms=30)
    house.gate()
    trial = ShadowTrial(house.root, house.engine, house.settings)
    with caplog.at_level(logging.INFO):
        for minutes in range(3):
            assert trial.finish_due_trials(OVER + timedelta(minutes=minutes)) == []
    assert [record.message for record in caplog.records] == ["shadow hours are over", "challenger waits for a person"]
    assert house.champion()[0] == "v1"


def test_nothing_is_due_where_there_are_no_shadow_hours(house: Root) -> None:
    house.saw(100)
    with house.engine.connect() as connection:
        assert due(connection, Settings(), OVER) == []
        assert [one.version for one in due(connection, house.settings, OVER)] == ["v2"]


@pytest.mark.parametrize(
    "gate", [None, "no JSON", "[]", '{"passed": "yes"}', "{}", '{"decision": "not judged"}', '{"decision": "worse"}']
)
def test_gate_that_does_not_say_that_it_was_passed_promotes_nothing(house: Root, gate: str | None) -> None:
    house.saw(100)
    house.gate(gate=gate)
    assert ShadowTrial(house.root, house.engine, house.settings).finish_due_trials(OVER) == []


def test_challenger_whose_files_are_damaged_is_not_promoted(house: Root, caplog: pytest.LogCaptureFixture) -> None:
    house.saw(100)
    house.gate()
    (house.root / "models/default/v2/model.bin").write_bytes(b"damaged")
    with caplog.at_level(logging.INFO):
        assert ShadowTrial(house.root, house.engine, house.settings).finish_due_trials(OVER) == []
    assert "model.bin" in str(vars(caplog.records[-1])) and house.champion()[0] == "v1"


def test_models_show_what_a_challenger_did_in_the_shadow(house: Root) -> None:
    house.saw(50, alarms=2)
    runner = CliRunner()
    listed = json.loads(runner.invoke(app, ["models", "list", "--root", str(house.root), "--json"]).stdout)
    figures = {"images": 50, "disagreements": 2, "champion_rate": 0.0, "challenger_rate": 0.04}
    assert {row["version"]: row["shadow"] for row in listed} == {"v1": None, "v2": figures}
    shown = ["models", "show", "default", "v2", "--root", str(house.root)]
    assert json.loads(runner.invoke(app, [*shown, "--json"]).stdout)["shadow"] == figures
    assert "50 images, 2 judged otherwise; anomalies 4.00%, the champion's 0.00%" in runner.invoke(app, shown).stdout


def test_real_daemon_scores_in_the_shadow_and_promotes_when_the_hours_are_over(
    root: Path, drop: Callable[..., Path]
) -> None:
    """The hours began so long ago that they are over; the challenger still has to see its images."""
    install(root)
    install(root, version="v2", state="challenger", graph_offset=1.0)
    (root / "tamis.toml").write_text(
        "settle_time_s = 0.2\nrescan_interval_s = 1.0\nfree_bytes_min = 0\nshadow_hours = 24.0\nshadow_share = 1.0\n"
    )
    with open_database(root).begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO retraining_runs (product, trigger, state, requested_at, champion, challenger, outcome, gate)"
            " VALUES ('default', 'cron', 'done', ?, 'v1', 'v2', 'challenger', '{\"passed\": true}')",
            (time_text(datetime.now(UTC)),),
        )
    assert load(root).shadow_share == 1.0

    def shadowed() -> int:
        with sqlite3.connect(root / "tamis.db", timeout=60) as connection:
            return int(connection.execute("SELECT count(*) FROM shadow_scores").fetchone()[0])

    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: "in the shadow product=default" in daemon.log_text(), "the challenger loaded")
        assert "expected at least 30 images in the shadow" in daemon.log_text()
        for number in range(SHADOW_IMAGES_MIN + 5):
            drop(f"{number}.png", seed=number)
        wait_until(lambda: finished(root) >= SHADOW_IMAGES_MIN + 5, "the images finished")
        assert shadowed() >= SHADOW_IMAGES_MIN
        wait_until(lambda: "gate passed, and in the shadow" in daemon.log_text(), "the promotion")
        drop("after.png", seed=999)
        wait_until(lambda: finished(root) == SHADOW_IMAGES_MIN + 6, "the last finished")
        assert daemon.stop() == 0, daemon.log_text()
    with sqlite3.connect(root / "tamis.db") as connection:
        states = dict(connection.execute("SELECT version, state FROM versions"))
        scored = connection.execute(
            "SELECT s.score - i.score FROM shadow_scores s JOIN images i ON i.id = s.image_id"
        ).fetchall()
    assert states == {"v1": "retired", "v2": "champion"}
    assert scored and all(difference == 1.0 for (difference,) in scored)
