"""Lists of parameters that a statement can take."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import TypeVar

Value = TypeVar("Value")

# SQLite takes at most 32,766 parameters in a statement.
CHUNK = 10_000


def chunks(values: Collection[Value]) -> Iterator[list[Value]]:
    """Yield `values` in lists of at most `CHUNK`."""
    ordered = list(values)
    for start in range(0, len(ordered), CHUNK):
        yield ordered[start : start + CHUNK]
