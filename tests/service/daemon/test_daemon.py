"""The real daemon process on a real root, with a real graph whose outcomes are plain."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from service.instances import instance_lock, instances, instances_that_ran
from service.storage.database.driver import sqlite3
from tests.conftest import image_bytes
from tests.support.brightness_version import install
from tests.support.daemon_process import REPOSITORY, DaemonProcess, finished, nothing_left, wait_until

SETTINGS = "settle_time_s = 0.2\nrescan_interval_s = 1.0\nfree_bytes_min = 0\n"


@pytest.fixture
def house(root: Path) -> Path:
    install(root)
    (root / "tamis.toml").write_text(SETTINGS)
    return root


def rows(root: Path, statement: str = "SELECT * FROM results ORDER BY id") -> list[dict[str, Any]]:
    with sqlite3.connect(root / "tamis.db", timeout=60) as connection:
        connection.row_factory = sqlite3.Row
        return [dict(row) for row in connection.execute(statement)]


def test_the_whole_journey_from_drop_to_sigterm(house: Path, drop: Callable[..., Path]) -> None:
    drop("before.png", brightness=20)
    with DaemonProcess(house, environment={"WATCHDOG_USEC": "1000000", "TAMIS_LOG_FORMAT": "json"}) as daemon:
        daemon.wait_ready()
        drop("gears/good.png", brightness=30)
        drop("bad.png", brightness=220)
        (house / "incoming/broken.png").write_bytes(b"no image")
        wait_until(lambda: finished(house) == 4, "four images finished")
        daemon.wait_for_message("WATCHDOG=1")
        assert daemon.stop() == 0, daemon.log_text()
        daemon.wait_for_message("STOPPING=1")
        log = [json.loads(line) for line in daemon.log_text().splitlines()]
    found = {row["file_name"]: row for row in rows(house)}
    assert {name: (row["state"], row["verdict"]) for name, row in found.items()} == {
        "before.png": ("placed", "normal"),
        "good.png": ("placed", "normal"),
        "bad.png": ("placed", "anomaly"),
        "broken.png": ("quarantined", None),
    }
    for row in found.values():
        assert (house / row["path"]).is_file() and row["received_at"] <= row["decided_at"]
    assert found["good.png"]["product"] == "gears" and found["good.png"]["model_version"] == "v1"
    assert nothing_left(house) and len(list((house / "maps").iterdir())) == 1
    assert [line["event"] for line in log][:2] == ["measured", "ready"] and log[-1]["event"] == "stopped"
    assert sum(line.get("images", 0) for line in log if line["event"] == "batch") == 4


def test_energy_of_scoring_and_idling_is_on_record(house: Path, drop: Callable[..., Path]) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        # The meter starts beside the loop; its first idle row shows that it runs.
        drop("0.png", seed=0)
        for number in range(1, 200):
            wait_until(lambda number=number: finished(house) == number, f"{number} finished")
            if rows(house, "SELECT * FROM energy WHERE kind = 'scoring'"):
                break
            drop(f"{number}.png", seed=number)
        assert daemon.stop() == 0
    energy = rows(house, "SELECT * FROM energy ORDER BY started_at")
    assert {row["kind"] for row in energy} == {"scoring", "idle"}
    assert all(row["total_wh"] > 0 for row in energy if row["kind"] == "scoring")
    assert all(row["emissions_g"] is None and row["source"] in ("measured", "estimated") for row in energy)
    charged = sum(row["energy_wh"] or 0 for row in rows(house))
    assert charged == pytest.approx(sum(row["total_wh"] for row in energy if row["kind"] == "scoring"))


def test_files_without_a_model_are_counted_and_wait_until_there_is_one(root: Path, drop: Callable[..., Path]) -> None:
    (root / "tamis.toml").write_text(SETTINGS)
    status = "STATUS=sorting; 0 placed, 0 anomalies, 0 quarantined, "
    drop("gears/a.png")
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        daemon.wait_for_message(f"{status}1 waiting")
        assert "no model; files wait" in daemon.log_text()
        # Whole at once, by a rename into a folder that is watched: one event, and no scan that finds it first.
        drop("gears/b.part", seed=1).rename(root / "incoming/gears/b.png")
        daemon.wait_for_message(f"{status}2 waiting")
        [told] = root.glob("processing/*/.status.json")
        assert json.loads(told.read_text())["waiting_for_model"] == {"gears": 2}
        assert len(list((root / "incoming").rglob("*.png"))) == 2
        install(root, product="gears")
        wait_until(lambda: finished(root) == 2, "the images finished")
        assert daemon.stop() == 0
        assert daemon.log_text().count("no model; files wait") == 1


def test_promotion_takes_effect_without_a_restart(house: Path, drop: Callable[..., Path]) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        drop("a.png", seed=1)
        wait_until(lambda: finished(house) == 1, "the first finished")
        install(house, version="v2")
        for number in range(1, 100):
            drop("b.png", seed=1 + number)
            wait_until(lambda number=number: finished(house) == 1 + number, "the next finished")
            if rows(house)[-1]["model_version"] == "v2":
                break
        assert daemon.stop() == 0
    assert [rows(house)[0]["model_version"], rows(house)[-1]["model_version"]] == ["v1", "v2"]


def test_damaged_champion_is_passed_over_for_the_one_before(house: Path, drop: Callable[..., Path]) -> None:
    install(house, version="v2")
    (house / "models/default/v2/model.bin").write_bytes(b"damaged")
    drop("a.png")
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0
        assert "model passed over" in daemon.log_text() and "model.bin" in daemon.log_text()
    assert [row["model_version"] for row in rows(house)] == ["v1"]


def test_no_loadable_model_refuses_to_start_and_moves_nothing(house: Path, drop: Callable[..., Path]) -> None:
    (house / "models/default/v1/model.xml").write_bytes(b"damaged")
    path = drop("a.png")
    with DaemonProcess(house) as daemon:
        assert daemon.process.wait(60) == 78
        assert "model.xml" in daemon.log_text() and "expected sha256" in daemon.log_text()
    assert path.exists()


def test_one_products_damaged_model_does_not_stop_the_others(house: Path, drop: Callable[..., Path]) -> None:
    install(house, product="gears")
    (house / "models/gears/v1/model.bin").write_bytes(b"damaged")
    waiting = drop("gears/a.png")
    drop("b.png", seed=1)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 1, "the other product's image finished")
        assert daemon.stop() == 0
        assert daemon.log_text().count("no usable model; files wait") == 1
    assert waiting.exists() and [row["product"] for row in rows(house)] == ["default"]


def test_rate_that_the_calibration_cannot_give_refuses_to_start(house: Path, drop: Callable[..., Path]) -> None:
    (house / "tamis.toml").write_text(SETTINGS + "false_alarm_rate = 0.001\n")
    path = drop("a.png")
    with DaemonProcess(house) as daemon:
        assert daemon.process.wait(60) == 78
        assert "needs 999 held-out normal images, found 100" in daemon.log_text()
    assert path.exists()


def test_second_daemon_is_refused_by_name_of_the_first(house: Path) -> None:
    with DaemonProcess(house) as first:
        first.wait_ready()
        for options in ((), ("--instance", "other")):
            with DaemonProcess(house, *options) as second:
                assert second.process.wait(60) == 78
                assert f'"pid": {first.process.pid}' in second.log_text()
        assert instances(house) == instances_that_ran(house) == ["main"]
        assert first.stop() == 0


def test_a_folder_of_an_instance_that_never_ran_is_not_called_a_daemon(house: Path) -> None:
    (house / "processing/other").mkdir()
    (house / "processing/ran").mkdir()
    (house / "processing/ran/.status.json").touch()
    instance_lock(house, "held").acquire()
    assert instances_that_ran(house) == ["held", "ran"]


def test_two_daemons_share_a_root_when_both_say_so(house: Path, drop: Callable[..., Path]) -> None:
    (house / "tamis.toml").write_text(SETTINGS + "share_root = true\n")
    with DaemonProcess(house) as first, DaemonProcess(house, "--instance", "other") as second:
        first.wait_ready()
        second.wait_ready()
        for number in range(40):
            drop(f"{number}.png", seed=number)
        wait_until(lambda: finished(house) == 40, "forty finished")
        assert (first.stop(), second.stop()) == (0, 0)
    assert len({row["id"] for row in rows(house)}) == 40 and nothing_left(house)


def test_what_a_dead_instance_left_is_adopted(house: Path) -> None:
    folder = house / "processing/dead/gears"
    folder.mkdir(parents=True)
    (folder / "01ARZ3NDEKTSV4RRFFQ69G5FAV--1--a.png").write_bytes(image_bytes(20))
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0
    [row] = rows(house)
    assert (row["id"], row["product"], row["state"]) == ("01ARZ3NDEKTSV4RRFFQ69G5FAV", "gears", "placed")
    assert row["received_at"].startswith("2016-07-30")


def test_second_signal_leaves_at_once(house: Path, drop: Callable[..., Path]) -> None:
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        for number in range(200):
            drop(f"{number}.png", seed=number)
        wait_until(lambda: finished(house) > 0, "the first finished")
        daemon.process.send_signal(signal.SIGSTOP)
        daemon.process.send_signal(signal.SIGTERM)
        daemon.process.send_signal(signal.SIGINT)
        daemon.process.send_signal(signal.SIGCONT)
        daemon.process.wait(10)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 200, "all finished by the next run")
        assert daemon.stop() == 0
    assert len({row["id"] for row in rows(house)}) == 200


def test_full_disk_pauses_claiming_before_it_is_full(house: Path, drop: Callable[..., Path]) -> None:
    (house / "tamis.toml").write_text(SETTINGS.replace("free_bytes_min = 0", f"free_bytes_min = {1 << 60}"))
    path = drop("a.png")
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: "bytes free" in daemon.log_text(), "word of the lack of space")
        said = house / "processing/main/.status.json"
        wait_until(lambda: said.exists() and "bytes free" in str(json.loads(said.read_text())["paused"]), "its status")
        assert path.exists()
        assert daemon.stop() == 0


@pytest.mark.parametrize("mode", ["polling", "events"])
def test_every_way_of_watching_finds_new_files(house: Path, drop: Callable[..., Path], mode: str) -> None:
    (house / "tamis.toml").write_text(SETTINGS + f'watch_mode = "{mode}"\npoll_interval_s = 0.2\n')
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        drop("new/folder/a.png")
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0
        assert f"watching={mode}" in daemon.log_text()


def test_database_newer_than_the_program_refuses_to_start(house: Path, drop: Callable[..., Path]) -> None:
    path = drop("a.png")
    with sqlite3.connect(house / "tamis.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999_from_the_future'")
    with DaemonProcess(house) as daemon:
        assert daemon.process.wait(60) == 78
        assert "9999_from_the_future" in daemon.log_text()
    assert path.exists()


def test_unknown_setting_refuses_to_start_by_name(house: Path) -> None:
    (house / "tamis.toml").write_text("settle_tme_s = 3\n")
    with DaemonProcess(house) as daemon:
        assert daemon.process.wait(60) == 78
        assert "settle_tme_s" in daemon.log_text() and "did you mean 'settle_time_s'" in daemon.log_text()


def test_locked_database_is_waited_for_and_the_loop_goes_on(house: Path, drop: Callable[..., Path]) -> None:
    with DaemonProcess(house, environment={"WATCHDOG_USEC": "400000"}) as daemon:
        daemon.wait_ready()
        connection = sqlite3.connect(house / "tamis.db", isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        drop("a.png")
        wait_until(lambda: any((house / "processing/main").glob("*.png")), "the claim")
        for _ in range(5):
            daemon.wait_for_message("WATCHDOG=1")
        connection.execute("COMMIT")
        connection.close()
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0


def test_data_is_written_with_the_umask_of_the_service(house: Path, drop: Callable[..., Path]) -> None:
    before = os.umask(0o077)
    try:
        with DaemonProcess(house) as daemon:
            daemon.wait_ready()
            drop("bad.png", brightness=220)
            wait_until(lambda: finished(house) == 1, "the image finished")
            assert daemon.stop() == 0
    finally:
        os.umask(before)
    [row] = rows(house)
    [overlay] = (house / "maps").iterdir()
    for path in (overlay, (house / row["path"]).parent):
        assert path.stat().st_mode & 0o077 == 0, path


def test_broken_folder_has_its_images_wait_and_the_same_run_goes_on(house: Path, drop: Callable[..., Path]) -> None:
    (house / "normal").rmdir()
    (house / "normal").write_text("not a folder")
    with DaemonProcess(house, "--log-format", "json") as daemon:
        daemon.wait_ready()
        drop("a.png")
        wait_until(lambda: "entry waits" in daemon.log_text(), "the reason said")
        lines = [json.loads(line) for line in daemon.log_text().splitlines()]
        [waits] = [line for line in lines if line["event"] == "entry waits"]
        assert waits["path"] == "normal" and "expected a folder" in waits["reason"]
        assert [row["state"] for row in rows(house)] == ["scored"]
        (house / "normal").unlink()
        (house / "normal").mkdir()
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0
    assert [row["state"] for row in rows(house)] == ["placed"]


def test_error_that_is_not_of_one_entry_ends_the_daemon_and_the_next_run_goes_on(
    house: Path, drop: Callable[..., Path], tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(
        "import errno, os\n"
        "real = os.rename\n"
        "def full(source, target, **folders):\n"
        "    if folders.get('dst_dir_fd') is not None and not target[:26].isalnum():\n"
        "        raise OSError(errno.EMFILE, 'Too many open files')\n"
        "    return real(source, target, **folders)\n"
        "os.rename = full\n"
    )
    with DaemonProcess(house, "--log-format", "json", environment={"PYTHONPATH": str(tmp_path)}) as daemon:
        daemon.wait_ready()
        drop("a.png")
        assert daemon.process.wait(60) == 1
        # On a busy machine the meter, which starts beside the work, may say after it that it did not start.
        lines = [json.loads(line) for line in daemon.log_text().splitlines()]
        [ended] = [line for line in lines if line["event"] == "ended by an error"]
        assert lines.index(ended) >= len(lines) - 2 and "Too many open files" in ended["exception"]
    assert [row["state"] for row in rows(house)] == ["scored"]
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 1, "the image finished")
        assert daemon.stop() == 0
    assert [row["state"] for row in rows(house)] == ["placed"]


@pytest.mark.parametrize(
    ("failing", "reason"),
    [("os.kill(os.getpid(), signal.SIGSEGV)", "SIGSEGV"), ("threading.Event().wait()", "within 1 s")],
)
def test_image_that_ends_its_decoder_is_quarantined_by_the_same_daemon_and_its_neighbours_are_scored(
    house: Path, drop: Callable[..., Path], tmp_path: Path, failing: str, reason: str
) -> None:
    # A decoder that crashes or hangs at one file, as a bug in a C library would.
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys, threading\n"
        "import PIL.Image\n"
        "real = PIL.Image.open\n"
        "def fail(file, *args, **kwargs):\n"
        "    image = real(file, *args, **kwargs)\n"
        "    if image.size == (31, 17):\n"
        f"        {failing}\n"
        "    return image\n"
        "PIL.Image.open = fail\n"
    )
    (house / "tamis.toml").write_text(SETTINGS + "decode_timeout_s = 1.0\nattempts_max = 2\n")
    (house / "incoming/poison.png").write_bytes(image_bytes(20, size=(31, 17)))
    for number in range(6):
        drop(f"{number}.png", seed=number)
    with DaemonProcess(house, environment={"PYTHONPATH": str(tmp_path)}) as daemon:
        wait_until(lambda: finished(house) == 7, "all finished")
        assert daemon.stop() == 0
        log = daemon.log_text()
    found = {row["file_name"]: row for row in rows(house)}
    poison = found.pop("poison.png")
    assert (poison["state"], poison["error_code"]) == ("quarantined", "attempts_exhausted")
    assert reason in poison["error"] and log.count("decoder ended") == 2
    assert {row["state"] for row in found.values()} == {"placed"} and len(found) == 6


def test_retention_runs_beside_the_scoring_and_says_what_it_removed(house: Path, drop: Callable[..., Path]) -> None:
    """The real daemon, but for the ten minutes that it waits at its start."""
    (house / "tamis.toml").write_text(SETTINGS + "keep_normal_days = 30\nkeep_anomaly_days = 30\n")
    script = """
