"""Labelling by dragging, as others do it: a member of the group on this machine, and a client of the Samba shares."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY, image_bytes
from tests.faults.root_for_faults import make_root, query
from tests.support.daemon_process import wait_until
from tests.support.web_process import free_port

GROUP, MEMBER = 54321, 54322
PEOPLES = ("incoming", "normal", "anomaly", "quarantine")
PASSWORD = "a long sentence"
SAMBA_EXAMPLE = REPOSITORY / "deploy/samba.conf.example"
SAMBA_HERE = """[global]
    workgroup = TAMIS
    smb ports = {port}
    interfaces = lo
    bind interfaces only = yes
    disable netbios = yes
    passdb backend = tdbsam:{state}/passdb.tdb
    private dir = {state}
    lock directory = {state}
    state directory = {state}
    cache directory = {state}
    pid directory = {state}
    ncalrpc dir = {state}/ncalrpc
    log file = {state}/log
    load printers = no
    invalid users =
"""

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")


@pytest.fixture
def shared_root() -> Iterator[Path]:
    """A root with the modes that `install.sh --group` gives, in a folder that other users may pass through."""
    with tempfile.TemporaryDirectory(prefix="tamis-drag-", dir="/var/tmp") as folder:
        Path(folder).chmod(0o711)
        root = make_root(Path(folder) / "root")
        for path in (root, *root.rglob("*")):
            os.chown(path, 0, GROUP)
            shared = path.relative_to(root).parts[:1] and path.relative_to(root).parts[0] in PEOPLES
            path.chmod(0o2770 if shared else 0o2750 if path.is_dir() else 0o640)
        yield root


@pytest.fixture
def daemon(shared_root: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The daemon as its unit runs it for a group: without a right over others' files, and with umask 0027."""
    alone = ["setpriv", "--regid", str(GROUP), "--clear-groups", "--bounding-set=-all", "--inh-caps=-all"]
    command = ["sh", "-c", 'umask 0027; exec "$@"', "sh", sys.executable, "-P", "-m", "service", "run"]
    with subprocess.Popen(
        [*alone, *command, "--root", str(shared_root)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.DEVNULL,
    ) as process:
        yield process
        process.terminate()
        assert process.wait(60) == 0


def as_member(*command: str | Path, stdin: bytes = b"") -> None:
    alone = ["setpriv", "--reuid", str(MEMBER), "--regid", str(GROUP), "--clear-groups", "--no-new-privs"]
    done = subprocess.run([*alone, *map(str, command)], input=stdin, capture_output=True, check=False, cwd="/")
    assert done.returncode == 0, done.stderr


def sorted_images(root: Path) -> dict[str, str]:
    """Return the path by file name of what has been placed."""
    found = query(root, "SELECT file_name, path FROM results WHERE state = 'placed'")
    return {row["file_name"]: row["path"] for row in found}


def label_of(root: Path, name: str) -> str | None:
    return str(query(root, "SELECT label FROM results WHERE file_name = ?", name)[0]["label"])


def test_member_of_the_group_labels_by_dragging_and_the_service_moves_it_again(
    shared_root: Path, daemon: subprocess.Popen[bytes]
) -> None:
    root = shared_root
    as_member("mkdir", "-m", "2775", root / "incoming/flange")
    for name, value in (("dark.png", 20), ("bright.png", 200)):
        into = root / "incoming/flange" / name
        as_member(
            "sh", "-c", 'umask 002; cat >"$0.part"; mv "$0.part" "$0"', into, stdin=image_bytes(value, seed=value)
        )
    wait_until(lambda: len(sorted_images(root)) == 2 or daemon.poll() is not None, "two verdicts")
    lies = sorted_images(root)
    assert lies["dark.png"].startswith("normal/flange/") and lies["bright.png"].startswith("anomaly/flange/")
    as_member("cat", root / lies["dark.png"])
    as_member("mv", root / lies["dark.png"], root / "anomaly/flange")
    as_member("mv", root / lies["bright.png"], (root / lies["dark.png"]).parent)
    wait_until(lambda: label_of(root, "dark.png") == "anomaly", "the label of the one")
    wait_until(lambda: label_of(root, "bright.png") == "normal", "the label of the other")
    # Nor is the service locked out by it, nor the group by the service.
    as_member("mkdir", "-m", "2775", root / "anomaly/flange/checked")
    path = sorted_images(root)["dark.png"]
    as_member("mv", root / path, root / "anomaly/flange/checked")
    wait_until(lambda: "checked" in sorted_images(root)["dark.png"], "the new place")
    assert not (root / path).exists()
    for kind in ("models", "maps", "processing"):
        refused = subprocess.run(
            ["setpriv", "--reuid", str(MEMBER), "--regid", str(GROUP), "--clear-groups", "touch", root / kind / "x"],
            capture_output=True,
            check=False,
        )
        assert refused.returncode != 0


@pytest.mark.long
def test_client_of_the_samba_shares_labels_by_dragging(
    shared_root: Path, daemon: subprocess.Popen[bytes], tmp_path: Path
) -> None:
    if missing := [name for name in ("smbd", "smbclient", "smbpasswd") if shutil.which(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    root, port, state = shared_root, free_port(), tmp_path / "samba"
    state.mkdir()
    example = SAMBA_EXAMPLE.read_text().replace("/var/lib/tamis", str(root)).replace("@inspection", "root")
    example = example.replace("force user = tamis", "force user = root").replace(
        "force group = tamis", "force group = root"
    )
    config = tmp_path / "smb.conf"
    config.write_text(SAMBA_HERE.format(port=port, state=state) + example)
    said = f"{PASSWORD}\n{PASSWORD}\n"
    subprocess.run(
        ["smbpasswd", "-c", config, "-s", "-a", "root"], input=said, text=True, check=True, capture_output=True
    )

    def client(share: str, command: str) -> str:
        words = ["smbclient", f"//127.0.0.1/{share}", "-p", str(port), "-s", str(config), "-U", f"root%{PASSWORD}"]
        done = subprocess.run([*words, "-c", command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    # It makes a group of processes of its own, which it ends at its end.
    with subprocess.Popen(["smbd", "--foreground", "-s", str(config)], stdin=subprocess.DEVNULL) as server:
        try:
            wait_until(lambda: answers(port) or server.poll() is not None, "the server")
            (tmp_path / "dark.png").write_bytes(image_bytes(20, seed=1))
            client(
                "tamis-incoming", "mkdir flange; cd flange; put dark.png dark.png.part; rename dark.png.part dark.png"
            )
            wait_until(lambda: "dark.png" in sorted_images(root), "a verdict")
            _, product, day, name = sorted_images(root)["dark.png"].split("/")
            # What a client does when one drags from a share to another.
            client("tamis-normal", f"cd {product}\\{day}; get {name}")
            client("tamis-anomaly", f"mkdir {product}; cd {product}; put {name}")
            client("tamis-normal", f"cd {product}\\{day}; del {name}")
            wait_until(lambda: label_of(root, "dark.png") == "anomaly", "the label")
            # And within one.
            client("tamis-anomaly", f"cd {product}; mkdir checked; rename {name} checked\\{name}")
            wait_until(lambda: "checked" in sorted_images(root)["dark.png"], "the new place")
        finally:
            server.terminate()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0
