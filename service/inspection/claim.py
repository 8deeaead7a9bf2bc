"""Claim: a settled file leaves `incoming/` for `processing/<instance>/` and gets its id.

Owns that rename. A claim needs no row: the file's name in `processing/` is the log of claims.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from service.errors import ConfigurationError
from service.filesystem.durable import sync_folder
from service.filesystem.open_below import make_folders
from service.names import ClaimedName, new_id, parse_claimed_name, product_of, safe_name, time_of
from service.root import INCOMING, PROCESSING


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


class Claims:
    """The claims of one instance under one root."""

    def __init__(self, root: Path, instance: str) -> None:
        self._root = root
        self._instance = instance
        self._known_folders: set[Path] = set()
        self._adopted: set[str] = set()

    @property
    def folder(self) -> str:
        """The processing folder of this instance, relative to the root."""
        return f"{PROCESSING}/{self._instance}"

    def owns(self, path: str) -> bool:
        """Return whether `path`, relative to the root, lies in the folder of this instance or of one it adopted."""
        return any(path.startswith(f"{PROCESSING}/{name}/") for name in (self._instance, *self._adopted))

    def claim(self, path: str, now: float) -> Claim | None:
        """Rename `incoming/<path>` to its place in `processing/`; None when it is gone, which is normal."""
        folder, _, file_name = path.rpartition("/")
        name = ClaimedName(new_id(), 1, safe_name(file_name))
        relative = "/".join(part for part in (self.folder, folder, str(name)) if part)
        target = self._root / relative
        if target.parent not in self._known_folders:
            make_folders(target.parent, self._root)
            self._known_folders.add(target.parent)
        try:
            (self._root / INCOMING / path).rename(target)
        except FileNotFoundError:
            self._known_folders.discard(target.parent)
            return None
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            raise ConfigurationError(
                f"{self._root / INCOMING} and {self._root / PROCESSING}: expected one file system, "
                "so that a claim is one rename; found two. Mount the share at the root, or share the root's folder."
            ) from None
        return Claim(name.id, 1, product_of(folder), relative, file_name, datetime.now(UTC), now)

    def sync(self, claims: Iterable[Claim]) -> None:
        """Make the renames of `claims` last through a power cut."""
        for folder in sorted({str(Path(claim.path).parent) for claim in claims}):
            sync_folder(self._root / folder)
            came_from = self._root / INCOMING / folder[len(self.folder) :].lstrip("/")
            if came_from.is_dir():
                sync_folder(came_from)

    def next_attempt(self, claim: Claim) -> Claim:
        """Rename the file of `claim` so that its name counts one attempt more, and return the claim as it then is."""
        path = Path(claim.path)
        known = parse_claimed_name(path.name)
        if known is None:
            raise ValueError(f"expected the name of a claim; found {path.name!r}")
        name = replace(known, attempt=known.attempt + 1)
        (self._root / path).rename(self._root / path.with_name(str(name)))
        sync_folder(self._root / path.parent)
        return replace(claim, attempt=name.attempt, path=str(path.with_name(str(name))))

    def found(self) -> list[Claim]:
        """Return the claims whose files lie in this instance's processing folder, oldest first."""
        top = self._root / self.folder
        claims = []
        for walked, _, file_names in os.walk(top):
            folder = Path(walked)
            product = product_of(str(folder.relative_to(top)))
            for file_name in file_names:
                name = parse_claimed_name(file_name)
                if name is not None:
                    path = str((folder / file_name).relative_to(self._root))
                    # The time of the claim is in its id; the name as dropped may have been made safe.
                    received_at = time_of(name.id) or datetime.now(UTC)
                    claims.append(Claim(name.id, name.attempt, product, path, name.name, received_at, None))
        return sorted(claims, key=lambda claim: claim.id)

    def prune(self) -> None:
        """Remove empty folders below this instance's: a camera that writes into a folder a day leaves one a day."""
        top = self._root / self.folder
        for folder, _, _ in os.walk(top, topdown=False):
            if Path(folder) != top:
                with suppress(OSError):
                    Path(folder).rmdir()
        self._known_folders.clear()

    def adopt(self, instance: str) -> int:
        """Move the claims of `instance`, whose lock the caller holds, into this one's folder; return how many."""
        self._adopted.add(instance)
        claims = Claims(self._root, instance).found()
        for claim in claims:
            target = self._root / self.folder / Path(claim.path).relative_to(f"{PROCESSING}/{instance}")
            make_folders(target.parent, self._root)
            (self._root / claim.path).rename(target)
            sync_folder(target.parent)
            sync_folder((self._root / claim.path).parent)
        return len(claims)

    def disown(self, instance: str) -> None:
        """Forget that `instance` was adopted: its claims are in this one's folder by now, and it may come back."""
        self._adopted.discard(instance)
