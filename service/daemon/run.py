"""Run the daemon: signals, the order of starting and stopping, and how the process ends.

It watches first and then scans, so that nothing dropped in between is missed; on the first SIGTERM it stops claiming,
brings what is in flight to its end and closes in the reverse order of opening.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import signal
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.registry import ModelVersion
from models.runtime.stream_tuning import BATCH_MIN, Measured, batch_size
from service.daemon.background_jobs import BackgroundJobs, jobs_for
from service.daemon.daemon import Daemon, start_watching
from service.daemon.metering import Metering
from service.daemon.systemd import Notifier
from service.daemon.wake import EXIT_FAILED, StopRequest, leave_at_once
from service.drift.monitor import DriftWatch
from service.errors import ConfigurationError, TamisError
from service.filesystem.file_state import NameFilter
from service.inspection.claim import Claims
from service.inspection.intake import Intake
from service.inspection.pipeline import Pipeline, PipelineLimits, StageStuck
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.inspection.settle import Settling
from service.inspection.watch import Watcher
from service.instances import lock_root, mounts_of
from service.labelling.folder_watch import FolderWatch
from service.logs import configure, fields
from service.operations.restore import take_back
from service.retraining.scheduler import Schedule
from service.root import INCOMING
from service.scoring.active_versions import VersionLookup
from service.scoring.decide import ThresholdDecider
from service.scoring.detector_loader import DetectorLoader
from service.scoring.scorers import ScorerCache
from service.scoring.shadow import Shadows
from service.scoring.threshold_policy import decider_of
from service.settings import Settings
from service.storage.database.open import open_database

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 0.2
_M_ARENA_MAX = -8  # of malloc.h


def run(root: Path, settings: Settings) -> int:
    """Run the daemon on `root` until it is told to stop; return the exit code. Raises ConfigurationError."""
    configure(settings.log_format, settings.log_level)
    # Else a crash in a library's own code ends without a word. The stack of the thread that crashed and no other: the
    # others run on, and to read theirs meanwhile can crash in turn and hide from systemd which signal it was.
    faulthandler.enable(all_threads=False)
    _share_arenas()
    # Pillow warns of damage and of sizes that are checked here anyway; a share full of bad files must not fill the log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    stop = StopRequest()
    with ExitStack() as stack:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, stop.on_signal)
        try:
            open_daemon(root, settings, stop, stack).loop()
        except StageStuck as error:
            log.critical("stuck; ending to begin anew", extra=fields(reason=str(error)))
            # The stuck thread cannot be joined, so an orderly exit would wait for it.
            leave_at_once()
        except TamisError:
            raise
        # Nothing can go on with a broken disk or graph: it is logged once, and systemd starts the service again.
        except Exception:
            log.critical("ended by an error", exc_info=True)
            return EXIT_FAILED
    return 0


def open_daemon(root: Path, settings: Settings, stop: StopRequest, stack: ExitStack) -> Daemon:
    """Open everything that the loop needs, in the order in which `stack` closes it backwards."""
    started_at = datetime.now(UTC)
    lock_root(root, settings.instance, shared=settings.share_root, stack=stack)
    mounts = mounts_of(root, settings.instance)
    names = NameFilter(settings.ignored_names)
    watcher = Watcher(root / INCOMING, stop.wake.set)
    stack.callback(watcher.stop)
    watching = start_watching(watcher, root, settings.watch_mode)
    scorers, shadows = _open_scoring(
        root, settings, lambda: looking.connect(), lambda images: pipeline.use_batch_size(images), stack
    )
    settling = Settling(settings.settle_time_s, settings.empty_file_timeout_s)
    intake = Intake(root, names, scorers, settling, shadows)
    # What lies there settles while the rest opens, which takes about as long.
    intake.look_ahead(time.monotonic())
    engine = open_database(root)
    stack.callback(engine.dispose)
    # The loop itself never waits for a lock: what it cannot read now it reads with the next round.
    looking = open_database(root, migrate=False, read_only=True, busy_timeout_s=LOOK_TIMEOUT_S)
    stack.callback(looking.dispose)
    claims = Claims(root, settings.instance)
    claims.prune()
    take_back(root, engine, claims)
    recorder = Recorder(root, engine, claims, anomaly_maps=settings.anomaly_maps, mounts=mounts)
    pipeline = Pipeline(root, _limits(settings), intake, claims, recorder, stop.wake.set)
    metering = Metering(settings, pipeline, recorder)
    stack.callback(metering.close)
    stack.callback(pipeline.close)
    gap_s, interval_s = settings.burst_gap_s, settings.rescan_interval_s
    folders = FolderWatch(root, names, burst_gap_s=gap_s, rescan_interval_s=interval_s, failed=stop.wake.set)
    stack.callback(folders.stop)
    folders.start()
    _load_models(scorers, settings.models_loaded_max)
    retrainings, jobs = _open_jobs(root, engine, settings, stack)
    # Last, since it takes seconds of a core; what has settled by then waits for nobody.
    metering.start()
    return Daemon(
        root=root,
        settings=settings,
        notifier=Notifier(),
        stop=stop,
        started_at=started_at,
        mounts=mounts,
        watcher=watcher,
        watching=watching,
        scorers=scorers,
        intake=intake,
        claims=claims,
        recover=partial(
            recover, root, looking, claims, recorder, attempts_max=settings.attempts_max, has_model=scorers.has
        ),
        pipeline=pipeline,
        metering=metering,
        drift=DriftWatch(root, settings, looking, engine),
        folders=folders,
        jobs=jobs,
        retrainings=retrainings,
    )


def _open_scoring(
    root: Path,
    settings: Settings,
    connect: Callable[[], Connection],
    use_batch_size: Callable[[int], None],
    stack: ExitStack,
) -> tuple[ScorerCache, Shadows | None]:
    def on_measured(measured: Measured) -> None:
        if not settings.batch_size_max:
            use_batch_size(batch_size(measured.chosen_images_per_s, settings.in_flight_max))

    def decider(product: str, version: ModelVersion, chosen_rate: float | None) -> ThresholdDecider:
        return decider_of(settings, product, version, chosen_rate=chosen_rate)

    lookup = VersionLookup(connect, settings.shadow_hours)
    load = DetectorLoader(settings.scoring_threads, on_measured)
    scorers = ScorerCache(root, lookup.active, decider, load, settings.models_loaded_max)
    if not settings.shadow_hours:
        return scorers, None
    shadows = Shadows(
        root, scorers, lookup.challengers, load, share=settings.shadow_share, loaded_max=settings.models_loaded_max
    )
    stack.callback(shadows.close)
    return scorers, shadows


def _load_models(scorers: ScorerCache, loaded_max: int) -> None:
    scorers.refresh()
    refusals = []
    products = scorers.products[:loaded_max]
    for product in products:
        try:
            scorers.get(product)
        except ConfigurationError as error:
            refusals.append(str(error))
    if refusals and len(refusals) == len(products):
        raise ConfigurationError("; ".join(refusals))


def _open_jobs(root: Path, engine: Engine, settings: Settings, stack: ExitStack) -> tuple[Schedule, BackgroundJobs]:
    retrainings = Schedule(root, engine, settings)
    stopping = threading.Event()
    jobs = BackgroundJobs(jobs_for(root, engine, settings, retrainings, stopping), stopping)
    stack.callback(jobs.close)
    stack.callback(retrainings.close)
    jobs.start()
    return retrainings, jobs


def _limits(settings: Settings) -> PipelineLimits:
    as_set = {name: getattr(settings, name) for name in PipelineLimits.__dataclass_fields__}
    batch_size_max = settings.batch_size_max or min(BATCH_MIN, settings.in_flight_max)
    return PipelineLimits(**{**as_set, "decode_threads": settings.decoders, "batch_size_max": batch_size_max})


def _share_arenas() -> None:
    """Have the threads share two arenas of memory: with one for each, what each once took is kept, 20 MB in all."""
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)
