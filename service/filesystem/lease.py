"""Asks the kernel whether somebody has a file open for writing, by a lease that it grants only while nobody has."""

from __future__ import annotations

import fcntl
import signal


def has_writer(descriptor: int) -> bool:
    """Return whether some process has the file of `descriptor`, open for reading, open for writing.

    Where there are no leases (a file of another user, a network file system) the answer is False.
    """
    try:
        # If somebody opens the file for writing while the lease is held, the kernel signals its holder: by SIGIO, which
        # ends a process, unless it is told to send another; SIGURG is ignored by default.
        fcntl.fcntl(descriptor, fcntl.F_SETSIG, signal.SIGURG)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
        fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
