"""The training process itself (`python -m service.training.child`): a job comes in as JSON, lines of JSON go out.

Owns nothing but the folder that it builds in and the bounds on itself: it is nice, ends on SIGTERM, and ends before
it takes more memory than it may. Registering what it made is the parent's, `service.training.run`.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from models.errors import MemoryExceeded, ModelError
from models.fitting.limits import BYTES_PER_GB, resident_bytes
from models.registry import ModelVersion
from service import __version__
from service.imaging.decode import DecodeError, StillChanging, decode, image_size, read_file
from service.storage.energy import EnergySample
from service.training.job import JobChosen, JobProduct, TrainingJob
from service.training.run import EnergyExceeded, end_on_signal

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
    signal.signal(signal.SIGTERM, end_on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent as well, which then ends this process
    job = _job(json.load(sys.stdin))
    threading.Thread(target=_end_beyond_memory, args=(job, events), daemon=True).start()
    try:
        trained, sample = _train(job, events)
    except MemoryError:
        _send(events, event="error", type=MemoryExceeded.__name__, message=_too_much(job, "more"), code=None)
        return
    except (ModelError, DecodeError, OSError) as error:
        if isinstance(error, BrokenPipeError):
            raise
        kind, code = type(error).__name__, getattr(error, "code", None)
        _send(events, event="error", type=kind, message=str(error), code=code)
        return
    _send(
        events,
        event="result",
        versions=[{"folder": str(version.folder), "sha256": version.sha256} for version in trained],
        energy=_plain(sample),
    )


def _go_with_the_parent() -> None:
    """Have the kernel end this process when its parent is killed, and choose it first where memory runs out."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE), encoding="ascii")


def _job(given: dict[str, Any]) -> TrainingJob:
    beside = tuple(JobProduct(**each) for each in given.pop("beside"))
    chosen = tuple(JobChosen(**each) for each in given.pop("chosen"))
    return TrainingJob(**given, beside=beside, chosen=chosen)


def _end_beyond_memory(job: TrainingJob, events: IO[str]) -> None:
    """End this process, with an error that says why, as soon as it holds more memory than it may."""
    import psutil

    free = _AVAILABLE_SHARE * psutil.virtual_memory().available
    most = int(min(job.memory_gb * BYTES_PER_GB, free))
    while (held := resident_bytes()) <= most:
        time.sleep(_MEMORY_LOOK_S)
    why = _too_much(job, f"{held / BYTES_PER_GB:.2f} GB, where {free / BYTES_PER_GB:.2f} GB were free when it began")
    _send(events, event="error", type=MemoryExceeded.__name__, message=why, code=None)
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
    sample = meter.take("training")
    _send(events, event="error", type=EnergyExceeded.__name__, message=why, code=None, energy=_plain(sample))
    os._exit(1)


def _plain(sample: EnergySample | None) -> dict[str, Any] | None:
    return None if sample is None else {**asdict(sample), "started_at": sample.started_at.isoformat()}


def _too_much(job: TrainingJob, found: str) -> str:
    return (
        f"training of {job.subject}: expected to need at most {job.memory_gb:g} GB of memory; found {found}; allow "
        f"more with --memory-gb, or train with a smaller profile"
    )


def _train(job: TrainingJob, events: IO[str]) -> tuple[list[ModelVersion], EnergySample | None]:
    from models.data.select_images import ProductImages
    from models.networks.pretrained import BackboneSource
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
        shown = ("cpu_wh", "gpu_wh", "ram_wh", "total_wh", "emissions_g", "duration_s", "source")
        return {name: getattr(sample, name) for name in shown}

    def read(path: Path, size: tuple[int, int]) -> Any:
        file = read_file(path.resolve(), file_bytes_max=job.file_bytes_max)
        return decode(file.data, size, pixels_max=job.pixels_max).pixels

    def read_draft(path: Path, size: tuple[int, int]) -> Any:
        file = read_file(path.resolve(), file_bytes_max=job.file_bytes_max)
        image = decode(file.data, size, pixels_max=job.pixels_max, draft=True)
        return image.pixels if image.drafted else None

    weights = Path(job.backbone_weights) if job.backbone_weights else None
    try:
        trained = train_jointly(
            [
                ProductImages(
                    product=each.product,
                    normals=[Path(path) for path in each.images],
                    false_alarm_rate=each.false_alarm_rate,
                    anomalies=[Path(path) for path in each.anomalies],
                    calibrate=[Path(path) for path in each.calibrate],
                )
                for each in job.products
            ],
            kind=job.kind,
            profile=job.profile,
            seed=job.seed,
            read=read,
            read_draft=read_draft,
            image_size=lambda path: image_size(path.resolve()),
            unreadable=(DecodeError, StillChanging, OSError),
            destination=Path(job.models_root),
            minutes_max=job.minutes_max,
            memory_bytes=int(job.memory_gb * BYTES_PER_GB),
            method=job.method,
            backbone=BackboneSource(job.backbone, weights) if job.backbone else None,
            report=lambda progress: _send(events, event="progress", **asdict(progress)),
            steps=job.steps,
            side=job.side,
            meter=take,
            build=Path(job.models_root) / job.build,
            warm=Path(job.warm) if job.warm else None,
            trim_fraction=job.trim_fraction,
            retraining=job.retraining,
            threads=job.threads,
            tamis_version=__version__,
            again=[each.chosen() for each in job.chosen],
            root=Path(job.models_root).parent,
        )
    finally:
        meter.close()
    return trained, samples[0] if samples else None


def _send(events: IO[str], **event: Any) -> None:
    with _sending:
        events.write(json.dumps(event) + "\n")
        events.flush()


if __name__ == "__main__":
    main()
