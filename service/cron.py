"""Cron expressions, as Debian's cron reads them, in the machine's local time: which moment is the next.

The local time is that of the C library, which `date` and the system's log show. Pure, except for `local_zone`.
"""

from __future__ import annotations

import io
import os
import struct
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from service.errors import ConfigurationError

FIELDS = "minute hour day month weekday"
LOCALTIME = Path("/etc/localtime")
# What the C library takes for a summer time without a rule.
_NO_RULE = ",M3.2.0,M11.1.0"


@dataclass(frozen=True)
class Cron:
    """A cron expression; `parse_cron` makes one."""

    expression: str
    timezone: tzinfo

    def next_time(self, after: datetime) -> datetime | None:
        """Return the first time later than `after`, in UTC; None where there is none within 50 years."""
        times = (at.astimezone(UTC) for at in CronSim(self.expression, after.astimezone(self.timezone)))
        # When clocks go back an hour, the library may give a time of the first pass during the second.
        return next((at for at in times if at > after), None)


def parse_cron(expression: str, timezone: tzinfo | None = None) -> Cron:
    """Return the cron expression of five fields, in local time unless a timezone is given.

    Raises ValueError for one that is not valid or that never comes, such as 30 February, ConfigurationError as
    `local_zone` does.
    """
    expected = f"expected a cron expression, {FIELDS}, with a time to come; found {expression!r}"
    if len(expression.split()) != len(FIELDS.split()):  # the library also takes a sixth for seconds
        raise ValueError(f"{expected}, which does not have five fields")
    cron = Cron(expression, timezone or local_zone())
    try:
        if cron.next_time(datetime.now(UTC)) is None:
            raise CronSimError("it never comes")
    except CronSimError as error:
        raise ValueError(f"{expected}: {error}") from None
    return cron


def local_zone(said: str | None = None, localtime: Path = LOCALTIME) -> tzinfo:
    """Return the time zone of this machine: what `said`, else the variable TZ, names, else the file `localtime`.

    A name, a file, or a rule such as `CET-1CEST,M3.5.0,M10.5.0/3`, each perhaps after a colon; UTC for an empty text
    and where there is no file. Raises ConfigurationError for what is none of these, where the C library would take UTC.
    """
    said = os.environ.get("TZ") if said is None else said
    if said is None:
        return _zone_of_file(localtime) if localtime.exists() else UTC
    text = said.removeprefix(":")
    if not text:
        return UTC
    if text.startswith("/"):
        return _zone_of_file(Path(text), "variable TZ: ")
    # A name that is none may be a folder, or lead out of the tables.
    with suppress(ValueError, KeyError, OSError):
        return ZoneInfo(text)
    for rule in (text, text + _NO_RULE):
        with suppress(ValueError):
            return _zone_of_rule(rule)
    raise ConfigurationError(
        f"variable TZ: expected a time zone of this machine, such as Europe/Paris, or a rule, such as"
        f" CET-1CEST,M3.5.0,M10.5.0/3; found {said!r}. Correct it, or install the package tzdata"
    )


def _zone_of_file(path: Path, whose: str = "") -> tzinfo:
    try:
        with path.open("rb") as file:
            return ZoneInfo.from_file(file, key=str(path))
    # A file cut off or damaged is an error of whatever kind its reader runs into.
    except (OSError, ValueError, LookupError, struct.error) as error:
        found = error.strerror if isinstance(error, OSError) else error
        raise ConfigurationError(f"{whose}{path}: expected a file of a time zone; found: {found}") from None


def _zone_of_rule(rule: str) -> tzinfo:
    """Return the zone of a rule as the C library reads them: a file of a zone ends in one, and needs no more."""
    if not (rule.isascii() and rule.isprintable()):
        raise ValueError(f"not a rule: {rule!r}")
    sizes = struct.pack(">4s1s15x6l", b"TZif", b"2", 0, 0, 0, 0, 1, 4)
    block = sizes + struct.pack(">lBB4s", 0, 0, 0, b"UTC")
    return ZoneInfo.from_file(io.BytesIO(block + block + f"\n{rule}\n".encode()), key=rule)
