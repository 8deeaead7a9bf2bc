import socket
from pathlib import Path

import pytest

from service.daemon.systemd import Notifier


@pytest.fixture
def receiver(tmp_path: Path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.settimeout(5)
        yield receiver


def test_messages_reach_the_socket_that_systemd_named(receiver: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    notifier.send("READY=1")
    notifier.send("STATUS=two\nlines")
    notifier.send("WATCHDOG=1")
    notifier.send("STOPPING=1")
    received = [receiver.recv(1000) for _ in range(4)]
    assert received == [b"READY=1", b"STATUS=two lines", b"WATCHDOG=1", b"STOPPING=1"]


def test_outside_systemd_nothing_is_sent() -> None:
    notifier = Notifier({})
    notifier.send("READY=1")
    assert notifier.watchdog_interval_s is None


def test_watchdog_is_pinged_twice_in_its_time() -> None:
    assert Notifier({"WATCHDOG_USEC": "60000000"}).watchdog_interval_s == 30.0


@pytest.mark.parametrize("value", ["", "0", "soon"])
def test_no_watchdog_no_interval(value: str) -> None:
    assert Notifier({"WATCHDOG_USEC": value}).watchdog_interval_s is None


def test_listener_that_is_gone_does_not_stop_the_daemon(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    notifier.send("READY=1")
    notifier.send("READY=1")
    assert not (tmp_path / "gone").exists()


def test_listener_that_does_not_read_never_blocks_the_loop(receiver: socket.socket, tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    for number in range(10_000):
        notifier.send(f"STATUS={number} placed")
    assert receiver.recv(1000) == b"STATUS=0 placed"
