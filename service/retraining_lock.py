"""The lock that makes a retraining the only one of its root, whoever began it."""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import TamisError
from service.score import MODELS

LOCK_NAME = ".retrain.lock"


@contextmanager
def retraining_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the retrainings of `root`; the kernel lets go of it when the process ends.

    Raises TamisError naming who holds it.
    """
    path = root / MODELS / LOCK_NAME
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o640)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.read(descriptor, 1000).decode("utf-8", "replace") or "a process that did not say its name"
            raise TamisError(f"root {root}: expected no other retraining; found one running: {holder}") from None
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def retraining_runs(root: Path) -> bool:
    """Return whether a retraining of `root` runs now."""
    try:
        descriptor = os.open(root / MODELS / LOCK_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        # Shared, so that two that ask are not in each other's way.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
