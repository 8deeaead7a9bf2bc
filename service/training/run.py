"""Training, in a process of its own: the job goes in as JSON, progress and result come out as lines of JSON.

A process of its own, because training brings torch, wants memory and may be killed, and scoring must not feel
it. The parent, this module, owns what is registered; the child is `service.training.child`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import Connection, Engine

from models import errors as model_errors
from models.errors import ModelError
from models.progress import Progress
from models.registry import BUILD_PREFIX, ModelVersion, remove_build, verify
from service.errors import TamisError
from service.imaging.decode import DecodeError
from service.names import check_product
from service.storage import energy, versions
from service.storage.energy_sample import EnergySample
from service.training.job import EnergyExceeded, TrainingFailed, TrainingJob, TrainingMade, event_of_line

ABANDONED_AFTER_S = 2 * 86400
_END_WAIT_S = 10.0
# torch's threads spin at each barrier. Beside a daemon that scores, they spin for a core that somebody else has:
# measured on two cores beside another busy process, 6 to 8 steps a second spinning, 43 asleep.
WAITING_ASLEEP = {"OMP_WAIT_POLICY": "PASSIVE"}


@dataclass(frozen=True)
class Trained:
    """A version for each product, published and known to no database; the energy they all took (None: unmetered)."""

    versions: tuple[ModelVersion, ...]
    energy: EnergySample | None

    @property
    def version(self) -> ModelVersion:
        """The only version, or the first of several."""
        return self.versions[0]


def run_joint_training(
    engine: Engine,
    job: TrainingJob,
    *,
    promote: bool = False,
    reason: str = "trained",
    report: Callable[[Progress], None] = lambda progress: None,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> tuple[ModelVersion, ...]:
    """Train in a child process and register a version for each product, with the energy, in one transaction.

    A version becomes champion with `promote` or if its product has none, else challenger. The energy is one row;
    its Wh are shared among the versions alike. Raises what `train_in_child` raises.
    """
    trained = train_in_child(job, report=report, on_start=on_start)
    with engine.begin() as connection:
        register_trained(connection, trained, promote=promote, reason=reason)
    return trained.versions


def register_trained(
    connection: Connection, trained: Trained, *, promote: bool = False, reason: str = "trained"
) -> None:
    """Register a version for each product, with the energy; challengers, but for `promote` and first versions."""
    total_wh = trained.energy.total_wh if trained.energy else None
    if trained.energy is not None:
        energy.add(connection, trained.energy)
    for version in trained.versions:
        first = versions.champion(connection, version.product) is None
        versions.register(
            connection,
            product=version.product,
            version=version.version,
            kind=version.kind,
            created_at=version.created_at,
            state="champion" if first or promote else "challenger",
            reason="first version of its product" if first else "promoted when trained" if promote else reason,
            threshold=version.manifest.calibration.threshold,
            false_alarm_rate=version.trained_false_alarm_rate,
            image_auroc=version.manifest.calibration.image_auroc,
            f1=None,
            training_wh=None if total_wh is None else total_wh / len(trained.versions),
            images=version.manifest.training.images,
            sha256=version.sha256,
        )


def train_in_child(
    job: TrainingJob,
    *,
    report: Callable[[Progress], None] = lambda progress: None,
    on_start: Callable[[subprocess.Popen[bytes]], None] = lambda child: None,
) -> Trained:
    """Train in a child process; return the published versions, registered nowhere.

    `on_start` gets the child, which another thread may terminate. However this ends, the child has ended and
    no partial version is left. Raises the child's ModelError or DecodeError, TamisError if it was killed.
    """
    for each in job.products:
        check_product(each.product)
    _remove_abandoned(job.models_root)
    try:
        with _terminating_as_interrupt(), _child() as child:
            on_start(child)
            made = _converse(child, job, report)
    finally:
        remove_build(job.models_root / job.build)
    return Trained(tuple(verify(folder, sha256) for folder, sha256 in made.versions), made.energy)


def child_environment() -> dict[str, str]:
    """Return the environment in which a process of this program finds its own modules, and trains well."""
    source = str(Path(__file__).resolve().parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**WAITING_ASLEEP, **os.environ, "PYTHONPATH": os.pathsep.join(paths)}


@contextmanager
def _child() -> Iterator[subprocess.Popen[bytes]]:
    """Give the training process; it has ended when this is left."""
    # -P and not the working folder: what lies where the command is called is no business of the child's.
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "service.training.child"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=child_environment(),
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

    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _converse(child: subprocess.Popen[bytes], job: TrainingJob, report: Callable[[Progress], None]) -> TrainingMade:
    assert child.stdin is not None and child.stdout is not None
    try:
        child.stdin.write(job.as_json())
        child.stdin.close()
    except BrokenPipeError:
        child.wait()  # it ended before it had the job: the exit code below says how
    made = None
    for line in child.stdout:
        event = event_of_line(line)
        if isinstance(event, Progress):
            report(event)
        elif isinstance(event, TrainingFailed):
            raise _error(event)
        else:
            made = event
    code = child.wait()
    if made is None or code != 0:
        how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        hint = "; the system may have been out of memory" if code == -signal.SIGKILL else ""
        raise TamisError(f"training of {job.subject}: expected a version; its process ended {how}{hint}")
    return made


def _error(event: TrainingFailed) -> Exception:
    if event.type == EnergyExceeded.__name__:
        return EnergyExceeded(event.message, event.energy)
    if event.type == DecodeError.__name__:
        return DecodeError(str(event.code), event.message)
    known = getattr(model_errors, event.type, None)
    if isinstance(known, type) and issubclass(known, ModelError):
        return known(event.message)
    return TamisError(f"training: {event.message}")


def _remove_abandoned(models_root: Path) -> None:
    """Remove what trainings left that were killed together with their parent."""
    for build in models_root.glob(f"{BUILD_PREFIX}*"):
        if time.time() - build.stat().st_mtime > ABANDONED_AFTER_S:
            remove_build(build)
