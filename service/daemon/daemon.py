"""The daemon: opens its parts, then moves images along, scans, recovers and reports, until told to stop.

Watches first and then scans, so that nothing dropped in between is missed.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy.exc import OperationalError

from service import __version__
from service.daemon.background_jobs import BackgroundJobs, jobs_for
from service.daemon.metering import Metering
from service.daemon.parts import limits_of, load_models, open_intake, open_scoring, start_decoder, start_watching
from service.daemon.systemd import Notifier
from service.daemon.wake import StopRequest
from service.drift.monitor import DriftWatch
from service.errors import TamisError
from service.filesystem.file_state import NameFilter, folder_identity
from service.filesystem.mount_table import lack_of_space
from service.filesystem.mounts import gone_message
from service.filesystem.odd_entries import OddEntries
from service.inspection.claim import Claims, RootTrouble
from service.inspection.incoming_scan import COST_RATIO
from service.inspection.pipeline import Pipeline
from service.inspection.private_copy import remove_left
from service.inspection.record import Recorder
from service.inspection.recover import recover
from service.inspection.watch import Watcher
from service.instances import instance_lock, lock_root, mounts_of, other_instances, write_status
from service.labelling.folder_watch import FolderWatch
from service.logs import Repeated, fields
from service.operations.restore import take_back
from service.retraining.scheduler import Schedule
from service.root import INCOMING, INSTANCE_STATUS, PROCESSING
from service.settings import Settings
from service.storage.database.open import open_database, trouble

log = logging.getLogger(__name__)

LOOK_TIMEOUT_S = 0.2
STATUS_INTERVAL_S = 1.0
SPACE_INTERVAL_S = 1.0
SCAN_STEP_S = 0.02
# How much longer than the last scan the loop does without one, by the time of a core and by the clock.
WAIT_RATIO = 2
PAUSED_INTERVAL_S = 5.0
PAUSED_SAID_AGAIN_S = 3600.0
INCOMING_GONE = "incoming/ is gone"
STUCK_AFTER_S = 30.0
DRIFT_INTERVAL_S = 5.0
# Looked at in one go, so that the thread that records is never kept for long.
DRIFT_PRODUCTS_MAX = 4


class Daemon:
    """One instance on one root."""

    def __init__(self, root: Path, settings: Settings, stop: StopRequest, stack: ExitStack) -> None:
        """Open everything that the loop needs, in the order in which `stack` closes it backwards."""
        self.root, self.settings, self.stop = root, settings, stop
        self.started_at = datetime.now(UTC)
        self.notifier = Notifier()
        # Monotonic times at which the loop's own duties are due.
        self._scan_due = self._space_due = self._ping_due = self._status_due = self._drift_due = float("-inf")
        self._refill_due = float("-inf")
        # Of the scan that has begun: whether it is a rescan, and for how long it has kept the loop.
        self._rescans, self._scan_took_s = False, 0.0
        self._paused: str | None = None
        self._pauses = Repeated(PAUSED_SAID_AGAIN_S)
        self._in_trouble = False
        # There was no folder to watch at the last try; with the next rescan there may be.
        self._unwatched = False
        self.odd = OddEntries(root=root)
        self._status_written: dict[str, object] = {}
        self._status_refused = False
        lock_root(root, settings.instance, shared=settings.share_root, stack=stack)
        self._own_folder = folder_identity(root / PROCESSING / settings.instance)
        self.mounts = mounts_of(root, settings.instance)
        names = NameFilter(settings.names_to_ignore)
        self.watcher = Watcher(root / INCOMING, stop.wake.set)
        stack.callback(self.watcher.stop)
        self._watch_anew()
        self.scorers, shadows = open_scoring(
            root,
            settings,
            lambda: looking.connect(),
            lambda images: self.pipeline.use_batch_size(images),
            stop.wake.set,
            stack,
        )
        self.intake = open_intake(root, settings, names, self.scorers, shadows, self.odd)
        # What lies there settles while the rest opens, which takes about as long.
        self.intake.look_ahead(time.monotonic())
        engine = open_database(root)
        stack.callback(engine.dispose)
        # The loop itself never waits for a lock: what it cannot read now it reads with the next round.
        looking = open_database(root, migrate=False, read_only=True, busy_timeout_s=LOOK_TIMEOUT_S)
        stack.callback(looking.dispose)
        decoder = start_decoder(settings, stack)
        self.claims = Claims(root, settings.instance, self.odd)
        remove_left(root, self.claims.folder)
        self.claims.prune()
        take_back(root, engine, self.claims)
        maps, mounts = settings.anomaly_maps, self.mounts
        recorder = Recorder(root, engine, self.claims, anomaly_maps=maps, mounts=mounts, odd=self.odd, decoder=decoder)
        self.pipeline = Pipeline(
            root, limits_of(settings), self.intake, self.claims, recorder, decoder, stop.wake.set, odd=self.odd
        )
        self.metering = Metering(settings, self.pipeline, recorder, decoder)
        stack.callback(self.metering.close)
        stack.callback(self.pipeline.close)
        attempts_max, has_model = settings.attempts_max, self.scorers.has
        self.recover = partial(
            recover, root, looking, self.claims, recorder, attempts_max=attempts_max, has_model=has_model
        )
        self.drift: DriftWatch | None = DriftWatch(root, settings, looking, engine)
        gap_s, interval_s = settings.burst_gap_s, settings.rescan_interval_s
        self.folders = FolderWatch(
            root, names, burst_gap_s=gap_s, rescan_interval_s=interval_s, failed=stop.wake.set, odd=self.odd
        )
        stack.callback(self.folders.stop)
        self.folders.start()
        load_models(self.scorers)
        self.retrainings = Schedule(root, engine, settings)
        jobs_stop = threading.Event()
        self.jobs = BackgroundJobs(jobs_for(root, engine, settings, self.retrainings, jobs_stop), jobs_stop)
        stack.callback(self.jobs.close)
        stack.callback(self.retrainings.close)
        self.jobs.start()
        # Last, since it takes seconds of a core; what has settled by then waits for nobody.
        self.metering.start()

    def loop(self) -> None:
        """Move images along until told to stop, then bring what is in flight to its end."""
        log.info(
            "ready",
            extra=fields(
                version=__version__,
                root=self.root,
                instance=self.settings.instance,
                watching=self.watching,
                products=",".join(self.scorers.products) or "none",
            ),
        )
        self.notifier.send("READY=1")
        while not self.stop.made:
            now = time.monotonic()
            if self.folders.error is not None:
                raise self.folders.error
            self._take_events(now)
            # Before the scan, whose recovery delivers.
            self._check_space(now)
            if not self.intake.scanning and (now >= self._scan_due or self._refill_is_due(now)):
                self._begin_scan(now)
            if self.intake.scanning:
                self._go_on_scanning(now)
            next_at = self._step(now, claiming=self._paused is None)
            if self.pipeline.idle:
                self.scorers.load_ahead()
            self.metering.write_idle_row(now)
            self._check_drift(now)
            self._report_status(now)
            self._sleep(next_at)
        self._drain()

    def _step(self, now: float, *, claiming: bool) -> float | None:
        try:
            return self.pipeline.step(now, claiming=claiming)
        except RootTrouble as trouble:
            # What was being done waits where it lies, for when it is over.
            self._in_trouble = True
            self._pause(str(trouble))
            self._space_due = now + PAUSED_INTERVAL_S
            return self._space_due

    # The loop's duties

    def _take_events(self, now: float) -> None:
        hints, scan_needed = self.watcher.take()
        self.intake.take_hints(hints, now)
        if scan_needed:
            self._scan_due = now

    def _refill_is_due(self, now: float) -> bool:
        return now >= self._refill_due and self.intake.scan_needed

    def _begin_scan(self, now: float) -> None:
        self._rescans = now >= self._scan_due
        self._scan_took_s = 0.0
        self.intake.begin_scan(again=self._rescans)
        events = self.watching == "events"
        if self._rescans:
            self._scan_due = now + (self.settings.rescan_interval_s if events else self.settings.poll_interval_s)
        if self._unwatched or (events and not self.watcher.alive()):
            log.warning("incoming/ is another folder, or its file events ended; watching anew")
            self._watch_anew()

    def _go_on_scanning(self, now: float) -> None:
        """Scan for a moment; after the last one of a rescan, recover."""
        began = time.monotonic()
        try:
            done = self.intake.go_on_scanning(now, SCAN_STEP_S)
        except FileNotFoundError:
            self._pause(INCOMING_GONE)
            self._scan_due = now + PAUSED_INTERVAL_S
            return
        except OSError as error:
            self._pause(f"incoming/ cannot be read: {error}")
            self._scan_due = now + PAUSED_INTERVAL_S
            return
        self._scan_took_s += time.monotonic() - began
        if not done:
            return
        # However many files wait, and however slow a share is, looking at them is a small part of the work.
        rest_s = max(COST_RATIO * self.intake.scan_cost_s, WAIT_RATIO * self._scan_took_s)
        self._refill_due = now + rest_s
        if self._rescans:
            self._scan_due = max(self._scan_due, now + rest_s)
        if self.intake.take_found_open() and self.watching == "events":
            # No watch of that folder was to be had before; what came there meanwhile, another scan finds.
            self._watch_anew()
            self._scan_due = now
        if self._rescans:
            self._recover()
            self.jobs.on_rescan()

    def _watch_anew(self) -> None:
        self.watcher.stop()
        self.watching, self._unwatched = "polling", not (self.root / INCOMING).is_dir()
        if not self._unwatched:
            self.watching = start_watching(self.watcher, self.root, self.settings.watch_mode)

    def _recover(self) -> None:
        if self.mounts.any_gone():
            return
        with ExitStack() as dead:
            self._adopt(dead)
            try:
                recovered = self.recover(in_flight=self.pipeline.in_flight)
            except OperationalError as error:
                if (why := trouble(error)) is None:
                    raise
                log.warning(f"database {why}; recovery waits for the next rescan")
                return
        self.pipeline.retry(recovered.again)
        self.pipeline.quarantine(recovered.given_up)
        if recovered.again or recovered.given_up or recovered.delivered:
            log.info(
                "recovered",
                extra=fields(
                    again=len(recovered.again), given_up=len(recovered.given_up), delivered=recovered.delivered
                ),
            )

    def _adopt(self, dead: ExitStack) -> None:
        # Their locks are held until their rows are finished, then let go: a host that was lost may come back.
        for name in other_instances(self.root, self.settings.instance):
            lock = instance_lock(self.root, name)
            if lock.acquire() is None:
                dead.callback(lock.release)
                dead.callback(self.claims.disown, name)
                adopted = self.claims.adopt(name)
                if adopted:
                    log.warning("adopted what a dead instance left", extra=fields(instance=name, files=adopted))

    def _check_root(self) -> None:
        """Raise TamisError where the root went away under the open database, whose locks nobody else would know."""
        own = self.root / PROCESSING / self.settings.instance
        try:
            found = folder_identity(own)
        except OSError:  # a share that hangs, or rights that went: it may come back as it was
            return
        if found != self._own_folder:
            raise TamisError(
                f"{own}: expected the folder that this daemon began with; found {'another' if found else 'none'}. "
                "The disk or share of the root went away or was replaced; started again, the service goes on"
            )

    def _check_space(self, now: float) -> None:
        if now < self._space_due:
            return
        self._check_root()
        reason = lack_of_space(self.root, self.settings.free_bytes_min, self.settings.free_inodes_min)
        if reason is None:
            reason = None if (self.root / INCOMING).is_dir() else INCOMING_GONE
        if reason is None and (gone := self.mounts.find_gone()):
            status = f"{PROCESSING}/{self.settings.instance}/{INSTANCE_STATUS}"
            reason = (
                f"{gone_message(gone)}. Mount it; or, if it is to lie on the root's disk from now on, "
                f"stop the service and remove {status}"
            )
        if reason is None and self._in_trouble:
            reason = self.claims.trouble()
            self._in_trouble = reason is not None
        self._pause(reason)
        self._space_due = now + (PAUSED_INTERVAL_S if reason else SPACE_INTERVAL_S)

    def _pause(self, reason: str | None) -> None:
        if reason is None and self._paused is not None:
            log.info("going on")
            self._scan_due = float("-inf")
        # The free bytes that it names change all the time, which is no news.
        if self._pauses.is_worth_a_line(reason, time.monotonic()):
            log.error("paused", extra=fields(reason=reason))
        self._paused = reason

    def _check_drift(self, now: float) -> None:
        recorded = self.pipeline.recorded
        if now < self._drift_due or not recorded:
            return
        self._drift_due = now + DRIFT_INTERVAL_S
        products = [recorded.pop() for _ in range(min(len(recorded), DRIFT_PRODUCTS_MAX))]
        self.pipeline.run_on_recorder(lambda: self._notice_drift(products))

    def _notice_drift(self, products: list[str]) -> None:
        if self.drift is None:
            return
        try:
            self.drift.check(products)
        # Whatever this look at the scores trips over, images are sorted; whether they drift is not known.
        except Exception:
            log.exception("drift is no longer watched")
            self.drift = None

    def _report_status(self, now: float) -> None:
        interval = self.notifier.watchdog_interval_s
        if interval is not None and now >= self._ping_due and self.pipeline.stuck_for_s(now) < STUCK_AFTER_S:
            self.notifier.send("WATCHDOG=1")
            self._ping_due = now + interval
        if now >= self._status_due:
            self._status_due = now + STATUS_INTERVAL_S
            self._write_status()

    def _status(self) -> dict[str, object]:
        pipeline = self.pipeline
        return {
            "instance": self.settings.instance,
            "pid": os.getpid(),
            "version": __version__,
            "started_at": self.started_at.isoformat(timespec="seconds"),
            "watching": self.watching,
            "paused": self._paused,
            # The root's own is no matter to the next run: a sandbox mounts it, a run by hand does not.
            "mounts": sorted(self.mounts.seen - {"."}),
            "stopping": self.stop.made,
            "products": self.scorers.products,
            # A copy: what was written is compared with what is, and the intake goes on counting.
            "waiting_for_model": dict(self.intake.waiting),
            "backlog": len(self.intake),
            "backlog_is_least": self.intake.more_left_out,
            "in_flight": len(pipeline.in_flight),
            "models_in_memory": self.scorers.loaded,
            "odd_entries": self.odd.document(),
            **asdict(pipeline.counts),
        }

    def _write_status(self) -> None:
        status, pipeline = self._status(), self.pipeline
        if status == self._status_written:
            return
        # Those without a model too: nobody else who looks at the unit would learn of them.
        waiting = len(self.intake) + sum(self.intake.waiting.values())
        try:
            write_status(self.root, self.settings.instance, status)
        except OSError as error:
            # Whoever asks is told what was last written; images are sorted, or wait, all the same.
            if not self._status_refused:
                log.error("status cannot be written", extra=fields(reason=error))
            self._status_refused = True
        else:
            self._status_written, self._status_refused = status, False
        at_least = "at least " if self.intake.more_left_out else ""
        self.notifier.send(
            f"STATUS={'paused: ' + self._paused if self._paused else 'sorting'}; "
            f"{pipeline.counts.placed} placed, {pipeline.counts.anomalies} anomalies, "
            f"{pipeline.counts.quarantined} quarantined, {at_least}{waiting} waiting"
        )

    def _sleep(self, next_at: float | None) -> None:
        if self.intake.scanning:
            return
        due = [next_at, self._scan_due, self.metering.idle_row_due]
        if self.intake.scan_needed:
            due.append(self._refill_due)
        if self.pipeline.recorded:
            due.append(self._drift_due)
        if self.notifier.watchdog_interval_s is not None:
            due.append(self._ping_due)
        if self._paused or len(self.intake):
            due.append(self._space_due)
        # While images are on their way the status changes all the time, and to ask costs more than to write it.
        if not self.pipeline.idle or self._status_written != self._status():
            due.append(self._status_due)
        timeout = min(at for at in due if at is not None) - time.monotonic()
        self.stop.wake.wait(timeout)

    # Stopping

    def _drain(self) -> None:
        log.info("stopping", extra=fields(in_flight=len(self.pipeline.in_flight)))
        self.notifier.send("STOPPING=1")
        self.retrainings.stop()
        while True:
            now = time.monotonic()
            next_at = self._step(now, claiming=False)
            if self.pipeline.drained:
                break
            interval = self.notifier.watchdog_interval_s
            if interval is not None and self.pipeline.stuck_for_s(now) < STUCK_AFTER_S:
                self.notifier.send("WATCHDOG=1")
            self.stop.wake.wait(min(next_at - now, 1.0) if next_at is not None else 1.0)
        self._write_status()
        log.info("stopped", extra=fields(placed=self.pipeline.counts.placed))
