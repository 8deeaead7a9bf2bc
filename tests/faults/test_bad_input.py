"""Files that a camera, a share or an attacker may leave, before a real daemon: each is put aside with its reason, or
scored for what it is, and the daemon goes on.
"""

from __future__ import annotations

import ctypes
import io
import os
import random
import socket
import stat
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.conftest import REPOSITORY, image_bytes
from tests.faults.root_for_faults import (
    drop,
    drop_good,
    make_root,
    problems,
    query,
    run_until_settled,
    settled,
    waiting,
)
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.failing_decoder import bad_image, hook

GOOD = 12
MEMORY_FACTOR_MAX = 1.5
FORMATS = ("JPEG", "PNG", "BMP", "TIFF", "WEBP")


def encoded(image: Image.Image, image_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def grey(value: int = 20, size: tuple[int, int] = (90, 60)) -> Image.Image:
    noise = np.random.default_rng(value).integers(0, 8, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(noise + np.uint8(value))


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, bits: int = 8, colour: int = 0) -> bytes:
    """Return a PNG of that header with `chunks` between it and its end."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(chunks) + png_chunk(b"IEND", b"")


def endless_tiff() -> bytes:
    """Return a TIFF whose second directory says that the next is itself."""
    whole = bytearray(encoded(grey(), "TIFF", save_all=True, append_images=[grey(30)]))
    first = struct.unpack_from("<I", whole, 4)[0]
    second_at = first + 2 + 12 * struct.unpack_from("<H", whole, first)[0]
    second = struct.unpack_from("<I", whole, second_at)[0]
    struct.pack_into("<I", whole, second + 2 + 12 * struct.unpack_from("<H", whole, second)[0], second)
    return bytes(whole)


def cut(data: bytes) -> bytes:
    return data[: len(data) * 2 // 3]


NOTHING = zlib.compress(bytes(9001 * 9000), 9)
TEXT = b"comment\0\0" + zlib.compress(b"a" * 100_000_000, 9)
DEEP = Image.fromarray(np.full((60, 90), 20 * 257, np.uint16))

# An EXIF block whose only entry says that the image was taken with the camera turned (orientation 6).
UPRIGHT_IS_LEFT = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
REFUSED = {
    # name: (content, code of the reason)
    "empty.png": (b"", "empty"),
    "cut.jpg": (cut(encoded(grey(), "JPEG")), "damaged"),
    "cut.png": (cut(encoded(grey(), "PNG")), "damaged"),
    "cut.tif": (cut(encoded(grey(), "TIFF")), "damaged"),
    "100-megapixels.png": (png(10_000, 10_000, png_chunk(b"IDAT", zlib.compress(b"\0"))), "too_many_pixels"),
    "400-megapixels.png": (png(20_000, 20_000, png_chunk(b"IDAT", zlib.compress(b"\0"))), "too_many_pixels"),
    "81-megapixels-in-79-kB.png": (png(9000, 9000, png_chunk(b"IDAT", NOTHING)), "too_many_pixels"),
    "a-gif.png": (encoded(grey().convert("P"), "GIF"), "format"),
    "an-eps.png": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", "format"),
    "an-svg.png": (b'<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>', "format"),
    "text.png": (b"this is no image\n" * 50, "format"),
    "float.tif": (encoded(Image.new("F", (90, 60), 0.5), "TIFF"), "mode"),
}
SCORED = {
    # name: (content, mode on record, width and height on record)
    "two-pages.tif": (encoded(grey(), "TIFF", save_all=True, append_images=[grey(200)]), "RGB", (90, 60)),
    "16-bit.png": (encoded(DEEP, "PNG"), "I;16", (90, 60)),
    "cmyk.jpg": (encoded(grey().convert("CMYK"), "JPEG"), "CMYK", (90, 60)),
    "palette.png": (encoded(grey().quantize(8), "PNG"), "P", (90, 60)),
    "alpha.png": (encoded(grey().convert("RGBA"), "PNG"), "RGBA", (90, 60)),
    "1-bit.png": (encoded(Image.new("1", (90, 60)), "PNG"), "1", (90, 60)),
    "grey.png": (encoded(grey().convert("L"), "PNG"), "L", (90, 60)),
    "turned.jpg": (encoded(grey(), "JPEG", exif=UPRIGHT_IS_LEFT), "RGB", (60, 90)),
}  # fmt: skip
EITHER = {
    "endless.tif": endless_tiff(),
    "100-MB-of-text.png": png(60, 90, png_chunk(b"zTXt", TEXT), png_chunk(b"IDAT", zlib.compress(bytes(61 * 90)))),
}
NAMES = (
    b"latin-\xe9\xff.png",
    b"n" * 251 + b".png",
    b"new\nline.png",
    b"-rf.png",
    b"a..png",
    b"quote'\".png",
    b"<img src=x onerror=alert(1)>.png",
    b"%2e%2e%2f.png",
    b"; DROP TABLE images;--.png",
)


class Sorted:
    """A root into which all of the above was dropped at once, sorted by one run of the daemon."""

    def __init__(self, root: Path) -> None:
        self.root = make_root(root)
        self.dropped = drop_good(root, GOOD)
        self.normal_peak_kb = 0
        with DaemonProcess(root) as process:
            process.wait_ready()
            wait_until(settled(root, GOOD), "the good images sorted", poll_s=0.1)
            self.normal_peak_kb = peak_kb(process)
            for name, (content, *_) in (REFUSED | SCORED).items():
                self.dropped.append(drop(root, name, content))
            self.dropped += [drop(root, name, content) for name, content in EITHER.items()]
            self.dropped += [drop(root, name, image_bytes(20, seed=900 + n)) for n, name in enumerate(NAMES)]
            with (root / "incoming/.sparse").open("wb") as file:
                file.truncate(2_000_000_000)
            (root / "incoming/.sparse").rename(root / "incoming/sparse.png")
            wait_until(settled(root, len(self.dropped) + 1), "all sorted", poll_s=0.1)
            self.peak_kb = peak_kb(process)
            assert process.stop() == 0, process.log_text()
            self.log = process.log_text()
        self.rows = {
            row["file_name"]: row for row in query(root, "SELECT r.*, mode FROM results AS r JOIN images USING (id)")
        }


def peak_kb(process: DaemonProcess) -> int:
    [line] = [
        line
        for line in Path(f"/proc/{process.process.pid}/status").read_text().splitlines()
        if line.startswith("VmHWM:")
    ]
    return int(line.split()[1])


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Sorted:
    return Sorted(tmp_path_factory.mktemp("faults") / "root")


def test_nothing_that_was_dropped_is_lost_or_there_twice(everything: Sorted) -> None:
    sparse = everything.root / everything.rows["sparse.png"]["path"]
    assert sparse.stat().st_size == 2_000_000_000
    sparse.unlink()
    found = problems(everything.root, everything.dropped)
    assert [one for one in found if "rows and files" not in one] == []
    assert len(everything.rows) == len(query(everything.root, "SELECT id FROM results"))


def test_good_images_beside_them_are_scored(everything: Sorted) -> None:
    good = [row for name, row in everything.rows.items() if name.startswith("good-")]
    assert len(good) == GOOD and sum(row["verdict"] == "anomaly" for row in good) == GOOD // 3


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_whole_image_of_bounded_size_is_quarantined_with_its_reason(everything: Sorted, name: str) -> None:
    row = everything.rows[name]
    assert (row["state"], row["verdict"], row["score"], row["error_code"]) == (
        *("quarantined", None, None),
        REFUSED[name][1],
    )
    assert row["error"] and row["path"].startswith("quarantine/")


@pytest.mark.parametrize("name", SCORED)
def test_rare_modes_are_scored_upright_and_on_record(everything: Sorted, name: str) -> None:
    row = everything.rows[name]
    assert (row["verdict"], row["mode"], (row["width"], row["height"])) == ("normal", *SCORED[name][1:]), row["error"]


@pytest.mark.parametrize("name", EITHER)
def test_what_would_take_for_ever_or_all_memory_takes_neither(everything: Sorted, name: str) -> None:
    row = everything.rows[name]
    assert row["state"] in ("placed", "quarantined") and row["latency_ms"] < 10_000


def test_two_gigabytes_of_nothing_are_refused_unread(everything: Sorted) -> None:
    row = everything.rows["sparse.png"]
    assert (row["error_code"], row["sha256"], row["state"]) == ("too_many_bytes", None, "quarantined")
    assert row["latency_ms"] < 10_000


def test_memory_stays_near_that_of_normal_work(everything: Sorted) -> None:
    print(f"peak {everything.peak_kb} kB, after good images alone {everything.normal_peak_kb} kB")
    assert everything.peak_kb <= MEMORY_FACTOR_MAX * everything.normal_peak_kb


def test_names_are_stored_safe_and_their_files_keep_their_bytes(everything: Sorted) -> None:
    rows = query(everything.root, "SELECT * FROM results WHERE verdict IS NOT NULL AND path NOT LIKE '%good-%'")
    of_names = [row for row in rows if row["sha256"] in everything.dropped[-len(NAMES) :]]
    assert len(of_names) == len(NAMES)
    for row in of_names:
        row["path"].encode()  # can be told to anybody
        assert row["path"].startswith("normal/default/") and len(row["path"].split("/")) == 4
        assert "\n" not in row["path"] and len(row["path"].rpartition("/")[2].encode()) <= 255
        assert (everything.root / row["path"]).is_file()


def test_log_tells_of_each_reason_and_not_of_each_file_for_ever(everything: Sorted) -> None:
    assert "Traceback" not in everything.log
    assert everything.log.count("quarantined") <= len(REFUSED) + len(EITHER) + 3


# Not even files


def test_links_pipes_devices_and_folders_are_neither_followed_nor_waited_for(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    outside = tmp_path / "secret.png"
    outside.write_bytes(image_bytes(20, seed=1))
    incoming = root / "incoming"
    (incoming / "link.png").symlink_to(outside)
    (incoming / "hanging.png").symlink_to(tmp_path / "nothing")
    (incoming / "linked-folder").symlink_to(tmp_path)
    os.mkfifo(incoming / "pipe.png")
    (incoming / "folder.png").mkdir()
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(incoming / "socket.png"))
    if os.geteuid() == 0:
        os.mknod(incoming / "device.png", 0o600 | stat.S_IFCHR, os.makedev(1, 5))
    dropped = [*drop_good(root, 3), drop(root, "folder.png/inner.png", image_bytes(20, seed=77))]
    twice = tmp_path / "elsewhere.png"
    twice.write_bytes(image_bytes(20, seed=78))
    os.link(twice, incoming / "hard.png")
    run_until_settled(root, 5)
    rows = query(root, "SELECT file_name, sha256 FROM results ORDER BY file_name")
    assert [row["file_name"] for row in rows] == [
        "good-0000.png", "good-0001.png", "good-0002.png", "hard.png", "inner.png",
    ]  # fmt: skip
    assert {row["sha256"] for row in rows} > set(dropped)
    assert (incoming / "link.png").is_symlink() and (incoming / "pipe.png").is_fifo()
    assert outside.read_bytes() == image_bytes(20, seed=1) and twice.is_file()


def test_destination_folder_that_is_swapped_for_a_link_again_and_again_takes_nothing_outside(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    outside = tmp_path / "outside"
    outside.mkdir()
    ending = threading.Event()
    place, link = root / "normal/default", root / "normal/.link"
    place.mkdir(parents=True)
    link.symlink_to(outside)

    def swap() -> None:
        while not ending.wait(0.001):
            exchange(place, link)
        if place.is_symlink():
            exchange(place, link)

    swapping = threading.Thread(target=swap)
    # A refused delivery ends the daemon, which systemd starts again; here as often as it takes.
    dropped = drop_good(root, 40)
    swapping.start()
    try:
        for _ in range(3):
            with DaemonProcess(root) as process:
                until = time.monotonic() + 4
                while time.monotonic() < until and process.process.poll() is None:
                    time.sleep(0.05)
    finally:
        ending.set()
        swapping.join()
    assert list(outside.rglob("*")) == []
    link.unlink()
    run_until_settled(root, len(dropped))
    assert problems(root, dropped) == []


def exchange(one: Path, other: Path) -> None:
    """Swap the names of two files at once, by renameat2(2): there is no moment without either."""
    if ctypes.CDLL(None, use_errno=True).renameat2(-100, os.fsencode(one), -100, os.fsencode(other), 2):
        raise OSError(ctypes.get_errno(), "renameat2")


# What ends or stops the process that decodes


@pytest.mark.parametrize("how", ["crash", "hang"])
def test_image_that_ends_the_decoder_is_put_aside_after_its_attempts_and_the_others_are_scored(
    tmp_path: Path, how: str
) -> None:
    root = make_root(tmp_path / "root", "attempts_max = 3\ndecode_timeout_s = 1.0\n")
    dropped = [drop(root, f"bad-{number}.png", bad_image(how, seed=500 + number)) for number in range(2)]
    dropped += drop_good(root, 20)
    environment = {"PYTHONPATH": f"{hook(tmp_path)}{os.pathsep}{REPOSITORY}"}
    with DaemonProcess(root, environment=environment) as process:
        wait_until(settled(root, len(dropped)), "all sorted", poll_s=0.1)
        # The same daemon, from the first image to the last.
        assert process.stop() == 0, process.log_text()
        log = process.log_text()
    assert problems(root, dropped) == []
    rows = {row["file_name"]: row for row in query(root, "SELECT * FROM results")}
    for number in range(2):
        bad = rows.pop(f"bad-{number}.png")
        assert (bad["state"], bad["error_code"]) == ("quarantined", "attempts_exhausted")
    assert all(row["verdict"] is not None for row in rows.values())
    assert log.count("decoder ended") == 2 * 3 and "Traceback" not in log
    if how == "hang":
        # Two that hang for three times a second, and turns for two: nobody waits for them to the end.
        assert max(row["latency_ms"] for row in rows.values()) < 3_000


def test_score_that_is_no_number_is_never_a_verdict(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    install(root, version="broken", graph_offset=float("nan"), product="lid")
    (root / "incoming/lid").mkdir()
    dropped = [drop(root, "lid/part.png", image_bytes(20, seed=1)), *drop_good(root, 2)]
    run_until_settled(root, 3)
    assert problems(root, dropped) == []
    [row] = query(root, "SELECT * FROM results WHERE product = 'lid'")
    assert (row["verdict"], row["state"], row["error_code"]) == (None, "quarantined", "score_not_finite")


# Many


def mutations(count: int, seed: int = 1) -> Iterator[bytes]:
    """Yield good files of each format with a few bytes changed, cut out, doubled or swapped; seeded."""
    rng = random.Random(seed)
    good = [encoded(grey(20 + number), image_format) for number, image_format in enumerate(FORMATS)]
    for number in range(count):
        data = bytearray(good[number % len(good)])
        for _ in range(rng.choice([1, 1, 2, 8, 64])):
            at = rng.randrange(len(data))
            match rng.randrange(5):
                case 0:
                    data[at] ^= 1 << rng.randrange(8)
                case 1:
                    data[at] = rng.choice([0, 0xFF, 0x7F, 0x80])
                case 2:
                    del data[at : at + rng.randrange(1, 40)]
                case 3:
                    data[at:at] = data[at : at + rng.randrange(1, 40)]
                case 4:
                    data[at : at + 4] = rng.randbytes(4)
            if len(data) < 16:
                break
        yield bytes(data) + number.to_bytes(4, "big")


@pytest.mark.parametrize(
    "count", [pytest.param(200, id="200"), pytest.param(10_000, id="10000", marks=pytest.mark.long)]
)
def test_mutated_files_end_nothing_take_no_ten_seconds_and_no_memory(tmp_path: Path, count: int) -> None:
    root = make_root(tmp_path / "root", "anomaly_maps = false\n")
    # Thousands of good images take more memory than a dozen: 203 MB after 5000, 156 MB after 12.
    good = max(GOOD, count // 5)
    dropped = drop_good(root, good)
    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(settled(root, good), "the good images sorted", 60 + good / 20, poll_s=0.1)
        before = peak_kb(process)
        for number, content in enumerate(mutations(count)):
            dropped.append(drop(root, f"mutated-{number:05}.png", content))
            # A short queue, so that how long one took says how long it was worked on.
            while number % 50 == 49 and len(waiting(root)) > 100:
                time.sleep(0.1)
        wait_until(settled(root, good + count), "all sorted", 60 + count / 20, poll_s=0.5)
        after = peak_kb(process)
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []
    rows = query(root, "SELECT state, error_code, latency_ms FROM results WHERE file_name LIKE 'mutated-%'")
    quarantined = sum(row["state"] == "quarantined" for row in rows)
    slowest_ms = max(row["latency_ms"] for row in rows)
    print(f"{count} mutations: {quarantined} quarantined, slowest {slowest_ms:.0f} ms, peak {before} kB to {after} kB")
    assert len(rows) == count and count // 10 < quarantined < count and slowest_ms < 10_000
    assert after <= MEMORY_FACTOR_MAX * before


@pytest.mark.parametrize(
    "count", [pytest.param(400, id="400"), pytest.param(10_000, id="10000", marks=pytest.mark.long)]
)
def test_many_bad_files_are_counted_exactly_and_told_of_seldom(tmp_path: Path, count: int) -> None:
    root = make_root(tmp_path / "root")
    dropped = [drop(root, f"bad-{number:05}.png", f"no image {number}".encode()) for number in range(count)]
    log = run_until_settled(root, count, 60 + count / 20)
    assert problems(root, dropped) == []
    [row] = query(root, "SELECT count(*) AS n FROM results WHERE error_code = 'format' AND state = 'quarantined'")
    lines = log.count("\n")
    print(f"{count} bad files: {lines} lines of log")
    assert row["n"] == count and lines < 60 + count / 5
