"""The systemd unit: understood by systemd, tightly boxed, and without what is known to break scoring."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from service.daemon.daemon import STUCK_AFTER_S
from service.errors import ConfigurationError, TamisError, UsageError
from service.settings import Settings
from service.settings_file import ENVIRONMENT_PREFIX

DEPLOY = Path(__file__).parents[2] / "deploy"
UNIT = DEPLOY / "tamis.service"
WEB_UNIT = DEPLOY / "tamis-web.service"
# The page has to answer on a network, if only on this machine's own.
EXPOSURE_MAX = {"tamis.service": 0.6, "tamis-web.service": 1.3}
# Its --threshold is in tenths of what it shows, so 6 is an exposure of 0.6.
SECURITY = ("systemd-analyze", "security", "--no-pager", "--offline=true")

analyze = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


def directives(unit: Path = UNIT) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for line in unit.read_text().splitlines():
        name, equals, value = line.partition("=")
        if equals and not line.startswith("#"):
            found.setdefault(name, []).append(value)
    return found


def with_a_program(unit: Path, folder: Path) -> Path:
    """Copy a unit with a program that exists in place of the installed one, which verify would miss."""
    path = folder / unit.name
    text, count = re.subn(r"(?m)^ExecStart=\S+", f"ExecStart={shutil.which('true')}", unit.read_text())
    assert count == 1
    path.write_text(text)
    return path


def verify(path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(path)], capture_output=True, text=True, timeout=60
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return with_a_program(UNIT, tmp_path)


@analyze
def test_verify_would_notice_a_misspelt_directive(copy: Path) -> None:
    copy.write_text(copy.read_text().replace("PrivateNetwork=", "PrivateNetwrok="))
    assert "PrivateNetwrok" in verify(copy).stderr


@analyze
@pytest.mark.parametrize("unit", sorted(DEPLOY.glob("*.service")), ids=lambda unit: unit.name)
def test_every_unit_is_understood_and_its_exposure_bounded(tmp_path: Path, unit: Path) -> None:
    """A unit that has no bound here fails: there is none by which an image is decoded out of a box."""
    path = with_a_program(unit, tmp_path)
    done = verify(path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    exposure_max = EXPOSURE_MAX[unit.name]
    done = subprocess.run(
        [*SECURITY, f"--threshold={exposure_max * 10:.0f}", str(path)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stdout
    shown = re.search(rf"Overall exposure level for {re.escape(unit.name)}: ([0-9.]+)", done.stdout)
    assert shown is not None
    assert float(shown[1]) <= exposure_max


@analyze
@pytest.mark.parametrize("directive", ["PrivateNetwork", "SystemCallFilter", "CapabilityBoundingSet"])
def test_unit_without_a_part_of_its_box_is_too_exposed(copy: Path, directive: str) -> None:
    text, count = re.subn(rf"(?m)^{directive}=.*\n", "", copy.read_text())
    assert count
    copy.write_text(text)
    command = [*SECURITY, f"--threshold={EXPOSURE_MAX[UNIT.name] * 10:.0f}", str(copy)]
    assert subprocess.run(command, capture_output=True, timeout=60).returncode != 0


def test_page_is_reached_from_this_machine_alone_and_writes_in_the_root_alone() -> None:
    found = directives(WEB_UNIT)
    assert found["ExecStart"] == ["/opt/tamis/bin/tamis web --root /var/lib/tamis"]
    assert found["ReadWritePaths"] == ["/var/lib/tamis"]
    assert found["IPAddressDeny"] == ["any"]
    assert found["IPAddressAllow"] == ["localhost"]
    assert found["UMask"] == ["0077"]
    assert found["RestartPreventExitStatus"] == directives()["RestartPreventExitStatus"]
    assert found["User"] == directives()["User"]


def test_page_never_stops_the_daemon_with_it() -> None:
    found = directives(WEB_UNIT)
    assert not {"Requires", "BindsTo", "PartOf", "Conflicts"} & set(found)
    assert int(found["Nice"][0]) > int(directives()["Nice"][0])


@analyze
def test_threshold_is_in_tenths_of_the_exposure_shown(tmp_path: Path) -> None:
    """An open unit shows about 9.6: over a threshold of 90, under one of 100."""
    unit = tmp_path / "open.service"
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    over, under = (
        subprocess.run([*SECURITY, f"--threshold={limit}", str(unit)], capture_output=True, timeout=60).returncode
        for limit in (90, 100)
    )
    assert over != 0
    assert under == 0


def test_the_whole_root_is_one_writable_path() -> None:
    """Two paths are two mounts, and a rename between them fails with EXDEV."""
    found = directives()
    assert found["ReadWritePaths"] == ["/var/lib/tamis"]
    assert found["ExecStart"] == ["/opt/tamis/bin/tamis run --root /var/lib/tamis"]
    assert not {"StateDirectory", "BindPaths", "LogsDirectory", "CacheDirectory"} & set(found)


@pytest.mark.parametrize("directive", ["ProcSubset", "MemoryDenyWriteExecute"])
def test_directive_that_breaks_scoring_is_not_used(directive: str) -> None:
    assert directive not in directives()


def test_service_has_no_network() -> None:
    found = directives()
    assert found["PrivateNetwork"] == ["yes"]
    assert found["RestrictAddressFamilies"] == ["AF_UNIX"]


def test_errors_that_a_restart_cannot_help_stay_down() -> None:
    found = directives()
    stay_down = {int(code) for code in found["RestartPreventExitStatus"][0].split()}
    assert stay_down == {UsageError.exit_code, ConfigurationError.exit_code}
    assert TamisError.exit_code not in stay_down
    assert found["Restart"] == ["on-failure"]


def test_retraining_is_a_process_of_the_boxed_daemon_and_may_die_alone() -> None:
    """It is started by the daemon, so it has the daemon's box, and its own bounds in minutes, memory and energy.

    Where memory runs out it goes first, by its oom_score_adj; the unit must live on then, and what the daemon leaves
    behind must not.
    """
    found = directives()
    assert found["OOMPolicy"] == ["continue"]
    assert found["KillMode"] == ["mixed"]
    assert "Delegate" not in found
    bounds = {name: Settings.model_fields[name].default for name in ("retrain_minutes_max", "retrain_memory_gb")}
    assert 0 < bounds["retrain_minutes_max"] <= 24 * 60 and bounds["retrain_memory_gb"] > 0
    words = [word for path in (DEPLOY.parent / "service").rglob("*.py") for word in path.read_text().split('"')]
    assert "systemd-run" not in words


def test_stop_leaves_time_for_the_batch_in_hand() -> None:
    found = directives()
    assert found["KillSignal"] == ["SIGTERM"]
    assert int(found["TimeoutStopSec"][0]) > 45


def test_systemd_watches_the_daemon() -> None:
    found = directives()
    assert found["Type"] == ["notify"]
    assert int(found["WatchdogSec"][0]) > STUCK_AFTER_S


def test_nobody_else_can_read_what_the_service_writes() -> None:
    assert directives()["UMask"] == ["0077"]


def test_environment_file_names_only_settings_that_exist() -> None:
    named = re.findall(r"(?m)^#?([A-Z_]+)=", (DEPLOY / "tamis.env").read_text())
    assert named
    assert {name.removeprefix(ENVIRONMENT_PREFIX).lower() for name in named} <= set(Settings.model_fields)


def test_environment_file_sets_nothing_by_itself() -> None:
    lines = (DEPLOY / "tamis.env").read_text().splitlines()
    assert [line for line in lines if line and not line.startswith("#")] == []


def test_rapl_rule_opens_the_counters_to_the_group_alone() -> None:
    lines = [line for line in (DEPLOY / "tamis-rapl.conf").read_text().splitlines() if not line.startswith("#")]
    assert lines
    for line in lines:
        kind, path, mode, user, group, *_ = line.split()
        assert (kind, mode, user, group) == ("z", "0440", "root", "tamis")
        assert path.startswith("/sys/class/powercap/intel-rapl:")
        assert path.endswith("/energy_uj")
