"""The time zone of `retrain_cron`: that of the C library, or a refusal that names what says another one."""

import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from service.cron import local_zone, parse_cron
from service.errors import ConfigurationError

MOMENTS = [datetime(2026, month, day, hour, tzinfo=UTC) for month in range(1, 13) for day in (1, 28) for hour in (0, 9)]
LIBC = "import sys, time; print(*(time.localtime(float(at)).tm_gmtoff for at in sys.argv[1:]))"
SAID = [
    *("CET-1CEST,M3.5.0,M10.5.0/3", "AST5AET", "<+0330>-3:30", "IST-5:30", "GMT+5", "PST8PDT", "XYZ3"),
    *("NZST-12NZDT,M9.5.0,M4.1.0/3", "EST5EDT4,J60,J300/26", "<-03>3<-02>,M3.5.0/-2,M10.5.0/-1", "UTC0", ""),
    *("Europe/Paris", ":Europe/Paris", "UTC", "Asia/Kolkata", "America/St_Johns", ":", ":<+05>-5"),
    *("/usr/share/zoneinfo/Asia/Tokyo", ":/usr/share/zoneinfo/Asia/Tokyo"),
]


@pytest.mark.parametrize("said", SAID)
def test_a_zone_is_what_the_c_library_makes_of_it(said: str) -> None:
    """Its offset at 48 moments of a year, on both sides of summer time, is the one of `localtime`."""
    if not Path("/usr/share/zoneinfo/Asia/Tokyo").exists():
        pytest.skip("needs the system's tables of time zones")
    seconds = [str(at.timestamp()) for at in MOMENTS]
    ended = subprocess.run(
        [sys.executable, "-S", "-c", LIBC, *seconds], env={"TZ": said}, check=True, capture_output=True, text=True
    )
    zone = local_zone(said)
    found = [int(at.astimezone(zone).utcoffset().total_seconds()) for at in MOMENTS]  # type: ignore[union-attr]
    assert found == [int(offset) for offset in ended.stdout.split()]


@pytest.mark.parametrize(
    "said",
    ["Mars/Base", "europe", "Europe", "../etc/passwd", "CET-1\n", "é", "/nowhere", "/etc", "/etc/passwd", "A" * 9],
)
def test_what_is_no_zone_is_refused_by_name(said: str) -> None:
    with pytest.raises(ConfigurationError, match="TZ: "):
        local_zone(said)


def test_variable_then_file_then_utc(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    localtime = tmp_path / "localtime"
    monkeypatch.delenv("TZ", raising=False)
    assert local_zone(localtime=localtime) is UTC
    localtime.write_bytes(b"TZif")
    with pytest.raises(ConfigurationError, match="localtime: expected a file of a time zone"):
        local_zone(localtime=localtime)
    localtime.unlink()
    localtime.symlink_to(tmp_path / "gone")
    assert local_zone(localtime=localtime) is UTC
    monkeypatch.setenv("TZ", "XYZ-2")
    assert local_zone(localtime=localtime).utcoffset(MOMENTS[0]) == timedelta(hours=2)


def test_cron_keeps_to_the_hour_of_a_rule_across_summer_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "CET-1CEST,M3.5.0,M10.5.0/3")
    cron = parse_cron("30 2 * * *")
    paris = parse_cron("30 2 * * *", ZoneInfo("Europe/Paris"))
    for start in (datetime(2026, 3, 27, tzinfo=UTC), datetime(2026, 10, 23, tzinfo=UTC)):
        at = expected = start
        for _ in range(5):
            at, expected = cron.next_time(at), paris.next_time(expected)  # type: ignore[assignment]
            assert at == expected


def test_command_ends_with_78_that_names_tz(tmp_path: Path) -> None:
    tamis = [sys.executable, "-P", "-m", "service"]
    environment = {**os.environ, "PYTHONPATH": str(Path.cwd()), "TZ": "Mars/Base"}
    subprocess.run([*tamis, "init", str(tmp_path / "root")], env={**environment, "TZ": "XYZ-2"}, check=True)
    command = [*tamis, "run", "--root", str(tmp_path / "root")]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 78
    assert ended.stderr.startswith("tamis: variable TZ: expected a time zone") and "Mars/Base" in ended.stderr
