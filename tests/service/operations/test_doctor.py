"""`tamis doctor`: each made situation gives its finding, and whatever is not ok says what to do."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import CliRunner

from models.calibration.thresholds import AtBestF1, AtFalseAlarmRate
from models.manifest import Calibration, Manifest
from models.registry import ModelVersion
from service.commands import doctor as command
from service.commands.init import make_root
from service.errors import ConfigurationError
from service.filesystem.mount_table import Mount, Space
from service.filesystem.odd_entries import OddEntries
from service.instances import instance_lock, write_status
from service.operations import checks, doctor
from service.operations.checks import Finding, InotifyLimits, LeftOver
from service.settings import load
from service.storage import drift, thresholds
from service.storage.database.driver import sqlite3
from service.storage.database.journal import JournalChoice, journal_choice
from service.storage.database.open import open_database
from service.storage.drift import DriftRow
from service.storage.tables import time_text
from service.storage.thresholds import Choice
from tests.support.brightness_version import install

NOW = datetime(2026, 5, 4, 12, 0, tzinfo=UTC)
LIMITS = InotifyLimits(max_user_watches=8192, max_user_instances=128, max_queued_events=16384)
CLAIMED = "01HZY3V6T2Q8N4M1K7J5G9F0CD--1--part.png"


@pytest.fixture(autouse=True)
def no_settings_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.upper().startswith("TAMIS_"):
            monkeypatch.delenv(name)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    before = os.umask(0o077)
    try:
        make_root(tmp_path / "root")
    finally:
        os.umask(before)
    return tmp_path / "root"


def mount(kind: str, *, read_only: bool = False) -> Mount:
    return Mount(Path("/data"), kind, "/dev/sdb1", read_only)


@pytest.mark.parametrize(
    ("free", "a_day", "on", "level", "word"),
    [
        (100e9, 1e9, False, "ok", "off; 1 GB of images a day"),
        (14e9, 1e9, False, "warning", "no room for more in 13.0 days"),
        (15.1e9, 1e9, False, "ok", "off"),
        (0.5e9, 1e9, False, "warning", "in 0.0 days"),
        (14e9, 0.0, False, "ok", "off"),
        (14e9, None, False, "ok", "no images in the last days"),
        (14e9, 1e9, True, "ok", "on; 1 GB"),
        (3e9, 1e9, True, "warning", "free space is low all the same"),
    ],
)
def test_growth_is_judged_by_what_is_free_and_what_comes(
    free: float, a_day: float | None, on: bool, level: str, word: str
) -> None:
    found = checks.check_growth(Space(int(free), None), 10**9, a_day, retention=on)
    assert (found.level, found.check) == (level, "retention") and word in found.found
    assert (found.advice is None) == (level == "ok")


def test_rate_of_growth_is_that_of_the_last_days(root: Path) -> None:
    now = datetime.now(UTC)
    with sqlite3.connect(root / "tamis.db") as connection:
        for number, (days, size) in enumerate([(30, 10**12), (3, 6 * 10**9), (1, 2 * 10**9)]):
            at = time_text(now - timedelta(days=days))
            connection.execute(
                "INSERT INTO images (id, product, file_name, path, destination, state, bytes, received_at, decided_at,"
                " attempts) VALUES (?, 'lid', 'a', 'a', 'a', 'placed', ?, ?, ?, 1)",
                (str(number), size, at, at),
            )
    found = only(doctor.examine(root), "retention").found
    assert "2.67 GB of images a day" in found


def only(findings: list[Finding], check: str) -> Finding:
    (found,) = [finding for finding in findings if finding.check == check]
    return found


# --- the judgements -----------------------------------------------------------------------------------------


def test_each_setting_shows_its_value_and_where_it_came_from() -> None:
    (found,) = checks.check_settings({"settle_time_s": 2.5}, {"settle_time_s": "TAMIS_SETTLE_TIME_S"})
    assert found == Finding("setting settle_time_s", "ok", "2.5, from TAMIS_SETTLE_TIME_S")


def test_default_inotify_limits_suffice_for_some_folders() -> None:
    assert checks.check_inotify(LIMITS, 40).level == "ok"


@pytest.mark.parametrize(
    ("limits", "folders", "name"),
    [
        (LIMITS, 5000, "max_user_watches"),
        (InotifyLimits(8192, 4, 16384), 1, "max_user_instances"),
        (InotifyLimits(8192, 128, 16), 1, "max_queued_events"),
    ],
)
def test_low_inotify_limit_is_named_with_its_sysctl(limits: InotifyLimits, folders: int, name: str) -> None:
    found = checks.check_inotify(limits, folders)
    assert found.level == "warning"
    assert found.advice is not None
    assert f"sysctl -w fs.inotify.{name}=" in found.advice


def test_unknown_inotify_limits_are_not_taken_for_zero() -> None:
    found = checks.check_inotify(None, 3)
    assert found.level == "warning"
    assert "does not say" in found.found


@pytest.mark.parametrize(
    ("name", "kind", "read_only", "watch_mode", "level"),
    [
        ("root", "ext4", False, "auto", "ok"),
        ("root", "ext4", True, "auto", "error"),
        ("root", "nfs4", False, "auto", "error"),
        ("incoming", "fuse.sshfs", False, "auto", "ok"),
        ("incoming", "fuse.sshfs", False, "events", "warning"),
    ],
)
def test_file_system_is_judged_by_its_type(name: str, kind: str, read_only: bool, watch_mode: str, level: str) -> None:
    found = checks.check_mount(name, mount(kind, read_only=read_only), watch_mode)
    assert (found.check, found.level) == (f"file system of {name}", level)


def test_missing_folder_is_an_error_that_names_it() -> None:
    found = checks.check_folders({"incoming": 1, "processing": 1, "maps": None})
    assert (found.level, found.found) == ("error", "missing: maps")


def test_processing_on_another_file_system_is_an_error() -> None:
    found = checks.check_folders({"incoming": 1, "processing": 2, "normal": 1})
    assert found.level == "error"
    assert "two file systems" in found.found


def test_destination_on_another_file_system_is_a_warning() -> None:
    found = checks.check_folders({"incoming": 1, "processing": 1, "normal": 2})
    assert found.level == "warning"
    assert "normal" in found.found


def test_rename_that_failed_is_an_error() -> None:
    assert checks.check_renames(None).level == "ok"
    found = checks.check_renames("Invalid cross-device link: a → b")
    assert found.level == "error"
    assert found.advice is not None
    assert "ReadWritePaths" in found.advice


def test_sqlite_without_the_bug_uses_the_write_ahead_log() -> None:
    found = checks.check_sqlite("3.51.3", journal_choice((3, 51, 3)))
    assert found.level == "ok"
    assert "journal WAL" in found.found


def test_sqlite_with_the_bug_is_reported_with_what_follows() -> None:
    found = checks.check_sqlite("3.40.1", JournalChoice("TRUNCATE", "EXTRA", "it has the WAL-reset bug"))
    assert found.level == "ok"
    assert "journal TRUNCATE, synchronous EXTRA" in found.found
    assert found.advice is not None


@pytest.mark.parametrize(
    ("changed", "level", "said"),
    [
        ({}, "ok", "commits last, data checksums on"),
        ({"data_checksums": "off"}, "warning", "no data checksums"),
        ({"fsync": "off"}, "error", "fsync off"),
        ({"full_page_writes": "off", "fsync": "off"}, "error", "fsync and full_page_writes off"),
    ],
)
def test_server_is_judged_by_whether_its_commits_last(changed: dict[str, str], level: str, said: str) -> None:
    facts = {"server_version": "15.15", "fsync": "on", "full_page_writes": "on", "data_checksums": "on"} | changed
    found = checks.check_postgresql(facts)
    assert (found.level, "15.15" in found.found) == (level, True) and said in found.found


@pytest.mark.parametrize(
    ("revision", "answer", "levels"),
    [
        ("0002", "ok", ["ok", "ok"]),
        ("0001", "ok", ["error", "ok"]),
        (None, "ok", ["error", "ok"]),
        ("0002", "row 3 missing from index x", ["ok", "error"]),
    ],
)
def test_database_is_judged_by_revision_and_quick_check(revision: str | None, answer: str, levels: list[str]) -> None:
    assert [finding.level for finding in checks.check_database(revision, "0002", answer)] == levels


@pytest.mark.parametrize(("left", "level"), [(999, "error"), (1000, "warning"), (3999, "warning"), (4000, "ok")])
def test_space_is_judged_against_the_setting(left: int, level: str) -> None:
    by_bytes, by_inodes = checks.check_space(Space(left, left), 1000, 1000)
    assert (by_bytes.level, by_inodes.level) == (level, level)


def test_file_system_without_a_number_of_inodes_is_fine() -> None:
    assert checks.check_space(Space(10**12, None), 1000, 1000)[1].level == "ok"


def test_product_without_any_model_waits_and_is_named() -> None:
    (found,) = checks.check_products({"flange"}, set())
    assert (found.check, found.level) == ("model of flange", "warning")
    assert found.advice is not None
    assert "--product flange" in found.advice


def test_product_without_a_model_uses_that_of_default() -> None:
    (found,) = checks.check_products({"flange"}, {"default"})
    assert found.level == "ok"


def test_root_without_products_and_models_says_what_comes_first() -> None:
    (found,) = checks.check_products(set(), set())
    assert (found.check, found.level) == ("model of default", "warning")
    assert checks.check_products({"flange"}, {"flange"}) == []


def test_champion_with_a_changed_file_is_an_error() -> None:
    assert checks.check_champion("flange", "v1", None).level == "ok"
    found = checks.check_champion("flange", "v1", "model.bin: expected sha256 …")
    assert found.level == "error"
    assert found.advice is not None
    assert "rollback" in found.advice


def test_rate_that_the_calibration_cannot_give_is_an_error_with_both_ways_out() -> None:
    assert checks.check_threshold("flange", AtFalseAlarmRate(0.02), None).level == "ok"
    found = checks.check_threshold("flange", AtFalseAlarmRate(0.01), "needs 99 held-out normal images, found 49")
    assert found.level == "error"
    assert found.advice is not None
    assert "[products.flange]" in found.advice
    assert "train on more" in found.advice


def test_chosen_rate_is_told_with_who_chose_it_and_warned_of_where_it_has_no_effect() -> None:
    choice = Choice("flange", 0.02, "ann", datetime(2026, 1, 31, tzinfo=UTC))
    found = checks.check_threshold("flange", AtFalseAlarmRate(0.02), None, choice)
    assert found.level == "ok" and "0.02, chosen by ann over the settings'" in found.found
    refused = checks.check_threshold("flange", AtFalseAlarmRate(0.02), "needs 49 held-out normal images", choice)
    assert refused.level == "error" and "--product flange --rate R, or --reset" in (refused.advice or "")
    idle = checks.check_threshold("flange", AtBestF1(), None, choice)
    assert idle.level == "warning" and "without effect" in idle.found
    taken_back = replace(choice, false_alarm_rate=None)
    assert checks.check_threshold("flange", AtBestF1(), None, taken_back).level == "ok"


@pytest.mark.parametrize("cause", ["light", "defects", "unknown"])
def test_drift_is_a_warning_that_says_what_to_look_at(cause: str) -> None:
    at = datetime(2026, 1, 31, tzinfo=UTC)
    assert checks.check_drift("flange", DriftRow("flange", "v1", "steady", None, None, at, {})).level == "ok"
    found = checks.check_drift("flange", DriftRow("flange", "v1", "drifting", cause, "01X", at, {}))
    assert found.level == "warning" and "01X" in found.found and cause in found.found and found.advice


def test_rate_chosen_for_a_product_of_defaults_model_is_judged_too(root: Path) -> None:
    install(root)
    engine = open_database(root)
    with engine.begin() as connection:
        thresholds.choose(connection, "cap", 0.001, "ann", datetime.now(UTC))
        thresholds.choose(connection, "lid", None, "ann", datetime.now(UTC))
        drift.add(connection, DriftRow("cap", "v1", "drifting", "light", "01X", datetime.now(UTC), {}))
    engine.dispose()
    found = {finding.check: finding for finding in doctor.examine(root)}
    assert found["threshold of cap"].level == "error" and "threshold of lid" not in found
    assert found["threshold of default"].level == "ok" and found["drift of cap"].level == "warning"


def test_policy_without_known_anomalies_is_an_error_with_both_ways_out() -> None:
    assert checks.check_threshold("flange", AtBestF1(), None).found == "by the policy f1"
    found = checks.check_threshold("flange", AtBestF1(), "needs scores of known anomalies")
    assert found.level == "error"
    assert found.advice is not None
    assert "--anomalies" in found.advice
    assert "[products.flange]" in found.advice


@pytest.mark.parametrize(
    ("flags", "machine", "level"),
    [
        (frozenset({"sse2", "avx2"}), "x86_64", "ok"),
        (frozenset({"sse2"}), "x86_64", "warning"),
        (frozenset({"asimd"}), "aarch64", "ok"),
        (None, "x86_64", "warning"),
    ],
)
def test_processor_is_judged_by_its_flags(flags: frozenset[str] | None, machine: str, level: str) -> None:
    assert only(checks.check_scoring("2025.0", None, flags, machine), "processor").level == level


def test_openvino_that_cannot_be_imported_is_an_error() -> None:
    found = only(checks.check_scoring(None, "libtbb.so.12: cannot open", frozenset({"avx2"}), "x86_64"), "OpenVINO")
    assert found.level == "error"
    assert "libtbb" in found.found


@pytest.mark.parametrize(("rapl", "level"), [("readable", "ok"), ("absent", "ok"), ("closed", "warning")])
def test_energy_source_is_measured_estimated_or_closed(rapl: str, level: str) -> None:
    assert only(checks.check_energy(rapl, "FRA"), "energy source").level == level  # type: ignore[arg-type]


def test_energy_country_that_is_not_set_is_a_warning() -> None:
    assert only(checks.check_energy("absent", None), "energy country").level == "warning"
    assert only(checks.check_energy("absent", "DEU"), "energy country").found == "DEU"


@pytest.mark.parametrize(
    ("mode", "level"), [(0o40755, "warning"), (0o40701, "warning"), (0o40750, "ok"), (0o40700, "ok")]
)
def test_root_that_other_users_can_look_into_is_a_warning(mode: int, level: str) -> None:
    (found,) = checks.check_permissions(mode, 0o077, owner=5, user=5)
    assert found.level == level


def test_other_user_than_the_owner_is_a_warning() -> None:
    assert only(checks.check_permissions(0o40700, 0o077, owner=5, user=0), "user").level == "warning"


@pytest.mark.parametrize(
    ("left", "level"),
    [
        ([], "ok"),
        ([LeftOver("main", 4, True)], "ok"),
        ([LeftOver("main", 0, False)], "ok"),
        ([LeftOver("old", 2, False)], "warning"),
        ([LeftOver("main", 4, True), LeftOver("old", 2, False)], "ok"),
    ],
)
def test_images_of_an_instance_that_does_not_run_are_told(left: list[LeftOver], level: str) -> None:
    assert checks.check_left_overs(left).level == level


@pytest.mark.parametrize(
    ("now", "disk", "newest", "level"),
    [
        (NOW, NOW, None, "ok"),
        (NOW, None, NOW - timedelta(days=3), "ok"),
        (datetime(1970, 1, 1, tzinfo=UTC), None, None, "error"),
        (NOW, NOW + timedelta(hours=2), None, "warning"),
        (NOW, NOW, NOW + timedelta(hours=2), "warning"),
    ],
)
def test_clock_is_judged_by_the_disk_and_the_newest_image(
    now: datetime, disk: datetime | None, newest: datetime | None, level: str
) -> None:
    assert checks.check_clock(now, disk, newest).level == level


def test_flags_are_read_from_both_kinds_of_cpuinfo() -> None:
    assert checks.cpu_flags("model name\t: x\nflags\t\t: fpu avx2\nbugs\t: y\n") == {"fpu", "avx2"}
    assert checks.cpu_flags("Features\t: fp asimd\n") == {"fp", "asimd"}
    assert checks.cpu_flags("") is None


# --- the edge ------------------------------------------------------------------------------------------------


def test_whatever_is_not_ok_says_what_to_do(root: Path) -> None:
    (root / "incoming" / "flange").mkdir()
    (root / "maps").rmdir()
    (root / "tamis.db").write_bytes(b"not a database" * 100)
    root.chmod(0o755)
    findings = doctor.examine(root)
    assert {finding.level for finding in findings} == {"ok", "warning", "error"}
    assert [finding for finding in findings if finding.level != "ok" and not finding.advice] == []


def test_new_root_has_no_error_and_is_left_as_it_was(root: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()}
    findings = doctor.examine(root)
    assert [finding for finding in findings if finding.level == "error"] == []
    assert only(findings, "renames").level == "ok"
    assert {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_file()} == before


def test_rename_trial_leaves_nothing_even_when_it_fails(root: Path) -> None:
    (root / "normal").rmdir()
    (root / "normal").write_text("in the way")
    failure, disk_now = doctor.try_renames(root)
    assert failure is not None
    assert disk_now is not None
    assert list((root / "incoming").iterdir()) == list((root / "processing").iterdir()) == []


def test_rename_trial_reports_a_missing_folder(root: Path) -> None:
    (root / "incoming").rmdir()
    failure, disk_now = doctor.try_renames(root)
    assert failure is not None
    assert "No such file" in failure
    assert disk_now is None


def test_wrong_setting_is_one_error_and_the_other_checks_go_on(root: Path) -> None:
    (root / "tamis.toml").write_text("settel_time_s = 1\n")
    findings = doctor.examine(root)
    found = only(findings, "settings")
    assert found.level == "error"
    assert "did you mean 'settle_time_s'" in found.found
    assert only(findings, "renames").level == "ok"


def test_corrupt_database_is_an_error(root: Path) -> None:
    (root / "tamis.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4000)
    found = [finding for finding in doctor.examine(root) if finding.check.startswith("database")]
    assert [finding.level for finding in found] == ["error"]


def test_older_schema_is_an_error_with_the_command_that_helps(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.migrations, "HEAD", "9999")
    found = only(doctor.examine(root), "database revision")
    assert found.level == "error"
    assert found.advice is not None
    assert "tamis db upgrade" in found.advice


def test_champion_whose_folder_is_gone_is_an_error(root: Path) -> None:
    from service.storage import versions
    from service.storage.database.open import open_database

    engine = open_database(root)
    with engine.begin() as connection:
        versions.register(
            connection,
            product="flange",
            version="v1",
            kind="feature",
            created_at=NOW,
            state="champion",
            reason="first",
            threshold=1.0,
            false_alarm_rate=0.01,
            image_auroc=None,
            f1=None,
            training_wh=None,
            images=10,
            sha256="0" * 64,
        )
    engine.dispose()
    found = only(doctor.examine(root), "model of flange")
    assert found.level == "error"
    assert "model.json" in found.found


def test_champion_with_too_few_calibration_scores_for_the_rate_is_an_error(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = tuple(float(n) for n in range(49))
    calibration = Calibration(scores=scores, false_alarm_rate=0.05, threshold=48, pixel_threshold=48)
    version = ModelVersion(root, Manifest.model_construct(calibration=calibration), "0" * 64)
    monkeypatch.setattr(doctor.registry, "verify", lambda folder, sha256: version)
    row = SimpleNamespace(version="v1", sha256="0" * 64)
    for rate, level in ((0.01, "error"), (0.02, "ok")):
        (root / "tamis.toml").write_text(f"[products.flange]\nfalse_alarm_rate = {rate}\n")
        found = doctor._models(root, load(root), set(), {"flange": row}, {})
        assert only(found, "threshold of flange").level == level
        assert only(found, "model of flange").level == "ok"


def test_inotify_limits_are_read_and_unknown_where_absent(tmp_path: Path) -> None:
    assert doctor.read_inotify(tmp_path) is None
    for name, value in (("max_user_watches", 10), ("max_user_instances", 20), ("max_queued_events", 30)):
        (tmp_path / name).write_text(f"{value}\n")
    assert doctor.read_inotify(tmp_path) == InotifyLimits(10, 20, 30)


def test_energy_counter_is_readable_closed_or_absent(tmp_path: Path) -> None:
    counter = tmp_path / "energy_uj"
    assert doctor.read_rapl(counter) == "absent"
    counter.mkdir()  # reading it fails, for the superuser too
    assert doctor.read_rapl(counter) == "closed"
    counter.rmdir()
    counter.write_text("123\n")
    assert doctor.read_rapl(counter) == "readable"


def test_left_overs_are_counted_and_a_held_lock_means_alive(root: Path) -> None:
    for instance in ("main", "old"):
        folder = root / "processing" / instance / "flange"
        folder.mkdir(parents=True)
        (folder / CLAIMED).write_text("")
        (folder.parent / ".lock").write_text("")
    with (root / "processing" / "main" / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert doctor.read_left_overs(root) == [LeftOver("main", 1, True), LeftOver("old", 1, False)]


def test_nothing_is_left_in_the_users_home(root: Path, tmp_path: Path) -> None:
    """OpenVINO's telemetry, for one, makes a folder there as soon as it is imported in the plain way."""
    home = tmp_path / "home"
    home.mkdir()
    source = Path(doctor.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "service", "doctor", "--root", str(root)],
        env={"HOME": str(home), "PATH": os.environ["PATH"], "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=source,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "OpenVINO" in done.stdout
    assert list(home.iterdir()) == []


def test_root_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="tamis init"):
        doctor.examine(tmp_path / "nowhere")


