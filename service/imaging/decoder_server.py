"""The decoder's processes, from within: a server that is asked to start and to end workers, and the workers.

The server has loaded what decodes, has one thread, and forks itself for each worker: in milliseconds, and with most of
its memory shared. It reads no image. A worker reads one image at a time, in as much memory as that image's header
calls for. All of them end when the process that asks is gone. `decoder_processes` is the other side.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import resource
import select
import signal
import socket
import struct
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from PIL import BmpImagePlugin, Image, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin

from service.imaging import tiff_pages, tiff_pixels
from service.imaging.decode import FORMATS, DecodeError
from service.imaging.decoder import TASKS, DecoderAnswer

# Loaded before the first worker is forked: a format that is not there yet makes Pillow load all that it has.
PLUGINS = (BmpImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin, WebPImagePlugin)

TOO_MUCH_MEMORY = "too_much_memory"
MESSAGE_BYTES_MAX = 1 << 16
REASON_CHARACTERS_MAX = 2000
START, END = b"start", b"end"
BYE = b"bye"
"""What a worker says that ends by itself: whatever it was asked meanwhile it has not begun."""

# What decoding takes, at most: the pixels as they are stored, converted to RGBA, laid on white and as RGB, 4 bytes each
# time, and what a progressive JPEG keeps of its coefficients.
BYTES_A_PIXEL = 24
# Beside the pixels, whatever the format: tables, profiles, texts.
BYTES_MORE = 16_000_000
# To resize a row takes 16 bytes for each of its pixels, which for the longest line of a line-scan camera is little.
SIDE_MAX = 500_000
PNG_SIGNATURE, PNG_HEADER_BYTES = b"\x89PNG\r\n\x1a\n", 24
# Beside that memory, room for libraries that are loaded at the first image which needs them.
LIBRARIES_BYTES = 500_000_000

# Kept from image to image, so that the kernel need not find it each time; beyond that it is given back.
SHARED_BYTES_KEPT = 4_000_000

TRIM_AFTER_S = 1.0
IDLE_MAX_S = 60.0
# What a worker has kept beyond this after an image goes by ending it.
KEPT_BYTES_MAX = 32_000_000
OOM_SCORE = 500
PILLOW_LACKS_MEMORY = ("out of memory", "decoder error -9")

STATM = Path("/proc/self/statm")
_PR_SET_PDEATHSIG = 1
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_ALL, _DATA = 0, 5  # of proc(5), statm: all its address space; what it has allocated
_libc = ctypes.CDLL(None)


def main() -> None:
    """Serve the socket whose descriptor is the first argument until its other end is closed."""
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        # Meant for who asks: what is being decoded is brought to its end before it closes the socket.
        signal.signal(number, signal.SIG_IGN)
    with suppress(OSError):
        # Where memory runs out, an image that takes too much goes before what sorts the others.
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE), encoding="ascii")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with suppress(AttributeError):  # not the GNU C library
        # Else what one image took is given back to the kernel and asked for again with the next, page by page.
        _libc.mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES_MAX)
        _libc.mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES_MAX)
    Image.MAX_IMAGE_PIXELS = None  # the limit of the settings is the only one
    gc.collect()
    gc.freeze()  # so that looking for garbage does not write to memory that the workers share
    _serve(socket.socket(fileno=int(sys.argv[1])))


class _Workers:
    """The workers that were started and not yet asked to end."""

    def __init__(self) -> None:
        self._running: set[int] = set()
        self._ended: dict[int, tuple[int, resource.struct_rusage]] = {}
        signal.signal(signal.SIGCHLD, lambda *_: self._collect())

    def start(self, control: socket.socket, descriptors: list[int], memory_max: int) -> int:
        """Fork a worker; return its process id, or the negative errno where that fails."""
        try:
            pid = os.fork()
        except OSError as error:
            return -(error.errno or 1)
        if not pid:
            control.close()
            _work(socket.socket(fileno=descriptors[0]), descriptors[1], memory_max)
        self._running.add(pid)
        return pid

    def end(self, pid: int) -> bytes:
        """End a worker, if it has not ended; return its status as of wait(2) and the CPU time that it used, s."""
        self._running.discard(pid)
        if pid not in self._ended:
            # Nobody else waits for it from now on, so the id is its own.
            os.kill(pid, signal.SIGKILL)
            self._ended[pid] = os.wait4(pid, 0)[1:]
        status, used = self._ended.pop(pid)
        return f"{status} {used.ru_utime + used.ru_stime}".encode()

    def kill(self) -> None:
        for pid in self._running:
            os.kill(pid, signal.SIGKILL)

    def _collect(self) -> None:
        """Take note of those that have ended by themselves, so that nothing is left of them but that."""
        for pid in list(self._running):
            found, status, used = os.wait4(pid, os.WNOHANG)
            if found:
                self._running.discard(pid)
                self._ended[pid] = (status, used)


def _serve(control: socket.socket) -> None:
    workers = _Workers()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, MESSAGE_BYTES_MAX, 2)
        verb, _, value = message.partition(b" ")
        if verb == START:
            answer = b"%d" % workers.start(control, descriptors, int(value))
            for descriptor in descriptors:
                os.close(descriptor)
        elif verb == END:
            answer = workers.end(int(value))
        else:  # nobody asks any more
            workers.kill()
            return
        control.send(answer)


# A worker


def _work(channel: socket.socket, memory: int, memory_max: int) -> NoReturn:
    """Answer what is asked on `channel` about the bytes in `memory` until its other end is closed, then exit."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    parent = os.getppid()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)
    # What it needs is open: a few more are for the libraries.
    resource.setrlimit(resource.RLIMIT_NOFILE, (memory + 16, memory + 16))
    address_space = _bytes(_ALL) + memory_max + LIBRARIES_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))
    kept_from = _bytes(_DATA)
    incoming = select.poll()
    incoming.register(channel, select.POLLIN)
    ending = False
    with suppress(BrokenPipeError):
        while not ending:
            if not incoming.poll(TRIM_AFTER_S * 1000):
                _trim()
                if not incoming.poll((IDLE_MAX_S - TRIM_AFTER_S) * 1000):
                    break
            message = channel.recv(MESSAGE_BYTES_MAX)
            if not message:
                break
            answer = _answer(json.loads(message), memory, memory_max)
            ending = _bytes(_DATA) - kept_from > KEPT_BYTES_MAX and _still_more(kept_from)
            channel.send(json.dumps({**answer, "cpu_s": time.process_time(), "last": ending}).encode())
        channel.send(BYE)
    os._exit(0)