import sys
from datetime import timedelta
from pathlib import Path
from service.daemon import background_jobs
from service.daemon.run import run
from service.settings import load
background_jobs.RETENTION_AFTER = timedelta(0)
sys.exit(run(Path(sys.argv[1]), load(Path(sys.argv[1]))))
"""
    drop("old.png", brightness=20)
    drop("new.png", brightness=30)
    drop("defect.png", brightness=220)
    with DaemonProcess(house) as daemon:
        daemon.wait_ready()
        wait_until(lambda: finished(house) == 3, "three finished")
        assert daemon.stop() == 0
    with sqlite3.connect(house / "tamis.db") as connection:
        connection.execute("UPDATE images SET received_at = '2020-01-01T00:00:00.000000Z' WHERE file_name <> 'new.png'")
    maps = list((house / "maps").iterdir())
    log = house / "log"
    with log.open("wb") as stderr:
        process = subprocess.Popen([sys.executable, "-c", script, str(house)], cwd=REPOSITORY, stderr=stderr)
    try:
        wait_until(lambda: "retention removed=2" in log.read_text(), "word of what was removed")
        drop("meanwhile.png", seed=5)
        wait_until(lambda: finished(house) == 4, "the fourth finished")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()
    found = {row["file_name"]: row for row in rows(house)}
    assert {name: row["state"] for name, row in found.items()} == {
        "old.png": "missing",
        "defect.png": "missing",
        "new.png": "placed",
        "meanwhile.png": "placed",
    }
    assert all((house / row["path"]).exists() == (row["state"] == "placed") for row in found.values())
    assert len(maps) == 1 and not maps[0].exists()
    assert json.loads((house / "processing/.retention.json").read_text())["pictures"] == 2
