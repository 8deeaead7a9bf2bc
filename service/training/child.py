"""The training process itself (`python -m service.training.child`): a job comes in as JSON, lines of JSON go out.

Owns nothing but the folder that it builds in and the bounds on itself: it is nice, ends on SIGTERM, and ends before
it takes more memory than it may. Registering what it made is the parent's, `service.training.run`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from models.detector import UInt8Array
from models.errors import MemoryExceeded, ModelError
from models.fitting.limits import BYTES_PER_GB, resident_bytes
from models.manifest import TrainingEnergy
from models.registry import ModelVersion
from models.training.options import Reading
from service import __version__
from service.imaging.decode import DecodedImage, DecodeError, StillChanging, check, decode, image_size, read_file
from service.storage.energy_sample import EnergySample
from service.training.job import EnergyExceeded, Event, TrainingFailed, TrainingJob, TrainingMade, event_as_line

if TYPE_CHECKING:
    from service.energy.meter import EnergyMeter

CHILD_NICENESS = 5
_MEMORY_LOOK_S = 0.1
_ENERGY_LOOK_S = 1.0
_PR_SET_PDEATHSIG = 1
# Of the scale of oom_score_adj, -1000 to 1000: where memory runs out, training goes before scoring does.
_OOM_SCORE = 800
# Of the memory that is free at the start; the kernel ends processes before the last byte is gone.
_AVAILABLE_SHARE = 0.95
_sending = threading.Lock()


def main() -> None:
    """Train the job on stdin; write events to stdout, a line of JSON each."""
    # Lines that libraries print go to stderr: stdout belongs to the events.
    events = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)
    os.nice(CHILD_NICENESS)
    _go_with_the_parent()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which then ends this process
    job = TrainingJob.from_json(sys.stdin.buffer.read())
    threading.Thread(target=_end_beyond_memory, args=(job, events), daemon=True).start()
    try:
        trained, sample = _train(job, events)
    except MemoryError:
        _fail(events, MemoryExceeded.__name__, _too_much(job, "more"))
    except (ModelError, DecodeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        _fail(events, type(error).__name__, str(error), code=getattr(error, "code", None))
    else:
        made = tuple((version.folder, version.sha256) for version in trained)
        _send(events, TrainingMade(versions=made, energy=sample))


def _go_with_the_parent() -> None:
    """Have the kernel end this process when its parent is killed, and choose it first where memory runs out."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


def _end_beyond_memory(job: TrainingJob, events: IO[str]) -> None:
    """End this process, with an error that says why, as soon as it holds more memory than it may."""
    import psutil

    free = _AVAILABLE_SHARE * psutil.virtual_memory().available
    most = int(min(job.memory_bytes, free))
    while (held := resident_bytes()) <= most:
        time.sleep(_MEMORY_LOOK_S)
    why = _too_much(job, f"{held / BYTES_PER_GB:.2f} GB, where {free / BYTES_PER_GB:.2f} GB were free when it began")
    _fail(events, MemoryExceeded.__name__, why)
    # Not an exception: the main thread may be deep in a library, and each moment it takes more.
    os._exit(1)


def _end_beyond_energy(job: TrainingJob, most_wh: float, meter: EnergyMeter, events: IO[str]) -> None:
    """End this process, with an error that says why, as soon as it has used more energy than it may."""
    while (used := meter.measure_wh()) <= most_wh:
        time.sleep(_ENERGY_LOOK_S)
    why = (
        f"training of {job.subject}: expected to need at most {most_wh:g} Wh; found {used:.3g} Wh used; allow more "
        f"with retrain_energy_max_wh"
    )
    _fail(events, EnergyExceeded.__name__, why, energy=meter.take("training"))
    os._exit(1)


def _too_much(job: TrainingJob, found: str) -> str:
    return (
        f"training of {job.subject}: expected to need at most {job.memory_bytes / BYTES_PER_GB:g} GB of memory; "
        f"found {found}; allow more with --memory-gb, or train with a smaller profile"
    )


def _train(job: TrainingJob, events: IO[str]) -> tuple[list[ModelVersion], EnergySample | None]:
    from models.training.train import train_jointly
    from service.energy.meter import EnergyMeter

    meter = EnergyMeter(tracking=job.energy_tracking, country=job.energy_country, cpu_max_w=job.energy_cpu_max_w)
    if job.energy_max_wh is not None:
        threading.Thread(target=_end_beyond_energy, args=(job, job.energy_max_wh, meter, events), daemon=True).start()
    samples: list[EnergySample] = []

    def take(images: int) -> Mapping[str, Any] | None:
        sample = meter.take("training", images)
        if sample is None:
            return None
        samples.append(sample)
        return {name: getattr(sample, name) for name in TrainingEnergy.model_fields}

    try:
        trained = train_jointly(
            job.products,
            job,
            _reading(job),
            destination=job.models_root,
            report=lambda progress: _send(events, progress),
            meter=take,
            build=job.models_root / job.build,
            tamis_version=__version__,
            again=job.chosen,
            root=job.models_root.parent,
        )
    finally:
        meter.close()
    return trained, samples[0] if samples else None


def _reading(job: TrainingJob, ranges: Mapping[Path, tuple[float, float]] | None = None) -> Reading:
    def bytes_of(path: Path) -> bytes:
        return read_file(path.resolve(), file_bytes_max=job.file_bytes_max).data

    def decoded(path: Path, size: tuple[int, int], *, draft: bool) -> DecodedImage:
        value_range = (ranges or {}).get(path)
        return decode(bytes_of(path), size, pixels_max=job.pixels_max, draft=draft, value_range=value_range)

    def read_draft(path: Path, size: tuple[int, int]) -> UInt8Array | None:
        image = decoded(path, size, draft=True)
        return image.pixels if image.drafted else None

    limits = {"file_bytes_max": job.file_bytes_max, "pixels_max": job.pixels_max}
    return Reading(
        read=lambda path, size: decoded(path, size, draft=False).pixels,
        image_size=lambda path: image_size(path.resolve(), **limits),
        read_draft=read_draft,
        unreadable=(DecodeError, StillChanging, OSError),
        check=lambda path, size: check(bytes_of(path), size, pixels_max=job.pixels_max),
        in_ranges=lambda ranges: _reading(job, ranges),
    )


def _fail(
    events: IO[str], kind: str, message: str, *, code: str | None = None, energy: EnergySample | None = None
) -> None:
    _send(events, TrainingFailed(type=kind, message=message, code=code, energy=energy))


def _send(events: IO[str], event: Event) -> None:
    with _sending:
        events.write(event_as_line(event))
        events.flush()


if __name__ == "__main__":
    main()
