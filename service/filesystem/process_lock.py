"""A lock that one process holds, and that the kernel releases when the process ends, whatever ends it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path

TRIES = 5
TRY_INTERVAL_S = 0.1


class ProcessLock:
    """The lock at `path`; `about` is written into the file beside the process and host of its holder."""

    def __init__(self, path: Path, **about: str) -> None:
        self._path = path
        self._about = about
        self._descriptor: int | None = None

    def acquire(self) -> str | None:
        """Take the lock and return None, or return who holds it."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace")
            os.close(descriptor)
            return holder or "a process that did not say its name"
        self._descriptor = descriptor
        owner = {**self._about, "pid": os.getpid(), "host": socket.gethostname()}
        # A disk without room for the name must not keep retention from making some.
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps(owner).encode(), 0)
        return None

    def acquire_patiently(self) -> str | None:
        """As `acquire`, but outlast whoever only asks whether the lock is `held`."""
        for _ in range(TRIES):
            holder = self.acquire()
            if holder is None:
                return None
            time.sleep(TRY_INTERVAL_S)
        return holder

    def held(self) -> bool:
        """Return whether a running process holds the lock; changes nothing."""
        try:
            descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def release(self) -> None:
        """Release the lock, if it was acquired."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
