"""Tries what a hostile image would, if it took over the process: run by systemd within a unit's own sandbox.

Writes what happened to each try as JSON to the file given. Plain Python and nothing of the service: it must run within
the page's sandbox, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import mmap
import os
import socket
import stat
import sys
from collections.abc import Callable
from pathlib import Path

ELSEWHERE = (
    "/etc",
    "/usr",
    "/opt/tamis",
    "/srv/others",
    "/root",
    "/home",
    "/home/ada",
    "/boot",
    "/run",
    "/var/log",
    "/srv/open",
)
OTHERS = ("/etc/shadow", "/etc/tamis/tamis.env", "/etc/tamis/web.env", "/home/ada/open", "/srv/others/closed")
# A listener of the test, and an address that is this machine's but not its loopback.
LOOPBACK, OUTSIDE = ("127.0.0.1", 9), ("192.0.2.1", 9)
CLONE_NEWUSER, CLONE_NEWNS = 0x10000000, 0x00020000
PERSONALITY_ADDR_NO_RANDOMIZE = 0x0040000
SYS_KEXEC_LOAD, SYS_BPF, SYS_INIT_MODULE = 246, 321, 175
libc = ctypes.CDLL(None, use_errno=True)


def tried(act: Callable[[], object]) -> str:
    """Return `done`, or the name of the error that kept it from being done; a process of its own is what it changes."""
    child = os.fork()
    if child == 0:
        code = 255
        try:
            act()
            code = 0
        except OSError as error:
            code = error.errno or 255
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return "done" if code == 0 else errno.errorcode.get(code, f"ended with {code}")


def call(name: str, *arguments: object) -> Callable[[], object]:
    """Return a call of the C library that raises OSError where it fails."""

    def act() -> None:
        if getattr(libc, name)(*arguments) == -1:
            raise OSError(ctypes.get_errno(), name)

    return act


def write(folder: str) -> Callable[[], object]:
    def act() -> None:
        path = Path(folder, "tamis-probe")
        path.write_text("written")
        path.unlink()

    return act


def connect(address: tuple[str, int]) -> Callable[[], object]:
    def act() -> None:
        with socket.socket(socket.AF_INET) as one:
            one.settimeout(3)
            try:
                one.connect(address)
            except TimeoutError:
                raise OSError(errno.ETIMEDOUT, "dropped") from None

    return act


def suid(folder: str) -> Callable[[], object]:
    def act() -> None:
        path = Path(folder, ".probe-suid")
        path.touch()
        try:
            path.chmod(0o4755)
            if not path.stat().st_mode & stat.S_ISUID:
                raise OSError(errno.EPERM, "taken away")
        finally:
            path.unlink()

    return act


def writable_code() -> None:
    try:
        mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC).close()
    except PermissionError as error:
        raise OSError(errno.EPERM, "refused") from error


def strangers() -> int:
    """How many processes of other users can be seen."""
    seen = 0
    for process in Path("/proc").iterdir():
        try:
            seen += process.name.isdigit() and process.stat().st_uid != os.getuid()
        except OSError:
            continue
    return seen


def status() -> dict[str, str]:
    lines = Path("/proc/self/status").read_text().splitlines()
    wanted = ("CapEff", "CapBnd", "NoNewPrivs", "Seccomp", "Uid")
    return {name: rest.split()[0] for name, _, rest in (line.partition(":") for line in lines) if name in wanted}


def main(root: str, result: str) -> None:
    found = {
        "write": {folder: tried(write(folder)) for folder in ELSEWHERE},
        "write_own": tried(write(root)),
        "write_tmp": tried(lambda: Path("/tmp/tamis-was-here").write_text("private")),
        "read": {path: tried(lambda path=path: Path(path).read_bytes()) for path in OTHERS},  # type: ignore[misc]
        "network": {
            "loopback": tried(connect(LOOPBACK)),
            "outside": tried(connect(OUTSIDE)),
            "packet": tried(lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW)),
            "netlink": tried(lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)),
            "bluetooth": tried(lambda: socket.socket(31, socket.SOCK_RAW)),
        },
        "kernel": {
            "user namespace": tried(call("unshare", CLONE_NEWUSER)),
            "mount namespace": tried(call("unshare", CLONE_NEWNS)),
            "mount": tried(call("mount", b"none", b"/tmp", b"tmpfs", 0, None)),
            "chroot": tried(call("chroot", b"/tmp")),
            "host name": tried(call("sethostname", b"probe", 5)),
            "clock": tried(call("settimeofday", ctypes.byref((ctypes.c_long * 2)(0, 0)), None)),
            "personality": tried(call("personality", PERSONALITY_ADDR_NO_RANDOMIZE)),
            "real time": tried(lambda: os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))),
            "kexec": tried(call("syscall", SYS_KEXEC_LOAD, 0, 0, None, 0)),
            "bpf": tried(call("syscall", SYS_BPF, 0, None, 0)),
            "module": tried(call("syscall", SYS_INIT_MODULE, None, 0, b"")),
            "sysctl": tried(lambda: Path("/proc/sys/kernel/core_pattern").write_text("x")),
            "cgroup": tried(write("/sys/fs/cgroup")),
            "kernel log": tried(lambda: Path("/dev/kmsg").open("rb").close()),
            "kernel memory": tried(lambda: Path("/dev/mem").open("rb").close()),
            "suid": tried(suid(root)),
            "device": tried(lambda: os.mknod(Path(root, ".probe-device"), 0o600 | stat.S_IFBLK, os.makedev(8, 0))),
            "become root": tried(lambda: os.setuid(0)),
        },
        "strangers": strangers(),
        "writable_code": tried(writable_code),
        "status": status(),
    }
    Path(result).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
