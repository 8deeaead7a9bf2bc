"""The pipeline: moves images from `incoming/` to their folders, step by step.

One thread, the caller's, makes every decision in `step`; decoding, scoring and recording run beside it, decoding in
processes of its own, and hand their results back. Every queue is bounded by `in_flight_max`.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from models.runtime.stream_tuning import BATCHES_IN_FLIGHT
from service.energy.meter import EnergyMeter
from service.filesystem.file_state import FileState
from service.filesystem.odd_entries import OddEntries
from service.filesystem.open_below import state_below
from service.imaging.decode import DecodeError, StillChanging
from service.imaging.decoder import Decoder
from service.imaging.decoder_processes import DECODER_ENDED
from service.inspection.batch import Batcher
from service.inspection.claim import Claim, Claims
from service.inspection.inspected_image import FileFacts, InspectedImage
from service.inspection.intake import Intake
from service.inspection.record import BatchReport, Recorder
from service.inspection.score_batch import Decoded, read_claim, score_and_decide
from service.inspection.workers import Workers
from service.logs import RateLimit, fields
from service.names import shown_name
from service.scoring.scorers import Scorer
from service.scoring.shadow import Shadow
from service.storage.states import ATTEMPTS_EXHAUSTED

log = logging.getLogger(__name__)

CLAIMS_A_STEP = 16
IN_FLIGHT_ENOUGH = 32
REJECTED_LINES_A_MINUTE = 20
UNSYNCED_RETRY_S = 2.0


@dataclass(frozen=True)
class PipelineLimits:
    """The settings that bound the pipeline; names, units and meanings are those of `Settings`."""

    in_flight_max: int
    batch_size_max: int
    batch_wait_ms: float
    decode_threads: int
    attempts_max: int
    settle_time_s: float
    file_bytes_max: int
    pixels_max: int


@dataclass
class Counts:
    """What this run has done so far, for the status."""

    placed: int = 0
    quarantined: int = 0
    anomalies: int = 0
    interfered: int = 0


class Pipeline:
    """The images in flight of one instance, read by `decoder`.

    `wake` is called from other threads when `step` has something to do; `clock` gives the `now` of its caller.
    """

    def __init__(
        self,
        root: Path,
        limits: PipelineLimits,
        intake: Intake,
        claims: Claims,
        recorder: Recorder,
        decoder: Decoder,
        wake: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
        odd: OddEntries | None = None,
    ) -> None:
        self._root = root
        self._odd = odd or OddEntries()
        self._limits = limits
        self._intake = intake
        self._claims = claims
        self._recorder = recorder
        self._decoder = decoder
        self._batcher: Batcher[Decoded] = Batcher(limits.batch_size_max, limits.batch_wait_ms / 1000)
        self._workers = Workers(limits.decode_threads, wake, clock)
        self._in_flight: dict[str, Claim] = {}
        self._decoding: set[str] = set()
        self._rejected: list[InspectedImage] = []
        self._again: deque[Claim] = deque()
        self._suspects: deque[Claim] = deque()
        self._tried: str | None = None
        # Those that could not be read in this run, which did not end for it: they need not be alone.
        self._unread: set[str] = set()
        self._seem_cut: set[str] = set()
        self._unread_again: deque[Claim] = deque()
        self._later: list[tuple[float, Claim]] = []
        self._unsynced: list[tuple[float, InspectedImage]] = []
        self._batches_scoring = 0
        self._batches_recording = 0
        self._rejected_lines = RateLimit(REJECTED_LINES_A_MINUTE, 60.0)
        self.meter: EnergyMeter | None = None
        """Meters the energy of what follows, where there is one."""
        self.counts = Counts()
        self.recorded: set[str] = set()
        """Products of which images were recorded; whoever checks one takes it out."""

    @property
    def in_flight(self) -> frozenset[str]:
        """The ids that are claimed and not yet finished."""
        return frozenset(self._in_flight) | {claim.id for claim in (*self._again, *self._unread_again)}

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and no stage is at work."""
        waits = self._again or self._unread_again
        return not self._in_flight and not waits and not self._batches_recording

    @property
    def drained(self) -> bool:
        """Whether all that was begun is done; claims that were only found again wait for the next run."""
        return not self._in_flight and not self._batches_recording

    @property
    def _in_flight_max(self) -> int:
        # On a slow machine more would only wait, and who comes with few images behind them.
        enough = max(BATCHES_IN_FLIGHT * self._batcher.batch_size_max, IN_FLIGHT_ENOUGH)
        return min(self._limits.in_flight_max, enough)

    @property
    def _batch_on_its_way(self) -> bool:
        return self._batches_scoring + self._batches_recording > 0

    def stuck_for_s(self, now: float) -> float:
        """For how long the slowest work beside the loop has been running, s."""
        return max((now - since for _, since in self._workers.at_work()), default=0.0)

    def use_batch_size(self, images: int) -> None:
        """Put at most so many images into a micro-batch."""
        self._batcher.batch_size_max = images

    # What comes in

    def retry(self, claims: list[Claim]) -> None:
        """Score claims that an earlier run left, each alone, since one of them may have ended that run.

        Those that could not be read in this run are tried again among the others.
        """
        for claim in claims:
            (self._unread_again if claim.id in self._unread else self._again).append(claim)

    def quarantine(self, rejected: list[InspectedImage]) -> None:
        """Quarantine claims that have had all their attempts."""
        self._in_flight.update((one.claim.id, one.claim) for one in rejected)
        self._rejected.extend(rejected)

    def step(self, now: float, *, claiming: bool = True) -> float | None:
        """Advance everything that can be; return the monotonic time at which there is something to do again, if known.

        With `claiming` false nothing new is begun; what is in flight is finished. Raises what a stage raised, and
        RootTrouble, after which it may go on.
        """
        self._workers.hand_over(now)
        self._decode_later(now, claiming)
        self._commit_later(now, claiming)
        self._try_suspect(claiming)
        if claiming:
            self._begin(now)
        self._score_what_is_due(now)
        self._record_rejected()
        return self._next_at(claiming)

    def idle_row(self) -> None:
        """Have the energy since the last sample recorded as idle, if nothing is at work."""
        meter = self.meter
        if meter is not None and self.idle:
            self.run_on_recorder(lambda: self._recorder.add_row(meter.take("idle")))

    def run_on_recorder(
        self, job: Callable[[], Any], then: Callable[[Any, float], None] = lambda _result, _now: None
    ) -> None:
        """Run `job`, which takes a few milliseconds, in the thread that records, after what waits there.

        `then` gets what it returned, and the time, in the loop's thread.
        """
        self._batches_recording += 1

        def finished(future: Future[Any], now: float) -> None:
            self._batches_recording -= 1
            then(future.result(), now)

        self._workers.run(self._workers.recording, f"record:{time.monotonic_ns()}", job, finished)

    def close(self) -> None:
        """End the decoder and the threads beside the loop; images in flight stay in `processing/` for the next run."""
        # First, since a thread may wait for an image that hangs it.
        self._decoder.close()
        self._workers.close()

    # Begin: claim and decode

    def _begin(self, now: float) -> None:
        if self._again:
            if len(self._in_flight) == len(self._unsynced):  # these wait for their folder, and for nothing else
                self._begin_again(self._again.popleft(), now)
            return
        room = self._in_flight_max - len(self._in_flight)
        for _ in range(min(room, len(self._unread_again), CLAIMS_A_STEP)):
            self._begin_again(self._unread_again.popleft(), now)
        room = self._in_flight_max - len(self._in_flight)
        if room <= 0 or not self._intake.more_than(0, now):
            return
        # With more files settled than there is room for, a challenger would only make them wait longer.
        backlogged = self._intake.more_than(room, now)
        for ready in self._intake.take_ready(now, min(room, CLAIMS_A_STEP)):
            if not self._in_flight:
                self.idle_row()
            try:
                claim = self._claims.claim(ready.path, ready.settled_at, ready.folder)
            except OSError as error:
                self._claims.check_root(error)
                self._intake.set_aside(ready.path, "claim", error)
                continue
            self._intake.claimed(ready.path)
            if claim is not None:
                self._in_flight[claim.id] = claim
                if ready.seems_cut:
                    self._seem_cut.add(claim.id)
                self._decode(claim, ready.scorer, None if backlogged else self._intake.shadow(claim))
        self._claims.let_go()

    def _begin_again(self, claim: Claim, now: float) -> None:
        self._intake.refresh_champions(now)
        scorer = self._intake.scorer(claim.product)
        if scorer is None:
            return
        # Only when its turn comes: if this one ends the process, those behind it must lose no attempt.
        again = self._next_attempt(claim)
        if again is not None:
            self._in_flight[again.id] = again
            self._decode(again, scorer)

    def _decode(self, claim: Claim, scorer: Scorer, shadow: Shadow | None = None) -> None:
        self._decoding.add(claim.id)
        limits = self._limits
        self._workers.run(
            self._workers.decoding,
            claim.id,
            lambda: read_claim(
                self._root,
                claim,
                scorer,
                file_bytes_max=limits.file_bytes_max,
                pixels_max=limits.pixels_max,
                decoder=self._decoder,
                decoding=self._workers.elsewhere(claim.id),
                shadow=shadow,
            ),
            lambda future, now: self._decoded(claim, scorer, future, now),
        )

    def _decoded(self, claim: Claim, scorer: Scorer, future: Future[Decoded | InspectedImage], now: float) -> None:
        self._decoding.discard(claim.id)
        if self._tried == claim.id:
            self._tried = None
        self._unread.discard(claim.id)
        seemed_cut = claim.id in self._seem_cut
        self._seem_cut.discard(claim.id)
        try:
            read = future.result()
        except DecodeError as error:
            self._odd.clear(claim.path, "read")
            state = self._state(claim)
            self._reject(claim, FileFacts(state, None, state.size if state else None), error.code, str(error))
        except StillChanging:
            self._later.append((now + self._limits.settle_time_s, claim))
        except FileNotFoundError:
            self._odd.clear(claim.path, "read")
            self._in_flight.pop(claim.id, None)
            log.warning("file removed while being scored", extra=fields(path=claim.path))
        except OSError as error:
            self._not_read(claim, error)
        else:
            self._odd.clear(claim.path, "read")
            if isinstance(read, Decoded):
                if seemed_cut:
                    self._intake.ended_so(claim.product)
                self._batcher.add(read, now)
            elif read.error_code == DECODER_ENDED:
                self._suspect(read)
            else:
                self._rejected.append(read)

    def _not_read(self, claim: Claim, error: OSError) -> None:
        """Have `claim`, of which the file cannot be read, tried again by the next recovery, or give it up."""
        if claim.attempt < self._limits.attempts_max:
            self._unread.add(claim.id)
            # It stays in processing/, where the recovery of each rescan finds it.
            self._in_flight.pop(claim.id, None)
            self._claims.check_root(error)
            self._odd.note(claim.path, "read", error)
            return
        self._odd.clear(claim.path, "read")
        message = f"expected a file that can be read; {error.strerror}, {claim.attempt} times"
        self._reject(claim, FileFacts(), "not_readable", message)

    def _state(self, claim: Claim) -> FileState | None:
        """Return the state of the file of `claim`; None where it is gone or cannot be told."""
        with suppress(OSError):
            return state_below(claim.path, self._root)
        return None

    def _decode_later(self, now: float, claiming: bool) -> None:
        if not claiming:
            # While stopping, what is still being written stays in processing/ for the next run.
            for _, claim in self._later:
                self._in_flight.pop(claim.id, None)
            self._later.clear()
            return
        due = [claim for at, claim in self._later if at <= now]
        self._later = [(at, claim) for at, claim in self._later if at > now]
        for claim in due:
            scorer = self._intake.scorer(claim.product)
            if scorer is not None:
                self._decode(claim, scorer)
            else:
                self._in_flight.pop(claim.id, None)

    def _commit_later(self, now: float, claiming: bool) -> None:
        """Commit again what could not be made to last; while stopping it is left to the next run."""
        if not claiming:
            for _, inspected in self._unsynced:
                self._in_flight.pop(inspected.claim.id, None)
            self._unsynced.clear()
        self._rejected += [inspected for at, inspected in self._unsynced if at <= now]
        self._unsynced = [(at, inspected) for at, inspected in self._unsynced if at > now]

    def _suspect(self, read: InspectedImage) -> None:
        """Have an image that ended its decoder decoded again, or quarantined once it had all its attempts."""
        claim = read.claim
        name = shown_name(claim.path)
        log.warning("decoder ended", extra=fields(path=name, attempt=claim.attempt, reason=read.error))
        if claim.attempt < self._limits.attempts_max:
            self._suspects.append(claim)
        else:
            message = f"reading it ended the decoder {claim.attempt} times; {read.error}"
            self._rejected.append(replace(read, error_code=ATTEMPTS_EXHAUSTED, error=message))

    def _try_suspect(self, claiming: bool) -> None:
        """Begin the next attempt at an image that ended its decoder: one at a time, so that they hold up no others."""
        if not claiming:
            # While stopping they stay in processing/, with the attempts that they had.
            for claim in self._suspects:
                self._in_flight.pop(claim.id, None)
            self._suspects.clear()
        elif self._suspects and self._tried is None:
            claim = self._suspects.popleft()
            scorer = self._intake.scorer(claim.product)
            again = self._next_attempt(claim) if scorer is not None else None
            if scorer is None or again is None:
                self._in_flight.pop(claim.id, None)
                return
            self._in_flight[claim.id] = again
            self._tried = claim.id
            self._decode(again, scorer)

    def _next_attempt(self, claim: Claim) -> Claim | None:
        try:
            again = self._claims.next_attempt(claim)
        except FileNotFoundError:
            log.warning("file removed while waiting to be scored again", extra=fields(path=claim.path))
        except OSError as error:
            self._claims.check_root(error)
            self._odd.note(claim.path, "claim", error)
        else:
            # What waits is named by its path, which says the attempt.
            self._odd.clear(claim.path, "read")
            self._odd.clear(claim.path, "claim")
            return again
        return None

    # Score and decide

    def _score_what_is_due(self, now: float) -> None:
        while self._batches_scoring < 2:
            nothing_to_come = not self._decoding and self._batches_scoring == 0
            # While a batch is on its way the next one may grow: a commit costs the same for one image as for many.
            batch = self._batcher.take(now, nothing_to_come=nothing_to_come, full_only=self._batch_on_its_way)
            if batch is None:
                return
            self._batches_scoring += 1
            name, job = f"score:{batch[0].claim.id}", partial(score_and_decide, batch)
            self._workers.run(self._workers.scoring, name, job, self._scored)

    def _scored(self, future: Future[list[InspectedImage]], now: float) -> None:
        self._batches_scoring -= 1
        self._commit(future.result())

    # Record, deliver, finish

    def _record_rejected(self) -> None:
        if self._rejected and not self._batches_recording:
            size = self._batcher.batch_size_max
            batch, self._rejected = self._rejected[:size], self._rejected[size:]
            self._commit(batch)

    def _reject(self, claim: Claim, file: FileFacts, code: str, message: str) -> None:
        self._rejected.append(InspectedImage(claim, file, error_code=code, error=message))

    def _commit(self, batch: list[InspectedImage]) -> None:
        meter, began = self.meter, time.monotonic()
        self.run_on_recorder(
            lambda: self._recorder.commit(batch, meter),
            lambda report, now: self._finished(batch, report, now, now - began),
        )

    def _finished(self, batch: list[InspectedImage], report: BatchReport, now: float, seconds: float) -> None:
        changed = {claim.id for claim in report.changed}
        rejected = []
        for inspected in batch:
            if inspected.claim.id in changed:
                self._later.append((now + self._limits.settle_time_s, inspected.claim))
            elif inspected.claim.id in report.unsynced:
                self._unsynced.append((now + UNSYNCED_RETRY_S, inspected))
            else:
                self._in_flight.pop(inspected.claim.id, None)
                self.recorded.add(inspected.claim.product)
                if inspected.decision is None:
                    rejected.append(inspected)
        self.counts.placed += report.states["placed"]
        self.counts.quarantined += report.states["quarantined"]
        self.counts.anomalies += report.verdicts["anomaly"]
        self.counts.interfered += len(report.interfered)
        for inspected in rejected:
            if self._rejected_lines.allows(now):
                name, reason = shown_name(inspected.claim.file_name), inspected.error
                log.warning("quarantined", extra=fields(file=name, code=inspected.error_code, reason=reason))
        for state, path in report.interfered:
            log.error("file is not where it was", extra=fields(state=state, path=path))
        versions = {inspected.model_version for inspected in batch if inspected.model_version}
        log.info(
            "batch",
            extra=fields(
                images=len(batch),
                **report.verdicts,
                model=",".join(sorted(versions)) or None,
                record_ms=round(seconds * 1000, 1),
                latency_ms_max=round(report.latency_ms_max, 1) if report.latency_ms_max is not None else None,
                wh=report.wh,
                in_flight=len(self._in_flight),
                backlog=len(self._intake),
                lines_left_out=self._rejected_lines.take_left_out() or None,
            ),
        )

    def _next_at(self, claiming: bool) -> float | None:
        times = [None if self._batch_on_its_way else self._batcher.next_due_at()]
        if claiming:
            times.append(min((at for at, _ in self._later), default=None))
            times.append(min((at for at, _ in self._unsynced), default=None))
            if self._unread_again and len(self._in_flight) < self._in_flight_max:
                times.append(float("-inf"))
            if not self._again and len(self._in_flight) < self._in_flight_max:
                times.append(self._intake.next_settled_at())
        return min((at for at in times if at is not None), default=None)
