"""Row paths: tells, before any use, whether a path on record names a file in one of a root's folders of images.

A database may come from elsewhere: a backup, a server, somebody who could write it. What it says is never followed out
of the root, nor to the service's own files in it.
"""

from __future__ import annotations

import errno
from collections.abc import Collection

from service.names import shown_name
from service.root import ANOMALY, NORMAL, PROCESSING, QUARANTINE

IMAGE_FOLDERS = (NORMAL, ANOMALY, QUARANTINE, PROCESSING)
"""Where the path of an image's row may lie."""


class PathRefused(OSError):
    """A path on record that names no file in a folder of images; nothing is done with it."""

    def __init__(self, path: str, folders: Collection[str]) -> None:
        message = f"expected a path on record within {', '.join(sorted(folders))}; found {shown_name(path)!r}"
        super().__init__(errno.EINVAL, message)


def parts_of(path: str, folders: Collection[str] = IMAGE_FOLDERS) -> tuple[str, ...]:
    """Return the parts of `path`, that of a row: relative, normalised, in one of `folders`; raises PathRefused."""
    parts = tuple(path.split("/"))
    plain = all(part not in ("", ".", "..") for part in parts) and "\0" not in path
    # What begins with a dot right below an instance is its lock or its status.
    own = parts[0] == PROCESSING and len(parts) < 4 and parts[-1].startswith(".")
    if not plain or len(parts) < 2 or parts[0] not in folders or own:
        raise PathRefused(path, folders)
    return parts


def is_refused(path: str, folders: Collection[str] = IMAGE_FOLDERS) -> bool:
    """Return whether `parts_of` refuses `path`."""
    try:
        parts_of(path, folders)
    except PathRefused:
        return True
    return False
