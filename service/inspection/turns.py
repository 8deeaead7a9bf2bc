"""Turns: which folder's files are claimed next, so that none waits for another's thousands. Pure.

Fair queueing by start times: each folder has a count of images, its *tag*, that grows with what was claimed of it; the
lowest goes first. One that comes anew begins where the lowest of the others is, however long it has had nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable

TURN_S = 2.0
FEW = 16


class Turns:
    """Whose turn it is; the caller says who is there.

    A turn is of so many images, and of so many s at the most, so that a model that was loaded for it is worth it.
    `waiting` returns how many files of a folder wait: of equals the one with the fewest goes first, so that it has not
    waited for the rest.
    """

    def __init__(self, waiting: Callable[[str], int]) -> None:
        self._waiting = waiting
        self._tags: dict[str, int] = {}
        self._lowest = 0
        self._at_turn: str | None = None
        self._ends_at = 0.0
        self._left = 0
        # Who has few files, in the middle of another's turn.
        self._guest: str | None = None
        self._guest_left = 0

    def next(self, folders: Collection[str], now: float, images: int) -> str | None:
        """Return the one of `folders`, all that could be claimed from now, whose turn it is, `images` if it is a new
        one; it may be the same again and again.

        A turn goes on until it is used up. One that has more than `FEW` files is interrupted for those that have no
        more, as long as they are not that much ahead.
        """
        if self._guest in folders and self._guest_left > 0:
            return self._guest
        self._guest = None
        at_turn = self._at_turn
        if at_turn is None or at_turn not in folders or self._left <= 0 or now >= self._ends_at:
            if not folders:
                self._at_turn = None
                return None
            at_turn = self._at_turn = self.first(folders)
            self._left, self._ends_at = images, now + TURN_S
        if self._waiting(at_turn) > FEW:
            few = [folder for folder in folders if folder != at_turn and self._waiting(folder) <= FEW]
            if few and self._tag(guest := self.first(few)) < self._tag(at_turn) + FEW:
                self._guest, self._guest_left = guest, FEW
                return guest
        return at_turn

    def left(self, folder: str) -> int:
        """Return how many images `folder`, whose turn it is, may have before another is asked for."""
        return self._guest_left if folder == self._guest else self._left

    def took(self, folder: str, images: int = 1) -> None:
        """Count `images` claimed of `folder`."""
        self._tags[folder] = self._tag(folder) + images
        if folder == self._guest:
            self._guest_left -= images
        elif folder == self._at_turn:
            self._left -= images

    def update(self, folders: Collection[str]) -> None:
        """Take note of which `folders` have files that could be claimed now, or once their model is there."""
        if folders:
            self._lowest = max(self._lowest, min(map(self._tag, folders)))
        # Who is not above the lowest begins there in any case.
        self._tags = {folder: tag for folder, tag in self._tags.items() if tag > self._lowest}

    def first(self, folders: Iterable[str]) -> str:
        """Return the one of `folders` that is to be served before the others."""
        return min(folders, key=lambda folder: (self._tag(folder), self._waiting(folder)))

    def not_after(self, folder: str, others: Iterable[str]) -> list[str]:
        """Return those of `others` whose turn is now, or not after that of `folder`."""
        tag = self._tag(folder)
        return [other for other in others if self._tag(other) <= tag or (other == self._at_turn and self._left > 0)]

    def _tag(self, folder: str) -> int:
        return max(self._tags.get(folder, 0), self._lowest)
