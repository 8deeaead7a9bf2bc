"""Mounts: notices that a disk or a share that was mounted at one of the root's folders is no longer there.

Owns which mounts were seen. What lies in a bare mount point is hidden as soon as the mount is back, so nothing may be
delivered into one. Asks the kernel's mount table alone: to ask a share that hangs would hang.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from service.filesystem import MOUNTINFO, read_mounts


class Mounts:
    """The mounts at or below `folders` of `root`, which is absolute; `seen` are those of an earlier run.

    Paths are relative to the root.
    """

    def __init__(
        self, root: Path, folders: Sequence[str], seen: Iterable[str] = (), mountinfo: Path = MOUNTINFO
    ) -> None:
        self._root = root
        self._folders = folders
        self._mountinfo = mountinfo
        self.seen = frozenset(seen)

    def look(self) -> list[str]:
        """Take note of what is mounted now, and return what is no longer; nothing where there is no table to read."""
        with suppress(OSError):
            there = frozenset(self._there())
            gone = sorted(self.seen - there)
            self.seen |= there
            return gone
        return []

    def any_gone(self) -> bool:
        """Return whether a mount is no longer there; costs nothing where none was ever seen."""
        return bool(self.seen) and bool(self.look())

    def _there(self) -> Iterable[str]:
        for mount in read_mounts(self._mountinfo.read_bytes()):
            if mount.mount_point.is_relative_to(self._root):
                relative = mount.mount_point.relative_to(self._root)
                if relative.parts[:1] and relative.parts[0] in self._folders:
                    yield str(relative)
