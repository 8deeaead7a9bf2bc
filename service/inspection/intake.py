"""Intake: which files in `incoming/` can be claimed now, and which model scores each.

A file whose product has no model stays where it is and is counted. So does one that cannot be listed, looked at, read
or claimed: it waits in `incoming/`, where a person sees it, named with what to do, and is tried with each rescan.
"""

from __future__ import annotations

import logging
import math
import os
import stat
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from service.errors import ConfigurationError
from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.lease import has_writer
from service.filesystem.odd_entries import OddEntries, Step
from service.filesystem.open_below import HeldFolders, NotRegularFile, open_file
from service.imaging.looks_whole import HEAD_BYTES, TAIL_BYTES, looks_whole
from service.inspection.claim import Claim
from service.inspection.incoming_scan import IncomingScan, in_root, product_of_folder
from service.inspection.settle import Settling, folder_of
from service.inspection.turns import Turns
from service.inspection.watch import Hint
from service.logs import fields
from service.names import meant, printable
from service.root import INCOMING
from service.scoring.scorers import Scorer, ScorerCache
from service.scoring.shadow import Shadow, Shadows

log = logging.getLogger(__name__)

CHAMPIONS_AGE_MAX_S = 1.0
SHORT_TURN = 16
LONG_TURN = 64
LOOK_S = 0.0001
FILES_A_STEP = 256
COSTLY_S = 0.005
# A scan, or one folder of it, takes at most one part in so many of a core.
COST_RATIO = 20
TRUNCATED_WAIT_S = 10.0
ENDED_SO_MAX = 3
# Of which it is remembered that they failed, so that no scan before the next rescan tries them again.
FAILED_MAX = 65_536


@dataclass(frozen=True)
class Ready:
    """A settled file: its path relative to `incoming/`, since when (monotonic s), and the scorer of its product.

    `folder` is a descriptor of the folder that it was seen in, open until the next one is asked for. `seems_cut` says
    that it has waited in vain for an end of its own.
    """

    path: str
    settled_at: float
    scorer: Scorer
    folder: int
    seems_cut: bool = False


