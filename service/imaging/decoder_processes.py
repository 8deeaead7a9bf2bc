"""The decoder in processes: an image that crashes, hangs or swells what reads it costs itself its turn, and no more.

The bytes of an image and its pixels are handed over in memory that both sides have open; everything else is a line of
JSON. `decoder_server` is the other side.
"""

from __future__ import annotations

import json
import math
import os
import select
import signal
import site
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from service.imaging.decode import DecodeError
from service.imaging.decoder import Decoder, DecoderAnswer
from service.imaging.decoder_server import (
    BYE,
    BYTES_A_PIXEL,
    BYTES_MORE,
    END,
    MESSAGE_BYTES_MAX,
    SHARED_BYTES_KEPT,
    START,
    TOO_MUCH_MEMORY,
)

CODE = str(Path(__file__).resolve().parents[2])
DECODER_ENDED, TOO_SLOW = "decoder_ended", "too_slow"

# An image that has been decoding for so long gives its turn to another and goes on beside it, with about a quarter of
# what the other has of a core: if it were given less, a large one would not be done in its time on a busy machine.
SLOW_AFTER_S = 1.0
NICENESS_MORE = 5
# Of the time that an image is given: with so much of it spent computing, another try would end alike.
BUSY_SHARE = 0.5
STARTS_MAX = 6
SERVER_TIMEOUT_S = 60.0


HARMFUL = frozenset({DECODER_ENDED, TOO_MUCH_MEMORY, TOO_SLOW})
"""The codes of what is wrong with an image not by its content, but by what it does to what reads it."""


class DecoderEnded(DecodeError):
    """The process that decoded it has ended, or was ended since it hung; another try may do better."""

    def __init__(self, message: str) -> None:
        super().__init__(DECODER_ENDED, message)


def memory_needed(pixels_max: int, file_bytes_max: int) -> int:
    """Return the bytes that decoding the largest image takes, at most."""
    return BYTES_MORE + BYTES_A_PIXEL * pixels_max + file_bytes_max


