"""Mounts: notices when a disk or share that was mounted at one of the root's folders is gone.

Owns which mounts were seen. A file in a bare mount point is hidden as soon as the mount is back, so nothing may be
delivered into one. Asks only the kernel's tables: asking a share that hangs would hang.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from service.filesystem.mount_table import MOUNTINFO, mount_id, read_mounts


def gone_message(gone: Sequence[str]) -> str:
    """Return what is wrong where mounts that were seen at `gone` are no longer there."""
    return f"expected a disk or share mounted at {', '.join(gone)}, as before; found none"


class Mounts:
    """The mounts at `root`, which is absolute, and at or below its `folders`; `seen` are those of an earlier run.

    Paths are relative to the root. Used by several threads: each look replaces what the last one found.
    """

    def __init__(
        self, root: Path, folders: Sequence[str], seen: Iterable[str] = (), mountinfo: Path = MOUNTINFO
    ) -> None:
        self._root = root
        self._folders = folders
        self._mountinfo = mountinfo
        self._ids: dict[str, set[int | None]] | None = None
        self.seen = frozenset(seen)

    def find_gone(self) -> list[str]:
        """Note what is mounted now, and return what no longer is; nothing where the table cannot be read."""
        with suppress(OSError):
            self._ids = there = self._mounted()
            gone = sorted(self.seen - there.keys())
            self.seen |= there.keys()
            return gone
        return []

    def any_gone(self) -> bool:
        """Return whether a mount is no longer there; costs nothing where none was ever seen."""
        return bool(self.seen) and bool(self.find_gone())

    def are_under(self, path: str, descriptor: int) -> bool:
        """Return whether the open `descriptor` of folder `path` is on the mount seen there, not on what that hides.

        True where none was seen. An open folder stays what it is, whatever is mounted or unmounted from then on.
        """
        if path not in self.seen:
            return True
        id = mount_id(descriptor)
        if self._is_known(path, id):
            return True
        self.find_gone()  # it may be newer than the last one
        return self._ids is None or self._is_known(path, id)  # None: there is no table to read

    def _is_known(self, path: str, id: int | None) -> bool:
        return self._ids is not None and (id is None or id in self._ids.get(path, ()))

    def _mounted(self) -> dict[str, set[int | None]]:
        there: dict[str, set[int | None]] = {}
        for mount in read_mounts(self._mountinfo.read_bytes()):
            if mount.mount_point.is_relative_to(self._root):
                relative = mount.mount_point.relative_to(self._root)
                if not relative.parts or relative.parts[0] in self._folders:
                    # Several can be mounted at one place, the later over the earlier.
                    there.setdefault(str(relative), set()).add(mount.id)
        return there
