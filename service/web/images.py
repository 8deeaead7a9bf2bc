"""Images for the page: opened below the root only, converted for browsers, scaled down for the wall.

Whatever a row says, only a regular file in a folder of images is opened, and its pixels are read by a `Decoder`, which
bounds what that takes. Owns the cache of thumbnails and its bound.
"""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Literal

from service.filesystem.odd_entries import ENTRY_ERRORS
from service.filesystem.open_below import NotRegularFile, open_file, open_folder
from service.filesystem.row_path import PathRefused, parts_of
from service.imaging.decode import DecodeError, ValueRange
from service.imaging.decoder import Decoder
from service.imaging.decoder_processes import HARMFUL
from service.root import THUMBNAILS

FOLDERS = frozenset({"normal", "anomaly", "quarantine", "processing", "maps"})
"""The folders of a root in which images lie."""

AS_THEY_ARE = {"JPEG": "image/jpeg", "PNG": "image/png", "WEBP": "image/webp"}
"""The formats that browsers show, with their content types; others are converted."""

THUMB_SIDE = 400
THUMB_QUALITY = 82
SHOWN_QUALITY = 95
CACHE_BYTES_MAX = 256_000_000
# When full it is emptied to this share, so that not every new thumbnail lists the folder.
CACHE_KEPT_SHARE = 0.8
_READ_BYTES = 1 << 18
_HEADER_BYTES = 1 << 16

Kind = Literal["image", "map"]


class NotShown(Exception):
    """There is nothing to show: the file is gone, is not an image, or lies outside the folders of images; `harmful`: it
    takes too much of what reads it, and would again.
    """

    def __init__(self, message: str, *, harmful: bool = False) -> None:
        super().__init__(message)
        self.harmful = harmful


