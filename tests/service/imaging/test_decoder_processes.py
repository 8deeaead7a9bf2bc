"""The real processes; what an image does to its decoder is done by images that a hook knows."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tifffile
from PIL import Image

from models.appearance import appearance_of
from service.imaging import decoder_processes
from service.imaging.decode import DecodeError, decode, decode_within
from service.imaging.decoder import Decoder
from service.imaging.decoder_processes import DecoderEnded, DecoderProcesses, memory_needed
from tests.conftest import REPOSITORY, image_bytes
from tests.support.daemon_process import wait_until
from tests.support.failing_decoder import bad_image, hook

MEMORY = memory_needed(60_000_000, 200_000_000)
SIZE = (40, 60)


def encoded(image: Image.Image, image_format: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def server_of(decoder: DecoderProcesses) -> psutil.Process:
    assert decoder._server is not None
    return psutil.Process(decoder._server._process.pid)


def workers_of(decoder: DecoderProcesses) -> list[psutil.Process]:
    return server_of(decoder).children()


@pytest.fixture(scope="module")
def processes() -> Iterator[DecoderProcesses]:
    decoder = DecoderProcesses(2, timeout_s=30.0, memory_max=MEMORY)
    yield decoder
    decoder.close()


@pytest.fixture
def failing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., DecoderProcesses]]:
    """Makes decoders that crash, hang or compute for ever at what `bad_image` makes."""
    monkeypatch.setenv("PYTHONPATH", f"{hook(tmp_path)}{os.pathsep}{REPOSITORY}")
    made = []

    def make(processes: int = 1, timeout_s: float = 30.0) -> DecoderProcesses:
        made.append(DecoderProcesses(processes, timeout_s=timeout_s, memory_max=MEMORY))
        return made[-1]

    yield make
    for decoder in made:
        decoder.close()


NOISE = Image.fromarray(np.random.default_rng(1).integers(0, 256, (300, 500, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.random.default_rng(2).integers(0, 1 << 16, (300, 500), dtype=np.uint16))


@pytest.mark.parametrize(
    "content",
    [
        encoded(NOISE),
        encoded(NOISE, "JPEG"),
        encoded(NOISE, "WEBP"),
        encoded(NOISE, "BMP"),
        encoded(NOISE, "TIFF"),
        encoded(DEEP),
        encoded(NOISE.convert("LA")),
    ],
    ids=["png", "jpeg", "webp", "bmp", "tiff", "16 bits", "alpha"],
)
@pytest.mark.parametrize("draft", [False, True])
def test_process_reads_the_same_as_a_thread(processes: DecoderProcesses, content: bytes, draft: bool) -> None:
    alone = decode(content, SIZE, draft=draft)
    image, appearance = processes.look(content, SIZE, draft=draft)
    described = [(one.height, one.width, one.mode, one.drafted) for one in (image, alone)]
    assert (
        np.array_equal(image.pixels, alone.pixels) and image.pixels.dtype == np.uint8 and described[0] == described[1]
    )
    assert appearance == appearance_of(alone.pixels) == Decoder().look(content, SIZE, draft=draft)[1]
    assert np.array_equal(processes.decode(content, SIZE, draft=draft).pixels, alone.pixels)
    within = processes.within(content, 100, pixels_max=10**6)
    assert np.array_equal(within, np.asarray(decode_within(content, 100)))
    small = processes.jpeg(content, 100, quality=80, pixels_max=10**6)
    assert Image.open(io.BytesIO(small)).size == (100, 60)
    assert processes.format_of(content, pixels_max=10**6) == Decoder().format_of(content, pixels_max=10**6)


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"no image", "format"),
        (encoded(NOISE)[:-2000], "damaged"),
        (encoded(Image.new("L", (2000, 1000))), "too_many_pixels"),
    ],
)
def test_reason_why_an_image_is_not_read_comes_back(processes: DecoderProcesses, content: bytes, code: str) -> None:
    with pytest.raises(DecodeError) as alone:
        decode(content, SIZE, pixels_max=1_000_000)
    with pytest.raises(DecodeError) as told:
        processes.decode(content, SIZE, pixels_max=1_000_000)
    assert (told.value.code, str(told.value)) == (code, str(alone.value))
    assert not isinstance(told.value, DecoderEnded)


def test_many_threads_get_each_the_pixels_of_its_own_image(processes: DecoderProcesses) -> None:
    contents = [image_bytes(number, seed=number) for number in range(0, 240, 4)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda content: processes.decode(content, SIZE).pixels, contents))
    for content, pixels in zip(contents, found, strict=True):
        assert np.array_equal(pixels, decode(content, SIZE).pixels)
    assert len(workers_of(processes)) <= 2


def test_image_larger_than_what_is_kept_shared_is_read_and_given_back(processes: DecoderProcesses) -> None:
    rng = np.random.default_rng(3)
    content = encoded(Image.fromarray(rng.integers(0, 256, (1500, 2000, 3), dtype=np.uint8)), "BMP")
    assert np.array_equal(processes.within(content, None, pixels_max=10**7), np.asarray(decode_within(content)))
    assert os.fstat(processes._idle[-1].memory).st_size == 0


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "I;16", "P"])
def test_largest_image_that_is_allowed_has_the_memory_that_it_takes(processes: DecoderProcesses, mode: str) -> None:
    content = encoded(Image.new(mode, (3500, 3400)))
    assert processes.decode(content, SIZE).mode == mode


@pytest.mark.parametrize(
    ("shape", "dtype", "options"),
    [
        ((2000, 2000, 3), "float32", {"photometric": "rgb", "compression": "lzw"}),
        ((3, 2000, 2000), "uint16", {"photometric": "rgb", "planarconfig": "separate", "compression": "adobe_deflate"}),
        ((2500, 2500), "float16", {"compression": "adobe_deflate"}),
    ],
)
def test_tiff_of_a_kind_that_pillow_does_not_know_has_the_memory_that_it_takes(
    processes: DecoderProcesses, shape: tuple[int, ...], dtype: str, options: dict[str, Any]
) -> None:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as file:
        file.write(np.zeros((16, 16), np.uint8), subfiletype=1)  # a thumbnail first
        file.write(np.zeros(shape, dtype), **options)
    read = processes.decode(buffer.getvalue(), (20, 30), pixels_max=60_000_000, value_range=(0.0, 4095.0))
    assert (read.height, read.width) == (max(shape), max(shape)) and read.deep


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA", "L", "I;16", "P"])
def test_image_that_takes_more_memory_than_is_allowed_is_told_so(mode: str) -> None:
    small = DecoderProcesses(1, timeout_s=30.0, memory_max=4_000_000)
    content = encoded(Image.new(mode, (3500, 3400)))
    try:
        with pytest.raises(DecodeError) as told:
            small.decode(content, SIZE)
        assert told.value.code == "too_much_memory"
        assert small.decode(encoded(NOISE), SIZE).mode == "RGB"
    finally:
        small.close()


def test_side_that_no_camera_has_is_refused_before_decoding(processes: DecoderProcesses) -> None:
    with pytest.raises(DecodeError, match="500000 pixels; found 600000 x 1") as told:
        processes.decode(encoded(Image.new("L", (600_000, 1))), SIZE)
    assert told.value.code == "too_many_pixels"
    assert processes.decode(encoded(Image.new("L", (400_000, 2))), SIZE).width == 400_000


def test_image_that_crashes_its_decoder_is_told_by_the_signal_and_the_next_is_read(
    failing: Callable[..., DecoderProcesses],
) -> None:
    decoder = failing()
    for _ in range(3):
        with pytest.raises(DecoderEnded, match="SIGSEGV"):
            decoder.decode(bad_image("crash"), SIZE)
        assert decoder.decode(encoded(NOISE), SIZE).mode == "RGB"


def test_image_that_hangs_its_decoder_is_given_up_in_time_and_leaves_no_process(
    failing: Callable[..., DecoderProcesses],
) -> None:
    decoder = failing(timeout_s=1.0)
    with pytest.raises(DecoderEnded, match="within 1 s"):
        decoder.decode(bad_image("hang"), SIZE)
    assert workers_of(decoder) == []


def test_close_waits_for_no_image(failing: Callable[..., DecoderProcesses]) -> None:
    decoder = failing(timeout_s=1000.0)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(decoder.decode, bad_image("hang"), SIZE)
        wait_until(lambda: decoder._server is not None and len(workers_of(decoder)) == 1, "a worker that hangs")
        decoder.close()
        assert isinstance(hanging.exception(timeout=20), DecoderEnded)
    with pytest.raises(DecoderEnded, match="closed"):
        decoder.decode(encoded(NOISE), SIZE)


def test_image_that_computes_for_ever_is_too_slow_and_its_time_is_counted(
    failing: Callable[..., DecoderProcesses], monkeypatch: pytest.MonkeyPatch
) -> None:
    # So little that others who use the processor change nothing.
    monkeypatch.setattr(decoder_processes, "BUSY_SHARE", 0.02)
    decoder = failing(timeout_s=1.5)
    with pytest.raises(DecodeError) as told:
        decoder.decode(bad_image("compute"), SIZE)
    assert told.value.code == "too_slow" and not isinstance(told.value, DecoderEnded)
    assert decoder.cpu_s > 0.02


def test_image_that_takes_all_memory_is_told_so(failing: Callable[..., DecoderProcesses]) -> None:
    decoder = failing()
    with pytest.raises(DecodeError) as told:
        decoder.decode(bad_image("swell"), SIZE)
    assert told.value.code == "too_much_memory" and not isinstance(told.value, DecoderEnded)
    assert decoder.decode(encoded(NOISE), SIZE).mode == "RGB"


def test_image_that_is_slow_gives_its_turn_to_another(failing: Callable[..., DecoderProcesses]) -> None:
    decoder = failing(processes=1, timeout_s=30.0)
    with ThreadPoolExecutor(1) as pool:
        hanging = pool.submit(decoder.decode, bad_image("hang"), SIZE)
        wait_until(lambda: decoder._server is not None and len(workers_of(decoder)) == 1, "a worker that hangs")
        assert decoder.decode(encoded(NOISE), SIZE).mode == "RGB"
        assert not hanging.done()
        [worker] = [one for one in workers_of(decoder) if one.nice() > server_of(decoder).nice()]
        worker.kill()
        assert isinstance(hanging.exception(), DecoderEnded)


def test_worker_that_is_killed_between_two_images_costs_none(processes: DecoderProcesses) -> None:
    processes.decode(encoded(NOISE), SIZE)
    for worker in list(processes._idle):
        os.kill(worker.pid, signal.SIGKILL)
        wait_until(lambda worker=worker: worker.answers_within(0), "its end")  # type: ignore[misc]
    assert processes.decode(encoded(NOISE), SIZE).mode == "RGB"


def test_nothing_is_left_of_a_worker_that_ended(processes: DecoderProcesses) -> None:
    processes.decode(encoded(NOISE), SIZE)
    for worker in workers_of(processes):
        worker.kill()
    wait_until(lambda: not workers_of(processes), "no process, not even one that was not waited for")
    assert processes.decode(encoded(NOISE), SIZE).mode == "RGB"


def test_server_that_is_killed_is_started_anew(processes: DecoderProcesses) -> None:
    processes.decode(encoded(NOISE), SIZE)
    server = server_of(processes)
    before = server.children()
    server.kill()
    gone, alive = psutil.wait_procs(before, timeout=20)
    assert gone and not alive
    assert processes.decode(encoded(NOISE), SIZE).mode == "RGB" and server_of(processes) != server


def test_no_process_is_left_when_the_one_that_asks_is_killed(tmp_path: Path) -> None:
    script = f"""
