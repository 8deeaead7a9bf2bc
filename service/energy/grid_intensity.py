"""Grid intensity: when a scheduled retraining emits the fewest grams, by a table that the user gives. Pure.

It is CSV with `hour` (0 to 23 of every day in local time, or times in ISO 8601, each until the next) and `g_per_kwh`.
"""

from __future__ import annotations

import csv
import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from service.errors import TamisError

COLUMNS = ("hour", "g_per_kwh")
_STEP = timedelta(minutes=10)
_LASTS_AT_MOST = timedelta(hours=24)


class CarbonFileWrong(TamisError):
    """The table cannot be used; the message names line and column."""


@dataclass(frozen=True)
class Intensity:
    """The grid's intensity in g per kWh: by the hour of any day, `(24,)`, or from each of the `times` on."""

    by_hour: tuple[float, ...] = ()
    times: tuple[datetime, ...] = ()
    values: tuple[float, ...] = ()

    def at(self, moment: datetime) -> float | None:
        """Return the intensity at `moment`; None where the table says nothing of it."""
        if self.by_hour:
            return self.by_hour[moment.astimezone().hour]
        place = bisect_right(self.times, moment) - 1
        # The last time holds for a day at most: a table that ended last week says nothing about today.
        if place < 0 or moment - self.times[place] > _LASTS_AT_MOST:
            return None
        return self.values[place]

    def mean(self, start: datetime, duration: timedelta) -> float | None:
        """Return the mean intensity from `start` on for `duration`; None where the table leaves some of it out."""
        count = max(1, math.ceil(duration / _STEP))
        found = [self.at(start + number * duration / count) for number in range(count)]
        known = [value for value in found if value is not None]
        return sum(known) / count if len(known) == count else None


def read_intensity(path: Path) -> Intensity:
    """Return the table at `path`. Raises CarbonFileWrong naming file, line and column."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            missing = [column for column in COLUMNS if column not in (rows.fieldnames or ())]
            if missing:
                raise CarbonFileWrong(
                    f"{path}, line 1: expected the columns {', '.join(COLUMNS)}; "
                    f"found {', '.join(rows.fieldnames or ()) or 'an empty file'}"
                )
            read = [(rows.line_num, row) for row in rows]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CarbonFileWrong(f"{path}: expected a CSV file; found {error}") from None
    return _table(path, read)


def greenest_start(intensity: Intensity, now: datetime, deadline: timedelta, duration: timedelta) -> datetime | None:
    """Return when to begin what takes `duration` so that it ends by `now + deadline` at the fewest grams.

    The earliest of equally good starts, in steps of 10 minutes; `now` itself where waiting saves nothing. None where
    the table says nothing of the time from now on.
    """
    latest = max(timedelta(0), deadline - duration)
    starts = [now + number * _STEP for number in range(math.floor(latest / _STEP) + 1)]
    known = [(value, start) for start in starts if (value := intensity.mean(start, duration)) is not None]
    return min(known)[1] if known else None


def saved_g(
    intensity: Intensity, asked: datetime, began: datetime, duration: timedelta, used_wh: float | None
) -> float | None:
    """Return the estimated grams saved by having begun at `began` and not at `asked`; below 0 where that cost more."""
    before, after = intensity.mean(asked, duration), intensity.mean(began, duration)
    if used_wh is None or before is None or after is None:
        return None
    return (before - after) * used_wh / 1000


def _table(path: Path, rows: Iterable[tuple[int, dict[str, str | None]]]) -> Intensity:
    hours: dict[int, float] = {}
    times: dict[datetime, float] = {}
    for line, row in rows:
        value = _intensity(path, line, row["g_per_kwh"])
        said = (row["hour"] or "").strip()
        if said.isdecimal():
            hour = int(said)
            if hour > 23:
                raise _wrong(path, line, "hour", "a number from 0 to 23 or a time in ISO 8601", said)
            if hour in hours:
                raise _wrong(path, line, "hour", "each hour once", said)
            hours[hour] = value
            continue
        try:
            moment = datetime.fromisoformat(said).astimezone()
        except ValueError:
            raise _wrong(path, line, "hour", "a number from 0 to 23 or a time in ISO 8601", said) from None
        if moment in times:
            raise _wrong(path, line, "hour", "each time once", said)
        times[moment] = value
    if hours and times:
        raise CarbonFileWrong(f"{path}: expected hours from 0 to 23, or times in ISO 8601; found both")
    if times:
        ordered = sorted(times)
        return Intensity(times=tuple(ordered), values=tuple(times[moment] for moment in ordered))
    if missing := sorted(set(range(24)) - set(hours)):
        raise CarbonFileWrong(f"{path}: expected a line for each hour from 0 to 23; found none for {missing[0]}")
    return Intensity(by_hour=tuple(hours[hour] for hour in range(24)))


def _intensity(path: Path, line: int, said: str | None) -> float:
    try:
        value = float(said or "")
    except ValueError:
        raise _wrong(path, line, "g_per_kwh", "a number of grams", said) from None
    if not (math.isfinite(value) and value >= 0):
        raise _wrong(path, line, "g_per_kwh", "a finite number of at least 0", said)
    return value


def _wrong(path: Path, line: int, column: str, expected: str, found: str | None) -> CarbonFileWrong:
    return CarbonFileWrong(f"{path}, line {line}, column {column}: expected {expected}; found {found or ''!r}")
