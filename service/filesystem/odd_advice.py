"""Advice on odd entries: what a person can do about an error of one file or folder. Looks at owner and mode alone."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import stat
from pathlib import Path

_MEDIUM = "look at the disk or the share that it lies on, and at the kernel's log (dmesg)"
_ADVICE = {
    errno.EXDEV: (
        "it lies on another file system than processing/, so that it cannot be claimed by a rename: mount that disk or"
        " share elsewhere and have its files moved here, or keep the whole root on it"
    ),
    errno.EROFS: "its file system is read-only: mount -o remount,rw, or look at the disk if it turned so by itself",
    errno.ENAMETOOLONG: "shorten the names of the folders above it, or nest fewer of them",
    errno.EIO: _MEDIUM,
    errno.ESTALE: _MEDIUM,
    errno.EREMOTEIO: _MEDIUM,
    errno.ENOTCONN: "the share or its server is gone: mount it anew",
    errno.EHOSTDOWN: "the share or its server is gone: mount it anew",
    errno.ETIMEDOUT: "the share or its server does not answer: look at the network, or mount it anew",
    errno.ENODEV: "the disk that it lies on is gone: mount it anew",
    errno.ENXIO: "the disk that it lies on is gone: mount it anew",
    errno.ELOOP: "links are not followed: put the folder itself there, or have the camera write into one that is",
    errno.ENOTDIR: "expected a folder on the way to it: look at what lies there",
    errno.EBUSY: "something is mounted on it or holds it: unmount that, or end the program",
    errno.ETXTBSY: "a program runs from it: end that, or move the file away",
    errno.EINVAL: "its file system refuses the name or the call: rename it, or move it to a local disk",
    errno.EILSEQ: "its file system refuses the name: rename it",
}


def advice_on(root: Path | None, path: str, step: str, number: int) -> str:
    """Return what to do where `step` failed with the error `number` on `path` in `root`; empty where nothing is known.

    Where rights are missing it names owner, group and mode of what is in the way, as far as they can be seen, and the
    user of this process.
    """
    if number not in (errno.EACCES, errno.EPERM):
        return _ADVICE.get(number, "")
    us = _user(os.geteuid())
    found = _owned(root, path) if root is not None else None
    if found is None:
        return f"give the user {us}, as whom this runs, the rights to it"
    at, status = found
    owner, group, mode = _user(status.st_uid), _group(status.st_gid), stat.S_IMODE(status.st_mode)
    of = f"{at} belongs to {owner}:{group} with mode {mode:04o}, and this runs as {us}"
    own, letters = (0o700, "rwx") if stat.S_ISDIR(status.st_mode) else (0o600, "rw")
    if status.st_uid == os.geteuid() and mode & own != own:
        return f"{of}: chmod u+{letters} it"
    if not stat.S_ISDIR(status.st_mode):
        if step == "read":
            return f"{of}: chmod g+r it with a group that {us} is in, and have its writer use umask 027 or 002"
        return f"{of}: it may be immutable (lsattr), or its folder sticky (chmod -t)"
    if mode & stat.S_ISVTX and step == "claim":
        return (
            f"{of}: it is sticky, so that only owners may move files: chmod -t it, or have the service run as {owner}"
        )
    return (
        f"{of}: chmod g+rwxs it with a group that {us} is in, and have whoever makes such folders use umask 002,"
        f" or have the service run as {owner}; if the mode is right it may be immutable (lsattr -d)"
    )


def _owned(root: Path, path: str) -> tuple[str, os.stat_result] | None:
    """Return the last part of the way to `path` that can be looked at, and its status."""
    parts = path.split("/")
    for end in range(len(parts), 0, -1):
        at = "/".join(parts[:end])
        try:
            return at, (root / at).lstat()
        except OSError:
            continue
    return None


def _user(id: int) -> str:
    try:
        return pwd.getpwuid(id).pw_name
    except KeyError:
        return str(id)


def _group(id: int) -> str:
    try:
        return grp.getgrgid(id).gr_name
    except KeyError:
        return str(id)