def open_below(root: Path, relative: str, folders: frozenset[str] = FOLDERS) -> int:
    """Return a descriptor of the regular file `relative` below `root`, opened without following any link.

    Raises NotShown where it is not in one of `folders`, not a regular file, or not there.
    """
    try:
        parts = parts_of(relative, folders)
    except PathRefused as error:
        raise NotShown(str(error.strerror)) from None
    try:
        folder = open_folder((root / relative).parent, root)
        try:
            return open_file(parts[-1], folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise _not_shown(relative, error) from None


def map_path(id: str) -> str:
    """Return where the anomaly map of image `id` lies, if it has one, relative to the root."""
    return f"maps/{id}.png"


def read_below(root: Path, relative: str, bytes_max: int, folders: frozenset[str] = FOLDERS) -> bytes:
    """Return the content of the file `relative` below `root`. Raises NotShown, also for one above `bytes_max`."""
    with os.fdopen(open_below(root, relative, folders), "rb") as file:
        _size(file, relative, bytes_max)
        try:
            return file.read(bytes_max)
        except OSError as error:
            raise _not_shown(relative, error) from None


def as_shown(
    root: Path,
    relative: str,
    decoder: Decoder,
    *,
    bytes_max: int,
    pixels_max: int,
    value_range: ValueRange | None = None,
) -> tuple[str, int, Iterator[bytes]]:
    """Return content type, length and content of the image `relative`, converted where browsers cannot show it.

    `value_range` of values of more than 8 bits a sample becomes 0 to 255.

    Raises NotShown if it is not an image, whatever its name says.
    """
    try:
        with ExitStack() as stack:
            file = stack.enter_context(os.fdopen(open_below(root, relative), "rb"))
            size = _size(file, relative, bytes_max)
            # The header tells the format. That of a JPEG may lie further back; then the whole file is read.
            found = _format(decoder, file.read(_HEADER_BYTES), pixels_max)
            file.seek(0)
            if found in AS_THEY_ARE:
                stack.pop_all()
                return AS_THEY_ARE[found], size, _chunks(file, size)
            content = file.read(bytes_max)
        found = _format(decoder, content, pixels_max)
        if found not in AS_THEY_ARE:
            content = decoder.jpeg(content, None, quality=SHOWN_QUALITY, pixels_max=pixels_max, value_range=value_range)
            found = "JPEG"
        return AS_THEY_ARE[found], len(content), iter([content])
    except DecodeError as error:
        raise NotShown(str(error), harmful=error.code in HARMFUL) from None
    except OSError as error:
        raise _not_shown(relative, error) from None


def _not_shown(relative: str, error: OSError) -> NotShown:
    """Return why a file is not shown; raises `error` where it is not about this one."""
    if isinstance(error, NotRegularFile) or error.errno in ENTRY_ERRORS:
        return NotShown(f"{relative!r}: {error.strerror or error}")
    raise error


def _size(file: io.BufferedReader, relative: str, bytes_max: int) -> int:
    size = os.fstat(file.fileno()).st_size
    if size > bytes_max:
        raise NotShown(f"{relative!r}: expected at most {bytes_max} bytes; found {size}")
    return size


def _format(decoder: Decoder, data: bytes, pixels_max: int) -> str:
    try:
        return decoder.format_of(data, pixels_max=pixels_max)
    except DecodeError as error:
        if error.code == "damaged" and len(data) == _HEADER_BYTES:
            return ""
        raise


def _chunks(file: io.BufferedReader, size: int) -> Iterator[bytes]:
    # Exactly as many bytes as were announced, even if the file changes meanwhile.
    with file:
        left = size
        while left > 0 and (part := file.read(min(left, _READ_BYTES))):
            left -= len(part)
            yield part


class Thumbnails:
    """Small images of `root`, made on first use and kept in a folder of bounded size. Safe for threads."""

    def __init__(self, root: Path, decoder: Decoder, *, bytes_max: int, pixels_max: int) -> None:
        self._root = root
        self._decoder = decoder
        self._bytes_max = bytes_max
        self._pixels_max = pixels_max
        self._lock = threading.Lock()
        self._cached_bytes: int | None = None

    def get(self, id: str, kind: Kind, relative: str, value_range: ValueRange | None = None) -> bytes:
        """Return the thumbnail of `kind` of image `id`, whose file is `relative`, as a JPEG. Raises NotShown.

        `value_range` of values of more than 8 bits a sample becomes 0 to 255.
        """
        place = self._root / THUMBNAILS / id[-2:] / f"{id}.{kind}.{THUMB_SIDE}.jpg"
        with suppress(OSError):
            return place.read_bytes()
        try:
            content = read_below(self._root, relative, self._bytes_max)
            made = self._decoder.jpeg(
                content, THUMB_SIDE, quality=THUMB_QUALITY, pixels_max=self._pixels_max, value_range=value_range
            )
        except DecodeError as error:
            raise NotShown(str(error), harmful=error.code in HARMFUL) from None
        # On a full or read-only disk it is not kept, and made again next time.
        with suppress(OSError):
            self._keep(place, made)
        return made

    def _keep(self, place: Path, content: bytes) -> None:
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_name(f".tmp.{place.name}.{threading.get_ident()}")
        partial.write_bytes(content)
        partial.replace(place)
        with self._lock:
            if self._cached_bytes is None:
                self._cached_bytes = sum(size for _, size, _ in self._kept())
            else:
                self._cached_bytes += len(content)
            if self._cached_bytes > CACHE_BYTES_MAX:
                self._cached_bytes = self._shrink()

    def _shrink(self) -> int:
        """Remove the oldest until enough is free; return the bytes that are left."""
        kept = sorted(self._kept())
        left = sum(size for _, size, _ in kept)
        for _, size, path in kept:
            if left <= CACHE_BYTES_MAX * CACHE_KEPT_SHARE:
                break
            with suppress(FileNotFoundError):
                path.unlink()
            left -= size
        return left

    def _kept(self) -> Iterator[tuple[float, int, Path]]:
        for folder in (self._root / THUMBNAILS).iterdir():
            for path in folder.iterdir() if folder.is_dir() else ():
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    yield status.st_mtime, status.st_size, path
