"""After the verdict: what is wrong with one file or folder has that one wait, under a real daemon, and nothing else.

The errors are real ones where a mount makes them, else made by a hook in the daemon's process.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import image_bytes
from tests.faults.daemon_hooks import failing
from tests.faults.mounts import ntfs, run, tmpfs
from tests.faults.root_for_faults import drop, make_root, problems, query, settled
from tests.support.daemon_process import DaemonProcess, wait_until

ERRNOS = (
    "EACCES", "EPERM", "ENOENT", "ENOTDIR", "ELOOP", "EXDEV", "EROFS", "EINVAL", "ENAMETOOLONG", "EIO", "ESTALE",
    "ETXTBSY",
)  # fmt: skip


def states(root: Path) -> dict[str, str]:
    """The state of each image by the name it was dropped with."""
    return {row["file_name"]: row["state"] for row in query(root, "SELECT file_name, state FROM results")}


def drop_into(root: Path, folder: str, name: str, content: bytes) -> str:
    (root / "incoming" / folder).mkdir(exist_ok=True)
    return drop(root, f"{folder}/{name}", content)


@contextmanager
def daemon(root: Path, **environment: str) -> Iterator[DaemonProcess]:
    """A daemon that must end well, after only one start."""
    with DaemonProcess(root, environment=environment) as process:
        process.wait_ready()
        yield process
        assert process.stop() == 0, process.log_text()


def test_each_error_of_one_delivery_has_that_image_wait_and_the_others_are_delivered(tmp_path: Path) -> None:
    root, odd = make_root(tmp_path / "root"), tmp_path / "odd"
    odd.touch()
    dropped = []
    files = [(call, error) for call in ("rename", "stat") for error in ERRNOS]
    # What is not there is no reason to wait.
    waits = {f"odd-{call}-{error}.png" for call, error in files if (call, error) != ("stat", "ENOENT")}
    waits |= {f"odd-folder-{error}.png" for error in ERRNOS}
    with daemon(root, **failing(tmp_path, odd)) as process:
        for number, (call, error) in enumerate(files):
            dropped.append(drop(root, f"odd-{call}-{error}.png", image_bytes(20, seed=number)))
        for number, error in enumerate(ERRNOS):
            content = image_bytes(200, seed=100 + number)
            dropped.append(drop_into(root, f"odd-folder-{error}", f"odd-folder-{error}.png", content))
            dropped.append(drop(root, f"good-{number}.png", image_bytes(20, seed=200 + number)))
        told = len(dropped)
        wait_until(lambda: len(states(root)) == told, "all judged")
        wait_until(
            lambda: {name for name, state in states(root).items() if state == "scored"} == waits, "others placed"
        )
        print(f"deliver: {len(files) + len(ERRNOS)} pairs of step and error tried, {len(waits)} wait")
        # While they wait, others come and go, and nothing is judged again.
        dropped.append(drop(root, "later.png", image_bytes(20, seed=300)))
        wait_until(lambda: states(root).get("later.png") == "placed", "one that came later placed")
        assert {name for name, state in states(root).items() if state == "scored"} == waits
        log = process.log_text()
        for name in waits:
            folder = re.fullmatch(r"(odd-folder-E\w+)\.png", name)
            path = f"anomaly/{folder[1]}" if folder else f"/{name.removesuffix('.png')}."
            assert len([line for line in log.splitlines() if "entry waits" in line and path in line]) <= 1
        assert log.count("entry waits") <= 20 and "paused" not in log and "Traceback" not in log
        odd.unlink()
        wait_until(settled(root, len(dropped)), "all placed once nothing is wrong any more")
    assert problems(root, dropped) == []


def test_names_that_the_disk_of_a_destination_refuses_get_others_which_are_on_record(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    refused = ["aux.png", "COM1.jpeg.png", "nul", "lpt9.x.tif"]
    with ntfs(tmp_path / "disk.img", root / "normal"), daemon(root) as process:
        dropped = [drop(root, name, image_bytes(20, seed=number)) for number, name in enumerate(refused)]
        dropped.append(drop_into(root, "con", "con.png", image_bytes(20, seed=10)))
        dropped.append(drop_into(root, "caf\u00e9", "aux.png", image_bytes(20, seed=11)))
        dropped.append(drop(root, "good.png", image_bytes(20, seed=12)))
        # On record it has another name than on the disk, before and after.
        Path(os.fsdecode(os.fsencode(root) + b"/incoming/latin-\xe9")).mkdir()
        dropped.append(drop(root, b"latin-\xe9/\xe9.png", image_bytes(20, seed=13)))
        wait_until(settled(root, len(dropped)), "all placed")
        assert problems(root, dropped) == []
        rows = {(row["product"], row["file_name"]): row for row in query(root, "SELECT * FROM results")}
        shown = {key: row["path"].replace(row["id"], "ID").split("/")[1::2] for key, row in rows.items()}
        assert shown == {
            ("default", "aux.png"): ["default", "%61ux.ID.png"],
            ("default", "COM1.jpeg.png"): ["default", "%43OM1.jpeg.ID.png"],
            ("default", "nul"): ["default", "%6Eul.ID"],
            ("default", "lpt9.x.tif"): ["default", "%6Cpt9.x.ID.tif"],
            ("con", "con.png"): ["%63on", "%63on.ID.png"],
            ("caf\u00e9", "aux.png"): ["caf\u00e9", "%61ux.ID.png"],
            ("default", "good.png"): ["default", "good.ID.png"],
            ("latin-%E9", "\\xe9.png"): ["latin-%E9", "%E9.ID.png"],
        }
        assert "entry waits" not in process.log_text() and "missing" not in process.log_text()


def test_full_disk_of_one_destination_holds_up_only_what_goes_there(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with tmpfs(root / "anomaly", "size=64k") as disk, daemon(root) as process:
        ballast = disk / "ballast"
        with ballast.open("wb", buffering=0) as file:
            while file.tell() < 64 << 10 and file.write(bytes(4096)):
                pass
        dropped = [drop(root, f"bad-{number}.png", image_bytes(200, seed=number)) for number in range(3)]
        dropped += [drop(root, f"good-{number}.png", image_bytes(20, seed=10 + number)) for number in range(3)]
        wait_until(lambda: sorted(states(root).values()) == ["placed"] * 3 + ["scored"] * 3, "the good ones placed")
        assert "No space left" in process.log_text() and "paused" not in process.log_text()
        ballast.unlink()
        wait_until(settled(root, 6), "all placed once there is room")
    # The mount is gone now, and with it the anomalies; all were there before.


def test_destination_on_a_read_only_mount_holds_up_only_what_goes_there(tmp_path: Path) -> None:
    root = make_root(tmp_path / "root")
    with daemon(root) as process, tmpfs(root / "anomaly", "size=1m,ro"):
        dropped = [drop(root, f"bad-{number}.png", image_bytes(200, seed=number)) for number in range(3)]
        dropped.append(drop(root, "good.png", image_bytes(20, seed=9)))
        wait_until(lambda: sorted(states(root).values()) == ["placed"] + ["scored"] * 3, "the good one placed")
        wait_until(lambda: "Read-only file system" in process.log_text(), "the reason said")
        run("mount", "-o", "remount,rw", root / "anomaly")
        wait_until(settled(root, 4), "all placed once it may be written")
        assert problems(root, dropped) == []


def test_link_or_file_in_the_place_of_a_products_folder_holds_up_that_product_alone(tmp_path: Path) -> None:
    root, outside = make_root(tmp_path / "root"), tmp_path / "outside"
    outside.mkdir()
    (root / "normal/linked").symlink_to(outside)
    (root / "normal/file").touch()
    with daemon(root) as process:
        dropped = [
            drop_into(root, name, f"{name}.png", image_bytes(20, seed=ord(name[0]))) for name in ("linked", "file")
        ]
        dropped.append(drop(root, "good.png", image_bytes(20)))
        wait_until(lambda: sorted(states(root).values()) == ["placed", "scored", "scored"], "the good one placed")
        wait_until(lambda: process.log_text().count("entry waits") == 2, "both said")
        (root / "normal/linked").unlink()
        (root / "normal/file").unlink()
        wait_until(settled(root, 3), "all placed")
    assert problems(root, dropped) == [] and not any(outside.iterdir())


@pytest.mark.parametrize(
    "errors",
    [
        pytest.param(("EACCES", "ENOENT", "EIO"), id="some"),
        # The thread that looks through the folders gives way to everything else.
        pytest.param(ERRNOS, id="each", marks=pytest.mark.long),
    ],
)
def test_each_error_of_one_file_or_folder_holds_up_no_other_label_or_training_image(
    tmp_path: Path, errors: tuple[str, ...]
) -> None:
    root, odd = make_root(tmp_path / "root"), tmp_path / "odd"
    names = [f"odd-{step}-{error}" for step in ("stat", "folder", "train") for error in errors]
    with daemon(root, **failing(tmp_path, odd)) as process:
        dropped = [drop(root, "good.png", image_bytes(20))]
        for number, name in enumerate(names):
            folder = "default" if "stat" in name else name
            dropped.append(drop_into(root, folder, f"{name}.png", image_bytes(20, seed=1 + number)))
        wait_until(settled(root, len(dropped)), "all sorted")
        # From now on some files cannot be looked at, nor can some folders, nor some of the training set.
        odd.touch()
        for path in sorted((root / "normal").rglob("*.png")):
            drag(root, path)
        labelled = {"good.png", *(f"{name}.png" for name in names if "train" in name)}
        wait_until(lambda: set(labels(root)) == labelled, "those labelled that can be looked at")
        # Again and again, and no more than that.
        label_another(root, dropped)
        assert set(labels(root)) == {*labelled, "again.png"}
        wait_until(lambda: "step=train" in process.log_text(), "a reason said")
        assert kept_for_training(root) <= {"good", "again"} and "step=label" in process.log_text()
        odd.unlink()
        every = {*names, "good", "again"}
        wait_until(lambda: set(labels(root)) == {f"{name}.png" for name in every}, "all labelled")
        wait_until(lambda: kept_for_training(root) == every, "all kept")
        print(f"label, train: {len(names)} pairs of step and error tried")
    assert problems(root, dropped) == []


def kept_for_training(root: Path) -> set[str]:
    """The names, without suffixes and ids, of the images in the training set."""
    return {path.name.split(".")[0] for path in (root / "training").rglob("[!.]*.png")}


def labels(root: Path) -> dict[str, str]:
    """The labels by the names with which images were dropped."""
    rows = query(root, "SELECT file_name, label FROM results WHERE label IS NOT NULL")
    return {row["file_name"]: row["label"] for row in rows}


def label_another(root: Path, dropped: list[str]) -> None:
    """Have one more image sorted and labelled: by then all that waits was looked at again."""
    dropped.append(drop(root, "again.png", image_bytes(20, seed=1000)))
    wait_until(lambda: states(root).get("again.png") == "placed", "sorted")
    [row] = query(root, "SELECT path FROM results WHERE file_name = 'again.png'")
    drag(root, root / row["path"])
    wait_until(lambda: labels(root).get("again.png") == "anomaly", "labelled")


def drag(root: Path, path: Path) -> None:
    """Move a file from `normal/` to `anomaly/`, as a person does."""
    to = root / "anomaly" / path.relative_to(root / "normal")
    to.parent.mkdir(parents=True, exist_ok=True)
    path.rename(to)
