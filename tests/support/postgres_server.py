"""A PostgreSQL server of its own in a folder, reached through a socket in it, with a new database for whoever asks."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from contextlib import suppress
from itertools import count
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psutil
import pytest

# Debian keeps all the server's programs by version, out of the path.
INITDB = max(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")), default=None) or shutil.which("initdb")
# The server refuses to run as root.
ACCOUNT = "postgres"


def need_postgres() -> None:
    """Skip, with the reason, where no server can be started."""
    if INITDB is None:
        pytest.skip("needs a PostgreSQL server; Debian's package is postgresql")


class PostgresServer:
    """A server that runs from entering to leaving; `stop`, `start` and `crash` are for in between.

    One that is not `lasting` syncs nothing, and is quicker for it.
    """

    def __init__(self, *, lasting: bool = True) -> None:
        need_postgres()
        self._folder = tempfile.TemporaryDirectory(prefix="postgres-")
        self._programs = Path(str(INITDB)).parent
        self._numbers = count()
        if os.geteuid() == 0:
            account = pwd.getpwnam(ACCOUNT)
            os.chown(self._folder.name, account.pw_uid, account.pw_gid)
        self._settings = "" if lasting else " -c fsync=off -c full_page_writes=off"
        # `trust` since nobody else reaches the socket in this folder.
        self._run(
            "initdb", "-D", f"{self._folder.name}/data", "-U", "tamis", "-A", "trust", "-E", "UTF8", "--locale=C", "-k"
        )
        Path(self._folder.name).chmod(0o711)

    def __enter__(self) -> PostgresServer:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if psutil.pid_exists(self._pid()):
            self.stop("immediate")
        self._folder.cleanup()

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-k {self._folder.name} -c listen_addresses= -c max_connections=100{self._settings}"
        self._run("pg_ctl", "-D", self._data, "-w", "-l", f"{self._folder.name}/log", "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it, in PostgreSQL's words `fast` or `immediate`; connections are broken off by either."""
        self._run("pg_ctl", "-D", self._data, "-w", "-m", mode, "stop")

    def restart(self, mode: str = "fast") -> None:
        """Stop it and start it again at once."""
        self.stop(mode)
        self.start()

    def crash(self) -> None:
        """End it and all its processes by SIGKILL, as when the machine's power fails it."""
        main = psutil.Process(self._pid())
        # The main one first, or it would start again whatever ends.
        everyone = [main, *main.children(recursive=True)]
        for process in everyone:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(everyone, timeout=10)

    def url(self) -> str:
        """Return the URL of a new, empty database."""
        name = f"tamis{next(self._numbers)}"
        self.run_sql("postgres", f"CREATE DATABASE {name}")
        return self.url_of(name)

    def url_of(self, name: str) -> str:
        """Return the URL of the database `name`."""
        return f"postgresql://tamis@/{name}?host={quote(self._folder.name, safe='')}"

    def run_sql(self, database: str, statement: str) -> str:
        """Return what `psql` prints of `statement`."""
        return self._run("psql", "-h", self._folder.name, "-U", "tamis", "-d", database, "-Atc", statement)

    def _pid(self) -> int:
        """Return the number of its main process, which a crash leaves in the file; -1 after a stop."""
        try:
            return int((Path(self._data) / "postmaster.pid").read_text().split()[0])
        except FileNotFoundError:
            return -1

    @property
    def _data(self) -> str:
        return f"{self._folder.name}/data"

    def _run(self, program: str, *arguments: str) -> str:
        user = {"user": ACCOUNT, "group": ACCOUNT, "extra_groups": []} if os.geteuid() == 0 else {}
        # What outlives the command, as the server does, must not hold its pipes open.
        with tempfile.TemporaryFile("w+") as out:
            ended = subprocess.run(
                [self._programs / program, *arguments], stdout=out, stderr=out, cwd="/", check=False, **user
            )  # type: ignore[call-overload]
            out.seek(0)
            said = out.read()
        assert ended.returncode == 0, f"{program} {' '.join(arguments)}: {said}"
        return str(said).strip()
