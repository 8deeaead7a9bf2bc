"""Which processes hold locks on a file, as the kernel's table tells, so that a message can name them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
COMMAND_CHARACTERS_MAX = 120


@dataclass(frozen=True, order=True)
class LockHolder:
    """A process; `command` is None where this user may not know it."""

    pid: int
    command: str | None

    def __str__(self) -> str:
        return f"process {self.pid}" + (f" ({self.command})" if self.command else "")


def lock_holders(path: Path, first: int, last: int, proc: Path = PROC) -> list[LockHolder]:
    """Return the other processes with a POSIX lock on a byte of `path` from `first` to `last`.

    None are found where there is no file, or no table of locks; processes of another container are not seen.
    """
    try:
        there = path.stat()
        lines = (proc / "locks").read_text().splitlines()
    except OSError:
        return []
    device = f"{os.major(there.st_dev):02x}:{os.minor(there.st_dev):02x}"
    holding = [fields for fields in map(str.split, lines) if _holds(fields, there.st_ino, first, last)]
    # Some file systems, such as btrfs, give the table another device than they give to those who ask.
    on_device = [fields for fields in holding if fields[5].rpartition(":")[0] == device]
    pids = {int(fields[4]) for fields in on_device or holding} - {os.getpid()}
    return [LockHolder(pid, _command(proc, pid)) for pid in sorted(pids) if pid > 0]


def named(holders: Sequence[LockHolder]) -> str:
    """Return `holders` as messages name them."""
    return ", ".join(map(str, holders)) or "a program that this system does not name"


def _holds(fields: Sequence[str], inode: int, first: int, last: int) -> bool:
    # 1: POSIX  ADVISORY  READ 3192 fe:00:2261154 124 124; a lock that is waited for has `->` after its number.
    if len(fields) != 8 or fields[1] != "POSIX" or fields[5].rpartition(":")[2] != str(inode):
        return False
    end = last if fields[7] == "EOF" else int(fields[7])
    return int(fields[6]) <= last and end >= first


def _command(proc: Path, pid: int) -> str | None:
    with suppress(OSError):
        words = (proc / str(pid) / "cmdline").read_bytes().rstrip(b"\0").replace(b"\0", b" ").decode("utf-8", "replace")
        plain = "".join(c if c.isprintable() else "?" for c in words)
        return plain[:COMMAND_CHARACTERS_MAX] or None
    return None
