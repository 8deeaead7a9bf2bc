"""Kept graphs: compiled graphs in a folder of the root, so that a model that comes back is in memory in half the time.

A file here can only save time. It names what it was made from, and a digest of its content; whatever is not exactly
that, or belongs to somebody else, is no graph, and the model is compiled anew.
"""

from __future__ import annotations

import hashlib
import logging
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from service.filesystem.open_below import open_file, open_folder
from service.logs import fields
from service.root import GRAPHS

if TYPE_CHECKING:
    from models.runtime.openvino_detector import GraphId

log = logging.getLogger(__name__)

# Of one version: a program and a processor each has its own, and daemons on two machines may share the root.
OF_ONE_GRAPH_MAX = 4

_MAGIC = b"tamis compiled graph 1\n"
_HEADER_BYTES = len(_MAGIC) + 2 * 65
_SUFFIX = ".graph"
_PARTIAL = ".part"
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


class KeptGraphs:
    """The compiled graphs of `root`, at most `bytes_max` bytes of them; the one not used for longest goes first.

    Nothing here raises an OSError: where the folder cannot be read or written, nothing is kept. Any thread may call.
    """

    def __init__(self, root: Path, bytes_max: int, free_bytes_min: int = 0) -> None:
        self._root = root
        self._bytes_max = bytes_max
        self._free_bytes_min = free_bytes_min
        self._gave_up = bytes_max <= 0

    def find(self, graph: GraphId) -> bytes | None:
        """Return what was kept of `graph`, None where nothing was or where it is not what was kept."""
        if self._bytes_max <= 0:
            return None
        try:
            folder = self._open(make=False)
        except OSError:
            return None
        try:
            return self._read(folder, graph)
        finally:
            os.close(folder)

    def keep(self, graph: GraphId, compiled: bytes) -> None:
        """Keep `compiled` for the next time, if there is room."""
        if self._gave_up or len(compiled) + _HEADER_BYTES > self._bytes_max:
            return
        try:
            folder = self._open(make=True)
            try:
                self._write(folder, graph, compiled)
                self._prune(folder, graph)
            finally:
                os.close(folder)
        except OSError as error:
            self._gave_up = True
            log.warning("compiled graphs are not kept", extra=fields(folder=GRAPHS, reason=error.strerror or error))

    def drop(self, graph: GraphId) -> None:
        """Remove what was kept of `graph`: it is of no use."""
        with suppress(OSError):
            (self._root / GRAPHS / _name(graph)).unlink()

    def _open(self, *, make: bool) -> int:
        folder = self._root / GRAPHS
        if make:
            # Nobody else has a use for it. The folder above may come from another program.
            (self._root / GRAPHS).parent.mkdir(mode=0o700, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
        descriptor = open_folder(folder, self._root)
        if not _is_own(os.fstat(descriptor)):
            os.close(descriptor)
            raise PermissionError(0, "expected a folder that only this user may write to")
        return descriptor

    def _read(self, folder: int, graph: GraphId) -> bytes | None:
        name = _name(graph)
        try:
            with os.fdopen(open_file(name, folder), "rb") as file:
                status = os.fstat(file.fileno())
                # One of somebody else may hold anything, in the right form too.
                if not _is_own(status) or status.st_size > self._bytes_max + _HEADER_BYTES:
                    return None
                content = file.read()
            os.utime(name, dir_fd=folder)  # the one not used for longest goes first
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("compiled graph cannot be read", extra=fields(file=f"{GRAPHS}/{name}", reason=error.strerror))
            return None
        compiled = content[_HEADER_BYTES:]
        if content[:_HEADER_BYTES] != _header(graph, compiled):
            log.warning("compiled graph is damaged; compiling anew", extra=fields(file=f"{GRAPHS}/{name}"))
            self.drop(graph)
            return None
        return compiled

    def _write(self, folder: int, graph: GraphId, compiled: bytes) -> None:
        free = os.fstatvfs(folder)
        if free.f_bavail * free.f_frsize < self._free_bytes_min + len(compiled):
            return
        partial = f"{_name(graph)}.{os.getpid()}{_PARTIAL}"
        with suppress(FileNotFoundError):
            os.unlink(partial, dir_fd=folder)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            # Not synced: what a power cut leaves of it is not what its digest says.
            with os.fdopen(os.open(partial, flags, 0o600, dir_fd=folder), "wb") as file:
                file.write(_header(graph, compiled))
                file.write(compiled)
            os.rename(partial, _name(graph), src_dir_fd=folder, dst_dir_fd=folder)
        except OSError:
            with suppress(OSError):
                os.unlink(partial, dir_fd=folder)
            raise

    def _prune(self, folder: int, graph: GraphId) -> None:
        """Remove what is too much, last used longest ago first, and what a run that was killed had not finished."""
        own, alike, total = _name(graph), 1, 0
        for name, status in sorted(_files(folder), key=lambda one: (one[0] == own, one[1].st_mtime_ns), reverse=True):
            total += status.st_size
            alike += name != own and name.startswith(graph.files)
            if name.endswith(_PARTIAL) or total > self._bytes_max or alike > OF_ONE_GRAPH_MAX:
                with suppress(FileNotFoundError):  # another daemon of the root was faster
                    os.unlink(name, dir_fd=folder)
                total -= status.st_size
                alike -= name != own and name.startswith(graph.files)


def _files(folder: int) -> Iterator[tuple[str, os.stat_result]]:
    for name in os.listdir(folder):
        with suppress(FileNotFoundError):
            status = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if name.endswith((_SUFFIX, _PARTIAL)) and stat.S_ISREG(status.st_mode):
                yield name, status


def _is_own(status: os.stat_result) -> bool:
    return status.st_uid == os.geteuid() and not status.st_mode & _OTHERS_MAY_WRITE


def _name(graph: GraphId) -> str:
    return f"{graph.files}-{graph.compiler}{_SUFFIX}"


def _header(graph: GraphId, compiled: bytes) -> bytes:
    """Return what a file begins with: for what it was made, and the digest of what follows."""
    what = hashlib.sha256(f"{graph.files} {graph.compiler}".encode()).hexdigest()
    return _MAGIC + f"{what}\n{hashlib.sha256(compiled).hexdigest()}\n".encode()
