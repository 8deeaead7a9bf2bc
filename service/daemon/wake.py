"""Wake: what the loop sleeps on, set by other threads and by the signal that asks it to stop."""

from __future__ import annotations

import os
import sys
import threading
from contextlib import suppress

EXIT_FAILED = 1


class Wake:
    """A flag that one thread waits for and anyone may set, a signal handler in that same thread too.

    `threading.Event` is no such flag: it takes a lock in Python code, and a handler that interrupts the waiting thread
    while it holds that lock waits for itself for ever. Here each change is one call of a lock made in C, between whose
    beginning and end no handler runs.
    """

    def __init__(self) -> None:
        self._unset = threading.Lock()  # held while the flag is not set
        self._unset.acquire()

    def set(self) -> None:
        """Set the flag, or leave it set."""
        with suppress(RuntimeError):  # it was set
            self._unset.release()

    def wait(self, timeout_s: float) -> bool:
        """Wait for the flag for `timeout_s` s, not at all if negative; take it down, and return whether it was set."""
        return self._unset.acquire(timeout=min(max(timeout_s, 0.0), threading.TIMEOUT_MAX))


class StopRequest:
    """Whether a signal asked the daemon to stop, and the `wake` that tells its loop."""

    def __init__(self) -> None:
        # What a signal handler changes: no `threading.Event`, whose lock the interrupted code may hold.
        self.wake = Wake()
        self.made = False

    def on_signal(self, number: int, _frame: object) -> None:
        """Ask for an orderly stop at the first signal, end at once at the second."""
        if self.made:
            leave_at_once()
        self.made = True
        self.wake.set()


def leave_at_once() -> None:
    """End the process without waiting for its threads."""
    sys.stderr.flush()
    os._exit(EXIT_FAILED)
