"""Model folders that somebody changed: refused before anything of them is parsed, and nothing in them ever runs.

Where the hashes were made anew with the rest, as only the service's own user could, the loader parses what it is
given: it loads it or calls it corrupt, whatever the bytes.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from models.errors import ModelCorrupt
from models.registry import GRAPH, GRAPH_WEIGHTS, IMAGES, MANIFEST, WEIGHTS, ModelVersion, verify
from tests.conftest import REPOSITORY
from tests.faults.root_for_faults import drop_good, make_root, problems, query, settled
from tests.support.brightness_version import install
from tests.support.daemon_process import DaemonProcess, wait_until

SEED = 20261126
FILES = (MANIFEST, GRAPH, GRAPH_WEIGHTS, WEIGHTS, IMAGES)
COUNTS = [pytest.param(150, id="150"), pytest.param(5000, id="5000", marks=pytest.mark.long)]
SECONDS_MAX = 10.0

LOADING = """
import json, pathlib, sys, time, numpy
from models.runtime.load_detector import load_detector
from models.errors import ModelError
from models.registry import verify
from service.scoring.decide import ThresholdDecider
from models.calibration.thresholds import AtFalseAlarmRate

for folder in map(pathlib.Path, json.load(sys.stdin)):
    print("loading", folder.name, flush=True)
    began = time.monotonic()
    try:
        version = verify(folder)
        detector = load_detector(version, 1)
        detector.score(numpy.zeros((1, *detector.input_size, 3), numpy.uint8))
        policy = AtFalseAlarmRate(version.trained_false_alarm_rate)
        ThresholdDecider(version.calibration_scores, policy, uncertain_band=3.0)
        version.calibration_look, version.draft, version.created_at, version.product, version.kind
        said = "loaded"
    except ModelError as error:
        said = type(error).__name__
    except Exception as error:
        said = "escaped " + type(error).__name__ + ": " + str(error)[:200]
    print("loaded", folder.name, round(time.monotonic() - began, 2), said, flush=True)
"""


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, int]]:
        return os.open, (str(self.mark), os.O_CREAT | os.O_WRONLY)


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Return other bytes than `content`: some changed, cut, doubled, put in, or words of it exchanged."""
    while (changed := _mutated(content, rng)) == content:
        pass
    return changed


def _mutated(content: bytes, rng: random.Random) -> bytes:
    how = rng.randrange(6)
    at = rng.randrange(len(content) + 1)
    if how == 0 and content:
        changed = bytearray(content)
        for _ in range(rng.randint(1, 8)):
            changed[rng.randrange(len(changed))] ^= rng.randint(1, 255)
        return bytes(changed)
    if how == 1 and at < len(content):
        return content[:at]
    if how == 2 and at < len(content):
        return content + content[at:]
    if how == 3:
        digits = [index for index, byte in enumerate(content) if chr(byte).isdigit()]
        if digits:
            index = rng.choice(digits)
            many = rng.choice([b"-1", b"0", b"99999999999", b"1e400", b"null", b"[]", b'"x"'])
            return content[:index] + many + content[index + 1 :]
    return content[:at] + rng.randbytes(rng.randint(1, 64)) + content[at:]


def hashed_anew(folder: Path) -> None:
    """Make `model.json` speak of the files as they are now, where it is JSON that names files."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
        manifest["files"] = {
            name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES if name != MANIFEST
        }
        path.write_text(json.dumps(manifest))
    except (ValueError, TypeError, KeyError):
        return


@pytest.fixture(scope="module")
def version(tmp_path_factory: pytest.TempPathFactory) -> ModelVersion:
    root = make_root(tmp_path_factory.mktemp("hostile") / "root")
    return install(root, product="lid")


@pytest.mark.parametrize("count", COUNTS)
def test_any_change_of_any_file_is_refused_by_its_hash(version: ModelVersion, tmp_path: Path, count: int) -> None:
    rng = random.Random(SEED)
    shutil.copytree(version.folder, tmp_path / "v")
    for number in range(count):
        name = FILES[number % len(FILES)]
        path, content = tmp_path / "v" / name, (version.folder / name).read_bytes()
        path.write_bytes(mutated(content, rng))
        with pytest.raises(ModelCorrupt, match=f"{name}: expected sha256"):
            verify(tmp_path / "v", version.sha256)
        path.write_bytes(content)
    assert verify(tmp_path / "v", version.sha256).manifest == version.manifest


@pytest.mark.parametrize("count", COUNTS)
def test_what_was_hashed_anew_is_loaded_or_corrupt_and_nothing_else(
    version: ModelVersion, tmp_path: Path, count: int
) -> None:
    rng = random.Random(SEED)
    folders = []
    for number in range(count):
        folder = tmp_path / f"{number:05}"
        shutil.copytree(version.folder, folder)
        path = folder / (MANIFEST, GRAPH, MANIFEST, GRAPH_WEIGHTS, GRAPH)[number % 5]
        path.write_bytes(mutated(path.read_bytes(), rng))
        hashed_anew(folder)
        folders.append(str(folder))
    ended = subprocess.run(
        [sys.executable, "-c", LOADING],
        input=json.dumps(folders), cwd=REPOSITORY, capture_output=True, text=True, timeout=SECONDS_MAX * count,
    )  # fmt: skip
    done = [line.split(" ", 3) for line in ended.stdout.splitlines() if line.startswith("loaded ")]
    assert ended.returncode == 0 and len(done) == count, (ended.returncode, ended.stdout[-300:], ended.stderr[-2000:])
    escaped = [" ".join(line[1:]) for line in done if line[3].startswith("escaped")]
    assert not escaped, "\n".join(escaped)
    assert max(float(line[2]) for line in done) < SECONDS_MAX
    print({said: sum(line[3] == said for line in done) for said in sorted({line[3] for line in done})})
    assert sum(line[3] == "ModelCorrupt" for line in done) > count // 10


@pytest.mark.parametrize("rehashed", [False, True], ids=["as registered", "hashed anew"])
def test_pickle_in_the_place_of_any_file_is_never_loaded(tmp_path: Path, rehashed: bool) -> None:
    """Before a real daemon, which sorts on with the other product's version."""
    root = make_root(tmp_path / "root")
    lid = install(root, product="lid")
    mark = tmp_path / "it-ran"
    for name in FILES:
        (lid.folder / name).write_bytes(pickle.dumps(Payload(mark)))
    if rehashed:
        shutil.copy(root / "models/default/v1" / MANIFEST, lid.folder / MANIFEST)
        hashed_anew(lid.folder)
    dropped = drop_good(root, 3)
    with DaemonProcess(root) as daemon:
        daemon.wait_ready()
        wait_until(settled(root, 3), "the other product sorted", poll_s=0.1)
        (root / "incoming/lid").mkdir()
        (root / "incoming/lid/part.png").write_bytes(b"nothing")
        wait_until(lambda: "product lid" in daemon.log_text(), "word of the damaged version")
        assert daemon.stop() == 0, daemon.log_text()
    assert not mark.exists()
    assert len(query(root, "SELECT id FROM results WHERE product = 'lid'")) == 0
    (root / "incoming/lid/part.png").unlink()
    assert problems(root, dropped) == []
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload is none, and this test would find nothing"
