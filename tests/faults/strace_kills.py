"""Runs work in a child under strace: lists its state-changing system calls, or ends it by SIGKILL before a certain one.

The child is forked, so that no call of an interpreter that starts is among them, and waits until strace holds it.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

# Whatever changes what a disk holds, or when it lasts. Of `openat` only what may make or empty a file.
CALLS = (
    "openat", "creat", "rename", "renameat", "renameat2", "link", "linkat", "symlink", "symlinkat", "unlink",
    "unlinkat", "mkdir", "mkdirat", "rmdir", "write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range",
    "ftruncate", "truncate", "fallocate", "fsync", "fdatasync", "chmod", "fchmod", "fchmodat", "utimensat",
    "setxattr", "fsetxattr",
)  # fmt: skip
MAKES = re.compile(r"O_CREAT|O_TRUNC")
LINE = re.compile(r"^(?:\d+ +)?(\w+)\(")


@dataclass(frozen=True, order=True)
class Point:
    """A moment: before the `number`-th call of this name, counted from 1."""

    call: str
    number: int


def need_strace() -> None:
    """Skip, with the reason, where nothing can be traced."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace, which is not installed")


def points(work: Callable[[], None]) -> list[Point]:
    """Run `work` to its end; return its state-changing calls in the order in which it made them."""
    counted: Counter[str] = Counter()
    found = []
    status, lines = _traced(work, None)
    assert status == 0, f"expected the work to end well; found wait status {status}"
    for line in lines:
        if named := LINE.match(line):
            call = named[1]
            counted[call] += 1
            if call != "openat" or MAKES.search(line):
                found.append(Point(call, counted[call]))
    return found


def killed_before(point: Point, work: Callable[[], None]) -> bool:
    """Run `work` and kill it before `point`; return whether it came so far (False where it ended before, well)."""
    status, _ = _traced(work, point)
    if os.WIFSIGNALED(status):
        return True
    assert status == 0, f"{point}: expected the kill or a good end; found wait status {status}"
    return False


def _traced(work: Callable[[], None], point: Point | None) -> tuple[int, list[str]]:
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder) / "calls"
        held, let_go = os.pipe()
        pid = os.fork()
        if not pid:
            _child(held, let_go, work)
        os.close(held)
        inject = ["-e", f"inject={point.call}:signal=SIGKILL:when={point.number}"] if point else []
        tracer = subprocess.Popen(
            ["strace", "-f", "-o", str(output), "-e", f"trace={','.join(CALLS)}", *inject, "-p", str(pid)],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert tracer.stderr is not None
        said = tracer.stderr.readline()
        attached = "attached" in said
        os.write(let_go, b"g" if attached else b"x")
        os.close(let_go)
        _, status = os.waitpid(pid, 0)
        tracer.communicate()
        if not attached:
            pytest.skip(f"needs a machine that lets processes be traced; strace says: {said.strip()}")
        return status, output.read_text(errors="replace").splitlines()


def _child(held: int, let_go: int, work: Callable[[], None]) -> None:
    code = 1
    try:
        os.close(let_go)
        if os.read(held, 1) == b"g":
            work()
            code = 0
    finally:
        os._exit(code)