class Intake:
    """The files that wait in `incoming/` of one root; `odd` takes those that cannot be worked on now.

    What seems cut off waits until it has not changed for `truncated_wait_s`.
    """

    def __init__(
        self,
        root: Path,
        names: NameFilter,
        scorers: ScorerCache,
        settling: Settling,
        shadows: Shadows | None = None,
        odd: OddEntries | None = None,
        truncated_wait_s: float = TRUNCATED_WAIT_S,
    ) -> None:
        self._incoming = root / INCOMING
        self._names = names
        self._scorers = scorers
        self._settling = settling
        self._shadows = shadows
        self._turns = Turns(settling.waiting)
        self._turn_images = SHORT_TURN
        # Folders with settled files, whose models are in memory or not, as of the last look.
        self._ready: set[str] = set()
        self._lacking: list[str] = []
        self._ready_until = float("-inf")
        self._odd = odd or OddEntries()
        self._truncated_wait_s = truncated_wait_s
        self._held = HeldFolders(self._incoming)
        self._champions_asked_at = float("-inf")
        self._said_waiting: set[str] = set()
        self._compared: set[str] = set()
        self._scan = IncomingScan(self._incoming, names, settling, self._odd, self._has_model)
        self._seem_cut: set[str] = set()
        # By product: images that seemed cut off and were whole.
        self._ended_so: Counter[str] = Counter()

    @property
    def waiting(self) -> dict[str, int]:
        """Files by product that wait for a model, as of the last scan."""
        return self._scan.waiting

    def __len__(self) -> int:
        return len(self._settling) + sum(self._settling.left_out.values())

    @property
    def scan_needed(self) -> bool:
        """Whether files were left out for lack of room, and there is room again."""
        return bool(self._settling.left_out) and self._settling.scan_needed and len(self._scan.failed) < FAILED_MAX

    @property
    def more_left_out(self) -> bool:
        """Whether some of the files that wait are not counted one by one: there are at least as many as it says."""
        return bool(self._settling.left_out)

    def take_hints(self, hints: list[Hint], now: float) -> None:
        """Look at the files that events were about; what cannot be looked at now is left to the next scan."""
        try:
            for hint in hints:
                if self._names.ignores_path(hint.path):
                    continue
                with suppress(OSError, ValueError):
                    status = self._status(hint.path)
                    if stat.S_ISREG(status.st_mode):
                        self._scan.failed.discard(hint.path)
                        self._settling.observe(hint.path, FileState.of(status), now, closed=hint.closed)
        finally:
            self._held.close()

    def look_ahead(self, now: float) -> None:
        """Take note of what waits before the models are known, so that its settle time begins.

        The scans that follow ask for models, and report what cannot be read.
        """
        self._scan.look_ahead(now)

    def scan(self, now: float, *, again: bool = True) -> None:
        """Begin a scan and bring it to its end; see `begin_scan`."""
        self.begin_scan(again=again)
        while not self.go_on_scanning(now):
            pass

    @property
    def scanning(self) -> bool:
        """Whether a scan was begun that is not at its end."""
        return self._scan.scanning

    @property
    def scan_cost_s(self) -> float:
        """The time of a core that the last scan took, s."""
        return self._scan.cost_s

    def take_found_open(self) -> bool:
        """Return whether a folder could be listed since the last call that could not before, and may not be watched."""
        found, self._scan.found_open = self._scan.found_open, False
        return found

    def begin_scan(self, *, again: bool = True) -> None:
        """Begin to look at what waits, with `again` at what failed before too, else only for what was left out.

        Of other folders and files that cannot be listed or looked at, each waits.
        """
        if again:
            self._seem_cut.clear()
        self._scan.begin(again=again)

    def go_on_scanning(self, now: float, seconds: float = math.inf) -> bool:
        """Go on for so many seconds, and return whether the scan is at its end.

        Raises OSError if `incoming/` cannot be read, which ends it too.
        """
        self.refresh_champions(now)
        return self._scan.go_on(now, seconds)

    def more_than(self, files: int, now: float) -> bool:
        """Return whether more than `files` files may have settled."""
        return len(self._settling.settled(now, files + 1)) > files

    def take_ready(self, now: float, limit: int) -> Iterator[Ready]:
        """Yield up to `limit` files that have settled and whose model is in memory, and forget them.

        Products take turns, the oldest file of each first. A model that is not in memory is loaded meanwhile, beside
        the loop; what waits for it is left for a later call.
        """
        self.refresh_champions(now)
        if now >= self._ready_until or not self._ready:
            self._look_who_is_ready(now)
        try:
            while limit > 0 and (folder := self._turns.next(self._ready, now, self._turn_images)) is not None:
                took = 0
                # The scorer before the claim: a model that cannot be loaded must not leave a claim behind.
                scorer = self._in_memory(folder, use=True)
                if scorer is not None:
                    for path in self._settling.settled(now, min(limit, self._turns.left(folder)), folder):
                        settled_at = self._take(path, now)
                        if settled_at is not None:
                            self._turns.took(folder)
                            took += 1
                            lies_in = self._held.open(path.rpartition("/")[0])
                            yield Ready(path, settled_at, scorer, lies_in, path in self._seem_cut)
                            self._seem_cut.discard(path)
                limit -= took
                if not took:
                    self._ready.discard(folder)
        finally:
            self._held.close()

    def set_aside(self, path: str, step: Step, error: OSError) -> None:
        """Have the file at `path`, or all of its folder if that is to blame, wait until the next rescan for `error`.

        Raises `error` where it is not about one entry.
        """
        self._scan.set_aside(path, step, error)

    def ended_so(self, product: str) -> None:
        """Take note that an image of `product` seemed cut off and was whole: a camera may end all of its files so."""
        self._ended_so[product] += 1
        if self._ended_so[product] == ENDED_SO_MAX:
            log.info("images end unlike their format; they wait for no more", extra=fields(product=product))

    def claimed(self, path: str) -> None:
        """Take note that the file at `path` has left: it waits for nothing here any more."""
        for step in ("look", "read", "claim"):
            self._odd.clear(in_root(path), step)
        self._odd.clear(in_root(path.rpartition("/")[0]), "claim")

    def next_settled_at(self) -> float | None:
        """Return a monotonic time before which no file settles; those whose model is not in memory wait for that."""
        return self._settling.next_settled_at(but=self._lacking)

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
            self._compared.clear()
            self._said_waiting = {product for product in self._said_waiting if not self._scorers.has(product)}
            log.info("champions", extra=fields(products=",".join(self._scorers.products) or "none"))

    def _look_who_is_ready(self, now: float) -> None:
        """Find the folders with settled files whose models are in memory, and have another model loaded if need be."""
        self._ready, self._lacking = set(), []
        for folder in self._settling.folders_settled(now):
            if self._in_memory(folder) is not None:
                self._ready.add(folder)
            elif self._settling.held(folder):
                self._lacking.append(folder)
        self._turns.update([*self._ready, *self._lacking])
        if self._lacking:
            first = self._turns.first(self._lacking)
            keep = [product_of_folder(folder) for folder in self._turns.not_after(first, self._ready)]
            self._scorers.begin_to_load(product_of_folder(first), keep)
        # A turn that is too short would not be worth the loading of a model, where they do not all fit into memory.
        self._turn_images = LONG_TURN if self._lacking else SHORT_TURN
        # So that a thousand products do not keep the loop busy with asking.
        self._ready_until = now + LOOK_S * (len(self._ready) + len(self._lacking))

    def _in_memory(self, folder: str, *, use: bool = False) -> Scorer | None:
        """Return the scorer of the files of `folder` if it is in memory.

        Files for which there is none to be had are let go until the next scan.
        """
        product = product_of_folder(folder)
        if self._scorers.has(product):
            try:
                return self._scorers.in_memory(product, use=use)
            except ConfigurationError:  # which has been logged
                pass
        if not self._has_model(folder):
            self.waiting[product] = self.waiting.get(product, 0) + self._settling.forget_product(folder)
        return None

    def _take(self, path: str, now: float) -> float | None:
        """Return since when the file at `path` is settled, and forget it; None where it cannot be claimed now."""
        if path.rpartition("/")[0] in self._scan.blocked:
            self._settling.forget(path)
            return None
        try:
            return self._settled_since(path, now)
        except (FileNotFoundError, NotADirectoryError, NotRegularFile):
            self._settling.forget(path)
        except OSError as error:
            self.set_aside(path, "read", error)
        return None

    def _status(self, path: str) -> os.stat_result:
        folder, _, name = path.rpartition("/")
        return os.stat(name, dir_fd=self._held.open(folder), follow_symlinks=False)

    def _settled_since(self, path: str, now: float) -> float | None:
        """Return since when the file at `path` is settled; None where it is not, or has no model.

        Raises OSError where it cannot be looked at or opened.
        """
        status = self._status(path)
        if not stat.S_ISREG(status.st_mode):
            self._settling.forget(path)
            return None
        settled_at = self._settling.confirm(path, FileState.of(status), now)
        if settled_at is None:
            return None
        folder, _, name = path.rpartition("/")
        try:
            descriptor = open_file(name, self._held.open(folder))
        except BlockingIOError:  # another program holds a lease on it, as Samba does for a client that writes
            self._settling.postpone(path, now)
            return None
        try:
            if has_writer(descriptor):
                self._settling.postpone(path, now)
                return None
            until = self._waits_until(path, descriptor, status.st_size)
        finally:
            os.close(descriptor)
        if until > now:
            self._settling.hold(path, until)
            return None
        self._settling.forget(path)
        return settled_at

    def _waits_until(self, path: str, descriptor: int, size: int) -> float:
        """Return when (monotonic s) a file that seems cut off is taken all the same; long ago for one that does not."""
        head = os.pread(descriptor, HEAD_BYTES, 0)
        tail = os.pread(descriptor, TAIL_BYTES, max(0, size - TAIL_BYTES)) if size > HEAD_BYTES else head
        self._seem_cut.discard(path)
        if (
            not size
            or looks_whole(head, tail, size)
            or self._ended_so[product_of_folder(folder_of(path))] >= ENDED_SO_MAX
        ):
            return float("-inf")
        self._seem_cut.add(path)
        return (self._settling.unchanged_since(path) or 0.0) + self._truncated_wait_s

    def _has_model(self, folder: str) -> bool:
        """Return whether there is a model for what lies in `folder`; that there is none is said once for a product."""
        product = product_of_folder(folder_of(f"{folder}/"))
        if self._scorers.has(product):
            if product not in self._compared:
                self._compare(product)
            return True
        if product not in self._said_waiting:
            self._said_waiting.add(product)
            guess = meant(product, self._scorers.products)
            hint = f"did you mean {printable(guess)}?" if guess is not None else "tamis train --product"
            log.warning("no model; files wait", extra=fields(product=product, advice=hint))
        return False

    def _compare(self, product: str) -> None:
        """Say once that `product`, scored by another's model, is called almost as one that has its own."""
        self._compared.add(product)
        products = self._scorers.products
        guess = meant(product, products) if product not in products else None
        if guess is not None:
            hint = f"did you mean {printable(guess)}?"
            log.warning("no model of its own; another's scores it", extra=fields(product=product, advice=hint))
