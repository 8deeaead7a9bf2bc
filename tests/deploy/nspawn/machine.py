"""A whole machine to install into: a minimal Debian with systemd as its first process, booted by systemd-nspawn.

The bare system is made once, by debootstrap, and kept outside the repository; each use boots a copy. What the program
depends on is the environment that runs the tests, read only; the program itself is built as a wheel and installed by
`deploy/install.sh` within. The machine has no network but its own loopback.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import uuid
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[3]
# Whose own Python can use the compiled packages of the one that runs the tests.
SUITES = {(3, 11): "bookworm", (3, 13): "trixie"}
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "python3-venv", "acl", "iproute2", "libstdc++6", "postgresql")
BOOT_TIMEOUT_S = 1800.0
SECOND_VERSION = "99.0.0"

UNIT = """[Unit]
Description=Checks of the installed service
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 -B /srv/tests/tests/deploy/nspawn/checks.py {boot}
ExecStopPost=/usr/bin/systemctl --no-block poweroff
TimeoutStartSec=infinity
"""


def missing() -> str | None:
    """Return what this machine lacks for booting another within it; None where it has all."""
    if os.geteuid() != 0:
        return "booting a machine needs root"
    programs = [name for name in ("debootstrap", "systemd-nspawn") if shutil.which(name) is None]
    if programs:
        return f"{', '.join(programs)} not installed"
    if sys.version_info[:2] not in SUITES:
        return f"no Debian known whose Python is {sys.version_info[0]}.{sys.version_info[1]}"
    return None


def bare_system() -> Path:
    """Return the folder of the bare system, which the first call makes; CalledProcessError where it cannot be."""
    cache = Path(os.environ.get("TAMIS_TEST_CACHE") or Path.home() / ".cache/tamis")
    suite = SUITES[sys.version_info[:2]]
    folder = cache / f"debian-{suite}-{len(PACKAGES)}"
    if not folder.exists():
        trying = cache / f".trying-{os.getpid()}"
        shutil.rmtree(trying, ignore_errors=True)
        trying.mkdir(parents=True)
        command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(trying)]
        subprocess.run([*command, *_mirror()], check=True, capture_output=True, text=True, timeout=BOOT_TIMEOUT_S)
        trying.rename(folder)
    return folder


def _mirror() -> list[str]:
    """Return the mirror that this machine's own packages come from; without one, debootstrap knows one."""
    for path in [Path("/etc/apt/sources.list"), *sorted(Path("/etc/apt/sources.list.d").glob("*"))]:
        if path.suffix in (".list", ".sources") and path.is_file():
            found = re.search(r"(?m)^(?:URIs:|deb)\s+(?:\[.*\]\s+)?(https?://\S+/debian)/?(?:\s|$)", path.read_text())
            if found:
                return [found[1]]
    return []


def build_wheels(folder: Path) -> None:
    """Build the program twice, the second time as a later version."""
    for version in (None, SECOND_VERSION):
        source = folder / f"source-{version}"
        source.mkdir(parents=True)
        for name in ("service", "models", "migrations"):
            shutil.copytree(REPOSITORY / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(REPOSITORY / name, source / name)
        if version is not None:
            for path, what in ((source / "pyproject.toml", "version"), (source / "service/__init__.py", "__version__")):
                text, count = re.subn(rf'(?m)^{what} = ".*"$', f'{what} = "{version}"', path.read_text())
                assert count == 1, path
                path.write_text(text)
        command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
        subprocess.run(command, cwd=source, check=True, capture_output=True, text=True, timeout=300)
        shutil.rmtree(source)


class Machine:
    """A copy of the bare system in `folder`, which can be booted again and again."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "machine"
        self.result = folder / "result"
        self.result.mkdir(parents=True)
        build_wheels(folder / "wheels")
        subprocess.run(["cp", "--archive", "--reflink=auto", bare_system(), self.root], check=True, timeout=300)
        # The environment that install.sh finds: packages from outside, as an unreachable index cannot give them.
        subprocess.run(["chroot", self.root, "python3", "-m", "venv", "/opt/tamis"], check=True, timeout=300)
        [packages] = self.root.glob("opt/tamis/lib/python3*/site-packages")
        (packages / "dependencies.pth").write_text("/srv/packages\n")
        (self.root / "etc/hostname").write_text("tamis-test\n")
        # Without one of its own it would be a first boot, which asks questions and enables services anew.
        (self.root / "etc/machine-id").write_text(f"{uuid.uuid4().hex}\n")

    def boot(self, number: int) -> list[dict[str, Any]]:
        """Boot the machine, wait until it powers itself off, and return what its checks found."""
        unit = self.root / "etc/systemd/system/checks.service"
        unit.write_text(UNIT.format(boot=number))
        # Wanted by what comes after the target: one that the target itself waits for cannot be after it.
        link = self.root / "etc/systemd/system/default.target.wants/checks.service"
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)
        link.symlink_to("/etc/systemd/system/checks.service")
        binds = {
            sysconfig.get_path("purelib"): "/srv/packages",
            str(REPOSITORY / "tests"): "/srv/tests/tests",
            str(REPOSITORY / "deploy"): "/srv/source/deploy",
            str(REPOSITORY / "docs"): "/srv/source/docs",
            str(self.folder / "wheels"): "/srv/wheels",
        }
        command = [
            "systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network",
            # For the filter of addresses, which is a program in the kernel.
            "--system-call-filter=bpf", "--console=pipe", f"--directory={self.root}",
            f"--bind={self.result}:/srv/result",
            *(f"--bind-ro={here}:{there}" for here, there in binds.items()),
        ]  # fmt: skip
        # Control groups as in any machine of today, whatever this one has.
        environment = {**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"}
        with (self.folder / f"console-{number}.txt").open("wb") as console:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=console, stderr=subprocess.STDOUT, env=environment
            )
            try:
                process.wait(BOOT_TIMEOUT_S)
            finally:
                if process.poll() is None:
                    process.send_signal(signal.SIGTERM)
                    try:
                        process.wait(60)
                    except subprocess.TimeoutExpired:
                        process.kill()
                        process.wait()
        path = self.result / f"boot-{number}.json"
        said = (self.folder / f"console-{number}.txt").read_text(errors="replace")[-3000:]
        assert path.exists(), f"the machine ended without a result: {said}"
        found: list[dict[str, Any]] = json.loads(path.read_text())
        return found
