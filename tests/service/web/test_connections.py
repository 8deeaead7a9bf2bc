"""Connections that only wait: closed after their time, and whatever their number no hindrance to others."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import uvicorn

from service.web import connections
from service.web.connections import CONNECTIONS_MAX, BoundedConnection
from tests.support.web_process import WebProcess, free_port

HALF_HEAD = b"GET / HTTP/1.1\r\nHost: localhost\r\n"
HALF_BODY = b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\npassword="
WAITING = (b"", HALF_HEAD, HALF_BODY)
BIG = 50_000_000


class Served:
    """A small application served with our connections, in a thread; `go` lets `/slow` answer."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.came = threading.Event()
        self.port = free_port()
        config = {
            "http": BoundedConnection,
            "log_config": None,
            "lifespan": "off",
            "ws": "none",
            "interface": "asgi3",
            "timeout_keep_alive": 1,
        }
        self.server = uvicorn.Server(uvicorn.Config(self.answer, port=self.port, **config))
        self.thread = threading.Thread(target=self.server.run)

    async def answer(self, scope, receive, send) -> None:
        while (message := await receive()).get("more_body"):
            pass
        if message["type"] == "http.disconnect":
            return
        self.came.set()
        if scope["path"] == "/slow":
            await asyncio.to_thread(self.go.wait, 30)
        body = b"x" * BIG if scope["path"] == "/big" else b"here"
        headers = [(b"content-length", str(len(body)).encode())]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=30)


@pytest.fixture
def served(monkeypatch) -> Iterator[Served]:
    for name in ("HEAD_S", "BODY_S", "STALLED_S"):
        monkeypatch.setattr(connections, name, 0.3)
    served = Served()
    served.thread.start()
    while not served.server.started:
        assert served.thread.is_alive()
    yield served
    served.go.set()
    served.server.should_exit = True
    served.thread.join()


def closed(client: socket.socket) -> bool:
    """Wait until the other side has closed the connection, whatever it says before."""
    with contextlib.suppress(ConnectionError):
        while client.recv(65536):
            pass
    return True


@pytest.mark.parametrize("begin", [*WAITING, HALF_BODY.replace(b"/login", b"/slow")])
def test_who_sends_half_a_request_or_none_is_left_after_its_time(served: Served, begin: bytes):
    with served.connect() as client:
        client.sendall(begin)
        assert closed(client)
    assert not served.came.is_set()


@pytest.mark.parametrize("begin", [HALF_HEAD, HALF_BODY])
def test_a_second_request_on_a_connection_has_its_time_too(served: Served, begin: bytes):
    with served.connect() as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n" + begin)
        assert client.recv(17).startswith(b"HTTP/1.1 200")
        assert closed(client)


def test_who_reads_nothing_of_an_answer_is_left_after_its_time(served: Served):
    with served.connect() as client:
        client.sendall(b"GET /big HTTP/1.1\r\nHost: localhost\r\n\r\n")
        served.came.wait(30)
        while served.server.server_state.connections:
            pass
        with contextlib.suppress(ConnectionError):
            got = 0
            while more := client.recv(1 << 20):
                got += len(more)
            assert got < BIG


def test_an_answer_that_takes_long_is_waited_for_and_the_connection_kept(served: Served):
    client = http.client.HTTPConnection("127.0.0.1", served.port, timeout=30)
    client.request("POST", "/slow", body=b"a body")
    served.came.wait(30)
    # Others come and go after their time meanwhile: it is over for this one as well.
    with served.connect() as other:
        assert closed(other)
    served.go.set()
    assert client.getresponse().read() == b"here"
    client.request("GET", "/")
    assert client.getresponse().read() == b"here"
    client.close()


def test_many_that_wait_leave_the_page_to_others_and_keep_those_of_other_addresses(root: Path):
    with WebProcess(root) as page, contextlib.ExitStack() as stack:
        person = http.client.HTTPConnection("127.0.0.1", page.port, timeout=30, source_address=("127.0.0.2", 0))
        stack.callback(person.close)

        def ask(client: http.client.HTTPConnection) -> int:
            client.request("GET", "/api/v1/images", headers={"Host": "localhost"})
            answer = client.getresponse()
            answer.read()
            return answer.status

        assert ask(person) == 200
        own = person.sock
        for number in range(CONNECTIONS_MAX + 60):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", page.port), timeout=30))
            client.sendall(WAITING[number % len(WAITING)])
        # The one that was there is not the one that went, and a new one from either address comes in.
        assert ask(person) == 200 and person.sock is own
        for address in ("127.0.0.2", "127.0.0.1"):
            with contextlib.closing(
                http.client.HTTPConnection("127.0.0.1", page.port, timeout=30, source_address=(address, 0))
            ) as other:
                assert ask(other) == 200
        for _ in range(30):
            with socket.create_connection(("127.0.0.1", page.port), timeout=30) as client:
                client.sendall(b"no request\r\n\r\n")
                assert closed(client)
        assert page.stop() == 0
        assert page.log.read_text().count("Invalid HTTP request") == connections.INVALID_SAID_MAX
        assert "too many connections" in page.log.read_text() and "Traceback" not in page.log.read_text()
