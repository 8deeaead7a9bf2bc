"""The install script, run for real below a scratch prefix with a stand-in package.

Covered: the checks, the environment, the root, the files, upgrade, group, uninstall. Not covered, because a
prefix leaves the machine alone: making the user, owners, and systemctl; those are seen in what --dry-run prints.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import zipfile
from pathlib import Path

import pytest

INSTALL = Path(__file__).parents[2] / "deploy" / "install.sh"
TOOLS = INSTALL.parents[1] / "tests/faults/install_tools.sh"
VENV = "opt/tamis"
DATA = "var/lib/tamis"
UNIT = "etc/systemd/system/tamis.service"
DROP_IN = "etc/systemd/system/tamis.service.d/group.conf"
WEB_UNIT = "etc/systemd/system/tamis-web.service"
WEB_DROP_IN = "etc/systemd/system/tamis-web.service.d/group.conf"
ENVIRONMENT = "etc/tamis/tamis.env"
PEOPLES = ("incoming", "normal", "anomaly", "quarantine")

STAND_IN = """
import pathlib, sys

VERSION = "{version}"

def main():
    if sys.argv[1:] == ["--version"]:
        print("tamis", VERSION)
        return
    assert sys.argv[1] == "init", sys.argv
    root = pathlib.Path(sys.argv[2])
    for name in ("incoming", "normal", "anomaly", "quarantine", "models"):
        (root / name).mkdir(exist_ok=True)
    (root / "tamis.toml").touch()
