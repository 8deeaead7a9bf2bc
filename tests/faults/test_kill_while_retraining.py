"""SIGKILL at random moments of retraining, promotion and roll-back: one champion per product always, and whole."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from itertools import count
from pathlib import Path

import pytest

from models import registry
from service.commands.versions import promote, rollback
from service.errors import TamisError
from service.retraining.lock import retraining_lock
from service.retraining.retrain import clear_up, retrain
from service.root import RETRAINING_LOCK
from service.settings import load
from service.storage import retrainings, versions
from service.storage.database.driver import sqlite3
from service.storage.database.open import open_database
from tests.support.brightness_version import install
from tests.support.daemon_process import wait_until
from tests.support.labelled_root import PRODUCT, label, train_champion

REPOSITORY = Path(__file__).resolve().parents[2]
SETTINGS = 'energy_tracking = "process"\nenergy_cpu_max_w = 20.0\nfree_bytes_min = 0\n'
# The last thing that a retraining says before the kill; its start and what comes after the last one are hit as well.
MOMENTS = ("", "reading", "training", "calibrating", "exporting", "judging")
OTHER = "nut"
LAST_PROMOTIONS = "SELECT product, version, max(id) FROM promotions GROUP BY product"
RETRAINING = """
import sys
from pathlib import Path
from service.retraining.retrain import retrain
from service.settings import load
from service.storage.database.open import open_database
root = Path(sys.argv[1])
def report(progress):
    print(progress.stage, file=sys.stderr, flush=True)
retrain(root, open_database(root), load(root), sys.argv[2], trigger="command", force=True, steps=5, report=report)
"""


@pytest.mark.parametrize("kills", [pytest.param(5, id="short"), pytest.param(50, id="long", marks=pytest.mark.long)])
def test_one_champion_whatever_is_killed(kills: int, root: Path) -> None:
    """A retraining, and one who promotes and one who rolls back in every second round, killed again and again."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    (root / "tamis.toml").write_text(SETTINGS)
    engine = open_database(root)
    train_champion(root, engine)
    for number in range(3):
        install(root, OTHER, f"v{number}", "champion" if number == 0 else "challenger")
    label(root, engine, range(100, 115), "normal", "train")
    label(root, engine, range(130, 160), "normal", "golden")
    label(root, engine, range(200, 212), "anomaly", "golden")
    engine.dispose()
    watch = Watch(root)
    hit: dict[str, int] = {}
    for kill in range(kills):
        moment = MOMENTS[kill % len(MOMENTS)]
        retraining = _retraining(root)
        with watch.resting:
            swapping = [_forked(lambda: _promote(root)), _forked(lambda: _roll_back(root))] if kill % 2 else []
        try:
            reached = _wait_for(retraining, moment)
            time.sleep(rng.uniform(0, 0.6 if moment else 2.0))
        finally:
            for pid in rng.sample([retraining.pid, *swapping], 1 + len(swapping)):
                os.kill(pid, signal.SIGKILL)
        retraining.communicate()
        for pid in swapping:
            assert os.WIFSIGNALED(os.waitpid(pid, 0)[1]), "expected one who ends by the kill alone"
        hit[reached or "start"] = hit.get(reached or "start", 0) + 1
        _check(root)
    assert watch.end() > 0
    print(f"{kills} points: {hit}; {_outcomes(root)}")
    # What is left over hinders nothing: the next one comes to its end.
    engine = open_database(root)
    row = retrain(root, engine, load(root), PRODUCT, trigger="command", force=True, steps=3)
    engine.dispose()
    assert row.state == "done" and row.outcome in ("promoted", "rejected", "challenger"), row
    _check(root)
    assert sorted(path.name for path in (root / "models").iterdir()) == sorted([RETRAINING_LOCK, PRODUCT, OTHER])