import sys, threading
from service.imaging.decoder_processes import DecoderProcesses
from tests.support.failing_decoder import bad_image
decoder = DecoderProcesses(2, timeout_s=300.0, memory_max={MEMORY})
threading.Thread(target=decoder.decode, args=(bad_image("hang"), (40, 60))).start()
decoder.format_of(bad_image("no"), pixels_max=10**6)
print("asked", flush=True)
"""
    environment = {**os.environ, "PYTHONPATH": f"{hook(tmp_path)}{os.pathsep}{REPOSITORY}"}
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment) as asking:
        assert asking.stdout is not None and asking.stdout.readline() == b"asked\n"
        them = psutil.Process(asking.pid).children(recursive=True)
        assert len(them) == 3
        asking.kill()
    gone, alive = psutil.wait_procs(them, timeout=20)
    assert len(gone) == 3 and not alive


def test_signals_that_are_meant_for_who_asks_end_no_worker(processes: DecoderProcesses) -> None:
    processes.decode(encoded(NOISE), SIZE)
    before = [server_of(processes), *workers_of(processes)]
    for pid in [one.pid for one in before]:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            os.kill(pid, number)
    assert processes.decode(encoded(NOISE), SIZE).mode == "RGB"
    assert [server_of(processes), *workers_of(processes)] == before


def test_worker_leaves_no_core_and_opens_little(processes: DecoderProcesses) -> None:
    processes.decode(encoded(NOISE), SIZE)
    for worker in processes._idle:
        limits = Path(f"/proc/{worker.pid}/limits").read_text()
        [core] = [line.split()[-3:-1] for line in limits.splitlines() if line.startswith("Max core")]
        [files] = [line.split()[3] for line in limits.splitlines() if line.startswith("Max open files")]
        [space] = [line.split()[3] for line in limits.splitlines() if line.startswith("Max address space")]
        assert core == ["0", "0"] and int(files) <= 64 and MEMORY < int(space) < 2 * MEMORY
