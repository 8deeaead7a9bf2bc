"""Which file system a path lies on, whether it sends file events, and what is free on it."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

MOUNTINFO = Path("/proc/self/mountinfo")

# Their locks and caches are shared with another machine, where a database cannot rely on either.
_SHARE = ("afs", "cifs", "coda", "davfs", "ncpfs", "nfs", "nfs4", "smb2", "smb3", "smbfs")
_CLUSTER = ("acfs", "ceph", "gfs", "gfs2", "glusterfs", "ocfs2")
_PARALLEL = ("beegfs", "gpfs", "lustre", "orangefs", "panfs", "pvfs2")
_HOST = ("9p", "vboxsf", "vmhgfs", "fuse.vmhgfs-fuse")
_FUSE_SHARE = ("fuse.afp", "fuse.curlftpfs", "fuse.davfs", "fuse.davfs2", "fuse.smbnetfs", "fuse.sshfs")
_FUSE_CLUSTER = ("fuse.beegfs", "fuse.ceph", "fuse.ceph-fuse", "fuse.glusterfs", "fuse.mfs")
_FUSE_BUCKET = ("fuse.gcsfuse", "fuse.goofys", "fuse.juicefs", "fuse.rclone", "fuse.s3fs", "fuse.seaweedfs")
NETWORK_TYPES = frozenset((*_SHARE, *_CLUSTER, *_PARALLEL, *_HOST, *_FUSE_SHARE, *_FUSE_CLUSTER, *_FUSE_BUCKET))
# Their locks are local, but a host or a program in user space changes them behind the kernel's back.
SILENT_TYPES = frozenset({"fuse", "fuseblk", "virtiofs", "prl_fs", "drvfs"})


@dataclass(frozen=True)
class Mount:
    """One mounted file system; `type` as the kernel names it, such as `ext4`, `nfs4` or `fuse.sshfs`.

    `id` is the kernel's own number of the mount, which no other has while it is there.
    """

    mount_point: Path
    type: str
    source: str
    read_only: bool
    id: int | None = None


@dataclass(frozen=True)
class Space:
    """What is free to the caller on a file system; `inodes` is None where it has no fixed number of them."""

    bytes: int
    inodes: int | None


def mount_of(path: Path, mountinfo: Path = MOUNTINFO) -> Mount:
    """Return the mount that `path`, with links resolved, lies on; it need not exist.

    Raises OSError where the mount table cannot be read, ValueError where no mount of it holds the path.
    """
    return holding(path.resolve(), read_mounts(mountinfo.read_bytes()))


def mounted_below(folder: Path, mountinfo: Path = MOUNTINFO) -> frozenset[str]:
    """Return where below `folder` something is mounted, relative to it; nothing where the table cannot be read.

    Asks only the kernel's table: looking at a share that hangs would hang.
    """
    with suppress(OSError):
        top = folder.resolve()
        points = [mount.mount_point for mount in read_mounts(mountinfo.read_bytes())]
        return frozenset(str(at.relative_to(top)) for at in points if top in at.parents)
    return frozenset()


def holding(path: Path, mounts: list[Mount]) -> Mount:
    """Return the one of `mounts`, in the kernel's order, that absolute `path` lies on: the longest prefix.

    Of two mounts at one place the later hides the earlier.
    """
    holders = [mount for mount in reversed(mounts) if path.is_relative_to(mount.mount_point)]
    if not holders:
        raise ValueError(f"{path}: expected a mount that holds it; found none among {len(mounts)}")
    return max(holders, key=lambda mount: len(mount.mount_point.parts))


def read_mounts(table: bytes) -> list[Mount]:
    """Return the mounts of a table in the form of `/proc/self/mountinfo`, proc(5)."""
    mounts = []
    for line in table.decode("utf-8", "surrogateescape").split("\n"):
        before, separator, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if not separator or len(fields) < 6 or len(rest) < 2 or not fields[0].isdecimal():
            continue
        options = fields[5].split(",") + (rest[2].split(",") if len(rest) > 2 else [])
        point = Path(_unescaped(fields[4]))
        mounts.append(Mount(point, rest[0], _unescaped(rest[1]), "ro" in options, int(fields[0])))
    return mounts


def mount_id(descriptor: int) -> int | None:
    """Return the kernel's number of the mount that the open `descriptor` lies on; None where it does not say."""
    with suppress(OSError):
        for line in Path(f"/proc/self/fdinfo/{descriptor}").read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(":")
            if name == "mnt_id":
                return int(value)
    return None


def is_network(type: str) -> bool:
    """Return whether file systems of `type` share files with other machines."""
    return type in NETWORK_TYPES


def sends_events(type: str) -> bool:
    """Return whether every change of a file on `type` reaches this kernel's file events."""
    return not (is_network(type) or type in SILENT_TYPES or type.startswith("fuse."))


def _unescaped(field: str) -> str:
    # The kernel's octal escapes: `\040` is a space.
    plain = re.sub(
        rb"\\([0-7]{3})", lambda found: bytes([int(found[1], 8) & 0xFF]), field.encode("utf-8", "surrogateescape")
    )
    return plain.decode("utf-8", "surrogateescape")


def free_space(root: Path) -> Space:
    """Return what is free on the file system of `root` to a user without privileges."""
    status = os.statvfs(root)
    # Some file systems count no inodes and say 0 of 0.
    return Space(status.f_bavail * status.f_frsize, status.f_favail if status.f_files else None)


def lack_of_space(root: Path, bytes_min: int, inodes_min: int) -> str | None:
    """Return what the disk of `root` lacks to have so many bytes and inodes free; None where it lacks nothing."""
    free = free_space(root)
    if free.bytes < bytes_min:
        return f"expected at least {bytes_min} bytes free on the disk of {root}; found {free.bytes}"
    if free.inodes is not None and free.inodes < inodes_min:
        return f"expected at least {inodes_min} inodes free on the disk of {root}; found {free.inodes}"
    return None
