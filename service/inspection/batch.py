"""Batch: group decoded images into micro-batches, each for one detector.

Pure: items and monotonic times in, batches out.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


@dataclass
class _Waiting(Generic[Item]):
    since: float
    items: list[Item] = field(default_factory=list)


class Batcher(Generic[Key, Item]):
    """Holds items until their batch is full or its oldest has waited long enough."""

    def __init__(self, batch_size_max: int, batch_wait_s: float) -> None:
        self.batch_size_max = batch_size_max
        self._batch_wait_s = batch_wait_s
        self._waiting: dict[Key, _Waiting[Item]] = {}

    def add(self, key: Key, item: Item, now: float) -> None:
        """Have `item` wait for others with the same `key`."""
        self._waiting.setdefault(key, _Waiting(now)).items.append(item)

    def take(
        self, now: float, *, nothing_to_come: bool = False, full_only: bool = False
    ) -> tuple[Key, list[Item]] | None:
        """Return the batch that is due first, or None.

        With `nothing_to_come` waiting is of no use and any batch is due; with `full_only` only a full one is.
        """
        for key, waiting in sorted(self._waiting.items(), key=lambda entry: entry[1].since):
            full = len(waiting.items) >= self.batch_size_max
            waited = nothing_to_come or now - waiting.since >= self._batch_wait_s
            if full or (waited and not full_only):
                batch, rest = waiting.items[: self.batch_size_max], waiting.items[self.batch_size_max :]
                del self._waiting[key]
                if rest:
                    self._waiting[key] = _Waiting(waiting.since, rest)
                return key, batch
        return None

    def next_due_at(self) -> float | None:
        """Return the monotonic time at which the oldest batch is due if nothing joins it."""
        return min((waiting.since + self._batch_wait_s for waiting in self._waiting.values()), default=None)
