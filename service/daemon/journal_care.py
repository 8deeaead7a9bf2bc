"""Looks after the journal of the database beside the scoring, and says who is in its way, once an hour at most."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from service.logs import Repeated, fields

log = logging.getLogger(__name__)

INTERVAL_S = 60.0
SAY_AGAIN_AFTER_S = 3600.0


class JournalCare:
    """`tend` is the database's own `tend_journal`."""

    def __init__(self, tend: Callable[[], str | None]) -> None:
        self._tend = tend
        self._said = Repeated(SAY_AGAIN_AFTER_S)
        self._in_the_way = False

    def run(self) -> None:
        reason = self._tend()
        if self._said.is_worth_a_line(reason, time.monotonic()):
            log.warning("a program holds up the database's journal", extra=fields(reason=reason))
        if self._in_the_way and reason is None:
            log.info("nothing holds up the database's journal any more")
        self._in_the_way = reason is not None