def _answer(request: dict[str, Any], memory: int, memory_max: int) -> dict[str, Any]:
    data = _read(memory, request["bytes"])
    if len(data) > SHARED_BYTES_KEPT:
        os.ftruncate(memory, 0)
    allowed = min(memory_max, BYTES_MORE + len(data))
    try:
        # The header too may be made to take all memory.
        with _in_memory_of(allowed):
            more = _memory_for_pixels(data)
        allowed = min(memory_max, allowed + more)
        with _in_memory_of(allowed):
            made = TASKS[request["task"]](data, **request["arguments"])
    except DecodeError as error:
        if not _for_lack_of_memory(error):
            return {"code": error.code, "message": str(error)[:REASON_CHARACTERS_MAX]}
    except MemoryError:
        pass
    else:
        return _told(made, memory)
    message = f"expected to decode it in {allowed // 1_000_000} MB, plenty for such an image; it takes more"
    return {"code": TOO_MUCH_MEMORY, "message": message}


@contextmanager
def _in_memory_of(more: int) -> Iterator[None]:
    """Allow so many bytes more of data: libraries are not counted, what they allocate is."""
    limits = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (_bytes(_DATA) + more, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, limits)


def _told(made: DecoderAnswer, memory: int) -> dict[str, Any]:
    content = memoryview(made.content.tobytes())
    written = 0
    while written < len(content):
        written += os.pwrite(memory, content[written:], written)
    return {"values": dict(made.values), "shape": made.content.shape}


def _memory_for_pixels(data: bytes) -> int:
    """Return how many bytes the pixels of `data` may take while it is decoded, by its header.

    Raises DecodeError for a side that no camera has.
    """
    sizes, more = [(0, 0)], 0
    if data[:8] == PNG_SIGNATURE and len(data) >= PNG_HEADER_BYTES:
        # By hand: Pillow would unpack all the texts before the pixels, and again when it decodes.
        sizes.append(struct.unpack(">II", data[16:PNG_HEADER_BYTES]))
    elif data[:4] in tiff_pages.SIGNATURES:
        # Not by Pillow, which knows neither all kinds nor which page it will be. What is refused the task tells.
        with suppress(DecodeError):
            page = tiff_pages.main_page(data)
            sizes.append((page.width, page.height))
            more = BYTES_A_PIXEL * len(data) + round(tiff_pixels.bytes_a_pixel(page) * page.width * page.height)
    else:
        # What of the header cannot be read is told by the task itself.
        with suppress(Exception), Image.open(io.BytesIO(data), formats=FORMATS) as image:
            sizes.append(image.size)
    width, height = max(sizes, key=max)
    if max(width, height) > SIDE_MAX:
        raise DecodeError("too_many_pixels", f"expected sides of at most {SIDE_MAX} pixels; found {width} x {height}")
    return BYTES_A_PIXEL * max(wide * high for wide, high in sizes) + more


def _for_lack_of_memory(error: DecodeError) -> bool:
    # `decode` tells of all that a library raises in one way, this among it.
    cause: BaseException | None = error if error.code == "damaged" else None
    while cause is not None:
        if isinstance(cause, MemoryError) or any(words in str(cause) for words in PILLOW_LACKS_MEMORY):
            return True
        cause = cause.__context__
    return False


def _read(memory: int, size: int) -> bytes:
    data = os.pread(memory, size, 0)
    if len(data) != size:
        raise OSError(f"expected {size} bytes of the image; found {len(data)}")
    return data


def _bytes(field: int) -> int:
    """Return a figure of this process in bytes, by its place in /proc/self/statm."""
    return int(STATM.read_bytes().split()[field]) * resource.getpagesize()


def _trim() -> None:
    with suppress(AttributeError):  # not the GNU C library
        _libc.malloc_trim(0)


def _still_more(kept_from: int) -> bool:
    _trim()
    return _bytes(_DATA) - kept_from > KEPT_BYTES_MAX


if __name__ == "__main__":
    main()