def run(root: Path, *options: str) -> tuple[int, str]:
    app = typer.Typer()
    app.command()(command.doctor)
    result = CliRunner().invoke(app, ["--root", str(root), *options])
    return result.exit_code, result.stdout


def test_command_exits_0_without_errors_and_1_with_one(root: Path) -> None:
    code, output = run(root)
    assert code == 0
    assert "0 errors" in output
    (root / "maps").rmdir()
    code, output = run(root)
    assert code == 1
    assert "missing: maps" in output


def test_command_with_json_prints_all_findings(root: Path) -> None:
    code, output = run(root, "--json")
    assert code == 0
    found = json.loads(output)
    assert {"check", "level", "found", "advice"} == set(found[0])
    assert any(one["check"] == "SQLite" and sqlite3.sqlite_version in one["found"] for one in found)


def test_what_waits_is_named_with_what_to_do_by_the_running_daemon_or_else_by_the_walk(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert only(doctor.examine(root), "entries that wait").level == "ok"
    error, odd = PermissionError(errno.EACCES, "Permission denied"), OddEntries()
    for number in range(25):
        odd.note(f"incoming/{number:02}/a.png", "read", error, advice="chmod g+r it")
    lock = instance_lock(root, "main")
    assert lock.acquire() is None
    write_status(root, "main", {"odd_entries": odd.document()})
    found = [one for one in doctor.examine(root) if one.check == "entries that wait"]
    assert len(found) == 21 and {one.level for one in found} == {"warning"}
    assert found[0].found == "incoming/00/a.png waits: cannot read it, Permission denied"
    assert found[0].advice == "chmod g+r it" and found[-1].found.startswith("5 more files; in all 25 Permission denied")
    lock.release()

    def refusing(_folder: str, _top: int) -> int:
        raise error

    monkeypatch.setattr("service.filesystem.scan.open_folder_below", refusing)
    (root / "incoming/gears").mkdir()
    [found_by_walk] = [one for one in doctor.examine(root) if one.check == "entries that wait"]
    assert found_by_walk.found == "incoming waits: cannot list it, Permission denied"


def test_product_that_is_called_almost_as_a_trained_one_is_a_warning_with_the_guess() -> None:
    [found] = checks.check_products({"Gear box"}, {"gearbox", "default"})
    assert found.level == "warning" and found.advice is not None and "did you mean gearbox?" in found.advice
