"""The power goes, again and again, under a real daemon whose database and folders lie on two file systems.

Both are ext4 in files, cut by the ioctl that ends one at once, without writing what it still holds in memory. What must
hold: a row that anybody saw is there afterwards, and after the next start every file that had reached the disk before
lies in the root once, with its row.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import struct
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.conftest import image_bytes
from tests.faults.mounts import ext4, run
from tests.faults.root_for_faults import make_root, problems, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until

# EXT4_IOC_SHUTDOWN of the kernel's fs/ext4/ext4.h, and its flag that leaves the journal unwritten.
SHUTDOWN, WITHOUT_JOURNAL = 0x8004587D, 2
FEED_S = 0.03


class Feed:
    """A camera that writes, syncs and renames; `dropped` holds what has reached the disk, `doubtful` what may have."""

    def __init__(self, root: Path, first: int) -> None:
        self._incoming = root / "incoming"
        self.number = first
        self.dropped: list[str] = []
        self.doubtful: list[str] = []
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def end(self) -> None:
        self._ending.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ending.wait(FEED_S):
            self.number += 1
            content = image_bytes(200 if self.number % 3 == 0 else 20, seed=self.number)
            sha256 = hashlib.sha256(content).hexdigest()
            self.doubtful.append(sha256)
            try:
                self._drop(content)
            except OSError:
                return  # the disk is gone
            self.doubtful.remove(sha256)
            self.dropped.append(sha256)

    def _drop(self, content: bytes) -> None:
        partial = self._incoming / f".{self.number}.part"
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        # Forty names, again and again; one that still waits is not taken away.
        target = self._incoming / f"part-{self.number % 40}.png"
        if target.exists():
            target = self._incoming / f"part-{self.number}.png"
        partial.rename(target)
        folder = os.open(self._incoming, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def cut(*mounts: Path) -> None:
    for mount in mounts:
        descriptor = os.open(mount, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(descriptor, SHUTDOWN, struct.pack("I", WITHOUT_JOURNAL))
        finally:
            os.close(descriptor)


@pytest.mark.parametrize("cuts", [pytest.param(3, id="3"), pytest.param(100, id="100", marks=pytest.mark.long)])
def test_power_cuts_lose_no_visible_row_and_leave_no_file_without_one(tmp_path: Path, cuts: int) -> None:
    rng = random.Random(1)
    disk, folders = tmp_path / "disk", tmp_path / "folders"
    images = tmp_path / "disk.img", tmp_path / "folders.img"
    root = disk / "root"
    dropped: list[str] = []
    doubtful: list[str] = []
    seen: dict[str, str | None] = {}
    number = seen_in_all = 0
    for turn in range(cuts + 1):
        with ExitStack() as stack:
            stack.enter_context(ext4(images[0], disk, 200, make=turn == 0))
            stack.enter_context(ext4(images[1], folders, 200, make=turn == 0))
            if turn == 0:
                make_root(root, "anomaly_maps = false\n")
                for kind in ("normal", "anomaly"):
                    (folders / kind).mkdir()
                os.sync()  # the settings, too, would be gone with the first cut
            else:
                rows = {row["id"]: row["verdict"] for row in query(root, "SELECT id, verdict FROM images")}
                lost = [id for id, verdict in seen.items() if rows.get(id, "none") != verdict]
                assert lost == [], f"cut {turn}: rows that were seen are gone"
            for kind in ("normal", "anomaly"):
                run("mount", "--bind", folders / kind, root / kind)
                stack.callback(run, "umount", "--lazy", root / kind)
            daemon = stack.enter_context(DaemonProcess(root))
            if turn:
                # What a camera was just writing may be there or not; what is there has a row, too.
                try:
                    wait_until(settled(root, len(dropped)), "all sorted", 30.0, poll_s=0.1)
                except AssertionError as error:
                    raise AssertionError(f"after cut {turn}: {problems(root, dropped)}\n{daemon.log_text()}") from error
                there = {row["sha256"] for row in query(root, "SELECT sha256 FROM images")}
                dropped += [sha256 for sha256 in doubtful if sha256 in there]
                assert problems(root, dropped) == [], f"after cut {turn}"
            else:
                daemon.wait_ready()
            if turn == cuts:
                daemon.wait_ready()  # with nothing left to sort, it may still be starting
                assert daemon.stop() == 0
                break
            feed = Feed(root, number)
            time.sleep(rng.uniform(0.1, 1.2))
            seen = {row["id"]: row["verdict"] for row in query(root, "SELECT id, verdict FROM images")}
            seen_in_all += len(seen)
            both = [disk, folders]
            rng.shuffle(both)
            cut(*both)
            feed.end()
            daemon.kill()
            number, doubtful = feed.number, list(feed.doubtful)
            dropped += feed.dropped
    print(
        f"{cuts} cuts, {len(dropped)} files, {seen_in_all} rows seen before a cut: 0 rows lost, 0 files without a row"
    )
    assert len(dropped) > 3 * cuts
