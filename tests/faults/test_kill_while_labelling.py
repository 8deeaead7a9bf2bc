"""SIGKILL at random moments while labels are given: no label lost, no file half-moved, the training set agrees."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from service.filesystem.file_state import NameFilter
from service.inspection.claim import Claims
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.labelling.folder_labels import FolderLabels
from service.labelling.label import label_images
from service.labelling.training_set import reconcile_all
from service.settings import IGNORED_NAMES
from service.storage.database.open import open_database
from tests.service.labelling.test_label import House
from tests.support.daemon_process import wait_until

CHECKER = Path(__file__).with_name("check_labels.py")
IMAGES = 12
PAUSE_S = 0.01  # or those who do nothing but look would leave no turn to the others
LABELS = ("normal", "anomaly", None)


@pytest.mark.parametrize("kills", [pytest.param(20, id="short"), pytest.param(200, id="long", marks=pytest.mark.long)])
def test_labels_survive_kills_of_whoever_labels_and_of_whoever_recovers(kills: int, root: Path, tmp_path: Path) -> None:
    """Two who label the same images, one who recovers and one who looks at folders, all killed again and again."""
    seed = random.randrange(1 << 30)
    print(f"seed {seed}")
    rng = random.Random(seed)
    engine = open_database(root)
    house = House(root, engine)
    ids = [
        house.image(verdict, name=f"{verdict}{n}.png", seed=n + 10 * salt, state="scored" if n == 0 else "placed")
        for salt, verdict in enumerate(("normal", "anomaly"))
        for n in range(IMAGES // 3)
    ]
    ids += [house.image(None, name=f"q{n}.png", seed=100 + n, state="quarantined") for n in range(IMAGES // 3)]
    engine.dispose()
    said = tmp_path / "said"
    said.touch()
    for kill in range(kills):
        pid = [
            _forked(lambda kill=kill: _label(root, ids, f"{kill}-a", said)),
            _forked(lambda kill=kill: _label(root, ids, f"{kill}-b", said)),
            _forked(lambda: _recover(root)),
            _forked(lambda: _look(root)),
        ]
        # Until it has done some work, then a moment more: kills fall all over the protocol.
        target = _lines(said) + rng.randrange(1, 4)
        wait_until(lambda target=target: _lines(said) >= target, "labels", poll_s=0.001)
        time.sleep(rng.uniform(0, 0.05))
        for child in rng.sample(pid, len(pid)):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    engine = open_database(root)
    House(root, engine).recover()
    _agree(root, engine)
    engine.dispose()
    lines = [json.loads(line) for line in said.read_text().splitlines()]
    (tmp_path / "said.json").write_text(json.dumps(lines))
    # The partial names of the training set are left alone for an hour, since their makers may live.
    for partial in (root / "training").rglob(".tmp.*"):
        partial.unlink()
    checked = subprocess.run(
        [sys.executable, str(CHECKER), str(root), str(tmp_path / "said.json")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout


def _lines(said: Path) -> int:
    return said.read_bytes().count(b"\n")


def _forked(work: Callable[[], None]) -> int:
    """Run `work` for ever in a process that shares nothing with this one but the root."""
    pid = os.fork()
    if pid:
        return pid
    try:
        work()
    finally:
        os._exit(1)


def _label(root: Path, ids: list[str], who: str, said: Path) -> None:
    engine = open_database(root)
    rng = random.Random(who)
    with said.open("ab", buffering=0) as file:
        for _ in count():
            id, label = rng.choice(ids), rng.choice(LABELS)
            label_images(root, engine, [id], label, by=who, source="api", burst_gap_s=1.0)
            file.write(json.dumps([who, id, label]).encode() + b"\n")


def _recover(root: Path) -> None:
    engine = open_database(root)
    claims = Claims(root, "main")
    recorder = Recorder(root, engine, claims, anomaly_maps=False)
    for _ in count():
        recover(root, engine, claims, recorder, in_flight=(), attempts_max=3, has_model=lambda _: True)
        _agree(root, engine)
        time.sleep(PAUSE_S)


def _look(root: Path) -> None:
    """Look for labels by folder all the time: what the others move must never be taken for one."""
    engine = open_database(root)
    for _ in count():
        for _ in FolderLabels(root, engine, NameFilter(IGNORED_NAMES), 1.0).scan():
            pass
        with engine.connect() as connection:
            assert not connection.exec_driver_sql("SELECT 1 FROM reviews WHERE source = 'folder'").all()
        time.sleep(PAUSE_S)


def _agree(root: Path, engine) -> None:
    for _ in reconcile_all(root, engine):
        pass
