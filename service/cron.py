"""Cron expressions, as Debian's cron reads them, in the machine's local time: which moment is the next. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from cronsim import CronSim, CronSimError
from tzlocal import get_localzone

FIELDS = "minute hour day month weekday"


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

    Raises ValueError for one that is not valid or that never comes, such as 30 February.
    """
    expected = f"expected a cron expression, {FIELDS}, with a time to come; found {expression!r}"
    if len(expression.split()) != len(FIELDS.split()):  # the library also takes a sixth for seconds
        raise ValueError(f"{expected}, which does not have five fields")
    cron = Cron(expression, timezone or get_localzone())
    try:
        if cron.next_time(datetime.now(UTC)) is None:
            raise CronSimError("it never comes")
    except CronSimError as error:
        raise ValueError(f"{expected}: {error}") from None
    return cron
