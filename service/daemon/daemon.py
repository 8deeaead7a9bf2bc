"""The daemon: owns time, signals, threads and the order of starting and stopping.

`run` watches first and then scans, so that nothing dropped in between is missed; on the first SIGTERM it
stops claiming, brings what is in flight to its end and closes in the reverse order of opening.
"""

from __future__ import annotations

import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
import warnings
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy.exc import OperationalError

from models.runtime.stream_tuning import BATCH_MIN, Measured, batch_size
from service import __version__
from service.daemon.background_jobs import BackgroundJobs, jobs_for
from service.daemon.systemd import Notifier
from service.daemon.wake import Wake
from service.drift.monitor import DriftWatch
from service.energy.meter import EnergyMeter
from service.errors import ConfigurationError, TamisError
from service.filesystem.file_state import NameFilter
from service.filesystem.mount_table import lack_of_space, mount_of, sends_events
from service.filesystem.mounts import gone_message
from service.inspection.claim import Claims
from service.inspection.intake import Intake
from service.inspection.pipeline import Pipeline, PipelineLimits, StageStuck
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.inspection.settle import Settling
from service.inspection.watch import Watcher
from service.instances import instance_lock, lock_root, mounts_of, other_instances, write_status
from service.labelling.folder_watch import FolderWatch
from service.logs import configure, fields
from service.operations.restore import take_back
from service.retraining.scheduler import Schedule
from service.root import INCOMING, INSTANCE_STATUS, PROCESSING
from service.scoring.active_versions import ActiveVersions
from service.scoring.detector_loader import DetectorLoader
from service.scoring.scorers import ScorerCache
from service.scoring.shadow import Shadows
from service.settings import Settings
from service.storage.database.open import open_database, trouble

log = logging.getLogger(__name__)

STATUS_INTERVAL_S = 1.0
LOOK_TIMEOUT_S = 0.2
SPACE_INTERVAL_S = 1.0
PAUSED_INTERVAL_S = 5.0
STUCK_AFTER_S = 30.0
# The service manager waits a minute for the end.
CLOSE_AWAY_TIMEOUT_S = 5.0
DRIFT_INTERVAL_S = 5.0
# Looked at in one go, so that the thread that records is never kept for long.
DRIFT_PRODUCTS_MAX = 4
EXIT_FAILED = 1
_M_ARENA_MAX = -8  # of malloc.h


def run(root: Path, settings: Settings) -> int:
    """Run the daemon on `root` until it is told to stop; return the exit code. Raises ConfigurationError."""
    configure(settings.log_format, settings.log_level)
    # Else a crash in a library's own code ends without a word. The stack of the thread that crashed and no other: the
    # others run on, and to read theirs meanwhile can crash in turn and hide from systemd which signal it was.
    faulthandler.enable(all_threads=False)
    _share_arenas()
    # Pillow warns of damage and of sizes that are judged here anyway; a share full of bad files must not fill the log.
    warnings.filterwarnings("ignore", module=r"PIL\.")
    with ExitStack() as stack:
        daemon = Daemon(root, settings, Notifier())
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, daemon.on_signal)
        try:
            daemon.open(stack)
            daemon.loop()
        except StageStuck as error:
            log.critical("stuck; ending to begin anew", extra=fields(reason=str(error)))
            # The stuck thread cannot be joined, so an orderly exit would wait for it.
            _leave_at_once()
        except TamisError:
            raise
        # A broken disk or graph is nothing to go on with: said once, and systemd starts the service again.
        except Exception:
            log.critical("ended by an error", exc_info=True)
            return EXIT_FAILED
    return 0


def _share_arenas() -> None:
    """Have the threads share two arenas of memory: with one for each, what each once took is kept, 20 MB in all."""
    with suppress(OSError, AttributeError):  # not the GNU C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 2)


@dataclass
class _Schedule:
    """Monotonic times at which the loop's own duties are due."""

    scan: float = float("-inf")
    space: float = float("-inf")
    ping: float = float("-inf")
    status: float = float("-inf")
    idle_row: float = float("inf")
    drift: float = float("-inf")


@dataclass
class _State:
    """What the status file says of the daemon."""

    watching: str = "starting"
    paused: str | None = None


