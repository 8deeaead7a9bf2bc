"""Mounts that send no file events, hang and vanish: real ones, through FUSE, of a folder of this machine."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon_process import wait_until

SFTP_SERVER = Path("/usr/lib/openssh/sftp-server")


def needs_share(*programs: str) -> pytest.MarkDecorator:
    """Skip, with what is missing, where a share of `programs` cannot be mounted."""
    missing = [program for program in programs if not (Path(program).exists() or shutil.which(program))]
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        missing.append("/dev/fuse")
    if os.geteuid() != 0:
        missing.append("root")
    return pytest.mark.skipif(bool(missing), reason=f"a mount in user space needs {', '.join(missing)}")


class Share:
    """A mounted share. It can `hang`, `go_on`, and `vanish`, which leaves the bare mount point."""

    def __init__(self, at: Path, server: subprocess.Popen[bytes]) -> None:
        self.at = at
        self._server = server

    def hang(self) -> None:
        self._server.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._server.send_signal(signal.SIGCONT)

    def vanish(self) -> None:
        subprocess.run(["umount", "--lazy", str(self.at)], check=True)


@contextlib.contextmanager
def bindfs(source: Path, at: Path) -> Iterator[Share]:
    """Mount `source` at `at` through a program in user space, as a virtual machine's shared folder is."""
    with _ended(subprocess.Popen(["bindfs", "-f", str(source), str(at)])) as server, _mounted(at):
        yield Share(at, server)


@contextlib.contextmanager
def sshfs(source: Path, at: Path) -> Iterator[Share]:
    """Mount `source` at `at` by SSHFS, which talks to an SFTP server over a socket and not over a network."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        server = subprocess.Popen([str(SFTP_SERVER)], stdin=theirs, stdout=theirs)
        client = subprocess.Popen(
            ["sshfs", "-f", "-o", "passive", f":{source}", str(at)], stdin=ours, stdout=ours, stderr=subprocess.DEVNULL
        )
    with _ended(server), _ended(client), _mounted(at):
        yield Share(at, server)


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def _mounted(at: Path) -> Iterator[None]:
    wait_until(lambda: os.path.ismount(at), f"a mount at {at}", 20)
    try:
        yield
    finally:
        # Lazily, since a test may have left files open there; without a complaint where it has vanished already.
        subprocess.run(["umount", "--lazy", str(at)], check=False, stderr=subprocess.DEVNULL)
