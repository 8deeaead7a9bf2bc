"""The greenest window, and tables that are wrong."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.energy.grid_intensity import CarbonFileWrong, greenest_start, read_intensity, saved_g

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _in_utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def table(folder: Path, text: str) -> Path:
    path = folder / "grid.csv"
    path.write_text(text)
    return path


def by_hour(folder: Path, **changed: float) -> Path:
    values = dict.fromkeys(range(24), 300.0) | {int(name[1:]): value for name, value in changed.items()}
    return table(folder, "hour,g_per_kwh\n" + "".join(f"{hour},{value}\n" for hour, value in values.items()))


def test_the_greenest_hours_before_the_deadline_are_chosen(tmp_path: Path) -> None:
    intensity = read_intensity(by_hour(tmp_path, h3=50, h15=100))
    assert greenest_start(intensity, NOON, 24 * HOUR, HOUR) == NOON + 15 * HOUR
    assert greenest_start(intensity, NOON, 10 * HOUR, HOUR) == NOON + 3 * HOUR
    assert greenest_start(intensity, NOON, 2 * HOUR, HOUR) == NOON


def test_it_ends_by_the_deadline_or_begins_at_once(tmp_path: Path) -> None:
    intensity = read_intensity(by_hour(tmp_path, h15=100))
    start = greenest_start(intensity, NOON, 4 * HOUR, 2 * HOUR)
    assert start is not None and start + 2 * HOUR <= NOON + 4 * HOUR
    assert greenest_start(intensity, NOON, HOUR, 5 * HOUR) == NOON


def test_where_all_hours_are_alike_nothing_waits(tmp_path: Path) -> None:
    assert greenest_start(read_intensity(by_hour(tmp_path)), NOON, 24 * HOUR, HOUR) == NOON


def test_times_hold_until_the_next_and_say_nothing_of_last_week(tmp_path: Path) -> None:
    path = table(
        tmp_path,
        "hour,g_per_kwh\n2026-06-01T00:00:00+00:00,400\n2026-06-01T18:00:00+00:00,90\n2026-06-01T20:00+00:00,500\n",
    )
    intensity = read_intensity(path)
    assert intensity.at(NOON) == 400 and intensity.at(NOON + 7 * HOUR) == 90
    assert intensity.at(NOON - 24 * HOUR) is None and intensity.at(NOON + 48 * HOUR) is None
    assert greenest_start(intensity, NOON, 12 * HOUR, HOUR) == NOON + 6 * HOUR
    assert greenest_start(intensity, NOON + 100 * HOUR, 12 * HOUR, HOUR) is None


def test_saved_grams_are_the_difference_of_intensities_times_the_energy(tmp_path: Path) -> None:
    intensity = read_intensity(by_hour(tmp_path, h15=100))
    assert saved_g(intensity, NOON, NOON + 3 * HOUR, HOUR, 50.0) == pytest.approx(200 * 50 / 1000)
    assert saved_g(intensity, NOON + 3 * HOUR, NOON, HOUR, 50.0) == pytest.approx(-10)
    assert saved_g(intensity, NOON, NOON + 3 * HOUR, HOUR, None) is None


FULL = "".join(f"{hour},300\n" for hour in range(24))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"line 1: expected the columns hour, g_per_kwh; found an empty file"),
        ("time;value\n0;300\n", r"line 1: expected the columns .*; found time;value"),
        ("hour,g_per_kwh\n0,much\n", r"line 2, column g_per_kwh: expected a number of grams; found 'much'"),
        ("hour,g_per_kwh\n0,300\n1,-5\n", r"line 3, column g_per_kwh: .* at least 0; found '-5'"),
        ("hour,g_per_kwh\n0,nan\n", r"line 2, column g_per_kwh"),
        ("hour,g_per_kwh\n24,300\n", r"line 2, column hour: .*0 to 23.*; found '24'"),
        ("hour,g_per_kwh\nnoon,300\n", r"line 2, column hour: .*; found 'noon'"),
        ("hour,g_per_kwh\n5,300\n5,200\n", r"line 3, column hour: expected each hour once"),
        ("hour,g_per_kwh\n0\n", r"line 2, column g_per_kwh"),
        ("hour,g_per_kwh\n" + FULL.replace("7,300\n", "", 1), r"each hour from 0 to 23; found none for 7"),
        ("hour,g_per_kwh\n" + FULL + "2026-06-01T00:00,300\n", r"found both"),
    ],
)
def test_a_wrong_table_is_told_with_line_and_column(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(CarbonFileWrong, match=message):
        read_intensity(table(tmp_path, text))


def test_a_missing_table_is_named(tmp_path: Path) -> None:
    with pytest.raises(CarbonFileWrong, match=r"none\.csv: expected a CSV file"):
        read_intensity(tmp_path / "none.csv")