"""


def stand_in(folder: Path, version: str) -> Path:
    """Write a wheel `tamis` without dependencies whose command only knows `init` and `--version`."""
    path = folder / f"tamis-{version}-py3-none-any.whl"
    about = f"tamis-{version}.dist-info"
    files = {
        "tamis_stand_in.py": STAND_IN.format(version=version),
        f"{about}/METADATA": f"Metadata-Version: 2.1\nName: tamis\nVersion: {version}\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{about}/entry_points.txt": "[console_scripts]\ntamis = tamis_stand_in:main\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{about}/RECORD"])
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
    return path


def install(*options: str | Path, path: str | None = None) -> subprocess.CompletedProcess[str]:
    environment = {
        "PATH": path or os.environ["PATH"],
        "HOME": "/nonexistent",
        "PIP_NO_INDEX": "1",
        "PIP_CONFIG_FILE": os.devnull,
    }
    return subprocess.run(
        ["sh", str(INSTALL), *map(str, options)], capture_output=True, text=True, timeout=300, env=environment
    )


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("wheels")
    return stand_in(folder, "1.0"), stand_in(folder, "1.1")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory, wheels: tuple[Path, Path]) -> Path:
    prefix = tmp_path_factory.mktemp("machine")
    done = install("--prefix", prefix, "--source", wheels[0])
    assert done.returncode == 0, done.stdout + done.stderr
    return prefix


def copy_of(prefix: Path, tmp_path: Path) -> Path:
    shutil.copytree(prefix, tmp_path / "machine", symlinks=True)
    return tmp_path / "machine"


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
@pytest.mark.parametrize("script", [INSTALL, TOOLS], ids=lambda script: script.name)
def test_script_is_clean_under_shellcheck(script: Path) -> None:
    done = subprocess.run(["shellcheck", str(script)], capture_output=True, text=True, timeout=60)
    assert done.stdout == ""
    assert done.returncode == 0


def test_first_run_makes_environment_root_unit_and_environment_file(installed: Path) -> None:
    version = subprocess.run([installed / VENV / "bin/tamis", "--version"], capture_output=True, text=True, timeout=60)
    assert version.stdout == "tamis 1.0\n"
    assert (installed / DATA / "tamis.toml").is_file()
    assert (installed / UNIT).read_bytes() == (INSTALL.parent / "tamis.service").read_bytes()
    assert (installed / ENVIRONMENT).read_bytes() == (INSTALL.parent / "tamis.env").read_bytes()


def test_other_users_cannot_look_into_the_root(installed: Path) -> None:
    assert mode(installed / DATA) & 0o007 == 0
    assert mode(installed / DATA / "incoming") == 0o700
    assert mode(installed / ENVIRONMENT) & 0o007 == 0


def test_second_run_upgrades_and_keeps_what_is_the_owners(
    installed: Path, wheels: tuple[Path, Path], tmp_path: Path
) -> None:
    prefix = tmp_path / "machine"
    assert install("--prefix", prefix, "--source", wheels[0]).returncode == 0
    (prefix / ENVIRONMENT).write_text("TAMIS_LOG_FORMAT=json\n")
    (prefix / DATA / "tamis.toml").write_text("settle_time_s = 2.0\n")
    (prefix / DATA / "incoming" / "part.png").write_bytes(b"picture")
    done = install("--prefix", prefix, "--source", wheels[1])
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"upgrading {prefix}/{VENV}" in done.stdout
    version = subprocess.run([prefix / VENV / "bin/tamis", "--version"], capture_output=True, text=True, timeout=60)
    assert version.stdout == "tamis 1.1\n"
    assert (prefix / ENVIRONMENT).read_text() == "TAMIS_LOG_FORMAT=json\n"
    assert (prefix / DATA / "tamis.toml").read_text() == "settle_time_s = 2.0\n"
    assert (prefix / DATA / "incoming" / "part.png").read_bytes() == b"picture"


def test_group_may_drop_drag_and_read_and_an_upgrade_keeps_it_until_it_is_taken_away(
    tmp_path: Path, installed: Path, wheels: tuple[Path, Path]
) -> None:
    prefix = copy_of(installed, tmp_path)
    done = install("--prefix", prefix, "--source", wheels[0], "--no-deps", "--group", "inspection")
    assert done.returncode == 0, done.stdout + done.stderr
    (prefix / DATA / "normal/flange").mkdir()
    upgraded = install("--prefix", prefix, "--source", wheels[1], "--no-deps")
    assert upgraded.returncode == 0, upgraded.stderr
    assert "keeping the access of the group inspection" in upgraded.stdout
    # Between the sorted folders members drag images, which writes into the folders.
    peoples = [prefix / DATA / name for name in (*PEOPLES, "normal/flange")]
    assert [mode(folder) for folder in peoples] == [0o2770] * 5
    assert mode(prefix / DATA / "models") == 0o2750
    assert mode(prefix / DATA) == 0o2750
    assert (prefix / DROP_IN).read_text() == "[Service]\nGroup=inspection\nSupplementaryGroups=tamis\nUMask=0027\n"
    gone = install("--prefix", prefix, "--source", wheels[1], "--no-deps", "--no-group")
    assert gone.returncode == 0, gone.stderr
    assert not (prefix / DROP_IN).exists()
    assert [mode(folder) & 0o2027 for folder in peoples] == [0] * 5


@pytest.mark.parametrize(("group", "kept"), [("daemon", True), ("root", False)])
def test_group_of_the_folder_is_kept_after_an_uninstall(
    tmp_path: Path, wheels: tuple[Path, Path], group: str, kept: bool
) -> None:
    """With what it was shared with before, or by hand; the service's own folders are nobody's else."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to give a folder to a group")
    incoming = tmp_path / DATA / "incoming"
    incoming.mkdir(parents=True)
    shutil.chown(incoming, group=group)
    incoming.chmod(0o770)
    said = install("--prefix", tmp_path, "--source", wheels[0], "--dry-run").stdout
    assert (f"keeping the access of the group {group}" in said) is kept
    assert (f"would write: {tmp_path}/{DROP_IN}" in said) is kept


def test_page_is_installed_when_asked_for_kept_by_an_upgrade_and_taken_away(
    tmp_path: Path, installed: Path, wheels: tuple[Path, Path]
) -> None:
    assert not (installed / WEB_UNIT).exists()
    prefix = copy_of(installed, tmp_path)
    done = install("--prefix", prefix, "--source", wheels[0], "--no-deps", "--web", "--group", "inspection")
    assert done.returncode == 0, done.stdout + done.stderr
    unit = (INSTALL.parent / "tamis-web.service").read_bytes()
    assert (prefix / WEB_UNIT).read_bytes() == unit
    assert (prefix / WEB_DROP_IN).read_text() == (prefix / DROP_IN).read_text()
    (prefix / WEB_UNIT).write_text("old")
    assert install("--prefix", prefix, "--source", wheels[1], "--no-deps").returncode == 0
    assert (prefix / WEB_UNIT).read_bytes() == unit
    assert install("--prefix", prefix, "--uninstall").returncode == 0
    assert not (prefix / WEB_UNIT).parent.joinpath("tamis-web.service.d").exists()
    assert not (prefix / WEB_UNIT).exists()


