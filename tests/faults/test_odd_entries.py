"""Entries in `incoming/` that a real daemon cannot work on now: each waits with its reason, and all others go on."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import image_bytes
from tests.faults.daemon_hooks import failing_by_name
from tests.faults.mounts import need, run, tmpfs
from tests.faults.root_for_faults import make_root, problems, query, settled
from tests.support.brightness_version import install
from tests.support.daemon_process import REPOSITORY, DaemonProcess, wait_until

# Root without its rights, so that those of files and folders hold.
PLAIN_USER = ("setpriv", "--bounding-set=-all", "--inh-caps=-all")
OTHER = 65534


@pytest.fixture
def quick_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where that can be had: the disk would take longer with each file than all that is tried."""
    if os.geteuid() != 0:
        yield tmp_path
        return
    with tmpfs(tmp_path / "disk", "size=64m") as disk:
        yield disk


def put(root: Path, path: str, seed: int, owner: int | None = None, mode: int = 0o644) -> str:
    """Put an image into `incoming/`, whole; return its SHA-256."""
    target = root / "incoming" / path
    target.parent.mkdir(parents=True, exist_ok=True)
    content = image_bytes(20, seed=seed)
    target.write_bytes(content)
    target.chmod(mode)
    if owner is not None:
        os.chown(target, owner, owner)
    return hashlib.sha256(content).hexdigest()


