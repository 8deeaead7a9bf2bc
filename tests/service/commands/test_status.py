import errno
import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from service.commands.status import report, status
from service.filesystem import scan
from service.instances import instance_lock
from service.settings import IGNORED_NAMES
from service.storage import drift, thresholds
from service.storage.database.open import open_database
from service.storage.drift import DriftRow
from tests.support.brightness_version import install


def test_new_root_has_no_daemon_and_nothing_waits(root: Path) -> None:
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert (found["daemons"], found["incoming"], found["champions"], found["last_received_at"]) == ([], {}, {}, None)


def test_files_that_wait_are_counted_by_product_and_by_lack_of_a_model(root: Path, drop: Callable[..., Path]) -> None:
    install(root, product="gears")
    for name in ("gears/a.png", "gears/b.png", "screws/c.png", "screws/d.png.part"):
        drop(name)
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert found["incoming"] == {"gears": 2, "screws": 1}
    assert found["waiting_for_model"] == ["screws"] and found["champions"] == {"gears": "v1"}


def test_running_daemon_is_told_from_one_that_ended(root: Path) -> None:
    lock = instance_lock(root, "main")
    assert lock.acquire() is None
    assert [d["running"] for d in report(root, IGNORED_NAMES, datetime.now(UTC))["daemons"]] == [True]
    lock.release()
    (root / "processing/main/.status.json").write_text('{"instance": "main", "placed": 7}')
    [daemon] = report(root, IGNORED_NAMES, datetime.now(UTC))["daemons"]
    assert (daemon["running"], daemon["placed"]) == (False, 7)


def test_drift_and_chosen_rates_are_told_with_the_first_image_and_who_chose(root: Path) -> None:
    install(root)
    at = datetime(2026, 1, 31, 12, tzinfo=UTC)
    engine = open_database(root)
    with engine.begin() as connection:
        thresholds.choose(connection, "default", 0.05, "ann", at)
        thresholds.choose(connection, "cap", 0.05, "ann", at)
        thresholds.choose(connection, "cap", None, "ann", at)
        drift.add(connection, DriftRow("default", "v1", "drifting", "light", "gone", at, {"images": 20}))
        drift.add(connection, DriftRow("cap", "v0", "drifting", "light", "gone", at, {"images": 20}))
    engine.dispose()
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert set(found["drift"]) == {"default"}  # what another version said holds no more
    assert found["drift"]["default"] == {
        "state": "drifting", "cause": "light", "began_at": None, "first_image_id": "gone", "first_image_path": None,
        "found_at": at, "version": "v1",
    }  # fmt: skip
    assert found["thresholds_chosen"] == {"default": {"false_alarm_rate": 0.05, "chosen_by": "ann", "chosen_at": at}}
    app = typer.Typer()
    app.command()(status)
    shown = CliRunner().invoke(app, ["--root", str(root)]).stdout
    assert "default drifts since a time not known: the light or the lens changed; first gone" in shown
    assert "false-alarm rate 0.05, chosen by ann at 2026-01-31 12:00:00 UTC, over the settings'" in shown
    (root / "tamis.toml").write_text('threshold_policy = "fixed"\nthreshold_fixed = 42')
    assert "without effect, as the policy is another" in CliRunner().invoke(app, ["--root", str(root)]).stdout
    document = json.loads(CliRunner().invoke(app, ["--root", str(root), "--json"]).stdout)
    assert document["thresholds_chosen"]["default"]["in_force"] is False
    assert document["drift"]["default"]["cause"] == "light"


def test_what_cannot_be_listed_and_whoever_may_not_be_asked_is_said(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(root, product="gearbox")
    (root / "incoming/Gear box").mkdir()
    (root / "incoming/Gear box/a.png").write_bytes(b"x")
    real = scan.open_folder_below

    def refusing(folder: str, top: int) -> int:
        if folder == "private":
            raise PermissionError(errno.EACCES, "Permission denied")
        return real(folder, top)

    (root / "incoming/private").mkdir()
    monkeypatch.setattr(scan, "open_folder_below", refusing)

    def denied(_root: Path) -> list[str]:
        raise PermissionError(errno.EACCES, "Permission denied", "processing")

    monkeypatch.setattr("service.instances.instances", denied)
    found = report(root, IGNORED_NAMES, datetime.now(UTC))
    assert [one["path"] for one in found["odd_entries"]["first"]] == ["incoming/private"]
    assert found["daemons"] == [{"instance": "any", "running": None, "unknown": "Permission denied: processing"}]
    assert found["incoming"] == {"Gear box": 1} and found["did_you_mean"] == {"Gear box": "gearbox"}
    app = typer.Typer()
    app.command()(status)
    told = CliRunner().invoke(app, ["--root", str(root)]).output
    assert "incoming/private waits: cannot list it, Permission denied" in told
    assert "any: not known, Permission denied: processing" in told
    assert "Gear box has no model of its own; did you mean gearbox?" in told