class DecoderProcesses(Decoder):
    """At most `processes` workers that decode, started when they are needed; they end once idle for a minute.

    An image has `timeout_s` and `memory_max` bytes: DecodeError `too_much_memory` or `too_slow` says that it takes
    more, DecoderEnded that its worker crashed, or hung without computing. As many images again go on beside these once
    they are slow. Safe for threads; each waits for its turn.
    """

    def __init__(self, processes: int, *, timeout_s: float, memory_max: int) -> None:
        self._timeout_s = timeout_s
        self._memory_max = memory_max
        self._turns = threading.BoundedSemaphore(processes)
        self._slow = threading.BoundedSemaphore(processes)
        self._lock = threading.Lock()
        self._server: _Server | None = None
        self._idle: list[_Worker] = []
        self._closed = False
        self._cpu_s = 0.0

    @property
    def cpu_s(self) -> float:
        """The CPU time that the workers have used so far, s, as far as they have told."""
        return self._cpu_s

    def run(self, task: str, data: bytes, **arguments: Any) -> DecoderAnswer:
        """Return what the task of that name makes of `data` in a worker. Raises DecodeError, of it DecoderEnded."""
        with _Turn(self._turns, self._slow) as turn:
            answer = None
            while answer is None:
                worker = self._take()
                try:
                    answer = self._ask(worker, turn, task, data, arguments)
                finally:
                    self._put_back(worker, whole=answer is not None)
        if "code" in answer:
            raise DecodeError(str(answer["code"]), str(answer["message"]))
        return DecoderAnswer(answer["values"], answer["content"])

    def start(self) -> None:
        """Start the server, which takes 0.1 s of a core, without waiting for it."""
        with self._lock:
            self._server = self._server or _Server()

    def close(self) -> None:
        """End all processes, also those at work: who waits for them gets DecoderEnded, as does who comes later."""
        with self._lock:
            self._closed = True
            for worker in self._idle:
                worker.close()
            self._idle.clear()
            if self._server is not None:
                self._server.close()
            self._server = None

    def _ask(
        self, worker: _Worker, turn: _Turn, task: str, data: bytes, arguments: Mapping[str, Any]
    ) -> dict[str, Any] | None:
        """Return the answer of `worker`; None if it ended by itself, being idle, before it was asked."""
        began = time.monotonic()
        worker.ask({"task": task, "bytes": len(data), "arguments": arguments}, data)
        if not worker.answers_within(min(SLOW_AFTER_S, self._timeout_s)):
            turn.lend()
            worker.step_back()
            if not worker.answers_within(self._timeout_s - (time.monotonic() - began)):
                raise self._hung(worker)
        message = worker.receive()
        if message == BYE:
            return None
        if not message:
            raise DecoderEnded(f"the process that decoded it was ended by {self._end(worker).by}")
        try:
            answer = json.loads(message)
            self._count(worker, float(answer["cpu_s"]))
            return worker.take_content(answer, self._memory_max)
        except (ValueError, TypeError, KeyError) as error:
            raise DecoderEnded(f"the process that decoded it gave no answer: {error}") from None

    def _hung(self, worker: _Worker) -> DecodeError:
        message = f"expected it to decode within {self._timeout_s:g} s; it has not"
        if self._end(worker).after_cpu_s >= BUSY_SHARE * self._timeout_s:
            return DecodeError(TOO_SLOW, message)
        return DecoderEnded(message)

    # The workers

    def _take(self) -> _Worker:
        for number in range(STARTS_MAX):
            if (worker := self._take_idle()) is not None:
                return worker
            with self._lock:
                if self._closed:
                    raise DecoderEnded("expected an open decoder; it is closed")
                try:
                    self._server = self._server or _Server()
                    return self._server.start_worker(self._memory_max)
                except ConnectionError:  # the server was killed
                    if self._server is not None:
                        self._server.close()
                    self._server = None
                except OSError:  # no memory, or no number, for one more process
                    if number == STARTS_MAX - 1:
                        raise
            time.sleep(0.05 * 2**number)
        raise OSError("expected that the server of the decoders can be started; it ended each time")

    def _take_idle(self) -> _Worker | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                # The one that was used last: so in time no more are kept than there is work for.
                worker = self._idle.pop()
            if not worker.answers_within(0):
                return worker
            self._end(worker)  # it has ended by itself, or was killed

    def _put_back(self, worker: _Worker, *, whole: bool) -> None:
        if not whole or worker.last:
            self._end(worker)
            return
        with self._lock:
            self._idle.append(worker)

    def _end(self, worker: _Worker) -> _Ended:
        with self._lock:
            if worker.ended is None:
                worker.close()
                by, cpu_s = "the end of its server", worker.cpu_s
                with suppress(OSError):
                    by, cpu_s = worker.server.end_worker(worker.pid)
                worker.ended = _Ended(by, cpu_s - worker.cpu_s)
                self._cpu_s += worker.ended.after_cpu_s
            return worker.ended

    def _count(self, worker: _Worker, cpu_s: float) -> None:
        with self._lock:
            self._cpu_s += cpu_s - worker.cpu_s
            worker.cpu_s = cpu_s


