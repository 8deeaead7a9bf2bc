"""Where the time of an image goes: ms of each stage, one after the other on one thread, through the daemon's own code.

`cpu` is what the thread used, `wall` what went by; the difference is waiting, for the disk above all. The graph runs
on one stream, so that its time is one core's too.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from models.registry import verify
from models.runtime.openvino_detector import OpenVinoDetector
from service import settings as settings_module
from service.energy.meter import EnergyMeter
from service.filesystem.file_state import file_state
from service.filesystem.lease import has_writer
from service.filesystem.open_below import open_file
from service.imaging.decode import decode, read_file
from service.inspection.claim import Claims
from service.inspection.inspected_image import FileFacts
from service.inspection.record import Recorder
from service.inspection.score_batch import Decoded, score_and_decide
from service.instances import instance_lock
from service.root import INCOMING
from service.scoring.scorers import Scorer
from service.scoring.threshold_policy import decider_of
from service.storage.database.open import open_database
from tests.benchmarks import captures

BATCH = 8


class Stages:
    """Adds up the wall and CPU seconds of named stages; the CPU of the process, since a graph has its own threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, list[float]] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        wall, cpu = time.perf_counter(), time.process_time()
        yield
        sums = self.seconds.setdefault(name, [0.0, 0.0])
        sums[0] += time.perf_counter() - wall
        sums[1] += time.process_time() - cpu

    def within(self, name: str, part: Callable[..., Any]) -> Callable[..., Any]:
        """Return `part`, counted under `name` as well."""

        def counted(*arguments: Any, **named: Any) -> Any:
            with self.stage(name):
                return part(*arguments, **named)

        return counted


def measure(root: Path, files: list[Path], stages: Stages) -> None:
    settings = settings_module.load(root)
    [folder] = (root / "models" / "default").iterdir()
    version = verify(folder)
    scorer = Scorer(
        OpenVinoDetector(version, 1),
        decider_of(settings, "default", version),
        version.version,
        version.manifest.calibration.pixel_threshold,
        version.draft,
    )
    lock = instance_lock(root, settings.instance)
    assert lock.acquire() is None
    engine, claims, meter = open_database(root), Claims(root, settings.instance), EnergyMeter()
    recorder = Recorder(root, engine, claims, anomaly_maps=settings.anomaly_maps)
    # Parts of a commit, as they are called by it.
    for name, owner, attribute in (
        ("  fsync of the two folders", claims, "sync"),
        ("  maps of anomalies", recorder._maps, "draw"),
        ("  energy sample", meter, "take"),
        ("  rows, committed", recorder, "_record"),
        ("  states, committed", recorder, "_finish"),
    ):
        setattr(owner, attribute, stages.within(name, getattr(owner, attribute)))
    for start in range(0, len(files), BATCH):
        batch = []
        for path in files[start : start + BATCH]:
            incoming = root / INCOMING / path.name
            with stages.stage("settle: look, ask for a lease"):
                assert file_state(incoming) is not None
                descriptor = open_file(incoming)
                assert not has_writer(descriptor)
                os.close(descriptor)
            with stages.stage("claim"):
                claim = claims.claim(path.name, time.monotonic())
                assert claim is not None
            with stages.stage("read, hash, flush"):
                file = read_file(root / claim.path, durable=True, below=root)
            with stages.stage("decode"):
                image = decode(file.data, version.input_size, draft=scorer.draft)
            batch.append(Decoded(claim, scorer, FileFacts(file.state, file.sha256, len(file.data)), image))
        with stages.stage("score, decide"):
            inspected = score_and_decide(batch)
        with stages.stage("record, deliver, finish"):
            report = recorder.commit(inspected, meter)
        assert report.states == {"placed": len(batch)}, report
    meter.close()
    engine.dispose()
    lock.release()


def main() -> None:
    parser = captures.arguments(__doc__ or "")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--profile", default="fast")
    parser.add_argument("--full-size", action="store_true", help="train on the captures, so that drafts are tried")
    parser.add_argument(
        "--root", type=Path, help="a root with a model, as the benchmarks make; one is trained if absent"
    )
    options = parser.parse_args()
    stages = Stages()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        root = options.root
        if root is None:
            root = captures.trained_root(Path(folder), options.profile, steps=100, full_size=options.full_size)
        captures.empty(root)
        files = [root / INCOMING / f"{number:05}.jpg" for number in range(options.images)]
        for path, content in zip(files, captures.variants(options.images), strict=True):
            path.write_bytes(content)
        measure(root, files, stages)
        [version] = (root / "models" / "default").iterdir()
        draft = verify(version).draft
    captures.report(
        {
            "benchmark": "stages",
            "images": options.images,
            "profile": options.profile,
            "draft": draft,
            "ms_per_image": {
                name: {"wall": round(wall * 1000 / options.images, 3), "cpu": round(cpu * 1000 / options.images, 3)}
                for name, (wall, cpu) in stages.seconds.items()
            },
        },
        options.output,
    )


if __name__ == "__main__":
    main()
