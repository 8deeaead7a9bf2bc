"""Batch: group decoded images into micro-batches, each for one detector. Pure."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Key = TypeVar("Key", bound=Hashable)
Item = TypeVar("Item")


class Batcher(Generic[Key, Item]):
    """Holds items until their batch is full or its oldest has waited long enough."""

    def __init__(self, batch_size_max: int, batch_wait_s: float) -> None:
        self.batch_size_max = batch_size_max
        self._batch_wait_s = batch_wait_s
        self._waiting: dict[Key, tuple[float, list[Item]]] = {}

    def add(self, key: Key, item: Item, now: float) -> None:
        """Have `item` wait for others with the same `key`."""
        self._waiting.setdefault(key, (now, []))[1].append(item)

    def take(
        self, now: float, *, nothing_to_come: bool = False, full_only: bool = False
    ) -> tuple[Key, list[Item]] | None:
        """Return the batch that is due first, or None.

        With `nothing_to_come` waiting is of no use and any batch is due; with `full_only` only a full one is.
        """
        for key, (since, items) in sorted(self._waiting.items(), key=lambda entry: entry[1][0]):
            full = len(items) >= self.batch_size_max
            waited = nothing_to_come or now - since >= self._batch_wait_s
            if full or (waited and not full_only):
                batch, rest = items[: self.batch_size_max], items[self.batch_size_max :]
                del self._waiting[key]
                if rest:
                    self._waiting[key] = (since, rest)
                return key, batch
        return None

    def next_due_at(self) -> float | None:
        """Return the monotonic time at which the oldest batch is due if nothing joins it."""
        return min((since + self._batch_wait_s for since, _ in self._waiting.values()), default=None)