class _Turn:
    """One image's turn to decode; a slow one lends it to another, if not too many are slow already."""

    def __init__(self, turns: threading.BoundedSemaphore, slow: threading.BoundedSemaphore) -> None:
        self._slow, self._held = slow, turns

    def __enter__(self) -> _Turn:
        self._held.acquire()
        return self

    def lend(self) -> None:
        if self._held is not self._slow and self._slow.acquire(blocking=False):
            self._held.release()
            self._held = self._slow

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._held.release()


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a worker ended, in words, and the CPU time that it used after its last answer, s."""

    by: str
    after_cpu_s: float


@dataclass(slots=True)
class _Worker:
    """A worker of `server`: `memory` is a descriptor of what is shared with it, `cpu_s` what it had used when it last
    answered; `last`: it ends after this image.
    """

    server: _Server
    pid: int
    channel: socket.socket
    memory: int
    cpu_s: float = 0.0
    last: bool = False
    ended: _Ended | None = None
    _poll: select.poll = field(default_factory=select.poll)

    def __post_init__(self) -> None:
        self._poll.register(self.channel, select.POLLIN)

    def ask(self, request: Mapping[str, Any], data: bytes) -> None:
        _write(self.memory, data)
        # One that has ended is found out when its answer is read.
        with suppress(ConnectionError):
            self.channel.send(json.dumps(request).encode())

    def answers_within(self, seconds: float) -> bool:
        return bool(self._poll.poll(max(0.0, seconds) * 1000))

    def step_back(self) -> None:
        """Leave more of the processors to others. It cannot be taken back: the worker ends after this image."""
        self.last = True
        with suppress(OSError):
            niceness = os.getpriority(os.PRIO_PROCESS, self.pid) + NICENESS_MORE
            os.setpriority(os.PRIO_PROCESS, self.pid, min(niceness, 19))

    def receive(self) -> bytes:
        try:
            return self.channel.recv(MESSAGE_BYTES_MAX)
        except ConnectionError:
            return b""

    def take_content(self, answer: dict[str, Any], bytes_max: int) -> dict[str, Any]:
        """Return `answer` with its content, a copy of what is in the shared memory, and give back what was large."""
        self.last = self.last or bool(answer["last"])
        if "code" in answer:
            return answer
        shape = tuple(map(int, answer["shape"]))
        if min(shape) < 0 or math.prod(shape) > bytes_max:
            raise ValueError(f"expected a content of at most {bytes_max} bytes; found the shape {shape}")
        content = np.empty(shape, np.uint8)
        if os.preadv(self.memory, [content.reshape(-1).data], 0) != content.nbytes:
            raise ValueError(f"expected {content.nbytes} bytes of content; found fewer")
        if os.fstat(self.memory).st_size > SHARED_BYTES_KEPT:
            os.ftruncate(self.memory, 0)
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in answer["values"].items()}
        return {"values": values, "content": content}

    def close(self) -> None:
        self.channel.close()
        os.close(self.memory)


class _Server:
    """The process that forks the workers. ConnectionError says that it has ended."""

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._control.settimeout(SERVER_TIMEOUT_S)
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "service.imaging.decoder_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=_environment(),
            )

    def start_worker(self, memory_max: int) -> _Worker:
        """Raises OSError where there can be no further process."""
        memory = os.memfd_create("image", os.MFD_CLOEXEC)
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                told = self._converse(b"%b %d" % (START, memory_max), [theirs.fileno(), memory])
            if (pid := int(told)) < 0:
                raise OSError(-pid, f"a process that decodes images: {os.strerror(-pid)}")
        except BaseException:
            ours.close()
            os.close(memory)
            raise
        return _Worker(self, pid, ours, memory)

    def end_worker(self, pid: int) -> tuple[str, float]:
        """End the worker if it has not ended; return by what it did, in words, and the CPU time that it used, s."""
        status, cpu_s = self._converse(b"%b %d" % (END, pid)).split()
        code = os.waitstatus_to_exitcode(int(status))
        return signal.Signals(-code).name if code < 0 else f"exit code {code}", float(cpu_s)

    def close(self) -> None:
        """End the server, and with it its workers."""
        self._control.close()
        self._process.wait()

    def _converse(self, message: bytes, descriptors: list[int] | None = None) -> bytes:
        try:
            socket.send_fds(self._control, [message], descriptors or [])
            answer = self._control.recv(MESSAGE_BYTES_MAX)
        except TimeoutError:
            self._process.kill()
            answer = b""
        if not answer:
            raise ConnectionError("the server of the decoders has ended")
        return answer


def _environment() -> dict[str, str]:
    # Threads would not survive the fork, and their stacks would count as memory.
    found = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    # The code that asks, however it was found; an installed one is found anyway, and must not go before Python's own.
    if CODE not in site.getsitepackages():
        found["PYTHONPATH"] = os.pathsep.join(filter(None, (CODE, os.environ.get("PYTHONPATH"))))
    return found


def _write(memory: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        left = left[os.pwrite(memory, left, len(data) - len(left)) :]
