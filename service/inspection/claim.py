"""Claim: a settled file leaves `incoming/` for `processing/<instance>/` and gets its id.

Owns that rename. A claim needs no row: the file's name in `processing/` is the log of claims.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from service.errors import ConfigurationError
from service.filesystem.durable import sync_open_folder
from service.filesystem.file_state import NameFilter
from service.filesystem.mount_table import mount_id
from service.filesystem.odd_entries import OddEntries
from service.filesystem.open_below import HeldFolders, open_folder_below
from service.filesystem.scan import walk
from service.names import ClaimedName, new_id, parse_claimed_name, product_of, safe_name, time_of
from service.root import INCOMING, PROCESSING

PATH_MAX = 4096
PROBE = ".probe"
# Asked no more often: of ten thousand files in a folder without rights each fails.
SOUND_FOR_S = 0.5
EVERY_NAME = NameFilter(())


@dataclass(frozen=True, slots=True)
class Claim:
    """A file in `processing/`. `path` is relative to the root; `file_name` as dropped, perhaps not UTF-8 (surrogates).

    `settled_at` is monotonic s, None where an earlier run claimed the file.
    """

    id: str
    attempt: int
    product: str
    path: str
    file_name: str
    received_at: datetime
    settled_at: float | None
    source: str | None = None
    """The folder below `incoming/` that it came from; None where an earlier run claimed the file."""


class RootTrouble(Exception):
    """What keeps every claim from being made: `incoming/` cannot be listed, or `processing/` not written."""


class Claims:
    """The claims of one instance under one root; `odd` takes those that cannot be worked on now.

    Used by one thread, but for `sync`.
    """

    def __init__(self, root: Path, instance: str, odd: OddEntries | None = None) -> None:
        self._root = root
        self._instance = instance
        self._odd = odd or OddEntries()
        self._held = HeldFolders(root)
        self._sound_until = float("-inf")
        self._adopted: set[str] = set()

    @property
    def folder(self) -> str:
        """The processing folder of this instance, relative to the root."""
        return f"{PROCESSING}/{self._instance}"

    def owns(self, path: str) -> bool:
        """Return whether `path`, relative to the root, lies in the folder of this instance or of one it adopted."""
        return any(path.startswith(f"{PROCESSING}/{name}/") for name in (self._instance, *self._adopted))

    def claim(self, path: str, now: float, source: int | None = None) -> Claim | None:
        """Rename `incoming/<path>` to its place in `processing/`; None when it is gone, which is normal.

        `source` is its folder, open, if the caller has it. Raises OSError where it cannot be done; `check_root` tells
        whether that concerns this file alone.
        """
        folder, _, file_name = path.rpartition("/")
        name = ClaimedName(new_id(), 1, safe_name(file_name))
        # Safe, so that the path on record is the path on the disk.
        parts = folder.split("/") if folder else []
        safe = [product_of(folder), *map(safe_name, parts[1:])] if parts else []
        target = "/".join([self.folder, *safe])
        if len(os.fsencode(self._root)) + len(target) + len(str(name).encode()) + 2 >= PATH_MAX:
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
        into = self._held.open(target, make=True)
        try:
            from_ = self._held.open(f"{INCOMING}/{folder}".rstrip("/")) if source is None else source
            os.rename(file_name, str(name), src_dir_fd=from_, dst_dir_fd=into)
        except (FileNotFoundError, NotADirectoryError):
            self._held.close()  # the folder in processing/ may have been removed since it was opened
            return None
        claimed = f"{target}/{name}"
        return Claim(name.id, 1, product_of(folder), claimed, file_name, datetime.now(UTC), now, folder)

    def let_go(self) -> None:
        """Close the folders that claims have opened: a batch of them is done."""
        self._held.close()

    def check_root(self, error: OSError) -> None:
        """Return where `error`, met in a claim, concerns that file or folder alone.

        Raises ConfigurationError where `incoming/` and `processing/` lie on two file systems, else RootTrouble where
        the one cannot be listed or the other not written.
        """
        if error.errno == errno.EXDEV and self._place(INCOMING) != self._place(PROCESSING):
            raise ConfigurationError(
                f"{self._root / INCOMING} and {self._root / PROCESSING}: expected one file system, "
                "so that a claim is one rename; found two. Mount the share at the root, or share the root's folder."
            )
        now = time.monotonic()
        if now < self._sound_until:
            return
        if (why := self.trouble()) is not None:
            raise RootTrouble(why)
        self._sound_until = now + SOUND_FOR_S

    def trouble(self) -> str | None:
        """Return what keeps every claim from being made, None where nothing does; tries it."""
        try:
            with os.scandir(self._root / INCOMING) as entries:
                next(entries, None)
        except OSError as error:
            return f"incoming/ cannot be read: {error.strerror}"
        try:
            folder = open_folder_below(self.folder, self._root)
            try:
                probe = os.open(PROBE, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600, dir_fd=folder)
                os.close(probe)
                os.unlink(PROBE, dir_fd=folder)
            finally:
                os.close(folder)
        except OSError as error:
            return f"{self.folder} cannot be written: {error.strerror}"
        return None

    def _place(self, folder: str) -> tuple[int, int | None]:
        """Return the device and the mount of `folder`: a rename crosses neither."""
        descriptor = open_folder_below(folder, self._root)
        try:
            return os.fstat(descriptor).st_dev, mount_id(descriptor)
        finally:
            os.close(descriptor)

    def sync(self, claims: Iterable[Claim]) -> frozenset[str]:
        """Make the renames of `claims` last through a power cut; return the ids of those of which that cannot be told.

        Raises OSError where that concerns the root.
        """
        known = list(claims)
        failed: set[str] = set()
        for folder in sorted({claim.path.rpartition("/")[0] for claim in known}):
            try:
                self._sync(folder)
            except OSError as error:
                if self.trouble() is not None:
                    raise
                self._odd.note(folder, "claim", error)
                failed.add(folder)
            else:
                self._odd.clear(folder, "claim")
        # The other half of each rename: on one file system the journal keeps both or none.
        for folder in sorted({f"{INCOMING}/{self._source(claim)}".rstrip("/") for claim in known}):
            try:
                self._sync(folder)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                self._odd.note(folder, "claim", error)
        return frozenset(claim.id for claim in known if claim.path.rpartition("/")[0] in failed)

    def _source(self, claim: Claim) -> str:
        if claim.source is not None:
            return claim.source
        return claim.path.rpartition("/")[0][len(self.folder) :].lstrip("/")

    def _sync(self, folder: str) -> None:
        descriptor = open_folder_below(folder, self._root)
        try:
            sync_open_folder(descriptor)
        finally:
            os.close(descriptor)

    def next_attempt(self, claim: Claim) -> Claim:
        """Rename the file of `claim` so that its name counts one attempt more, and return the claim as it then is."""
        folder, _, present = claim.path.rpartition("/")
        known = parse_claimed_name(present)
        if known is None:
            raise ValueError(f"expected the name of a claim; found {present!r}")
        name = replace(known, attempt=known.attempt + 1)
        descriptor = open_folder_below(folder, self._root)
        try:
            os.rename(present, str(name), src_dir_fd=descriptor, dst_dir_fd=descriptor)
            sync_open_folder(descriptor)
        finally:
            os.close(descriptor)
        return replace(claim, attempt=name.attempt, path=f"{folder}/{name}")

    def found(self) -> list[Claim]:
        """Return the claims whose files lie in this instance's processing folder, oldest first."""
        claims = []
        try:
            for folder in walk(self._root / self.folder, EVERY_NAME, self._note_unread):
                product = product_of(folder.path)
                for entry in [*(one.name for one in folder.files), *folder.links]:
                    name = parse_claimed_name(entry)
                    if name is not None:
                        path = f"{self.folder}/{folder.path_of(entry)}"
                        # The time of the claim is in its id; the name as dropped may have been made safe.
                        received_at = time_of(name.id) or datetime.now(UTC)
                        claims.append(Claim(name.id, name.attempt, product, path, name.name, received_at, None))
        except FileNotFoundError:
            return []
        self._odd.end(self.folder, "scan")
        return sorted(claims, key=lambda claim: claim.id)

    def _note_unread(self, path: str, error: OSError) -> None:
        self._odd.note(f"{self.folder}/{path}", "scan", error)

    def prune(self) -> None:
        """Remove empty folders below this instance's: a camera that writes into a folder a day leaves one a day."""
        self._held.close()
        with suppress(OSError):
            for _, folders, _, descriptor in os.fwalk(self._root / self.folder, topdown=False):
                for name in folders:
                    with suppress(OSError):
                        os.rmdir(name, dir_fd=descriptor)

    def adopt(self, instance: str) -> int:
        """Move the claims of `instance`, whose lock the caller holds, into this one's folder; return how many.

        What cannot be moved now waits for the next call.
        """
        self._adopted.add(instance)
        theirs = f"{PROCESSING}/{instance}"
        moved = 0
        held = HeldFolders(self._root)
        touched = set()
        for claim in Claims(self._root, instance, self._odd).found():
            folder, _, name = claim.path.rpartition("/")
            target = self.folder + folder[len(theirs) :]
            try:
                into, from_ = held.open(target, make=True), held.open(folder)
                os.rename(name, name, src_dir_fd=from_, dst_dir_fd=into)
            except OSError as error:
                self._odd.note(claim.path, "claim", error)
                continue
            self._odd.clear(claim.path, "claim")
            touched |= {target, folder}
            moved += 1
        held.close()
        for folder in sorted(touched):
            self._sync(folder)
        return moved

    def disown(self, instance: str) -> None:
        """Forget that `instance` was adopted: its claims are in this one's folder by now, and it may come back."""
        self._adopted.discard(instance)
