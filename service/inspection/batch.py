"""Batch: group decoded images into micro-batches, in the order in which they came. Pure."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

Item = TypeVar("Item")


class Batcher(Generic[Item]):
    """Holds items until a batch is full or the oldest has waited long enough.

    A batch holds images of every product that came: a commit costs the same for one image as for many, and an image of
    a product that has few would wait for others of its kind that do not come.
    """

    def __init__(self, batch_size_max: int, batch_wait_s: float) -> None:
        self.batch_size_max = batch_size_max
        self._batch_wait_s = batch_wait_s
        self._waiting: deque[tuple[float, Item]] = deque()

    def add(self, item: Item, now: float) -> None:
        """Have `item` wait for others."""
        self._waiting.append((now, item))

    def take(self, now: float, *, nothing_to_come: bool = False, full_only: bool = False) -> list[Item] | None:
        """Return the batch that is due, or None.

        With `nothing_to_come` waiting is of no use and any batch is due; with `full_only` only a full one is.
        """
        if not self._waiting:
            return None
        full = len(self._waiting) >= self.batch_size_max
        waited = nothing_to_come or now - self._waiting[0][0] >= self._batch_wait_s
        if full or (waited and not full_only):
            return [self._waiting.popleft()[1] for _ in range(min(len(self._waiting), self.batch_size_max))]
        return None

    def next_due_at(self) -> float | None:
        """Return the monotonic time at which the oldest batch is due if nothing joins it."""
        return self._waiting[0][0] + self._batch_wait_s if self._waiting else None
