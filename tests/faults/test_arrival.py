"""How images may arrive at a real daemon: slowly, overwritten, in bursts, without events, by shares that hang or are
gone, by clocks that are wrong. Each that was dropped is sorted once and whole.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.conftest import image_bytes
from tests.faults.daemon_hooks import decoding_slowly, with_few_events
from tests.faults.root_for_faults import drop, drop_good, make_root, problems, query, settled, waiting
from tests.faults.shares import SFTP_SERVER, bindfs, needs_share, sshfs
from tests.support.daemon_process import REPOSITORY, DaemonProcess, wait_until
from tests.support.web_process import WebProcess

QUEUED_EVENTS = Path("/proc/sys/fs/inotify/max_queued_events")
FAKETIME = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))), None)
DARK, BRIGHT = 20, 200


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def bitmap(brightness: int, seed: int) -> bytes:
    """Return an image that decodes whatever its pixels are, so that a mixture of two would be scored."""
    pixels = np.full((60, 90, 3), brightness, np.uint8)
    pixels[0, 0] = [seed % 256, seed // 256, 0]
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "BMP")
    return buffer.getvalue()


def parts(content: bytes, count: int) -> list[bytes]:
    size = -(-len(content) // count)
    return [content[at : at + size] for at in range(0, len(content), size)]


def wait_until_it_says(root: Path, field: str, expected: object) -> None:
    """Wait until the status file of the daemon says so."""
    path = root / "processing/main/.status.json"
    wait_until(lambda: path.exists() and json.loads(path.read_text())[field] == expected, f"{field} {expected}")


def sorted_by_verdict(root: Path) -> dict[str, int]:
    rows = query(root, "SELECT coalesce(verdict, error_code) AS what, count(*) AS n FROM results GROUP BY what")
    return {row["what"]: row["n"] for row in rows}


# Slow writers


@pytest.mark.parametrize("seconds", [pytest.param(4, id="4-s"), pytest.param(20, id="20-s", marks=pytest.mark.long)])
def test_image_that_takes_long_to_write_is_scored_once_and_whole(tmp_path: Path, seconds: int) -> None:
    root = make_root(tmp_path / "root")
    content = bitmap(DARK, 1)
    with DaemonProcess(root) as process:
        process.wait_ready()
        with (root / "incoming/slow.bmp").open("wb", buffering=0) as file:
            # Pauses of ten settle times, in which many scans see the file unchanged.
            for part in parts(content, seconds * 2):
                file.write(part)
                time.sleep(0.5)
                assert query(root, "SELECT id FROM images") == []
        wait_until(settled(root, 1), "the image sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, [sha256(content)]) == []
    assert sorted_by_verdict(root) == {"normal": 1}


def test_five_hundred_slow_writers_at_once_are_each_scored_once_and_whole(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    contents = [image_bytes(BRIGHT if number % 3 == 2 else DARK, seed=number) for number in range(500)]
    with DaemonProcess(root) as process, contextlib.ExitStack() as writers:
        process.wait_ready()
        files = [
            writers.enter_context((root / f"incoming/{number:03}.png").open("wb", buffering=0)) for number in range(500)
        ]
        for turn in range(4):
            for file, content in zip(files, contents, strict=True):
                file.write(parts(content, 4)[turn])
            # Longer than the settle time and than the time between two scans.
            time.sleep(0.6)
            assert query(root, "SELECT id FROM images") == []
        writers.close()
        wait_until(settled(root, 500), "all sorted", poll_s=0.2)
        assert process.stop() == 0, process.log_text()
    assert problems(root, map(sha256, contents)) == []
    assert sorted_by_verdict(root) == {"normal": 334, "anomaly": 166}


# Names of what is not ready, or no image


def test_partial_names_wait_for_their_rename_and_foreign_names_stay(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    incoming = root / "incoming"
    foreign = [
        ".DS_Store", "._a.png", "Thumbs.db", "b.png~", "c.png.part", "@eaDir/d.png", ".stfolder/e.png", ".f.png",
    ]  # fmt: skip
    for number, name in enumerate(foreign):
        path = incoming / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(image_bytes(DARK, seed=number))
    image = image_bytes(DARK, seed=99)
    with DaemonProcess(root) as process:
        process.wait_ready()
        (incoming / "g.png.tmp").write_bytes(image)
        dropped = drop_good(root, 3)
        wait_until(settled_of(root, 3), "the good ones sorted")
        # Through several scans, each of which sees it closed and unchanged.
        time.sleep(1.2)
        assert (incoming / "g.png.tmp").exists()
        (incoming / "g.png.tmp").rename(incoming / "g.png")
        wait_until(settled_of(root, 4), "the renamed one sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, [*dropped, sha256(image)]) == []
    names = [row["file_name"] for row in query(root, "SELECT file_name FROM results ORDER BY file_name")]
    assert names == ["g.png", "good-0000.png", "good-0001.png", "good-0002.png"]
    assert all((incoming / name).read_bytes() == image_bytes(DARK, seed=n) for n, name in enumerate(foreign))


def settled_of(root: Path, count: int):  # type: ignore[no-untyped-def]
    """As `settled`, where other files stay in `incoming/` for good."""
    return lambda: query(root, "SELECT count(*) AS n FROM images WHERE state = 'placed'")[0]["n"] >= count


# Overwritten, dropped again, taken away


def test_image_overwritten_while_it_is_scored_is_the_last_version_and_never_a_mixture(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    first, last = bitmap(DARK, 1), bitmap(BRIGHT, 2)
    with DaemonProcess(root, environment=decoding_slowly(tmp_path, 0.4)) as process:
        process.wait_ready()
        drop(root, "a.bmp", first)
        wait_until(lambda: bool(list((root / "processing/main").glob("*a.bmp"))), "the claim")
        [claimed] = (root / "processing/main").glob("*a.bmp")
        # As a writer does that has had the file open since before the claim: the name is no matter to it.
        with claimed.open("r+b", buffering=0) as file:
            for part in parts(last, 8):
                file.write(part)
                time.sleep(0.15)
        wait_until(settled(root, 1), "the image sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, [sha256(last)]) == []
    assert [(row["verdict"], row["sha256"]) for row in query(root, "SELECT * FROM results")] == [
        ("anomaly", sha256(last))
    ]


def test_images_overwritten_in_place_at_any_moment_are_each_one_of_their_versions(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    count, last = 120, {}
    versions = {}
    rng = random.Random(1)
    with DaemonProcess(root) as process:
        process.wait_ready()
        for number in range(count):
            name, old, new = f"{number:03}.bmp", bitmap(DARK, number), bitmap(BRIGHT, 1000 + number)
            versions |= {sha256(old): "normal", sha256(new): "anomaly"}
            last[name] = sha256(new)
            path = root / "incoming" / name
            path.write_bytes(old)
            time.sleep(rng.uniform(0, 0.02))
            # In place where it is still there, which it may be for a moment only; else it is a new file.
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
            with os.fdopen(descriptor, "wb", buffering=0) as file:
                for part in parts(new, 3):
                    file.write(part)
                    time.sleep(0.002)
        wait_until(lambda: not waiting(root) and len(seen(root)) >= count, "all sorted", poll_s=0.2)
        assert process.stop() == 0, process.log_text()
    rows = query(root, "SELECT file_name, sha256, verdict FROM results")
    assert problems(root, [row["sha256"] for row in rows]) == []
    assert {row["sha256"] for row in rows} <= versions.keys()
    assert all(row["verdict"] == versions[row["sha256"]] for row in rows)
    # The version that was written last is there, whatever became of the one before.
    assert set(last.values()) <= {row["sha256"] for row in rows}
    print(f"{len(rows)} results of {count} names written twice")
    assert count <= len(rows) < 2 * count + 1 and len({(row["file_name"], row["sha256"]) for row in rows}) == len(rows)


def seen(root: Path) -> set[str]:
    return {row["file_name"] for row in query(root, "SELECT file_name FROM images WHERE state = 'placed'")}


def test_same_name_and_same_bytes_again_and_again_are_rows_of_their_own(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    contents = [image_bytes(DARK, seed=number % 20) for number in range(30)]
    with DaemonProcess(root) as process:
        process.wait_ready()
        for content in contents:
            wait_until(lambda: not (root / "incoming/part.png").exists(), "the name free again")
            drop(root, "part.png", content)
        wait_until(settled(root, 30), "all sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, map(sha256, contents)) == []
    rows = query(root, "SELECT id, file_name, sha256, duplicate_of FROM results ORDER BY received_at, id")
    assert {row["file_name"] for row in rows} == {"part.png"} and len({row["id"] for row in rows}) == 30
    first = {row["sha256"]: row["id"] for row in reversed(rows)}
    assert [row["duplicate_of"] for row in rows] == [
        None if first[row["sha256"]] == row["id"] else first[row["sha256"]] for row in rows
    ]
    assert sum(row["duplicate_of"] is not None for row in rows) == 10


def test_images_taken_away_while_they_wait_leave_a_line_in_the_log_and_no_row(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", "decode_threads = 1\nin_flight_max = 6\nbatch_size_max = 1\n")
    contents = [image_bytes(DARK, seed=number) for number in range(12)]
    with DaemonProcess(root, environment=decoding_slowly(tmp_path, 0.5)) as process:
        process.wait_ready()
        for number, content in enumerate(contents):
            drop(root, f"{number:02}.png", content)
        wait_until(lambda: len(list((root / "processing/main").glob("*.png"))) >= 6, "six claims")
        queued = sorted((root / "processing/main").glob("*.png"), key=lambda path: path.name.rpartition("--")[2])[-2:]
        gone = [path.name.rpartition("--")[2] for path in queued] + ["10.png", "11.png"]
        for path in [*queued, root / "incoming/10.png", root / "incoming/11.png"]:
            path.unlink()
        wait_until(settled(root, 8), "the others sorted")
        dropped = [*contents[:10], image_bytes(DARK, seed=99)]
        drop(root, "after.png", dropped[-1])
        wait_until(settled(root, 9), "one more sorted")
        assert process.stop() == 0, process.log_text()
        log = process.log_text()
    kept = [content for number, content in enumerate(contents) if f"{number:02}.png" not in gone]
    assert problems(root, map(sha256, [*kept, dropped[-1]])) == []
    assert all(any("file removed" in line and name in line for line in log.splitlines()) for name in gone[:2]), log
    assert query(root, "SELECT id FROM images WHERE state = 'missing'") == []


# File events that are lost, refused or not sent


@contextlib.contextmanager
def tiny_event_queue() -> Iterator[None]:
    before = QUEUED_EVENTS.read_text()
    QUEUED_EVENTS.write_text("16")
    try:
        yield
    finally:
        QUEUED_EVENTS.write_text(before)


@pytest.mark.skipif(not os.access(QUEUED_EVENTS, os.W_OK), reason=f"{QUEUED_EVENTS} cannot be written; needs root")
@pytest.mark.parametrize(
    "count", [pytest.param(1000, id="1000"), pytest.param(20_000, id="20000", marks=pytest.mark.long)]
)
def test_burst_that_overflows_the_queue_of_events_is_scored_to_the_last_file(tmp_path: Path, count: int) -> None:
    root = make_root(tmp_path / "root")
    with DaemonProcess(root) as process:
        # The kernel takes the size of the queue when it is made.
        with tiny_event_queue():
            process.wait_ready()
        wait_until_it_says(root, "watching", "events")
        # Nobody reads the queue meanwhile, so all but 16 of the events are lost.
        process.process.send_signal(signal.SIGSTOP)
        dropped = drop_good(root, count)
        began = time.monotonic()
        process.process.send_signal(signal.SIGCONT)
        wait_until(settled(root, count), "all sorted", 60 + count / 20, poll_s=0.3)
        print(f"{count} files in {time.monotonic() - began:.1f} s")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []
    assert sorted_by_verdict(root) == {"normal": count - count // 3, "anomaly": count // 3}


def may_have_namespaces() -> bool:
    return subprocess.run(["unshare", "--user", "true"], check=False, capture_output=True).returncode == 0


needs_namespaces = pytest.mark.skipif(not may_have_namespaces(), reason="no user namespaces to limit file events in")


@needs_namespaces
@pytest.mark.parametrize("limit", ["max_inotify_instances", "max_inotify_watches"])
def test_without_file_events_left_the_daemon_polls_and_says_so(tmp_path: Path, limit: str) -> None:
    root = make_root(tmp_path / "root")
    with DaemonProcess(root, environment=with_few_events(tmp_path, limit, 0)) as process:
        process.wait_ready()
        wait_until_it_says(root, "watching", "polling")
        assert "no file events; polling" in process.log_text()
        dropped = drop_good(root, 6)
        wait_until(settled(root, 6), "all sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []


@needs_namespaces
def test_where_file_events_are_demanded_and_used_up_the_daemon_refuses_and_names_the_limits(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root", 'watch_mode = "events"\n')
    dropped = drop_good(root, 1)
    with DaemonProcess(root, environment=with_few_events(tmp_path, "max_inotify_instances", 0)) as process:
        assert process.process.wait(60) == 78
        assert "fs.inotify.max_user_watches" in process.log_text()
    assert [sha256(path.read_bytes()) for path in waiting(root)] == dropped


@needs_namespaces
def test_folders_that_appear_when_all_watches_are_used_up_are_sorted_too(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with DaemonProcess(root, environment=with_few_events(tmp_path, "max_inotify_watches", 2)) as process:
        process.wait_ready()
        wait_until_it_says(root, "watching", "events")
        dropped = []
        for number in range(5):
            (root / f"incoming/product-{number}").mkdir()
            dropped.append(drop(root, f"product-{number}/a.png", image_bytes(DARK, seed=number)))
        wait_until(settled(root, 5), "all sorted")
        # And so are those that come later, to the folder that was watched from the beginning as well.
        dropped += [drop(root, "b.png", image_bytes(DARK, seed=10)), *drop_good(root, 3)]
        wait_until(settled(root, 9), "all later ones sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []


@needs_share("bindfs")
def test_root_on_a_file_system_that_sends_no_events_is_polled(tmp_path: Path) -> None:
    behind = make_root(tmp_path / "behind")
    root = tmp_path / "root"
    root.mkdir()
    with bindfs(behind, root):
        with DaemonProcess(root) as process:
            process.wait_ready()
            wait_until_it_says(root, "watching", "polling")
            # Behind the back of the mount, as the host of a virtual machine writes into a shared folder.
            dropped = drop_good(behind, 12)
            (behind / "incoming/lid").mkdir()
            dropped.append(drop(behind, "lid/deep.png", image_bytes(DARK, seed=99)))
            wait_until(settled(root, 13), "all sorted")
            assert process.stop() == 0, process.log_text()
        assert problems(root, dropped) == []
    assert problems(behind, dropped) == []


@needs_share("sshfs", str(SFTP_SERVER))
def test_camera_that_writes_through_a_share_of_incoming_is_sorted(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    camera = tmp_path / "camera"
    camera.mkdir()
    contents = [image_bytes(BRIGHT if number % 3 == 2 else DARK, seed=number) for number in range(12)]
    with DaemonProcess(root) as process, sshfs(root / "incoming", camera):
        process.wait_ready()
        for number, content in enumerate(contents):
            (camera / f"{number}.png").write_bytes(content)
        wait_until(settled(root, 12), "all sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, map(sha256, contents)) == []
    assert sorted_by_verdict(root) == {"normal": 8, "anomaly": 4}


@needs_share("sshfs", str(SFTP_SERVER))
def test_share_mounted_at_incoming_is_refused_with_advice_and_nothing_is_moved(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    behind = tmp_path / "behind"
    behind.mkdir()
    with sshfs(behind, root / "incoming"), DaemonProcess(root) as process:
        dropped = drop_good(root, 3)
        assert process.process.wait(60) == 78
        assert "expected one file system" in process.log_text() and "share the root's folder" in process.log_text()
        assert sorted(sha256(path.read_bytes()) for path in waiting(root)) == sorted(dropped)
    assert query(root, "SELECT id FROM images") == []


# Shares that hang or vanish


@needs_share("sshfs", str(SFTP_SERVER))
def test_image_whose_share_hangs_while_it_is_written_waits_and_holds_up_no_other(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    camera = tmp_path / "camera"
    camera.mkdir()
    content = bitmap(DARK, 1)
    with DaemonProcess(root) as process, sshfs(root / "incoming", camera) as share:
        process.wait_ready()
        first, second = parts(content, 2)
        with (camera / "slow.bmp").open("wb", buffering=0) as file:
            file.write(first)
            os.fsync(file.fileno())
            share.hang()
            try:
                dropped = drop_good(root, 6)
                wait_until(settled_of(root, 6), "the others sorted")
                assert [path.name for path in waiting(root)] == ["slow.bmp"]
            finally:
                share.go_on()
            file.write(second)
        wait_until(settled(root, 7), "the image of the share sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, [*dropped, sha256(content)]) == []
    assert sorted_by_verdict(root) == {"normal": 5, "anomaly": 2}


@needs_share("bindfs")
def test_root_that_hangs_is_waited_for_and_nothing_is_missing(tmp_path: Path) -> None:
    behind = make_root(tmp_path / "behind")
    root = tmp_path / "root"
    root.mkdir()
    with bindfs(behind, root) as share:
        with DaemonProcess(root, environment={"WATCHDOG_USEC": "400000"}) as process:
            process.wait_ready()
            dropped = drop_good(behind, 60)
            wait_until(lambda: sorted_by_verdict(root) != {}, "the first sorted")
            share.hang()
            try:
                silent_for(process, 2.0)
                dropped += drop_good(behind, 20, "later")
            finally:
                share.go_on()
            process.wait_for_message("WATCHDOG=1")
            wait_until(settled(root, 80), "all sorted")
            assert process.stop() == 0, process.log_text()
        assert problems(root, dropped) == []
    assert query(behind, "SELECT id FROM images WHERE state <> 'placed'") == []


def silent_for(process: DaemonProcess, seconds: float) -> None:
    """Wait until the daemon has not told the service manager for so long that it is alive: it is not restarted here."""
    until = time.monotonic() + 60
    while time.monotonic() < until:
        try:
            process.wait_for_message("WATCHDOG=1", seconds)
        except AssertionError:
            assert process.process.poll() is None, process.log_text()
            return
    raise AssertionError(f"expected no sign of life for {seconds} s while the disk hangs")


@needs_share("sshfs", str(SFTP_SERVER))
def test_page_lives_while_the_share_of_the_sorted_images_hangs_and_the_work_goes_on_after(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    behind = tmp_path / "behind"
    behind.mkdir()
    with sshfs(behind, root / "normal") as share, DaemonProcess(root) as process, WebProcess(root) as page:
        process.wait_ready()
        dropped = drop_good(root, 12)
        wait_until(settled(root, 12), "the first sorted")
        share.hang()
        try:
            dropped += drop_good(root, 12, "later")
            wait_until(lambda: sum(sorted_by_verdict(root).values()) > 12, "verdicts beside the share that hangs")
            for path in ("/", "/api/v1/status", "/api/v1/images"):
                with urllib.request.urlopen(f"{page.url}{path}", timeout=5) as answer:
                    assert answer.status == 200
            assert process.process.poll() is None, process.log_text()
        finally:
            share.go_on()
        wait_until(settled(root, 24), "all sorted")
        assert query(root, "SELECT id FROM images WHERE state <> 'placed'") == []
        assert problems(root, dropped) == []
        assert process.stop() == 0, process.log_text()


@needs_share("sshfs", str(SFTP_SERVER))
def test_share_of_the_sorted_images_that_vanishes_is_waited_for_and_none_of_them_is_missing(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    behind = tmp_path / "behind"
    behind.mkdir()
    normal = root / "normal"

    def nothing_changed() -> bool:
        states = query(root, "SELECT DISTINCT state FROM images WHERE file_name NOT LIKE 'flowing-%'")
        return states == [{"state": "placed"}] and list(normal.iterdir()) == []

    with DaemonProcess(root) as process:
        process.wait_ready()
        with sshfs(behind, normal) as share:
            dropped = drop_good(root, 12)
            wait_until(settled(root, 12), "the first sorted")
            wait_until_it_says(root, "mounts", ["normal"])
            # In full flow, so that some are on their way when it goes.
            dropped += drop_good(root, 40, "flowing")
            share.vanish()
            wait_until(lambda: "paused" in process.log_text(), "word of it")
            dropped += drop_good(root, 6, "later")
            assert "mounted at normal" in process.log_text() and nothing_changed()
        assert process.stop() == 0, process.log_text()
    # As after a start of the machine at which the share could not be mounted.
    with DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(lambda: "paused" in process.log_text(), "word of it again")
        assert len([path for path in waiting(root) if path.name.startswith("later")]) == 6 and nothing_changed()
        with sshfs(behind, normal):
            wait_until(settled(root, 58), "all sorted once it is back")
            assert process.stop() == 0, process.log_text()
            assert query(root, "SELECT id FROM images WHERE state <> 'placed'") == []
            assert problems(root, dropped) == []
    assert list(normal.iterdir()) == []


@needs_share("bindfs")
def test_label_while_the_share_is_gone_moves_its_image_once_it_is_back(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    behind = tmp_path / "behind"
    behind.mkdir()
    command = [sys.executable, "-m", "service", "review", "--root", str(root), "--label"]
    with DaemonProcess(root) as process:
        process.wait_ready()
        with bindfs(behind, root / "normal") as share:
            dropped = drop_good(root, 6)
            wait_until(settled(root, 6), "all sorted")
            wait_until_it_says(root, "mounts", ["normal"])
            [from_it, *_] = [row["id"] for row in query(root, "SELECT id FROM images WHERE verdict = 'normal'")]
            [to_it, *_] = [row["id"] for row in query(root, "SELECT id FROM images WHERE verdict = 'anomaly'")]
            share.vanish()
            subprocess.run([*command, "anomaly", from_it], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            subprocess.run([*command, "normal", to_it], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)
            on_their_way = query(root, "SELECT id FROM images WHERE state = 'scored'")
            assert {row["id"] for row in on_their_way} == {from_it, to_it}
            assert list((root / "normal").iterdir()) == []
        with bindfs(behind, root / "normal"):
            wait_until(settled(root, 6), "both moved once it is back")
            rows = query(root, "SELECT id, state, path FROM images WHERE id IN (?, ?)", from_it, to_it)
            found = {row["id"]: (row["state"], row["path"].partition("/")[0]) for row in rows}
            assert found == {from_it: ("placed", "anomaly"), to_it: ("placed", "normal")}
            assert problems(root, dropped) == []
            assert process.stop() == 0, process.log_text()
    assert list((root / "normal").iterdir()) == []


@needs_share("bindfs")
def test_root_that_vanishes_under_load_ends_the_daemon_and_nothing_is_lost_once_it_is_back(tmp_path: Path) -> None:
    behind = make_root(tmp_path / "behind")
    root = tmp_path / "root"
    root.mkdir()
    # It goes under its open database, whose locks the next mount would not know: to end is all that is safe.
    with bindfs(behind, root) as share, DaemonProcess(root, environment=decoding_slowly(tmp_path, 0.02)) as process:
        process.wait_ready()
        dropped = drop_good(behind, 100)
        wait_until(lambda: sum(sorted_by_verdict(root).values()) > 10, "the first sorted")
        share.vanish()
        assert process.process.wait(60) == 1
    # Of a batch that was being delivered there may be empty folders, which some mounts refuse to hide; never an image.
    left = sorted(root.rglob("*"), reverse=True)
    assert all(path.is_dir() for path in left)
    for path in left:
        path.rmdir()
    # Not 78: systemd goes on to start it, until the root is there again.
    with DaemonProcess(root) as process:
        assert process.process.wait(60) == 1
        assert "mount it" in process.log_text()
    with bindfs(behind, root), DaemonProcess(root) as process:
        process.wait_ready()
        wait_until(settled(root, 100), "all sorted")
        assert process.stop() == 0, process.log_text()
    assert query(behind, "SELECT id FROM images WHERE state <> 'placed'") == []
    assert problems(behind, dropped) == []


# Clocks


def test_clocks_of_cameras_that_are_hours_wrong_change_nothing(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    names = [f"{number:02}.png" for number in range(24)]
    contents = [image_bytes(DARK, seed=number) for number in range(24)]
    with DaemonProcess(root) as process:
        process.wait_ready()
        now = time.time()
        for number, (name, content) in enumerate(zip(names, contents, strict=True)):
            partial = root / "incoming/.camera.part"
            partial.write_bytes(content)
            # The later an image comes the earlier its camera says it is, from a day ahead to a day behind.
            at = now + (12 - number) * 7200
            os.utime(partial, (at, at))
            partial.rename(root / "incoming" / name)
        wait_until(settled(root, 24), "all sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, map(sha256, contents)) == []
    rows = query(root, "SELECT * FROM results ORDER BY received_at")
    assert [row["file_name"] for row in rows] == names
    assert all(0 <= row["latency_ms"] < 20_000 for row in rows)
    kept = {row["file_name"]: (root / row["path"]).stat().st_mtime for row in rows}
    assert all(abs(kept[name] - (now + (12 - number) * 7200)) < 1 for number, name in enumerate(names))


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed")
def test_clock_of_the_machine_that_jumps_back_and_ahead_loses_nothing_and_gives_no_id_twice(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_CACHE_DURATION": "1",
        # The times of files are left as they are: Python would compile every module anew.
        "NO_FAKE_STAT": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    dropped: list[str] = []

    def hours_ahead(seed: int) -> int:
        """Drop an image, and return by how much the clock was ahead by which it was received."""
        dropped.append(drop(root, "probe.png", image_bytes(DARK, seed=seed)))
        wait_until(settled(root, len(dropped)), "the probe sorted")
        [row] = query(root, "SELECT received_at FROM results WHERE sha256 = ?", dropped[-1])
        return round((datetime.fromisoformat(row["received_at"]) - datetime.now(UTC)).total_seconds() / 3600)

    with DaemonProcess(root, environment=environment) as process:
        process.wait_ready()
        for turn, hours in enumerate([0, -2, 5, 0]):
            clock.write_text(f"{hours:+}h")
            # For a second or two the library remembers what the file said.
            seeds = iter(range(1000 * turn, 1000 * turn + 900))
            wait_until(lambda hours=hours, seeds=seeds: hours_ahead(next(seeds)) == hours, "the clock set", poll_s=0.2)  # type: ignore[misc]
            for one in range(10):
                dropped.append(drop(root, f"{one}.png", image_bytes(DARK, seed=1000 * turn + 900 + one)))
            wait_until(settled(root, len(dropped)), f"those sorted that came at {hours:+} h")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []
    rows = query(root, "SELECT id, latency_ms FROM results")
    assert len({row["id"] for row in rows}) == len(dropped) >= 44
    assert all(0 <= row["latency_ms"] < 20_000 for row in rows)
