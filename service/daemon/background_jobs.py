"""Upkeep: duties beside the loop that may take their time, in one thread that gives way to scoring.

Owns the thread and when each duty is due; what a duty does is its own. A duty that fails is said once and tried again
at its next turn: none of them is worth stopping the scoring for.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from service.logs import fields
from service.storage.database.open import trouble

log = logging.getLogger(__name__)

# No more: a thread that waits long for a core may hold the interpreter's lock meanwhile, and with it the scoring.
NICENESS = 5


@dataclass
class Job:
    """Something to do at `due_at`, monotonic s, and then every `every_s`; `run` ends soon once `stopping` is set."""

    name: str
    run: Callable[[], None]
    due_at: float
    every_s: float


class BackgroundJobs:
    """Runs `duties` one after the other. `start`, then `close`."""

    def __init__(
        self, duties: Sequence[Job], stopping: threading.Event, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._duties = list(duties)
        self._stopping = stopping
        self._clock = clock
        self._said: set[tuple[str, str]] = set()
        self._thread = threading.Thread(target=self._work, name="upkeep")

    def start(self) -> None:
        """Start the thread, unless there is nothing to do."""
        if self._duties:
            self._thread.start()

    def close(self) -> None:
        """Have the duty in hand end, and the thread with it."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join()

    def step(self) -> float:
        """Run what is due; return the monotonic time at which something is due again."""
        for duty in self._duties:
            if duty.due_at <= self._clock() and not self._stopping.is_set():
                self._run(duty)
                duty.due_at = self._clock() + duty.every_s
        return min((duty.due_at for duty in self._duties), default=float("inf"))

    def _work(self) -> None:
        with suppress(OSError):  # where it is not allowed, the pauses between slices must do
            # Linux keeps a priority for each thread, and the service may be nice as a whole already.
            niceness = os.getpriority(os.PRIO_PROCESS, 0) + NICENESS
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), niceness)
        while not self._stopping.is_set():
            wait = self.step() - self._clock()
            self._stopping.wait(min(max(wait, 0.0), threading.TIMEOUT_MAX))

    def _run(self, duty: Job) -> None:
        try:
            duty.run()
        except Exception as error:
            if (why := trouble(error)) is not None:
                log.warning(f"database {why}; waits for its next turn", extra=fields(duty=duty.name))
                return
            once = (duty.name, f"{type(error).__name__}: {error}")
            if once not in self._said:
                self._said.add(once)
                log.exception("duty failed; it is tried again", extra=fields(duty=duty.name))