class Daemon:
    """One instance on one root. `open`, then `loop`; closing is the exit stack's."""

    def __init__(self, root: Path, settings: Settings, notifier: Notifier) -> None:
        self._root = root
        self._settings = settings
        self._notifier = notifier
        # What a signal handler changes: no `threading.Event`, whose lock the interrupted code may hold.
        self._wake = Wake()
        self._stopping = False
        self._due = _Schedule()
        self._state = _State()
        self._status_written: dict[str, object] = {}
        self._drift: DriftWatch | None = None
        self._started_at = datetime.now(UTC)

    def on_signal(self, number: int, _frame: object) -> None:
        """Stop in order at the first signal, at once at the second."""
        if self._stopping:
            _leave_at_once()
        self._stopping = True
        self._wake.set()

    def open(self, stack: ExitStack) -> None:
        """Open everything the loop needs, in the order in which `stack` closes it backwards."""
        settings, root = self._settings, self._root
        lock_root(root, settings.instance, shared=settings.share_root, stack=stack)
        self._mounts = mounts_of(root, settings.instance)
        self._watcher = Watcher(root / INCOMING, self._wake.set)
        stack.callback(self._watcher.stop)
        self._watch()
        self._loader = DetectorLoader(settings.scoring_threads, self._take_batch_size)
        self._in_charge = ActiveVersions(lambda: self._looking.connect(), settings)
        self._scorers = ScorerCache(
            root,
            self._in_charge.champions,
            self._in_charge.decider_of,
            self._loader,
            settings.models_loaded_max,
            lambda: self._in_charge.rates,
        )
        settling = Settling(settings.settle_time_s, settings.empty_file_timeout_s)
        self._shadows = self._make_shadows(stack)
        self._intake = Intake(root, NameFilter(settings.ignored_names), self._scorers, settling, self._shadows)
        # What lies there settles while the rest opens, which takes about as long.
        self._intake.look_ahead(time.monotonic())
        self._engine = open_database(root)
        stack.callback(self._engine.dispose)
        # The loop itself never waits for a lock: what it cannot read now it reads with the next round.
        self._looking = open_database(root, migrate=False, read_only=True, busy_timeout_s=LOOK_TIMEOUT_S)
        stack.callback(self._looking.dispose)
        self._claims = Claims(root, settings.instance)
        self._claims.prune()
        take_back(root, self._engine, self._claims)
        self._recorder = Recorder(
            root,
            self._engine,
            self._claims,
            anomaly_maps=settings.anomaly_maps,
            mounts=self._mounts,
        )
        self._pipeline = Pipeline(root, _limits(settings), self._intake, self._claims, self._recorder, self._wake.set)
        self._drift = DriftWatch(root, settings, self._looking, self._engine)
        stack.callback(self._close_meter)
        stack.callback(self._pipeline.close)
        self._folders = FolderWatch(
            root,
            NameFilter(settings.ignored_names),
            burst_gap_s=settings.burst_gap_s,
            rescan_interval_s=settings.rescan_interval_s,
            failed=self._wake.set,
        )
        stack.callback(self._folders.stop)
        self._folders.start()
        self._load_models()
        self._schedule = Schedule(root, self._engine, settings)
        stopping = threading.Event()
        self._jobs = BackgroundJobs(jobs_for(root, self._engine, settings, self._schedule, stopping), stopping)
        stack.callback(self._jobs.close)
        stack.callback(self._schedule.close)
        self._jobs.start()
        # Last, since it takes seconds of a core to look at the hardware; what has settled by then waits for nobody.
        threading.Thread(target=self._start_meter, name="meter", daemon=True).start()

    def loop(self) -> None:
        """Move images along until told to stop, then bring what is in flight to its end."""
        log.info(
            "ready",
            extra=fields(
                version=__version__,
                root=self._root,
                instance=self._settings.instance,
                watching=self._state.watching,
                products=",".join(self._scorers.products) or "none",
            ),
        )
        self._notifier.ready()
        while not self._stopping:
            now = time.monotonic()
            if self._folders.error is not None:
                raise self._folders.error
            self._take_events(now)
            # Before the scan, whose recovery delivers.
            self._check_space(now)
            if now >= self._due.scan or self._intake.scan_needed:
                self._rescan(now)
            next_at = self._pipeline.step(now, claiming=self._state.paused is None)
            self._write_idle_row(now)
            self._check_drift(now)
            self._report_status(now)
            self._sleep(next_at)
        self._drain()

    # Starting

    def _load_models(self) -> None:
        self._scorers.refresh()
        refusals = []
        products = self._scorers.products[: self._settings.models_loaded_max]
        for product in products:
            try:
                self._scorers.get(product)
            except ConfigurationError as error:
                refusals.append(str(error))
        if refusals and len(refusals) == len(products):
            raise ConfigurationError("; ".join(refusals))

    def _make_shadows(self, stack: ExitStack) -> Shadows | None:
        settings = self._settings
        if not settings.shadow_hours:
            return None
        shadows = Shadows(
            self._root,
            self._scorers,
            self._in_charge.challengers,
            self._in_charge.decider_of,
            self._loader,
            share=settings.shadow_share,
            loaded_max=settings.models_loaded_max,
        )
        stack.callback(shadows.close)
        return shadows

    def _take_batch_size(self, measured: Measured) -> None:
        if not self._settings.batch_size_max:
            self._pipeline.batch_size_max = batch_size(measured.chosen_images_per_s, self._settings.in_flight_max)

    def _watch(self) -> None:
        mode = self._settings.watch_mode
        mount = mount_of(self._root / INCOMING)
        if mode == "polling" or (mode == "auto" and not sends_events(mount.type)):
            self._state.watching = "polling"
            return
        try:
            self._watcher.start()
            self._state.watching = "events"
        except OSError as error:
            if mode == "events":
                raise ConfigurationError(
                    f"{self._root / INCOMING}: watch_mode is 'events' and the kernel gives none: {error}; "
                    "raise fs.inotify.max_user_watches and max_user_instances, or set watch_mode to 'auto'"
                ) from None
            self._state.watching = "polling"
            log.warning("no file events; polling", extra=fields(reason=error))

    def _start_meter(self) -> None:
        settings = self._settings
        try:
            self._pipeline.meter = EnergyMeter(
                tracking=settings.energy_tracking,
                country=settings.energy_country,
                cpu_max_w=settings.energy_cpu_max_w,
            )
        # Whatever the meter's look at the hardware trips over, images are scored; their energy is unknown.
        except Exception:
            log.exception("no energy meter; energy is unknown")
            return
        self._due.idle_row = time.monotonic() + settings.energy_idle_row_s

    def _close_meter(self) -> None:
        meter, self._pipeline.meter = self._pipeline.meter, None
        if meter is None:
            return
        try:
            self._recorder.add_row(meter.close(), CLOSE_AWAY_TIMEOUT_S)
        except OperationalError as error:
            if (why := trouble(error)) is None:
                raise
            log.warning(f"database {why}; the energy since the last row is not on record")

    # The loop's duties

    def _take_events(self, now: float) -> None:
        hints, scan_needed = self._watcher.take()
        self._intake.take_hints(hints, now)
        if scan_needed:
            self._due.scan = now

    def _rescan(self, now: float) -> None:
        events = self._state.watching == "events"
        self._due.scan = now + (self._settings.rescan_interval_s if events else self._settings.poll_interval_s)
        if events and not self._watcher.alive():
            log.warning("file events ended; watching anew")
            self._watcher.stop()
            self._watch()
        try:
            self._intake.scan(now)
        except OSError as error:
            self._pause(f"incoming/ cannot be read: {error}")
            self._due.scan = now + PAUSED_INTERVAL_S
            return
        self._recover()
        self._jobs.on_rescan()

    def _recover(self) -> None:
        if self._mounts.any_gone():
            return
        with ExitStack() as dead:
            self._adopt(dead)
            try:
                recovered = recover(
                    self._root,
                    self._looking,
                    self._claims,
                    self._recorder,
                    in_flight=self._pipeline.in_flight,
                    attempts_max=self._settings.attempts_max,
                    has_model=self._scorers.has,
                )
            except OperationalError as error:
                if (why := trouble(error)) is None:
                    raise
                log.warning(f"database {why}; recovery waits for the next rescan")
                return
        self._pipeline.retry(recovered.again)
        self._pipeline.quarantine(recovered.given_up)
        if recovered.again or recovered.given_up or recovered.delivered:
            log.info(
                "recovered",
                extra=fields(
                    again=len(recovered.again),
                    given_up=len(recovered.given_up),
                    delivered=recovered.delivered,
                ),
            )

    def _adopt(self, dead: ExitStack) -> None:
        # Their locks are held until their rows are finished, then let go: a host that was lost may come back.
        for name in other_instances(self._root, self._settings.instance):
            lock = instance_lock(self._root, name)
            if lock.acquire() is None:
                dead.callback(lock.release)
                dead.callback(self._claims.disown, name)
                adopted = self._claims.adopt(name)
                if adopted:
                    log.warning("adopted what a dead instance left", extra=fields(instance=name, files=adopted))

    def _check_space(self, now: float) -> None:
        if now < self._due.space:
            return
        reason = lack_of_space(self._root, self._settings.free_bytes_min, self._settings.free_inodes_min)
        if reason is None:
            reason = None if (self._root / INCOMING).is_dir() else "incoming/ is gone"
        if reason is None and (gone := self._mounts.find_gone()):
            status = f"{PROCESSING}/{self._settings.instance}/{INSTANCE_STATUS}"
            reason = (
                f"{gone_message(gone)}. Mount it; or, if it is to lie on the root's disk from now on, "
                f"stop the service and remove {status}"
            )
        self._pause(reason)
        self._due.space = now + (PAUSED_INTERVAL_S if reason else SPACE_INTERVAL_S)

    def _pause(self, reason: str | None) -> None:
        if reason != self._state.paused:
            if reason:
                log.error("paused", extra=fields(reason=reason))
            else:
                log.info("going on")
                self._due.scan = float("-inf")
        self._state.paused = reason

    def _write_idle_row(self, now: float) -> None:
        if now >= self._due.idle_row:
            self._due.idle_row = now + self._settings.energy_idle_row_s
            self._pipeline.idle_row()

    def _check_drift(self, now: float) -> None:
        recorded = self._pipeline.recorded
        if now < self._due.drift or not recorded:
            return
        self._due.drift = now + DRIFT_INTERVAL_S
        products = [recorded.pop() for _ in range(min(len(recorded), DRIFT_PRODUCTS_MAX))]
        self._pipeline.run_on_recorder(lambda: self._notice_drift(products))

    def _notice_drift(self, products: list[str]) -> None:
        if self._drift is None:
            return
        try:
            self._drift.check(products)
        # Whatever this look at the scores trips over, images are sorted; whether they drift is not known.
        except Exception:
            log.exception("drift is no longer watched")
            self._drift = None

    def _report_status(self, now: float) -> None:
        interval = self._notifier.watchdog_interval_s
        if interval is not None and now >= self._due.ping and self._pipeline.stuck_for_s(now) < STUCK_AFTER_S:
            self._notifier.watchdog()
            self._due.ping = now + interval
        if now >= self._due.status:
            self._due.status = now + STATUS_INTERVAL_S
            self._write_status()

    def _status(self) -> dict[str, object]:
        pipeline = self._pipeline
        return {
            "instance": self._settings.instance,
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "watching": self._state.watching,
            "paused": self._state.paused,
            # The root's own is no matter to the next run: a sandbox mounts it, a run by hand does not.
            "mounts": sorted(self._mounts.seen - {"."}),
            "stopping": self._stopping,
            "products": self._scorers.products,
            # A copy: what was written is compared with what is, and the intake goes on counting.
            "waiting_for_model": dict(self._intake.waiting),
            "backlog": len(self._intake),
            "in_flight": len(pipeline.in_flight),
            "placed": pipeline.counts.placed,
            "quarantined": pipeline.counts.quarantined,
            "anomalies": pipeline.counts.anomalies,
            "interfered": pipeline.counts.interfered,
        }

    def _write_status(self) -> None:
        status, pipeline = self._status(), self._pipeline
        if status == self._status_written:
            return
        # Those without a model too: nobody else who looks at the unit would learn of them.
        waiting = len(self._intake) + sum(self._intake.waiting.values())
        self._status_written = status
        write_status(self._root, self._settings.instance, status)
        self._notifier.status(
            f"{'paused: ' + self._state.paused if self._state.paused else 'sorting'}; "
            f"{pipeline.counts.placed} placed, {pipeline.counts.anomalies} anomalies, "
            f"{pipeline.counts.quarantined} quarantined, {waiting} waiting"
        )

    def _sleep(self, next_at: float | None) -> None:
        due = [next_at, self._due.scan, self._due.idle_row]
        if self._pipeline.recorded:
            due.append(self._due.drift)
        if self._notifier.watchdog_interval_s is not None:
            due.append(self._due.ping)
        if self._state.paused or len(self._intake):
            due.append(self._due.space)
        # While images are on their way the status changes all the time, and to ask costs more than to write it.
        if not self._pipeline.idle or not self._status_is_written():
            due.append(self._due.status)
        timeout = min(at for at in due if at is not None) - time.monotonic()
        self._wake.wait(timeout)

    def _status_is_written(self) -> bool:
        return self._status_written == self._status()

    # Stopping

    def _drain(self) -> None:
        log.info("stopping", extra=fields(in_flight=len(self._pipeline.in_flight)))
        self._notifier.stopping()
        self._schedule.stop()
        while True:
            now = time.monotonic()
            next_at = self._pipeline.step(now, claiming=False)
            if self._pipeline.drained:
                break
            interval = self._notifier.watchdog_interval_s
            if interval is not None and self._pipeline.stuck_for_s(now) < STUCK_AFTER_S:
                self._notifier.watchdog()
            self._wake.wait(min(next_at - now, 1.0) if next_at is not None else 1.0)
        self._write_status()
        log.info("stopped", extra=fields(placed=self._pipeline.counts.placed))


def _limits(settings: Settings) -> PipelineLimits:
    as_set = {name: getattr(settings, name) for name in PipelineLimits.__dataclass_fields__}
    return PipelineLimits(
        **{
            **as_set,
            "decode_threads": settings.decoders,
            "batch_size_max": settings.batch_size_max or min(BATCH_MIN, settings.in_flight_max),
        }
    )


def _leave_at_once() -> None:
    sys.stderr.flush()
    os._exit(EXIT_FAILED)
