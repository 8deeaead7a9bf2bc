"""The lock that makes a retraining the only one of its root, whoever began it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from service.errors import TamisError
from service.filesystem.process_lock import ProcessLock
from service.root import MODELS, RETRAINING_LOCK


@contextmanager
def retraining_lock(root: Path) -> Iterator[None]:
    """Hold the lock of the retrainings of `root`. Raises TamisError naming who holds it."""
    lock = _lock(root)
    # Patiently: a daemon that looks whether one runs is no retraining.
    holder = lock.acquire_patiently()
    if holder is not None:
        raise TamisError(f"root {root}: expected no other retraining; found one running: {holder}")
    try:
        yield
    finally:
        lock.release()


def retraining_runs(root: Path) -> bool:
    return _lock(root).held()


def _lock(root: Path) -> ProcessLock:
    return ProcessLock(root / MODELS / RETRAINING_LOCK)
