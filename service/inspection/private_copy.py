"""Private copy: of a claimed file that somebody else can still change, the very bytes that were judged are kept.

Others can where the file is theirs, or where it has a second name that they kept. The copy is written from the bytes as
they were read, and takes the place of the claimed file before the verdict is on record. Until then a writer who is not
done is noticed by the file itself.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from service.filesystem.lease import has_writer
from service.filesystem.open_below import NotRegularFile
from service.filesystem.place import Place, place_of, write_all
from service.imaging.decode import FileBytes, StillChanging

PREFIX = ".own."
WRITABLE_BY_OTHERS = 0o022


def keep_private(root: Path, path: str, id: str, file: FileBytes) -> bool:
    """See to it that nobody but the service can change what was read of the claimed file at `path`, relative to `root`.

    Return whether a copy lies beside it that `take_place` has to put into its place. A file of the service's own with
    one name is only looked at, and loses the right to write of its group and of others. Raises StillChanging where the
    file is not the one that was read any more, and OSError.
    """
    # Nearly all are; the look costs some microseconds.
    if _is_own((root / path).lstat()):
        return False
    with place_of(root, path) as place:
        status = place.status()
        if status is None:
            raise FileNotFoundError(path)
        if (status.st_ino, status.st_size, status.st_mtime_ns) != (
            file.state.inode,
            file.state.size,
            file.state.mtime_ns,
        ):
            raise StillChanging(path)
        if status.st_uid == os.geteuid() and status.st_nlink == 1:
            _close_to_others(place)
            return False
        copy = place.beside(f"{PREFIX}{id}")
        copy.unlink(missing_ok=True)
        descriptor = copy.create(0o600)
        try:
            write_all(descriptor, file.data)
            with suppress(OSError):
                os.fchown(descriptor, -1, status.st_gid)
            os.fchmod(descriptor, status.st_mode & 0o644 | 0o600)
            os.utime(descriptor, ns=(status.st_atime_ns, status.st_mtime_ns))
            os.fdatasync(descriptor)
        except BaseException:
            with suppress(OSError):
                copy.unlink(missing_ok=True)
            raise
        finally:
            os.close(descriptor)
    return True


def _is_own(status: os.stat_result) -> bool:
    alone = status.st_uid == os.geteuid() and status.st_nlink == 1
    return alone and not status.st_mode & WRITABLE_BY_OTHERS


def take_place(root: Path, path: str, id: str) -> bool:
    """Put the private copy of claim `id` into the place of its file at `path`; return False where there is none."""
    try:
        with place_of(root, path) as place:
            place.beside(f"{PREFIX}{id}").rename(place)
    except FileNotFoundError:
        return False
    return True


def remove_left(root: Path, folder: str) -> int:
    """Remove the copies that an earlier run left below `folder`, relative to `root`; return how many."""
    count = 0
    for path in _left(root / folder):
        # A path that begins with a dot there is none that a row may have.
        beside = str(path.with_name("claim").relative_to(root))
        with suppress(OSError), place_of(root, beside) as place:
            place.beside(path.name).unlink()
            count += 1
    return count


def _left(top: Path) -> Iterator[Path]:
    for folder, _, names in os.walk(top):
        yield from (Path(folder, name) for name in names if name.startswith(PREFIX))


def _close_to_others(place: Place) -> None:
    """Take the right to write from the group and from others; where the file system has no such rights, nothing."""
    with suppress(NotRegularFile):
        descriptor = place.open()
        try:
            with suppress(OSError):
                os.fchmod(descriptor, os.fstat(descriptor).st_mode & 0o777 & ~WRITABLE_BY_OTHERS)
            # Nobody can open it for writing any more; who did so before can still write.
            if has_writer(descriptor):
                raise StillChanging(place.name)
        finally:
            os.close(descriptor)
