"""Intake: which files in `incoming/` can be claimed now, and which model scores each.

A file whose product has no model stays where it is and is counted.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError
from service.filesystem.file_state import NameFilter, file_state
from service.filesystem.scan import scan
from service.inspection.claim import Claim
from service.inspection.settle import Settling
from service.inspection.watch import Hint, being_written
from service.logs import fields
from service.names import product_of
from service.root import INCOMING
from service.scoring.scorers import Scorer, ScorerCache
from service.scoring.shadow import Shadow, Shadows

log = logging.getLogger(__name__)

CHAMPIONS_AGE_MAX_S = 1.0


@dataclass(frozen=True)
class Ready:
    """A settled file: its path relative to `incoming/`, since when (monotonic s), and the scorer of its product."""

    path: str
    settled_at: float
    scorer: Scorer


class Intake:
    """The files that wait in `incoming/` of one root."""

    def __init__(
        self, root: Path, names: NameFilter, scorers: ScorerCache, settling: Settling, shadows: Shadows | None = None
    ) -> None:
        self._root = root
        self._names = names
        self._scorers = scorers
        self._settling = settling
        self._shadows = shadows
        self._champions_asked_at = float("-inf")
        self._said_waiting: set[str] = set()
        self.waiting: dict[str, int] = {}
        """Files by product that wait for a model, as of the last scan."""

    def __len__(self) -> int:
        return len(self._settling)

    @property
    def scan_needed(self) -> bool:
        """Whether files were left out for lack of room, and there is room again."""
        return self._settling.left_out and self._settling.half_empty

    def take_hints(self, hints: list[Hint], now: float) -> None:
        """Look at the files that events were about."""
        for hint in hints:
            if self._names.ignores_path(hint.path):
                continue
            state = file_state(self._root / INCOMING / hint.path)
            if state is not None:
                self._settling.observe(hint.path, state, now, closed=hint.closed)

    def look_ahead(self, now: float) -> None:
        """Take note of every file before the models are known, so that their settle time begins.

        The scans that follow ask for models, and report what cannot be read.
        """
        with suppress(OSError):
            for path, state in scan(self._root / INCOMING, self._names):
                self._settling.observe(path, state, now)

    def scan(self, now: float) -> None:
        """Look at every file. Raises OSError when the folder cannot be read."""
        self.refresh_champions(now)
        self._settling.left_out = False
        self.waiting = {}
        for path, state in scan(self._root / INCOMING, self._names):
            if self._can_score(path):
                self._settling.observe(path, state, now)

    def more_than(self, files: int, now: float) -> bool:
        """Return whether more than `files` files may have settled."""
        return len(self._settling.settled(now, files + 1)) > files

    def take_ready(self, now: float, limit: int) -> Iterator[Ready]:
        """Yield up to `limit` files that have settled and can be scored, oldest first, and forget them."""
        self.refresh_champions(now)
        for path in self._settling.settled(now, limit):
            settled_at = self._settled_since(path, now)
            # The scorer before the claim: a model that cannot be loaded must not leave a claim behind.
            scorer = self.scorer(_product_of_file(path)) if settled_at is not None else None
            if settled_at is not None and scorer is not None:
                yield Ready(path, settled_at, scorer)

    def next_settled_at(self) -> float | None:
        return self._settling.next_settled_at()

    def scorer(self, product: str) -> Scorer | None:
        """Return the scorer of `product`; None where its model cannot be used, which has been logged."""
        try:
            return self._scorers.get(product)
        except ConfigurationError:
            self.waiting[product] = self.waiting.get(product, 0) + 1
            return None

    def shadow(self, claim: Claim) -> Shadow | None:
        """Return the challenger that scores the image of `claim` beside its champion, or None."""
        return self._shadows.beside(claim.product, claim.id, claim.attempt) if self._shadows is not None else None

    def refresh_champions(self, now: float) -> None:
        """Ask again which versions are champions, unless that was done within `CHAMPIONS_AGE_MAX_S`."""
        if now - self._champions_asked_at < CHAMPIONS_AGE_MAX_S:
            return
        self._champions_asked_at = now
        changed = self._scorers.refresh()
        if self._shadows is not None:
            self._shadows.refresh(champions_changed=changed)
        if changed:
            self._said_waiting = {product for product in self._said_waiting if not self._scorers.has(product)}
            log.info("champions", extra=fields(products=",".join(self._scorers.products) or "none"))

    def _settled_since(self, path: str, now: float) -> float | None:
        full = self._root / INCOMING / path
        state = file_state(full)
        if state is None:
            self._settling.forget(path)
            return None
        settled_at = self._settling.confirm(path, state, now)
        if settled_at is None:
            return None
        if not self._can_score(path):
            self._settling.forget(path)
            return None
        if being_written(full):
            self._settling.postpone(path, now)
            return None
        self._settling.forget(path)
        return settled_at

    def _can_score(self, path: str) -> bool:
        product = _product_of_file(path)
        if self._scorers.has(product):
            return True
        self.waiting[product] = self.waiting.get(product, 0) + 1
        if product not in self._said_waiting:
            self._said_waiting.add(product)
            log.warning("no model; files wait", extra=fields(product=product, advice="tamis train --product"))
        return False


def _product_of_file(path: str) -> str:
    return product_of(path.rpartition("/")[0])
