"""A folder made below one that a group may write into, is one into which the group may write, whatever the umask.

People drag images between such folders, and the umask of a service is for its files.
"""

from __future__ import annotations

import os
import stat
import struct
from contextlib import suppress

_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL = "system.posix_acl_access"
_ACL_VERSION = 2
_OWNER, _GROUP, _OTHERS = 0x01, 0x04, 0x20
_NO_ID = 0xFFFFFFFF


def make_shared_folder(name: str, above: int) -> None:
    """Make the folder `name` in the open folder `above`, with what the group may do there. Raises as os.mkdir."""
    os.mkdir(name, dir_fd=above)
    if not os.fstat(above).st_mode & stat.S_IWGRP:
        return
    # Somebody of the group may have taken it away already.
    with suppress(OSError):
        made = os.open(name, _OPEN, dir_fd=above)
        try:
            _open_to_the_group(made)
        finally:
            os.close(made)


def _open_to_the_group(folder: int) -> None:
    mode = stat.S_IMODE(os.fstat(folder).st_mode)
    wanted = mode | stat.S_IRWXG
    if wanted == mode:
        return
    try:
        os.fchmod(folder, wanted)
    except PermissionError:
        # A sandbox may forbid to set the bit by which a folder hands its group on (RestrictSUIDSGID=), though the
        # folder has it. By an access control list the same permissions are set, and the bit stays.
        os.setxattr(folder, _ACL, _as_acl(wanted))


def _as_acl(mode: int) -> bytes:
    """Return `mode` as the kernel takes it for an access control list, see acl(5): version, then tag, rights, id."""
    entries = ((_OWNER, mode >> 6 & 7), (_GROUP, mode >> 3 & 7), (_OTHERS, mode & 7))
    return struct.pack("<I", _ACL_VERSION) + b"".join(
        struct.pack("<HHI", tag, rights, _NO_ID) for tag, rights in entries
    )
