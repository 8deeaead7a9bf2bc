"""Tell systemd how the daemon is: the sd_notify protocol, see sd_notify(3). Does nothing outside systemd."""

from __future__ import annotations

import os
import socket


class Notifier:
    """Sends messages to the socket that systemd named in NOTIFY_SOCKET."""

    def __init__(self, environment: dict[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._address = given.get("NOTIFY_SOCKET", "")
        self._watchdog_us = given.get("WATCHDOG_USEC", "")

    @property
    def watchdog_interval_s(self) -> float | None:
        """How often to ping, s: half of the time after which systemd restarts us; None when it does not watch."""
        return int(self._watchdog_us) / 2e6 if self._watchdog_us.isdecimal() and int(self._watchdog_us) > 0 else None

    def send(self, message: str) -> None:
        """Send `message`, one assignment such as `READY=1`; never waits, and does not mind if nobody listens."""
        if not self._address:
            return
        address = "\0" + self._address[1:] if self._address.startswith("@") else self._address
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            try:
                sender.connect(address)
                sender.send(message.replace("\n", " ").encode(), socket.MSG_DONTWAIT)
            except BlockingIOError:
                # Nobody reads fast enough. A word on how we are is not worth making images wait.
                return
            except OSError:
                # Whoever started us is gone or no longer listens, or it was never meant for us: a variable that a
                # container inherited. Scoring goes on without it.
                self._address = ""
