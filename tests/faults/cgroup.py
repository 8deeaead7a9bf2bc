"""A memory limit for processes of a test: a control group of its own, taken away again whatever happens."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon_process import wait_until

FIRST, SECOND = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")


class MemoryGroup:
    """A group of processes that share a limit; `add` a process, and its children are in it, too."""

    def __init__(self, folder: Path, first: bool) -> None:
        self._folder, self._first = folder, first

    def add(self, pid: int) -> None:
        (self._folder / "cgroup.procs").write_text(str(pid))

    @property
    def used(self) -> int:
        """Bytes in use."""
        return int((self._folder / ("memory.usage_in_bytes" if self._first else "memory.current")).read_text())

    def limit(self, bytes_: int) -> None:
        (self._folder / ("memory.limit_in_bytes" if self._first else "memory.max")).write_text(str(bytes_))

    @property
    def killed(self) -> int:
        """How many of its processes the kernel ended for want of memory."""
        said = (self._folder / ("memory.oom_control" if self._first else "memory.events")).read_text()
        return int(dict(line.split() for line in said.splitlines())["oom_kill"])


@contextmanager
def memory_group() -> Iterator[MemoryGroup]:
    """A new group; skips, with the reason, where this process may make none."""
    first = (FIRST / "memory.limit_in_bytes").exists()
    folder = (FIRST if first else SECOND) / f"tamis-test-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"needs a machine that lets control groups be made: {error}")
    try:
        if not first and not (folder / "memory.max").exists():
            pytest.skip("needs the memory controller of control groups, which is off here")
        yield MemoryGroup(folder, first)
    finally:
        wait_until(lambda: not (folder / "cgroup.procs").read_text(), "the group's processes to have ended")
        folder.rmdir()
