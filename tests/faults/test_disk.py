"""The disk under a real daemon: full, read-only, another for each folder, failing now and then, frozen."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import image_bytes
from tests.faults.mounts import ext4, need, run, tmpfs
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
from tests.support.daemon_process import DaemonProcess, wait_until
from tests.support.web_process import WebProcess

BACK_WITHIN_S = 60.0


@contextmanager
def supervised(root: Path, **environment: str) -> Iterator[Supervisor]:
    supervisor = Supervisor(root, environment)
    try:
        yield supervisor
    finally:
        supervisor.end()


class Supervisor:
    """Starts the daemon and, whenever it ends, starts it again, as systemd does."""

    def __init__(self, root: Path, environment: dict[str, str]) -> None:
        self._root, self._environment = root, environment
        self.log = ""
        self.starts = 0
        self.process: DaemonProcess | None = None
        self.look()

    def look(self) -> DaemonProcess:
        """Start it if it has ended; return it."""
        if self.process is not None and self.process.process.poll() is not None:
            self.end()
            time.sleep(0.5)
        if self.process is None:
            self.starts += 1
            self.process = DaemonProcess(self._root, environment=self._environment)
        return self.process

    def until(self, condition: Callable[[], bool], what: str, timeout_s: float = BACK_WITHIN_S) -> None:
        """Wait until `condition`, starting the daemon whenever it ends."""

        def told() -> bool:
            self.look()
            return condition()

        wait_until(told, what, timeout_s, poll_s=0.1)

    def end(self) -> None:
        if self.process is not None:
            self.process.kill() if self.process.process.poll() is None else None
            self.log += self.process.log_text()
            self.process.__exit__(None, None, None)
            self.process = None


def paused(root: Path) -> str | None:
    status = root / "processing/main/.status.json"
    return json.loads(status.read_text()).get("paused") if status.exists() else None


@pytest.mark.parametrize(
    ("options", "guard"),
    [
        pytest.param("size=48m", "free_bytes_min = 20_000_000\n", id="bytes"),
        pytest.param("size=200m,nr_inodes=900", "free_inodes_min = 400\n", id="inodes"),
    ],
)
def test_claiming_stops_before_the_disk_is_full_and_goes_on_unaided(tmp_path: Path, options: str, guard: str) -> None:
    with tmpfs(tmp_path / "disk", options) as disk:
        root = make_root(disk / "root")
        setting = guard.partition(" ")[0]
        kept = [line for line in (root / "tamis.toml").read_text().splitlines() if not line.startswith(setting)]
        (root / "tamis.toml").write_text("\n".join([*kept, guard]))
        dropped = drop_good(root, 5)
        with DaemonProcess(root) as process:
            process.wait_ready()
            wait_until(settled(root, 5), "five sorted")
            ballast = disk / "ballast"
            ballast.mkdir()
            while paused(root) is None:
                assert process.process.poll() is None
                for number in range(40):
                    (ballast / f"{time.monotonic_ns()}-{number}").write_bytes(
                        bytes(200_000 if "size=48m" in options else 1)
                    )
                time.sleep(1.2)
            dropped += drop_good(root, 5, "later")
            time.sleep(2)
            assert len(waiting(root)) == 5 and process.process.poll() is None
            for path in ballast.iterdir():
                path.unlink()
            began = time.monotonic()
            wait_until(settled(root, 10), "the others sorted", BACK_WITHIN_S)
            print(f"{options}: went on {time.monotonic() - began:.1f} s after space returned")
            assert process.stop() == 0, process.log_text()
        assert problems(root, dropped) == []


def test_disk_that_others_fill_to_the_last_byte_loses_nothing(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "disk", "size=40m") as disk:
        root = make_root(disk / "root")
        with supervised(root) as supervisor:
            dropped = drop_good(root, 20)
            supervisor.until(settled(root, 20), "twenty sorted")
            fill(disk / "ballast")
            with pytest.raises(OSError, match="No space"):
                (disk / "proof").write_bytes(bytes(200_000))
            (disk / "proof").unlink(missing_ok=True)
            # A rename needs no space: the images come from beside.
            beside = tmp_path / "beside"
            beside.mkdir()
            time.sleep(3)
            (disk / "ballast").unlink()
            dropped += drop_good(root, 20, "meanwhile")
            fill(disk / "ballast")
            time.sleep(6)
            (disk / "ballast").unlink()
            supervisor.until(settled(root, 40), "all sorted")
        assert problems(root, dropped) == []


def fill(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        for size in (1_000_000, 4096, 1):
            try:
                while True:
                    file.write(bytes(size))
            except OSError:
                continue


def test_disk_that_turns_read_only_is_said_and_after_a_new_mount_all_is_there(tmp_path: Path) -> None:
    image = tmp_path / "disk.img"
    with ext4(image, tmp_path / "disk") as disk:
        root = make_root(disk / "root")
        dropped = drop_good(root, 10)
        with supervised(root) as supervisor:
            supervisor.until(settled(root, 10), "ten sorted")
            dropped += drop_good(root, 10, "before")
            os.sync()
            # As ext4 does by itself at an error of its disk: for writers too, and until it is mounted anew.
            run("mount", "-o", "remount,abort", disk)
            time.sleep(4)
            supervisor.look()
            with pytest.raises(OSError, match="Read-only"):
                (root / "incoming/more").touch()
            told = paused(root)
        said = supervisor.log
    print(f"{supervisor.starts} starts, paused: {told}")
    # Which of them it is depends on what was being done: an fsync of an aborted journal is an input/output error, and
    # SQLite says of a journal that it may not create that it is unable to open the database's file.
    words = (
        "Read-only file system", "readonly database", "disk I/O error", "Input/output error",
        "unable to open database file",
    )  # fmt: skip
    assert any(word in said for word in words), said
    with ext4(image, tmp_path / "disk", make=False):
        dropped += drop_good(root, 10, "after")
        run_until_settled(root, 30)
        assert problems(root, dropped) == []


def test_folders_on_other_devices_get_whole_copies_with_their_times(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with tmpfs(root / "normal", "size=32m"), tmpfs(root / "anomaly", "size=32m"):
        dropped = drop_good(root, 9)
        at = 1_600_000_000.0
        for path in waiting(root):
            os.utime(path, (at, at))
        run_until_settled(root, 9)
        assert problems(root, dropped) == []
        assert {path.stat().st_mtime for kind in ("normal", "anomaly") for path in (root / kind).rglob("*.png")} == {at}
        assert not list(root.rglob(".tmp.*"))


@pytest.mark.parametrize(
    ("calls", "error"),
    [
        ("rename,renameat,renameat2", "EIO"),
        ("rename,renameat,renameat2", "ENOSPC"),
        ("fsync,fdatasync", "EIO"),
        ("openat", "EIO"),
        ("read,pread64", "EIO"),
        ("unlink,unlinkat", "EROFS"),
        ("write,pwrite64", "ENOSPC"),
    ],
)
def test_calls_that_fail_now_and_then_lose_nothing(tmp_path: Path, calls: str, error: str) -> None:
    need("strace")
    root = make_root(tmp_path / "root")
    dropped = []
    with supervised(root) as supervisor:
        for attack in range(2):
            before = supervisor.starts if attack else 0
            process = supervisor.look()
            if supervisor.starts > before:
                process.wait_ready()
            tracer = subprocess.Popen(
                ["strace", "-f", "-q", "-o", tmp_path / "strace.log", "-p", str(process.process.pid),
                 "-e", f"trace={calls}", "-e", f"inject={calls}:error={error}:when={7 + attack}+23"],
                stderr=subprocess.PIPE, text=True,
            )  # fmt: skip
            time.sleep(0.5)
            assert tracer.poll() is None or process.process.poll() is not None, tracer.stderr and tracer.stderr.read()
            dropped += drop_good(root, 12, f"attack-{attack}")
            until = time.monotonic() + 3
            while time.monotonic() < until and process.process.poll() is None and not settled(root, len(dropped))():
                time.sleep(0.1)
            tracer.terminate()
            tracer.wait()
        supervisor.until(settled(root, len(dropped)), "all sorted")
    injected = (tmp_path / "strace.log").read_text(errors="replace").count("(INJECTED)")
    print(f"{calls} {error}: {injected} failed in the last attack, {supervisor.starts} starts")
    found = problems(root, dropped)
    # A file that could not be read is put aside with the reason, and is there.
    aside = query(root, "SELECT error_code FROM results WHERE verdict IS NULL")
    assert found == [] and all(row["error_code"] for row in aside)


def test_maps_that_cannot_be_written_hold_up_no_verdict(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    maps = root / "maps"

    def drop_and_sort(count: int) -> None:
        before = len(dropped)
        dropped.extend(drop_good(root, count, f"round-{before}"))
        wait_until(settled(root, len(dropped)), "all sorted")

    dropped: list[str] = []
    with DaemonProcess(root) as process:
        process.wait_ready()
        drop_and_sort(9)
        assert len(list(maps.iterdir())) == 3
        shutil.rmtree(maps)
        drop_and_sort(9)
        assert len(list(maps.iterdir())) == 3
        shutil.rmtree(maps)
        maps.write_bytes(b"")
        drop_and_sort(9)
        drop_and_sort(9)
        assert process.log_text().count("no anomaly map") == 1, process.log_text()
        maps.unlink()
        drop_and_sort(9)
        assert len(list(maps.iterdir())) == 3
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []


def test_frozen_storage_stops_the_watchdog_and_not_the_page_and_nothing_is_lost(tmp_path: Path) -> None:
    need("fsfreeze")
    with ext4(tmp_path / "disk.img", tmp_path / "disk") as disk:
        root = make_root(disk / "root")
        dropped = drop_good(root, 5)
        with DaemonProcess(root, environment={"WATCHDOG_USEC": "4000000"}) as process, WebProcess(root) as web:
            process.wait_ready()
            wait_until(settled(root, 5), "five sorted")
            process.wait_for_message("WATCHDOG=1")
            run("fsfreeze", "--freeze", disk)
            try:
                # By a rename, which a frozen file system holds up: only the daemon's own attempts are seen here.
                time.sleep(1)
                for page in ("/", "/review", "/api/v1/status"):
                    with urllib.request.urlopen(f"{web.url}{page}", timeout=10) as answer:
                        assert answer.status == 200
            finally:
                run("fsfreeze", "--unfreeze", disk)
            dropped.append(drop(root, "thawed.png", image_bytes(20, seed=999)))
            wait_until(settled(root, 6), "all sorted")
            assert process.stop() == 0, process.log_text()
        assert problems(root, dropped) == []
