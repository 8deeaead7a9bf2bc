"""Free memory: how many models this machine, or the part of it that this process may use, can hold at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

MODEL_BYTES = 80_000_000
"""What a compiled graph takes on two streams, rounded up: 60 to 77 MB were measured with profile `fast`."""

MODELS_MIN = 4
MODELS_MAX = 64
# The rest is for images, for a training, and for others.
SHARE = 0.5


def models_that_fit(free_bytes: int | None) -> int:
    """Return how many models half of `free_bytes` holds, from `MODELS_MIN` to `MODELS_MAX`; None is not known."""
    if free_bytes is None:
        return MODELS_MIN
    return min(max(int(free_bytes * SHARE / MODEL_BYTES), MODELS_MIN), MODELS_MAX)


def free_bytes(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes that this process may still take: what the machine has, or its control group if that is less.

    None where the kernel does not say.
    """
    known = [*_of_machine(proc), *_of_groups(proc, cgroups)]
    return max(min(known), 0) if known else None


def _of_machine(proc: Path) -> Iterator[int]:
    with suppress(OSError, ValueError, IndexError):
        for line in (proc / "meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                yield int(line.split()[1]) * 1024


def _of_groups(proc: Path, cgroups: Path) -> Iterator[int]:
    """Yield what is left of each limit of the control groups that this process is in, of version 2 or 1."""
    try:
        lines = (proc / "self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        limits: tuple[str, ...]
        if not controllers:
            top, limits, used = cgroups, ("memory.max", "memory.high"), "memory.current"
        elif "memory" in controllers.split(","):
            top, limits, used = cgroups / "memory", ("memory.limit_in_bytes",), "memory.usage_in_bytes"
        else:
            continue
        # In a container the path may be that of the host, of which only the top is to be seen.
        group = top / path.strip("/")
        for folder in (group, *group.parents):
            if folder.is_relative_to(top):
                yield from _left(folder, limits, used)


def _left(folder: Path, limits: tuple[str, ...], used: str) -> Iterator[int]:
    for name in limits:
        # "max" is no limit and no number.
        with suppress(OSError, ValueError):
            limit = int((folder / name).read_text())
            yield limit - int((folder / used).read_text()) + _given_back(folder)


def _given_back(folder: Path) -> int:
    """Return the bytes of files in memory that the kernel takes back first."""
    with suppress(OSError, ValueError, IndexError):
        for line in (folder / "memory.stat").read_text().splitlines():
            if line.startswith(("inactive_file ", "total_inactive_file ")):
                return int(line.split()[1])
    return 0
