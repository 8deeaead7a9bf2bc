"""SIGKILL at random moments while files are dropped: nothing lost, nothing twice, nothing half-moved."""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.conftest import image_bytes
from tests.faults.root_for_faults import drop, make_root, problems, settled
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, finished, nothing_left, wait_until

CHECKER = Path(__file__).with_name("check_nothing_lost.py")
NAMES = 40


@pytest.mark.parametrize(
    ("kills", "files"),
    [
        pytest.param(8, 120, id="short"),
        pytest.param(50, 500, id="whole", marks=pytest.mark.long),
        pytest.param(500, 2000, id="500", marks=pytest.mark.long),
    ],
)
def test_random_kills_lose_nothing_and_do_nothing_twice(kills: int, files: int, root: Path, tmp_path: Path) -> None:
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    install(root)
    (root / "tamis.toml").write_text(
        "settle_time_s = 0.2\nrescan_interval_s = 1.0\nfree_bytes_min = 0\nattempts_max = 20\nbatch_size_max = 4\n"
    )
    dropped: list[tuple[str, str]] = []
    stop_dropping = threading.Event()

    def drop_all() -> None:
        for number in range(files):
            name = f"{number % NAMES}.png"
            target = root / "incoming" / name
            # A name is used again once its file was claimed; a camera that overwrites is another test's matter.
            while target.exists() and not stop_dropping.wait(0.005):
                pass
            content = image_bytes(20 if number % 5 else 220, seed=number) if number % 17 else b"bad %d" % number
            partial = target.with_name(name + ".part")
            partial.write_bytes(content)
            partial.rename(target)
            dropped.append((name, hashlib.sha256(content).hexdigest()))
            if stop_dropping.wait(rng.uniform(0, 0.04)):
                return

    dropper = threading.Thread(target=drop_all)
    dropper.start()
    try:
        for _ in range(kills):
            with DaemonProcess(root) as daemon:
                daemon.wait_ready()
                before = finished(root)
                # Until it has done some work, then a moment more: kills fall all over the protocol.
                target = min(before + rng.randrange(1, 2 * files // kills), files)
                wait_until(lambda target=target: finished(root) >= target or len(dropped) == files, "progress")
                stop_dropping.wait(rng.uniform(0, 0.2))
                daemon.kill()
    finally:
        if dropper.is_alive():
            with DaemonProcess(root) as daemon:
                daemon.wait_ready()
                dropper.join(120)
                stop_dropping.set()
                dropper.join()
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(lambda: nothing_left(root) and finished(root) >= files, "all files finished", 120)
        assert daemon.stop() == 0, daemon.log_text()
    assert len(dropped) == files
    (tmp_path / "dropped.json").write_text(json.dumps(dropped))
    checked = subprocess.run(
        [sys.executable, str(CHECKER), str(root), str(tmp_path / "dropped.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("kills", "files"),
    [
        pytest.param(6, 120, id="short"),
        pytest.param(500, 2000, id="500", marks=pytest.mark.long),
    ],
)
def test_random_kills_of_two_on_one_root_lose_nothing_and_do_nothing_twice(
    kills: int, files: int, tmp_path: Path
) -> None:
    """Each time one of the two, or both: what it leaves the other adopts, while the dead one is started anew."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    # Whoever kills that often must not exhaust the attempts of an image that is innocent of it.
    root = make_root(tmp_path / "root", "share_root = true\nattempts_max = 20\nbatch_size_max = 4\n")
    dropped: list[str] = []
    running: dict[str, DaemonProcess] = {}
    killed = 0
    try:
        while killed < kills:
            _start_those_that_lack(root, running)
            part = range(len(dropped), min(files, files * (killed + 2) // kills))
            dropped += [_drop_when_claimed(root, number) for number in part]
            time.sleep(rng.uniform(0, 0.3))
            # One more often than both: what it leaves the other adopts.
            for name in rng.choice([["main"], ["other"], ["main", "other"]]):
                running[name].kill()
                running.pop(name).__exit__(None, None, None)
                killed += 1
        _start_those_that_lack(root, running)
        dropped += [_drop_when_claimed(root, number) for number in range(len(dropped), files)]
        wait_until(settled(root, files), "all files finished", 180, poll_s=0.1)
        assert [daemon.stop() for daemon in running.values()] == [0, 0]
    finally:
        for daemon in running.values():
            daemon.__exit__(None, None, None)
    found = problems(root, dropped)
    print(f"{killed} kills of two instances, {files} files under {NAMES} names: {len(found)} problems")
    assert found == []


def _start_those_that_lack(root: Path, running: dict[str, DaemonProcess]) -> None:
    new = [name for name in ("main", "other") if name not in running]
    running |= {name: DaemonProcess(root, "--instance", name) for name in new}
    for name in new:
        running[name].wait_ready()


def _drop_when_claimed(root: Path, number: int) -> str:
    """Drop the next file, once the one before of its name was claimed; return its SHA-256."""
    name = f"{number % NAMES}.png"
    wait_until(lambda: not (root / "incoming" / name).exists(), f"{name} claimed", poll_s=0.005)
    return drop(root, name, image_bytes(20 if number % 5 else 220, seed=number) if number % 17 else b"bad %d" % number)
