"""Training, in a process of its own: the job goes in as JSON, progress and result come out as lines of JSON.

A process of its own, because training brings torch, wants memory and may be killed, and scoring must not feel
it. The parent owns what is registered; the child (`python -m service.training`) owns nothing but its folder.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import IO, Any

from sqlalchemy import Engine

from models import errors as model_errors
from models.errors import ModelError
from models.progress import Progress
from models.registry import BUILD_PREFIX, ModelVersion, remove_build, verify
from service import __version__
from service.decode import FILE_BYTES_MAX, PIXELS_MAX, DecodeError, StillChanging, decode, image_size, read_file
from service.errors import TamisError
from service.products import check_product
from service.storage import energy, versions
from service.storage.energy import EnergySample

MINUTES_MAX = 30.0
CHILD_NICENESS = 5
ABANDONED_AFTER_S = 2 * 86400
_END_WAIT_S = 10.0
# torch's threads spin at each barrier. Beside a daemon that scores, they spin for a core that somebody else has:
# measured on two cores beside another busy process, 6 to 8 steps a second spinning, 43 asleep.
WAITING_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class TrainingJob:
    """What is to be trained: the child gets all of it, as JSON."""

    pictures: tuple[str, ...]
    models_root: str
    product: str
    kind: str
    profile: str
    false_alarm_rate: float
    seed: int = 0
    minutes_max: float = MINUTES_MAX
    steps: int | None = None
    side: int | None = None
    file_bytes_max: int = FILE_BYTES_MAX
    pixels_max: int = PIXELS_MAX
    energy_tracking: str = "process"
    energy_country: str | None = None
    energy_cpu_max_w: float | None = None
    build: str = field(default_factory=lambda: f"{BUILD_PREFIX}{uuid.uuid4().hex}")


@dataclass(frozen=True)
class Trained:
    """A published version that no database knows yet, and the energy it took (None: not metered)."""

    version: ModelVersion
    energy: EnergySample | None


def run_training(
    engine: Engine,
    job: TrainingJob,
    *,
    promote: bool = False,
    report: Callable[[Progress], None] = lambda progress: None,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> ModelVersion:
    """Train in a child process and register the version, with its energy, in one transaction; return it.

    It becomes champion with `promote` or if the product has none, else challenger. Raises what
    `train_in_child` raises.
    """
    trained = train_in_child(job, report=report, on_start=on_start)
    manifest = trained.version.manifest
    with engine.begin() as connection:
        first = versions.champion(connection, job.product) is None
        if trained.energy is not None:
            energy.add(connection, trained.energy)
        versions.register(
            connection,
            product=job.product,
            version=trained.version.version,
            kind=trained.version.kind,
            created_at=trained.version.created_at,
            state="champion" if first or promote else "challenger",
            reason="first version of its product" if first else "promoted when trained" if promote else "trained",
            threshold=manifest["calibration"]["threshold"],
            false_alarm_rate=trained.version.trained_false_alarm_rate,
            image_auroc=None,
            f1=None,
            training_wh=trained.energy.total_wh if trained.energy else None,
            images=manifest["training"]["images"],
            sha256=trained.version.sha256,
        )
    return trained.version


def train_in_child(
    job: TrainingJob,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> Trained:
    """Train in a child process; return the published version, registered nowhere.

    `on_start` gets the child, which another thread may terminate. However this ends, the child has ended and
    no partial version is left. Raises the child's ModelError or DecodeError, TamisError if it was killed.
    """
    check_product(job.product)
    models_root = Path(job.models_root)
    _remove_abandoned(models_root)
    build = models_root / job.build
    try:
        with _terminating_as_interrupt(), _child() as child:
            on_start(child)
            result = _converse(child, job, report)
    finally:
        remove_build(build)
    sample = result["energy"]
    return Trained(
        version=verify(Path(result["folder"]), result["sha256"]),
        energy=EnergySample(**{**sample, "started_at": datetime.fromisoformat(sample["started_at"])})
        if sample
        else None,
    )


@contextmanager
def _child() -> Iterator[subprocess.Popen[bytes]]:
    """Give the training process; it has ended when this is left."""
    source = str(Path(__file__).resolve().parent.parent)
    # -P and not the working folder: what lies where the command is called is no business of the child's.
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.training"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**WAITING_ASLEEP, **os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            try:
                child.wait(_END_WAIT_S)
            except subprocess.TimeoutExpired:
                child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def _terminating_as_interrupt() -> Iterator[None]:
    """Let SIGTERM end a wait in the main thread like Ctrl-C does; other threads have no say in signals."""
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return

    signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _converse(
    child: subprocess.Popen[bytes], job: TrainingJob, report: Callable[[Progress], None]
) -> Mapping[str, Any]:
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(json.dumps(asdict(job)).encode())
        child.stdin.close()
    except BrokenPipeError:
        child.wait()  # it ended before it had the job: the exit code below says how
    result = None
    for line in child.stdout:
        event = json.loads(line)
        if event["event"] == "progress":
            report(Progress(event["stage"], event["done"], event["total"], event["note"]))
        elif event["event"] == "error":
            raise _error(event)
        else:
            result = event
    code = child.wait()
    if result is None or code != 0:
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "; the system may have been out of memory" if code == -signal.SIGKILL else ""
        raise TamisError(f"training of product {job.product}: expected a version; its process ended {how}{hint}")
    return dict(result)


def _error(event: Mapping[str, Any]) -> Exception:
    if event["type"] == DecodeError.__name__:
        return DecodeError(event["code"], event["message"])
    known = getattr(model_errors, event["type"], None)
    if isinstance(known, type) and issubclass(known, ModelError):
        return known(event["message"])
    return TamisError(f"training: {event['message']}")


def _remove_abandoned(models_root: Path) -> None:
    """Remove what trainings left that were killed together with their parent."""
    for build in models_root.glob(f"{BUILD_PREFIX}*"):
        if time.time() - build.stat().st_mtime > ABANDONED_AFTER_S:
            remove_build(build)


# What follows runs in the child.


def main() -> None:
    """Train the job on stdin; write events to stdout, a line of JSON each."""
    # Lines that libraries print go to stderr: stdout belongs to the events.
    events = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    os.nice(CHILD_NICENESS)
    signal.signal(signal.SIGTERM, _end)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which then ends this process
    job = TrainingJob(**json.load(sys.stdin))
    try:
        version, sample = _train(job, events)
    except (ModelError, DecodeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        kind, code = type(error).__name__, getattr(error, "code", None)
        _send(events, event="error", type=kind, message=str(error), code=code)
        return
    _send(
        events,
        event="result",
        folder=str(version.folder),
        sha256=version.sha256,
        energy=None if sample is None else {**asdict(sample), "started_at": sample.started_at.isoformat()},
    )


def _train(job: TrainingJob, events: IO[str]) -> tuple[ModelVersion, EnergySample | None]:
    from models.train import train
    from service.energy import EnergyMeter

    meter = EnergyMeter(tracking=job.energy_tracking, country=job.energy_country, cpu_max_w=job.energy_cpu_max_w)
    samples: list[EnergySample] = []

    def take(images: int) -> Mapping[str, Any] | None:
        sample = meter.take("training", images)
        if sample is None:
            return None
        samples.append(sample)
        shown = ("cpu_wh", "gpu_wh", "ram_wh", "total_wh", "emissions_g", "duration_s", "source")
        return {name: getattr(sample, name) for name in shown}

    def read(path: Path, size: tuple[int, int]) -> Any:
        file = read_file(path.resolve(), file_bytes_max=job.file_bytes_max)
        return decode(file.data, size, pixels_max=job.pixels_max).pixels

    try:
        version = train(
            [Path(path) for path in job.pictures],
            kind=job.kind,
            profile=job.profile,
            product=job.product,
            seed=job.seed,
            false_alarm_rate=job.false_alarm_rate,
            read=read,
            image_size=lambda path: image_size(path.resolve()),
            unreadable=(DecodeError, StillChanging, OSError),
            destination=Path(job.models_root),
            minutes_max=job.minutes_max,
            report=lambda progress: _send(events, event="progress", **asdict(progress)),
            steps=job.steps,
            side=job.side,
            meter=take,
            build=Path(job.models_root) / job.build,
            tamis_version=__version__,
        )
    finally:
        meter.close()
    return version, samples[0] if samples else None


def _send(events: IO[str], **event: Any) -> None:
    events.write(json.dumps(event) + "\n")
    events.flush()


if __name__ == "__main__":
    main()