def status_of(root: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads((root / "processing/main/.status.json").read_text())["odd_entries"]
    except (FileNotFoundError, ValueError, KeyError):
        return {"first": []}
    return found


def status_text(root: Path) -> str:
    try:
        return (root / "processing/main/.status.json").read_text()
    except FileNotFoundError:
        return ""


def waits(root: Path, *paths: str) -> Callable[[], bool]:
    """Whether `paths`, and no others, are in the daemon's status as waiting."""
    return lambda: {one["path"] for one in status_of(root)["first"]} == {f"incoming/{path}" for path in paths}


def command(root: Path, *words: str) -> str:
    """Run a command of ours as the user without rights; return what it says."""
    ran = subprocess.run(
        [*PLAIN_USER, sys.executable, "-m", "service", *words, "--root", str(root)],
        cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran.stdout + ran.stderr


def test_entries_without_rights_or_elsewhere_wait_named_with_advice_and_all_others_go_on(quick_disk: Path) -> None:
    need("setpriv", "chattr")
    root = make_root(quick_disk / "root")
    incoming = root / "incoming"
    os.umask(0o022)
    dropped = [put(root, f"aliens/2026-11-27/{number}.png", number) for number in range(5)]
    os.chown(incoming / "aliens/2026-11-27", OTHER, OTHER)
    dropped.append(put(root, "aliens/cam2/hidden.png", 10))
    os.chown(incoming / "aliens/cam2", OTHER, OTHER)
    (incoming / "aliens/cam2").chmod(0o700)
    dropped.append(put(root, "aliens/private.png", 11, owner=OTHER, mode=0o600))
    dropped.append(put(root, "public/theirs.png", 12, owner=OTHER))
    os.chown(incoming / "public", OTHER, OTHER)
    (incoming / "public").chmod(0o1777)
    dropped.append(put(root, "aliens/fixed.png", 13))
    can_fix = subprocess.run(["chattr", "+i", incoming / "aliens/fixed.png"], capture_output=True, check=False)
    (root / "outside").mkdir()
    (incoming / "linked").symlink_to(root / "outside")
    odd = ["aliens/2026-11-27", "aliens/cam2", "aliens/private.png", "public/theirs.png", "linked", "mounted"]
    odd += ["aliens/fixed.png"] if can_fix.returncode == 0 else []
    try:
        with tmpfs(incoming / "mounted", "size=4m"):
            put(root, "mounted/elsewhere.png", 14)
            with DaemonProcess(root, under=PLAIN_USER) as process:
                process.wait_ready()
                fine = [put(root, path, 20 + n) for n, path in enumerate(("a.png", "aliens/b.png", "public/c.png"))]
                wait_until(waits(root, *odd), "each odd entry in the status")
                wait_until(
                    lambda: len(query(root, "SELECT id FROM results WHERE state = 'placed'")) >= 3, "three sorted"
                )
                first = {one["path"]: one for one in status_of(root)["first"]}
                assert first["incoming/aliens/2026-11-27"]["files"] == 5
                assert status_of(root)["files"] == 5 + len(odd) - 1
                check_advice(first)
                check_shown(root)
                log = process.log_text()
                assert all(log.count(f"path=incoming/{path} ") == 1 for path in odd), log
                # A person sees to each; the daemon finds out by itself.
                (incoming / "aliens/2026-11-27").chmod(0o777)
                (incoming / "aliens/cam2").chmod(0o777)
                (incoming / "aliens/private.png").chmod(0o644)
                (incoming / "public").chmod(0o777)
                subprocess.run(["chattr", "-i", incoming / "aliens/fixed.png"], check=False, capture_output=True)
                (incoming / "linked").unlink()
                run("umount", incoming / "mounted")
                wait_until(waits(root), "nothing odd any more", 20)
                wait_until(settled(root, len(dropped) + 3), "all sorted")
                assert process.stop() == 0, process.log_text()
        assert problems(root, dropped + fine) == []
    finally:
        subprocess.run(["chattr", "-i", incoming / "aliens/fixed.png"], check=False, capture_output=True)


def check_advice(first: dict[str, Any]) -> None:
    folder = first["incoming/aliens/2026-11-27"]
    assert folder["errno"] == "EACCES" and "mode 0755" in folder["advice"] and "chmod g+rwxs" in folder["advice"]
    assert first["incoming/aliens/cam2"]["errno"] == "EACCES" and "mode 0700" in first["incoming/aliens/cam2"]["advice"]
    assert "mode 0600" in first["incoming/aliens/private.png"]["advice"]
    assert first["incoming/public/theirs.png"]["errno"] == "EPERM"
    assert first["incoming/linked"]["errno"] == "ELOOP"
    mounted = first["incoming/mounted"]
    assert mounted["errno"] == "EXDEV" and "another file system" in mounted["advice"]


def check_shown(root: Path) -> None:
    """`status` and `doctor`, run by a user without the rights too, name what waits and what to do."""
    document = json.loads(command(root, "status", "--json"))
    named = {one["path"] for one in document["odd_entries"]["first"]}
    assert {"incoming/aliens/2026-11-27", "incoming/aliens/cam2", "incoming/mounted"} <= named
    assert "chmod g+rwxs" in command(root, "status")
    doctor = command(root, "doctor")
    assert "incoming/aliens/2026-11-27" in doctor and "chmod g+rwxs" in doctor


def test_processing_that_cannot_be_written_pauses_claims_until_it_can(quick_disk: Path) -> None:
    need("setpriv")
    root = make_root(quick_disk / "root")
    own = root / "processing/main"
    with DaemonProcess(root, under=PLAIN_USER) as process:
        process.wait_ready()
        dropped = [put(root, "before.png", 1)]
        wait_until(settled(root, 1), "one sorted")
        os.chown(own, OTHER, OTHER)
        dropped.append(put(root, "meanwhile.png", 2))
        reason = 'paused reason="processing/main cannot be written: Permission denied"'
        wait_until(lambda: reason in process.log_text(), "the pause to be said")
        assert process.process.poll() is None and "entry waits" not in process.log_text()
        os.chown(own, 0, 0)
        wait_until(settled(root, 2), "the other sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []


def test_incoming_that_is_replaced_is_watched_anew_at_once(quick_disk: Path) -> None:
    root = make_root(quick_disk / "root", "")
    settings = (root / "tamis.toml").read_text().replace("rescan_interval_s = 0.5", "rescan_interval_s = 3600.0")
    (root / "tamis.toml").write_text(settings)
    with DaemonProcess(root) as process:
        process.wait_ready()
        dropped = [put(root, "before.png", 1)]
        wait_until(settled(root, 1), "one sorted")
        (root / "incoming").rename(root / "x")
        wait_until(lambda: '"watching": "polling"' in status_text(root), "that nothing is watched to be said")
        (root / "incoming").mkdir()
        dropped.append(put(root, "meanwhile.png", 2))
        wait_until(settled(root, 2), "the second sorted, long before the next rescan", 20)
        dropped.append(put(root, "after.png", 3))
        wait_until(settled(root, 3), "the third sorted by an event", 20)
        wait_until(lambda: '"watching": "events"' in status_text(root), "that events are back to be said")
        assert process.stop() == 0, process.log_text()
    assert problems(root, dropped) == []


def test_names_of_any_form_are_sorted_at_once_by_their_product(quick_disk: Path) -> None:
    root = make_root(quick_disk / "root")
    composed = unicodedata.normalize("NFC", "Prüfling")
    install(root, product=composed)
    with DaemonProcess(root) as process:
        process.wait_ready()
        dropped = [
            put(root, unicodedata.normalize("NFD", "Prüfling") + "/a.png", 1),
            put(root, os.fsdecode(b"caf\xe9") + "/b.png", 2),
            put(root, os.fsdecode(b"caf\xe9/deep\xff") + "/c.png", 3),
        ]
        wait_until(settled(root, 3), "three sorted")
        assert process.stop() == 0, process.log_text()
        log = process.log_text()
    assert problems(root, dropped) == [] and "not where it was" not in log and "recovered" not in log, log
    rows = {row["file_name"]: row for row in query(root, "SELECT * FROM results")}
    assert (rows["a.png"]["product"], rows["b.png"]["product"]) == (composed, "caf%E9")
    assert rows["a.png"]["path"].startswith(f"normal/{composed}/")


@pytest.mark.parametrize(
    "settings",
    [
        pytest.param({"settle_time_s": 1.5, "truncated_wait_s": 0.0}, id="settle time set by hand"),
        pytest.param({"truncated_wait_s": 10.0}, id="as it comes"),
    ],
)
def test_writer_that_closes_between_parts_gives_one_verdict(quick_disk: Path, settings: dict[str, float]) -> None:
    root = make_root(quick_disk / "root")
    lines = [
        one for one in (root / "tamis.toml").read_text().splitlines() if "settle" not in one and "trunc" not in one
    ]
    lines += [f"{name} = {value}" for name, value in settings.items()]
    (root / "tamis.toml").write_text("\n".join(lines))
    content = image_bytes(20, size=(300, 200))
    with DaemonProcess(root) as process:
        process.wait_ready()
        for part in range(4):
            with (root / "incoming/chunk.png").open("ab") as file:
                file.write(content[part * len(content) // 4 : (part + 1) * len(content) // 4])
            time.sleep(0.3)
        wait_until(settled(root, 1), "it sorted")
        assert process.stop() == 0, process.log_text()
    assert problems(root, [hashlib.sha256(content).hexdigest()]) == []
    assert [row["verdict"] for row in query(root, "SELECT verdict FROM results")] == ["normal"]


ERRORS = (
    errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EXDEV, errno.EROFS, errno.EINVAL,
    errno.ENAMETOOLONG, errno.EIO, errno.ESTALE, errno.ETXTBSY,
)  # fmt: skip
OF_FOLDERS = ("scan", "list", "make", "sync", "source")
OF_FILES = ("look", "stat", "open", "peek", "claim", "again", "read", "flush")
# Whoever looks takes what is not there, or is no folder by now, for gone.
GONE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)


def placed(root: Path, name: str) -> int:
    """How many images are placed whose name begins so, or whose product has that name."""
    condition = "state = 'placed' AND (product = ? OR substr(file_name, 1, ?) = ?)"
    return len(query(root, f"SELECT id FROM results WHERE {condition}", name, len(name), name))


def test_each_error_of_each_step_makes_one_entry_wait_and_is_over_when_it_is(tmp_path: Path, quick_disk: Path) -> None:
    root = make_root(quick_disk / "root", "attempts_max = 20\nin_flight_max = 256\n")
    flag = tmp_path / "failing"
    flag.touch()
    dropped, named = [], {}
    for number in ERRORS:
        for step in (*OF_FOLDERS, *OF_FILES):
            if (step, number) == ("again", errno.ELOOP):
                continue  # a link in processing/, which is quarantined as what it is
            odd = f"odd-{step}-{number}"
            path = f"{odd}/a.png" if step in OF_FOLDERS else f"box-{len(named)}/{odd}.png"
            named[odd] = number
            dropped.append(put(root, path, len(named)))
    # A rename lasts without a sync of where it came from, and a file system that knows no sync of folders has none.
    unaffected = {f"odd-sync-{errno.EINVAL}", *(f"odd-source-{number}" for number in ERRORS)}
    told = {odd for odd, number in named.items() if number not in GONE} - unaffected
    with DaemonProcess(root, environment=failing_by_name(tmp_path, flag)) as process:
        process.wait_ready()
        fine = [put(root, f"fine-{number}.png", 1000 + number) for number in range(8)]
        wait_until(lambda: placed(root, "fine-") == 8, "the others sorted", poll_s=0.2)
        wait_until(lambda: status_of(root).get("files", 0) >= len(told), "each to be told of", poll_s=0.2)
        fine += [put(root, f"later-{number}.png", 2000 + number) for number in range(8)]
        wait_until(lambda: placed(root, "later-") == 8, "those that came later sorted", poll_s=0.2)
        assert {odd for odd in named if placed(root, odd)} == unaffected
        flag.unlink()
        wait_until(settled(root, len(named) + len(fine)), "all sorted", 60, poll_s=0.2)
        wait_until(waits(root), "nothing odd any more", 20)
        assert process.stop() == 0, process.log_text()
        print(f"{len(named)} pairs of a step and an error")
    assert problems(root, dropped + fine) == []
    assert query(root, "SELECT id FROM results WHERE state <> 'placed'") == []


def test_folder_swapped_for_a_link_between_look_and_claim_gives_nothing_from_outside(quick_disk: Path) -> None:
    root = make_root(quick_disk / "root", "")
    (root / "tamis.toml").write_text((root / "tamis.toml").read_text().replace("= 0.05", "= 1.2"))
    version = root / "models/default/v1"
    before = {path.name: path.read_bytes() for path in version.iterdir()}
    with DaemonProcess(root) as process:
        process.wait_ready()
        folder = root / "incoming/flange/s"
        for name in before:
            put(root, f"flange/s/{name}", 1)
        time.sleep(0.3)  # an event tells of them at once; whether they were seen decides nothing but what is tried
        folder.rename(quick_disk / "away")
        folder.symlink_to(version)
        # Whatever was seen has settled when one that came later is sorted; a rescan looks once more.
        for name in ("later.png", "last.png"):
            put(root, f"flange/{name}", 2)
            wait_until(lambda: placed(root, name) == 1, f"{name} sorted")  # noqa: B023  (waited for in its own turn)
        assert process.stop() == 0, process.log_text()
    assert {path.name: path.read_bytes() for path in version.iterdir()} == before