class Watch:
    """Looks at the champions all the time, from beside, as the daemon does: never none, never two."""

    def __init__(self, root: Path) -> None:
        self._root = root
        # SQLite keeps a process's locks in its memory. A fork that is made while this reads would take its lock along,
        # and for ever wait for a reader that is not there.
        self.resting = threading.Lock()
        self._ending = threading.Event()
        self._looks = 0
        self._wrong: list[tuple[str, int]] = []
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def end(self) -> int:
        """Return how often it looked; fails where it ever saw a product without its one champion."""
        self._ending.set()
        self._thread.join()
        assert self._wrong == []
        return self._looks

    def _look(self) -> None:
        statement = "SELECT product, sum(state = 'champion') FROM versions GROUP BY product"
        # May write, so that it rolls back what a kill broke off: a mere reader would be refused until somebody does.
        with sqlite3.connect(f"file:{self._root}/tamis.db?mode=rw", uri=True, timeout=60) as connection:
            connection.execute("PRAGMA query_only = ON")
            while not self._ending.wait(0.01):
                with self.resting:
                    self._wrong += [row for row in connection.execute(statement) if row[1] != 1]
                self._looks += 1


def _retraining(root: Path) -> subprocess.Popen[str]:
    """Start a retraining that does not step back: on a busy machine it would hardly come to be killed."""
    return subprocess.Popen(
        [sys.executable, "-c", RETRAINING, str(root), PRODUCT],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _wait_for(process: subprocess.Popen[str], moment: str) -> str:
    """Read what it says until it begins with `moment`; return that, "" where there is nothing to wait for."""
    assert process.stderr is not None
    said = []
    for line in process.stderr if moment else ():
        said.append(line)
        if line.startswith(moment):
            return moment
    assert not moment, f"expected a line that begins with {moment!r}; found {''.join(said)}"
    return ""


def _forked(work: Callable[[], None]) -> int:
    """Run `work` for ever in a process that shares nothing with this one but the root."""
    pid = os.fork()
    if pid:
        return pid
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 1)
            work()
    finally:
        os._exit(1)


def _promote(root: Path) -> None:
    rng = random.Random()
    engine = open_database(root)
    for _ in count():
        for product in (PRODUCT, OTHER):
            with engine.connect() as connection:
                known = [row.version for row in versions.versions(connection, product)]
            promote(root, product, rng.choice(known), as_json=True)
        # SQLite's locks know no turns: whoever never rests can keep another from them for longer than that waits.
        time.sleep(rng.uniform(0.01, 0.05))


def _roll_back(root: Path) -> None:
    for _ in count():
        for product in (PRODUCT, OTHER):
            # Where it has gone back to the first there is none before it.
            with suppress(TamisError):
                rollback(root, product, as_json=True)
        time.sleep(0.05)


def _check(root: Path) -> None:
    """What holds after each kill, once the next retraining has cleared up as it always does first."""
    engine = open_database(root)
    wait_until(lambda: _free(root), "the lock let go by the dead")
    with retraining_lock(root):
        clear_up(root, engine)
    with engine.connect() as connection:
        rows = versions.versions(connection)
        last = {row.product: row.version for row in connection.exec_driver_sql(LAST_PROMOTIONS)}
        assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
        assert retrainings.in_state(connection, "running") == []
        runs = retrainings.runs(connection)
    engine.dispose()
    champions = {row.product: row.version for row in rows if row.state == "champion"}
    assert sum(row.state == "champion" for row in rows) == 2 and champions == last
    # Each version that has a row is whole, each folder has a row, and nothing half-built lies about.
    for row in rows:
        registry.verify(root / "models" / row.product / row.version, row.sha256)
    folders = {(folder.parent.name, folder.name) for folder in (root / "models").glob("*/*")}
    assert folders == {(row.product, row.version) for row in rows}
    assert {path.name for path in (root / "models").iterdir()} == {RETRAINING_LOCK, PRODUCT, OTHER}
    for run in runs:
        assert (run.state, run.outcome is None) in (("done", False), ("stopped", True)), run
        assert run.outcome != "promoted" or run.challenger in {row.version for row in rows}


def _free(root: Path) -> bool:
    try:
        with retraining_lock(root):
            return True
    except TamisError:
        return False


def _outcomes(root: Path) -> dict[str, int]:
    with sqlite3.connect(f"file:{root}/tamis.db?mode=ro", uri=True, timeout=60) as connection:
        found = connection.execute("SELECT coalesce(outcome, state), count(*) FROM retraining_runs GROUP BY 1")
        swaps = connection.execute("SELECT action, count(*) FROM promotions GROUP BY 1")
        return {**dict(found), **dict(swaps)}
