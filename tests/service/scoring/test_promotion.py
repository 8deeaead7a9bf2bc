"""A version that could not keep the false-alarm rate that a person chose never becomes champion, by whatever way."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine
from typer.testing import CliRunner, Result

from service.cli import app
from service.retraining.gate import GateResult
from service.retraining.promotion import apply_gate_result
from service.retraining.shadow_trial import ShadowTrial
from service.settings import load
from service.storage import retrainings, thresholds, versions
from service.storage.database.open import open_database
from tests.service.retraining.test_shadow_trial import seen
from tests.support.brightness_version import CREATED_AT, install

EACH_DATABASE = True

AT = datetime(2026, 3, 1, 8, tzinfo=UTC)
# 1000 scores keep a rate of 0.002, 100 do not.
MANY = range(1, 1001)


@pytest.fixture
def engine(root: Path) -> Iterator[Engine]:
    engine = open_database(root)
    yield engine
    engine.dispose()


def choose(engine: Engine, rate: float | None, product: str = "default") -> None:
    with engine.begin() as connection:
        thresholds.choose(connection, product, rate, "ann", AT)


def models(root: Path, *options: str) -> Result:
    return CliRunner().invoke(app, ["models", *options, "--root", str(root)])


def champion(engine: Engine) -> str:
    with engine.connect() as connection:
        return versions.champions(connection)["default"].version


def test_promotion_by_hand_is_refused_with_rate_version_and_way_out(root: Path, engine: Engine) -> None:
    install(root, version="v1", scores=MANY)
    install(root, version="v2", state="challenger")
    choose(engine, 0.002)
    refused = models(root, "promote", "default", "v2")
    assert refused.exit_code == 1 and champion(engine) == "v1"
    said = str(refused.exception or "") + refused.output
    for part in ("product default, version v2", "0.002 that ann chose", "tamis models threshold"):
        assert part in said, said
    choose(engine, None)
    assert models(root, "promote", "default", "v2").exit_code == 0 and champion(engine) == "v2"


def test_version_that_could_not_judge_those_it_stands_in_for_is_refused(root: Path, engine: Engine) -> None:
    install(root, version="v1", scores=MANY)
    install(root, version="v2", state="challenger")
    install(root, "nut", scores=MANY)
    # It has a champion of its own, so that nothing changes for it.
    choose(engine, 0.002, "nut")
    choose(engine, 0.002, "bolt")
    refused = models(root, "promote", "default", "v2")
    assert refused.exit_code == 1 and champion(engine) == "v1"
    said = str(refused.exception or "") + refused.output
    assert "product bolt" in said and "nut" not in said, said
    choose(engine, None, "bolt")
    assert models(root, "promote", "default", "v2").exit_code == 0 and champion(engine) == "v2"


def test_roll_back_to_one_that_could_not_keep_the_rate_leaves_the_champion(root: Path, engine: Engine) -> None:
    install(root, version="v1")
    install(root, version="v2", state="challenger", scores=MANY)
    assert models(root, "promote", "default", "v2").exit_code == 0
    choose(engine, 0.002)
    refused = models(root, "rollback", "default")
    assert refused.exit_code == 1 and champion(engine) == "v2"
    assert "version v1" in str(refused.exception or "") + refused.output
    choose(engine, 0.01)
    assert models(root, "rollback", "default").exit_code == 0 and champion(engine) == "v1"


@pytest.mark.parametrize(("rate", "outcome"), [(0.002, "challenger"), (0.01, "promoted")])
def test_challenger_that_passed_the_gate_waits_where_it_could_not_keep_the_rate(
    root: Path, engine: Engine, rate: float, outcome: str
) -> None:
    old, new = install(root, version="v1", scores=MANY), install(root, version="v2", state="challenger")
    choose(engine, rate)
    with engine.begin() as connection:
        row = retrainings.request(connection, "default", "command", state="running", requested_at=AT, started_at=AT)
    better = GateResult("better", "better in recall", (), 20, 12, "golden", "golden")
    done = apply_gate_result(root, engine, load(root), row, old, new, better, [None])
    assert done.outcome == outcome and ("0.002 that ann chose" in (done.reason or "")) == (outcome == "challenger")
    assert champion(engine) == ("v2" if outcome == "promoted" else "v1")


def test_challenger_whose_hours_are_over_waits_where_it_could_not_keep_the_rate(root: Path, engine: Engine) -> None:
    install(root, version="v1", scores=MANY)
    install(root, version="v2", state="challenger")
    settings = (root / "tamis.toml").read_text()
    (root / "tamis.toml").write_text(f"{settings}shadow_hours = 24.0\n")
    seen(root, 100)
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO retraining_runs (product, trigger, state, requested_at, champion, challenger, outcome, gate)"
            " VALUES ('default', 'cron', 'done', '2026-01-02T03:04:05.000000Z', 'v1', 'v2', 'challenger',"
            " '{\"passed\": true}')"
        )
    choose(engine, 0.002)
    trial = ShadowTrial(root, engine, load(root))
    over = CREATED_AT + timedelta(hours=25)
    assert trial.finish_due_trials(over) == [] and champion(engine) == "v1"
    choose(engine, 0.01)
    assert [one.version for one in trial.finish_due_trials(over)] == ["v2"] and champion(engine) == "v2"
