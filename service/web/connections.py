"""Connections to the page: each waits for its client for a bounded time, and those that wait make room for others.

A browser keeps connections open that it may never use again, and whoever means harm can open thousands. Only one that
has a whole request in hand is work; every other may be closed at any time, as HTTP/1.1 allows.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

from service.logs import RateLimit, fields

log = logging.getLogger(__name__)

# Far below the 1,024 files that a process may have open, of which the database and the images take some.
CONNECTIONS_MAX = 256
# How long the head of a request, then its body, may take; and how long a client may read nothing of an answer.
HEAD_S = 10.0
BODY_S = 30.0
STALLED_S = 30.0

INVALID_SAID_MAX = 10

_said = RateLimit(1, 60.0)


class SeldomInvalid(logging.Filter):
    """Lets few of uvicorn's lines about invalid requests through; anybody can send any number."""

    def __init__(self) -> None:
        super().__init__()
        self._limit = RateLimit(INVALID_SAID_MAX, 3600.0)

    def filter(self, record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("Invalid HTTP request") or self._limit.allows(time.monotonic())


class BoundedConnection(H11Protocol):
    """uvicorn's own connection, with deadlines and a limit for all together."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._deadline: asyncio.TimerHandle | None = None
        self._deadline_of: object = None
        self._stalled: asyncio.TimerHandle | None = None
        self._since = time.monotonic()
        self._make_room()
        self._expect_request()

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect_nothing()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._deadline is None and not self._in_hand():
            self._expect_request()
        super().data_received(data)
        self._expect_body()

    def on_response_complete(self) -> None:
        # From here uvicorn's own time for keeping a connection runs, unless the next request is there already.
        self._expect_nothing()
        self._since = time.monotonic()
        super().on_response_complete()
        self._expect_body()

    def pause_writing(self) -> None:
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(STALLED_S, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None

    def waits_for_client(self) -> bool:
        """Return whether nothing is done here until the client sends or reads something."""
        return not self._in_hand() or self.cycle.more_body or self._stalled is not None

    def _in_hand(self) -> bool:
        return self.cycle is not None and not self.cycle.response_complete

    def _expect_request(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self._give_up)

    def _expect_body(self) -> None:
        """Once the head of a request is whole, give its body its time, once."""
        if not self._in_hand() or self.cycle is self._deadline_of:
            return
        self._expect_nothing()
        if self.cycle.more_body:
            self._deadline_of = self.cycle
            self._deadline = self.loop.call_later(BODY_S, self._give_up)

    def _expect_nothing(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._deadline_of = None

    def _give_up(self) -> None:
        self._deadline = None
        # A request whose body still comes is in hand; one that is whole by now is not cut off.
        if not self.transport.is_closing() and self.waits_for_client():
            self.transport.close()

    def _make_room(self) -> None:
        there: list[Any] = [one for one in self.connections if not one.transport.is_closing()]
        if len(there) <= CONNECTIONS_MAX:
            return
        of_address = Counter(one._address() for one in there)
        # Of the address that has most, one without a request rather than with half a one, and the one that has waited
        # longest; this one, where all others are at work.
        waiting = [one for one in there if one is not self and one.waits_for_client()] or [self]
        out = max(waiting, key=lambda one: (of_address[one._address()], not one._in_hand(), -one._since))
        if _said.allows(time.monotonic()):
            log.warning(
                "too many connections to the page; closing those that wait",
                extra=fields(connections=len(there), address=out._address(), of_address=of_address[out._address()]),
            )
        out.transport.abort()

    def _address(self) -> str:
        return self.client[0] if self.client else ""
