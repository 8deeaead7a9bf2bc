"""The limits of a training: when it has to end and how much memory its process may take.

Owns how memory is divided between the process and the pools of a fit, and how it is measured; the service ends a
process that takes too much.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path

from models.errors import MemoryExceeded

BYTES_PER_GB = 10**9
MEMORY_GB = 6.0
MEMORY_BYTES = int(MEMORY_GB * BYTES_PER_GB)
# Resident before the first image is kept: Python, torch, OpenVINO, a network and its buffers.
PROCESS_BYTES = 1_500_000_000
# A pool may be copied once, in another dtype or order, while it is made.
POOL_SHARE = 0.5
POOL_BYTES_MIN = 50_000_000


@dataclass(frozen=True)
class TrainingLimits:
    """`deadline` of the training loop, on `time.monotonic`'s clock; `memory_bytes` of the whole process."""

    deadline: float
    memory_bytes: int = MEMORY_BYTES

    @property
    def pool_bytes(self) -> int:
        """Bytes of images or features that a fit may keep. Raises MemoryExceeded where too few are left."""
        left = int(POOL_SHARE * (self.memory_bytes - PROCESS_BYTES))
        if left < POOL_BYTES_MIN:
            least = (PROCESS_BYTES + POOL_BYTES_MIN / POOL_SHARE) / BYTES_PER_GB
            raise MemoryExceeded(
                f"training: expected at least {least:.1f} GB of memory; found a limit of "
                f"{self.memory_bytes / BYTES_PER_GB:.3g} GB"
            )
        return left

    def shared_among(self, networks: int) -> TrainingLimits:
        """Return the limits of the next of `networks` to be fitted: each gets the same share of the time left."""
        now = time.monotonic()
        return replace(self, deadline=now + (self.deadline - now) / networks)


def resident_bytes() -> int:
    """Return the memory that this process holds now (VmRSS), in bytes."""
    return _status("VmRSS")


def memory_peak_bytes() -> int:
    """Return the most memory that this process ever held (VmHWM), in bytes; ru_maxrss counts what its parent held."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status: expected a line {name}; found none")
