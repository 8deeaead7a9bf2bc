"""File systems of a test's own: made, mounted below its folder, and taken away again whatever happens.

Skips, with the reason, where the machine lets nobody mount.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

UNMOUNT_WITHIN_S = 15.0


def run(*command: str | Path) -> None:
    """Run `command`; AssertionError with what it said where it fails."""
    ended = subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, f"{command}: {ended.stderr}"


def need(*programs: str) -> None:
    """Skip where this is not root, or a program is missing."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount")
    for program in programs:
        if shutil.which(program) is None:
            pytest.skip(f"needs {program}, which is not installed")


@contextmanager
def tmpfs(at: Path, options: str) -> Iterator[Path]:
    """A tmpfs at `at` with mount options such as `size=64m,nr_inodes=600`."""
    need("mount", "umount")
    at.mkdir(parents=True, exist_ok=True)
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(at))
    try:
        yield at
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=False)


@contextmanager
def ext4(image: Path, at: Path, megabytes: int = 64, *, make: bool = True) -> Iterator[Path]:
    """An ext4 in the file `image` at `at`; without `make` the one that is there, whose journal is replayed."""
    need("mount", "umount", "mkfs.ext4", "losetup")
    at.mkdir(parents=True, exist_ok=True)
    if make:
        with image.open("wb") as file:
            file.truncate(megabytes * 1_000_000)
        run("mkfs.ext4", "-q", "-F", image)
    _mount("-o", "loop", str(image), str(at))
    try:
        yield at
    finally:
        _unmount(at)


@contextmanager
def ntfs(image: Path, at: Path) -> Iterator[Path]:
    """An NTFS in the file `image` at `at`, which refuses the names that Windows refuses."""
    need("mkfs.ntfs", "ntfs-3g", "umount")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("needs FUSE")
    at.mkdir(parents=True, exist_ok=True)
    with image.open("wb") as file:
        file.truncate(20_000_000)
    run("mkfs.ntfs", "-q", "-F", image)
    ended = subprocess.run(["ntfs-3g", "-o", "windows_names", image, at], capture_output=True, text=True, timeout=60)
    if ended.returncode != 0:
        pytest.skip(f"needs a machine that lets root mount; ntfs-3g says: {ended.stderr.strip()}")
    try:
        yield at
    finally:
        _unmount(at)


def _unmount(at: Path) -> None:
    """Unmount `at` for good: while somebody has a file open there, another mount of its image would be a second one."""
    until = time.monotonic() + UNMOUNT_WITHIN_S
    while subprocess.run(["umount", str(at)], check=False, capture_output=True).returncode != 0:
        if time.monotonic() > until:
            subprocess.run(["umount", "--lazy", str(at)], check=False, capture_output=True)
            raise AssertionError(f"{at}: expected to be unmounted; somebody has a file open there")
        time.sleep(0.1)


def _mount(*arguments: str) -> None:
    ended = subprocess.run(["mount", *arguments], capture_output=True, text=True, timeout=60)
    if ended.returncode != 0:
        pytest.skip(f"needs a machine that lets root mount; mount says: {ended.stderr.strip()}")