def test_dry_run_with_the_page_shows_its_packages_and_its_service(wheels: tuple[Path, Path]) -> None:
    done = install("--source", wheels[0], "--dry-run", "--web")
    assert done.returncode == 0, done.stderr
    assert f"--upgrade {wheels[0]}[web]" in done.stdout
    assert "systemctl enable --quiet tamis-web.service" in done.stdout
    assert "tamis-web" not in install("--source", wheels[0], "--dry-run").stdout


def test_uninstall_takes_the_program_and_keeps_the_data(installed: Path, tmp_path: Path) -> None:
    prefix = copy_of(installed, tmp_path)
    (prefix / DATA / "normal" / "part.png").write_bytes(b"picture")
    done = install("--prefix", prefix, "--uninstall")
    assert done.returncode == 0, done.stdout + done.stderr
    assert not (prefix / VENV).exists()
    assert not (prefix / UNIT).exists()
    assert (prefix / DATA / "normal" / "part.png").read_bytes() == b"picture"
    assert (prefix / DATA / "tamis.toml").is_file()
    assert (prefix / ENVIRONMENT).is_file()
    assert install("--prefix", prefix, "--uninstall").returncode == 0


def test_uninstall_leaves_a_folder_alone_that_is_no_environment(tmp_path: Path) -> None:
    (tmp_path / VENV).mkdir(parents=True)
    (tmp_path / VENV / "mine.txt").write_text("mine")
    assert install("--prefix", tmp_path, "--uninstall").returncode == 0
    assert (tmp_path / VENV / "mine.txt").read_text() == "mine"


def test_dry_run_prints_every_step_and_does_none(tmp_path: Path, wheels: tuple[Path, Path]) -> None:
    done = install("--prefix", tmp_path, "--source", wheels[0], "--group", "inspection", "--rapl", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.iterdir()) == []
    for step in ("-m venv", "pip install", "tamis init", UNIT, ENVIRONMENT, DROP_IN, "tamis-rapl.conf"):
        assert step in done.stdout


def test_dry_run_without_prefix_shows_the_user_and_the_service(wheels: tuple[Path, Path]) -> None:
    done = install("--source", wheels[0], "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "systemctl enable --quiet tamis.service" in done.stdout
    assert "runuser -u tamis" in done.stdout
    assert "install --quiet" in done.stdout


def test_no_start_neither_enables_nor_starts(wheels: tuple[Path, Path]) -> None:
    done = install("--source", wheels[0], "--dry-run", "--no-start")
    assert "systemctl enable" not in done.stdout
    assert "systemctl restart" not in done.stdout


@pytest.mark.parametrize(
    "options", [["--frobnicate"], ["--prefix"], ["--prefix", "relative/folder"], ["--group", "a", "--no-group"]]
)
def test_wrong_usage_exits_2_with_the_usage(options: list[str]) -> None:
    done = install(*options)
    assert done.returncode == 2
    assert "usage: install.sh" in done.stderr


def test_source_that_is_not_there_is_refused_before_anything_is_made(tmp_path: Path) -> None:
    done = install("--prefix", tmp_path / "machine", "--source", tmp_path / "missing.whl")
    assert done.returncode == 1
    assert "no such wheel" in done.stderr
    assert not (tmp_path / "machine").exists()


def test_old_python_is_refused_by_its_version(tmp_path: Path, wheels: tuple[Path, Path]) -> None:
    old = tmp_path / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    done = install("--prefix", tmp_path / "machine", "--source", wheels[0], "--python", old)
    assert done.returncode == 1
    assert "expected Python 3.11 or later; found Python 3.9.2" in done.stderr


def test_full_disk_is_refused_with_what_is_needed(tmp_path: Path, wheels: tuple[Path, Path]) -> None:
    (tmp_path / "bin").mkdir()
    df = tmp_path / "bin" / "df"
    df.write_text("#!/bin/sh\necho Filesystem 1024-blocks Used Available\necho /dev/sda 9 8 1000 99% /\n")
    df.chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = install("--prefix", tmp_path / "machine", "--source", wheels[0], path=path)
    assert done.returncode == 1
    assert "found 1000 kB" in done.stderr
