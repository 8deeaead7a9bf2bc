"""Looks through `incoming/`, in steps and at a bounded cost: what waits there, and what of it cannot be listed.

Only files that may be claimed soon are looked at one by one. The others are counted, and listed again when there is
room; a folder that takes long to list is listed seldom.
"""

from __future__ import annotations

import errno
import math
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePosixPath

from service.filesystem.file_state import FileState, NameFilter
from service.filesystem.mount_table import mounted_below
from service.filesystem.odd_entries import OddEntries, Step
from service.filesystem.open_below import HeldFolders
from service.filesystem.scan import OpenFolder, walk, walk_in_steps
from service.imaging.decode import SUFFIXES
from service.inspection.settle import Settling, folder_of
from service.names import product_of
from service.root import INCOMING

# What keeps all of a folder from being claimed, if the folder is to blame.
_OF_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS)
FILES_A_STEP = 256
COSTLY_S = 0.005
# A scan, or one folder of it, takes at most one part in so many of a core.
COST_RATIO = 20


@dataclass(frozen=True, slots=True)
class _Costly:
    """A product's folder that takes long to list: it is not listed before then (monotonic s).

    As of its last listing so many of its files have no model.
    """

    not_before: float
    without_model: int


@dataclass(slots=True)
class _Listed:
    """What a scan has found so far: of the product's folder at `top` so many files, and since it began at that cost."""

    waits: frozenset[str]
    top: str | None = None
    files: int = 0
    without_model: int = 0
    began_s: float = 0.0
    waiting: dict[str, int] = field(default_factory=dict)
    tops: set[str] = field(default_factory=set)
    passed_over: list[str] = field(default_factory=list)


