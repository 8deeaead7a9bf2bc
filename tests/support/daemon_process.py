"""The real daemon as a child process: started, awaited, stopped and killed by tests and benchmarks."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from service.storage.database.driver import sqlite3

REPOSITORY = Path(__file__).resolve().parents[2]
POLL_S = 0.02


class DaemonProcess:
    """`tamis run` on `root`, with its messages to systemd received on a socket of our own.

    `under` is a command that it is run by, such as `setpriv` with its options.
    """

    def __init__(
        self, root: Path, *options: str, environment: dict[str, str] | None = None, under: Sequence[str] = ()
    ) -> None:
        self.root = root
        self._folder = tempfile.TemporaryDirectory()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(f"{self._folder.name}/notify")
        self.log = Path(self._folder.name) / "log"
        self._messages: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._receiver = threading.Thread(target=self._receive, daemon=True)
        self._receiver.start()
        self.started_at = time.monotonic()
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*under, sys.executable, "-m", "service", "run", "--root", str(root), *options],
                cwd=REPOSITORY,
                env={**os.environ, "NOTIFY_SOCKET": f"{self._folder.name}/notify", **(environment or {})},
                stdout=subprocess.DEVNULL,
                stderr=log,
            )

    def __enter__(self) -> DaemonProcess:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        elif kind is not None:
            # What the test waited for may have failed since nobody was there any more to do it.
            print(f"the daemon had ended with {self.process.returncode}; its log:\n{self.log_text()[-4000:]}")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"END", f"{self._folder.name}/notify")
        self._receiver.join()
        self._socket.close()
        self._folder.cleanup()

    def wait_ready(self, timeout_s: float = 60.0) -> float:
        """Wait for READY=1; return the seconds since the start."""
        self.wait_for_message("READY=1", timeout_s)
        return time.monotonic() - self.started_at

    def wait_for_message(self, prefix: str, timeout_s: float = 60.0) -> str:
        """Wait for a message to systemd that begins with `prefix` and was not returned yet; return it."""
        until = time.monotonic() + timeout_s
        while time.monotonic() < until:
            try:
                message = self._messages.get(timeout=0.2)
            except queue.Empty:
                if self.process.poll() is not None:
                    break
                continue
            if message.startswith(prefix):
                return message
        raise AssertionError(f"expected {prefix} within {timeout_s} s; the log says:\n{self.log_text()}")

    def _receive(self) -> None:
        # Read all the time, as systemd does: what nobody reads, the daemon drops.
        while (message := self._socket.recv(4096)) != b"END":
            self._messages.put(message.decode())

    def stop(self, timeout_s: float = 60.0) -> int:
        """Send SIGTERM and return the exit code. AssertionError with its log and stack where it does not end."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGABRT)  # at which it writes down its stack
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(10)
            raise AssertionError(f"expected the end within {timeout_s} s; the log says:\n{self.log_text()}") from None

    def kill(self) -> None:
        """Send SIGKILL."""
        self.process.kill()
        self.process.wait()

    def log_text(self) -> str:
        """Return what the daemon wrote to stderr so far."""
        return self.log.read_text(errors="replace")


def wait_until(condition: Callable[[], bool], what: str, timeout_s: float = 60.0, poll_s: float = POLL_S) -> None:
    """Poll until `condition` holds; AssertionError naming `what` when it does not in time."""
    until = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"expected {what} within {timeout_s} s")
        time.sleep(poll_s)


def finished(root: Path) -> int:
    """How many images have reached a final state."""
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
        [count] = connection.execute("SELECT count(*) FROM results WHERE state <> 'scored'").fetchone()
    return int(count)


def nothing_left(root: Path) -> bool:
    """Whether no file waits in `incoming/` or lies in `processing/`."""
    return not any(
        path.is_file() and not path.name.startswith(".")
        for folder in ("incoming", "processing")
        for path in (root / folder).rglob("*")
    )
