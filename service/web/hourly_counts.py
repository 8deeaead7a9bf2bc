"""Images per hour: an hour that is over is counted once, and its count kept.

A page that refreshes itself counts only the present hour; long spans are counted a day at a time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import Engine

from service.storage import statistics as tallies

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
# A row is written seconds after its image arrived, and later with a backlog or after a crash.
SETTLED_AFTER = 3 * HOUR
PRODUCTS_MAX = 50


@dataclass(frozen=True, slots=True)
class Hour:
    """The images received in the hour that begins at `at`, by verdict."""

    at: datetime
    normal: int
    anomaly: int


class Hours:
    """Counts images of `engine`'s database. Safe for threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._lock = threading.Lock()
        self._kept: OrderedDict[str | None, dict[datetime, tuple[int, int]]] = OrderedDict()

    def get(self, now: datetime, hours: int, product: str | None) -> list[Hour]:
        """Return the last `hours` hours, the current one last; `product` None means all products."""
        last = now.replace(minute=0, second=0, microsecond=0)
        wanted = [last - HOUR * back for back in range(hours - 1, -1, -1)]
        with self._lock:
            kept = self._kept.setdefault(product, {})
            self._kept.move_to_end(product)
            while len(self._kept) > PRODUCTS_MAX:
                self._kept.popitem(last=False)
            missing = [hour for hour in wanted if hour not in kept]
            counted = self._count(missing, product)
            kept |= {hour: counts for hour, counts in counted.items() if hour + HOUR + SETTLED_AFTER < now}
            for old in [hour for hour in kept if hour < now - 32 * DAY]:
                del kept[old]
            return [Hour(hour, *(counted.get(hour) or kept.get(hour) or (0, 0))) for hour in wanted]

    def _count(self, missing: list[datetime], product: str | None) -> dict[datetime, tuple[int, int]]:
        found = dict.fromkeys(missing, (0, 0))
        while missing:
            since = missing[0]
            until = min(since + DAY, missing[-1] + HOUR)
            with self._engine.connect() as connection:
                rows = tallies.per_hour(connection, since, until, product)
            for hour, counts in rows.items():
                found[datetime.fromisoformat(f"{hour}:00:00+00:00")] = (counts["normal"], counts["anomaly"])
            missing = [hour for hour in missing if hour >= until]
        return found