class IncomingScan:
    """One scan after another of the folder `incoming`; what it finds is put into `settling`, and into `odd`.

    `has_model` tells of a folder below it whether what lies there can be scored. Used by one thread.
    """

    def __init__(
        self, incoming: Path, names: NameFilter, settling: Settling, odd: OddEntries, has_model: Callable[[str], bool]
    ) -> None:
        self._incoming = incoming
        self._names = names
        self._settling = settling
        self._odd = odd
        self._has_model = has_model
        self._held = HeldFolders(incoming)
        self._steps: Iterator[None] | None = None
        self._now = self._resumed_at = 0.0
        self._costly: dict[str, _Costly] = {}
        # Of which it was counted how many files are left out.
        self._counted: set[str] = set()
        self._files_in: dict[str, int] = {}
        self.failed: set[str] = set()
        """The files that failed since the last scan that looks at them again; no other does."""
        self.blocked: dict[str, OSError] = {}
        """The folders of which no file can be claimed, with why, as long."""
        self.found_open = False
        """Whether a folder could be listed that could not before, and may not be watched; whoever looks resets it."""
        self.cost_s = 0.0
        """The time of a core that the last scan took, or takes so far, s."""
        self.waiting: dict[str, int] = {}
        """Files by product that wait for a model, as of the last scan."""

    def look_ahead(self, now: float) -> None:
        """Take note of every file before the models are known, so that their settle time begins.

        The scans that follow ask for models, and report what cannot be read.
        """
        with suppress(OSError):
            for folder in walk(self._incoming, self._names, elsewhere=mounted_below(self._incoming)):
                for _ in self._observe_files(folder, now):
                    pass

    @property
    def scanning(self) -> bool:
        """Whether a scan was begun that is not at its end."""
        return self._steps is not None

    def begin(self, *, again: bool = True) -> None:
        """Begin to look at what waits, with `again` at what failed before too, else only for what was left out.

        Of other folders and files that cannot be listed or looked at, each waits.
        """
        self._steps = self._scan_in_steps(again)
        self.cost_s = 0.0

    def go_on(self, now: float, seconds: float = math.inf) -> bool:
        """Go on for so many seconds, and return whether the scan is at its end. Raises OSError if `incoming/` cannot be
        read, which ends it too.
        """
        self._now, until, self._resumed_at = now, time.monotonic() + seconds, time.thread_time()
        try:
            for _ in self._steps or ():
                if time.monotonic() >= until:
                    return False
        except BaseException:
            self._steps = None
            raise
        finally:
            self.cost_s, self._resumed_at = self._cost_s(), time.thread_time()
        self._steps = None
        return True

    def files_in(self, folder: str) -> int:
        """Return how many files lie right in `folder`, as of its last listing, and at least 1."""
        return max(1, self._files_in.get(folder, 1))

    def set_aside(self, path: str, step: Step, error: OSError) -> None:
        """Have the file at `path`, or all of its folder if that is to blame, wait until the next rescan for `error`.

        Raises `error` where it is not about one entry.
        """
        self._settling.forget(path)
        folder = path.rpartition("/")[0]
        if self._is_to_blame(folder, step, error):
            self.blocked[folder] = error
            self._settling.forget_folder(folder)
            self.note(folder, "claim", error, files=self.files_in(folder))
        else:
            self.failed.add(path)
            self.note(path, step, error)

    def note(self, path: str, step: Step, error: OSError, files: int = 1) -> None:
        """Have `path`, relative to `incoming/`, wait. Raises `error` where it is not about one entry."""
        self._odd.note(in_root(path), step, error, files=files)

    def _cost_s(self) -> float:
        """Return the time of a core that this scan has taken so far, s."""
        return self.cost_s + time.thread_time() - self._resumed_at

    def _scan_in_steps(self, again: bool) -> Iterator[None]:
        for top in self._settling.folders():
            if not self._has_model(top):
                self._settling.forget_product(top)
        if again:
            self.failed.clear()
            self.blocked.clear()
            self._odd.begin()
        listed, began = _Listed(self._odd.paths()), self._now

        def enter(path: str) -> bool:
            if "/" in path or not path or self._is_to_be_listed(path, again):
                return True
            listed.passed_over.append(path)
            return False

        elsewhere = mounted_below(self._incoming)
        for folder in walk_in_steps(self._incoming, self._names, self._note_unlisted, elsewhere, enter):
            if folder is not None:
                top = folder_of(f"{folder.path}/")
                if top != listed.top:
                    self._end_product(listed, top)
                self._note_listed(folder, listed.waits)
                self._say_links(folder)
                self._keep_what_waits(folder, listed.waits)
                yield from self._look_into(folder, listed)
            yield
        self._end_product(listed, None)
        if again:
            yield from self._look_again(began)
        for gone in self._settling.left_out.keys() - listed.tops - set(listed.passed_over):
            del self._settling.left_out[gone]
            self._counted.discard(gone)
        if again:
            self._end_round(listed)

    def _is_to_be_listed(self, folder: str, again: bool) -> bool:
        """Return whether the `folder` of a product is listed by this scan: not if enough of it is known, or if it takes
        so long that it would be listed all the time.
        """
        if folder in self._settling.left_out and not (again and folder not in self._counted):
            return not self._settling.has_enough(folder)
        costly = self._costly.get(folder)
        return again and (costly is None or self._now >= costly.not_before)

    def _look_into(self, folder: OpenFolder, listed: _Listed) -> Iterator[None]:
        self._files_in[folder.path] = len(folder.files)
        listed.files += len(folder.files)
        if folder.path in self.blocked:
            self.note(folder.path, "claim", self.blocked[folder.path], files=len(folder.files))
        elif folder.files and self._has_model(folder.path):
            yield from self._observe_files(folder, None)
        elif folder.files:
            listed.without_model += len(folder.files)

    def _observe_files(self, folder: OpenFolder, now: float | None) -> Iterator[None]:
        """Take note of the files that are not known, as far as there is room; `now` is that of the step if None."""
        top = folder_of(f"{folder.path}/")
        for number, entry in enumerate(folder.files, 1):
            if number % FILES_A_STEP == 0:
                yield
            path = folder.path_of(entry.name)
            if path in self.failed or path in self._settling:
                continue
            try:
                if not entry.is_file(follow_symlinks=False):
                    continue
                if not self._settling.room(top):
                    self._settling.left_out.setdefault(top, 1)
                    return
                state = FileState.of(entry.stat(follow_symlinks=False))
                self._settling.observe(path, state, self._now if now is None else now)
            except FileNotFoundError:
                continue
            except OSError as error:
                self.set_aside(path, "look", error)
                if folder.path in self.blocked:
                    return

    def _look_again(self, began: float) -> Iterator[None]:
        """Look at the files that are not settled and were known when the scan `began`.

        One that was empty may be whole by now, and nobody said so.
        Those that only wait for their turn are looked at when it comes.
        """
        for number, path in enumerate(self._settling.unsettled(self._now, began), 1):
            if number % FILES_A_STEP == 0:
                self._held.close()
                yield
            try:
                status = self._status(path)
                if stat.S_ISREG(status.st_mode):
                    self._settling.observe(path, FileState.of(status), self._now)
                else:
                    self._settling.forget(path)
            except (FileNotFoundError, NotADirectoryError):
                self._settling.forget(path)
            except OSError as error:
                self.set_aside(path, "look", error)
        self._held.close()

    def _end_product(self, listed: _Listed, top: str | None) -> None:
        """Take note of what was found of a product, whose folders are listed one after another; `top` is the next."""
        if listed.top is not None:
            folder, left_out = listed.top, self._settling.left_out
            if folder in left_out:
                failed = sum(folder_of(path) == folder for path in self.failed)
                left_out[folder] = max(listed.files - self._settling.held(folder) - failed, 1)
                self._counted.add(folder)
            cost_s = self._cost_s() - listed.began_s
            self._costly.pop(folder, None)
            if cost_s > COSTLY_S:
                self._costly[folder] = _Costly(self._now + COST_RATIO * cost_s, listed.without_model)
            if listed.without_model:
                product = product_of_folder(folder)
                listed.waiting[product] = listed.waiting.get(product, 0) + listed.without_model
            listed.tops.add(folder)
        listed.top, listed.files, listed.without_model, listed.began_s = top, 0, 0, self._cost_s()
        if top is not None:
            self._settling.left_out.pop(top, None)
            self._counted.discard(top)

    def _end_round(self, listed: _Listed) -> None:
        for folder in listed.passed_over:
            costly = self._costly.get(folder)
            if costly is not None and costly.without_model:
                product = product_of_folder(folder)
                listed.waiting[product] = listed.waiting.get(product, 0) + costly.without_model
            for path in listed.waits:
                if path == in_root(folder) or path.startswith(f"{in_root(folder)}/"):
                    self._odd.keep(path)
        there = listed.tops | set(listed.passed_over)
        self._costly = {folder: costly for folder, costly in self._costly.items() if folder in there}
        self._files_in = {path: n for path, n in self._files_in.items() if folder_of(f"{path}/") in there}
        self.waiting = listed.waiting
        self._odd.end(INCOMING)

    def _note_listed(self, folder: OpenFolder, waits: frozenset[str]) -> None:
        path = in_root(folder.path)
        if folder.path and path in waits and self._odd.waits(path, "scan"):
            self._odd.clear(path, "scan")
            self.found_open = True

    def _keep_what_waits(self, folder: OpenFolder, waits: frozenset[str]) -> None:
        """Have what waits in `folder` and is still there outlast this scan."""
        if not waits:
            return
        here = in_root(folder.path)
        if folder.files and here in waits:
            self._odd.keep(here)
        names = [path.rpartition("/")[2] for path in waits if path.rpartition("/")[0] == here]
        there = {entry.name for entry in folder.files} if names else set()
        for name in names:
            if name in there:
                self._odd.keep(f"{here}/{name}")

    def _is_to_blame(self, folder: str, step: Step, error: OSError) -> bool:
        """Return whether no file of `folder` can be claimed, since it lies elsewhere or we have no rights to it."""
        if error.errno == errno.EXDEV:
            return step == "claim"
        if error.errno not in _OF_FOLDER or step not in ("claim", "look"):
            return False
        wanted = os.W_OK | os.X_OK if step == "claim" else os.X_OK
        try:
            return not os.access(".", wanted, dir_fd=self._held.open(folder), effective_ids=True)
        except OSError:
            return False
        finally:
            self._held.close()

    def _say_links(self, folder: OpenFolder) -> None:
        """Have links that stand for the folder of a product wait: they are not followed, which nobody would notice."""
        if folder.path:
            return
        for name in folder.links:
            if PurePosixPath(name).suffix.lower() not in SUFFIXES:
                self.note(name, "scan", OSError(errno.ELOOP, "expected a folder; found a link"))

    def _note_unlisted(self, path: str, error: OSError) -> None:
        self.note(path, "scan", error)

    def _status(self, path: str) -> os.stat_result:
        folder, _, name = path.rpartition("/")
        return os.stat(name, dir_fd=self._held.open(folder), follow_symlinks=False)


def in_root(path: str) -> str:
    """Return `path`, relative to `incoming/`, as it is relative to the root."""
    return f"{INCOMING}/{path}" if path else INCOMING


@lru_cache(maxsize=4096)
def product_of_folder(folder: str) -> str:
    """Return the product of the files of `folder`, as `folder_of` gives it."""
    return product_of(folder)
