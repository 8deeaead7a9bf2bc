"""The pipeline: one picture's way from `incoming/` to its folder, and the loop that moves it along.

Owns what is in flight. One thread, the caller's, makes every decision in `step`; decoding, scoring and
recording run beside it and hand their results back. Every queue is bounded by `in_flight_max`.
"""

from __future__ import annotations

import logging
import queue
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from models.detector import Float32Array
from service.batch import Batcher
from service.claim import INCOMING, Claim, Claims
from service.decide import ScoreNotFinite
from service.decode import DecodeError, Picture, StillChanging, decode, read_file
from service.energy import EnergyMeter
from service.errors import ConfigurationError
from service.logs import RateLimit, fields
from service.names import product_of, shown_name
from service.record import UNREAD, BatchReport, FileFacts, Judged, Recorder
from service.score import Scorer, Scorers, score_pictures
from service.settle import Settling
from service.watch import Hint, NameFilter, being_written, look, scan

log = logging.getLogger(__name__)

CHAMPIONS_AGE_MAX_S = 1.0
CLAIMS_A_STEP = 16
REJECTED_LINES_A_MINUTE = 20


@dataclass(frozen=True)
class Limits:
    """The settings that bound the pipeline; names, units and meanings are those of `Settings`."""

    in_flight_max: int
    batch_size_max: int
    batch_wait_ms: float
    decode_threads: int
    decode_timeout_s: float
    settle_time_s: float
    empty_file_timeout_s: float
    file_bytes_max: int
    pixels_max: int


@dataclass
class Counts:
    """What this run has done so far, for the status."""

    placed: int = 0
    quarantined: int = 0
    anomalies: int = 0
    interfered: int = 0
    last_placed_at: float | None = None


@dataclass(frozen=True)
class _Decoded:
    claim: Claim
    scorer: Scorer
    file: FileFacts
    picture: Picture


class StageStuck(Exception):
    """A picture has been decoding for longer than allowed. Its thread cannot be ended; the process must."""


@dataclass
class _Work:
    """What the stages beside the loop are doing: since when (monotonic s), by id or stage name."""

    since: dict[str, float] = field(default_factory=dict)

    def oldest(self) -> tuple[str, float] | None:
        return min(list(self.since.items()), key=lambda entry: entry[1], default=None)


class Pipeline:
    """Moves pictures along for one instance. `wake` is called from other threads when `step` has something to do."""

    def __init__(
        self,
        root: Path,
        limits: Limits,
        names: NameFilter,
        claims: Claims,
        scorers: Scorers,
        recorder: Recorder,
        wake: Callable[[], None],
    ) -> None:
        self._root = root
        self._limits = limits
        self._names = names
        self._claims = claims
        self._scorers = scorers
        self._recorder = recorder
        self._wake = wake
        self._settling = Settling(limits.settle_time_s, limits.empty_file_timeout_s)
        self._batcher: Batcher[int, _Decoded] = Batcher(limits.batch_size_max, limits.batch_wait_ms / 1000)
        self._decoders = ThreadPoolExecutor(limits.decode_threads, "decode")
        self._scoring = ThreadPoolExecutor(1, "score")
        self._recording = ThreadPoolExecutor(1, "record")
        self._done: queue.SimpleQueue[Callable[[float], None]] = queue.SimpleQueue()
        self._in_flight: dict[str, Claim] = {}
        self._decoding: set[str] = set()
        self._rejected: list[Judged] = []
        self._again: deque[Claim] = deque()
        self._later: list[tuple[float, Claim]] = []
        self._batches_scoring = 0
        self._batches_recording = 0
        self._work = _Work()
        self._champions_asked_at = float("-inf")
        self._said_waiting: set[str] = set()
        self._rejected_lines = RateLimit(REJECTED_LINES_A_MINUTE, 60.0)
        self.meter: EnergyMeter | None = None
        self.counts = Counts()
        self.waiting: dict[str, int] = {}
        """Files in `incoming/` by product that wait for a model, as of the last scan."""

    # What is going on

    @property
    def in_flight(self) -> frozenset[str]:
        """The ids that are claimed and not yet finished."""
        return frozenset(self._in_flight) | {claim.id for claim in self._again}

    @property
    def backlog(self) -> int:
        """Files known in `incoming/` and not yet claimed."""
        return len(self._settling)

    @property
    def idle(self) -> bool:
        """Whether nothing is in flight and no stage is at work."""
        return not self._in_flight and not self._again and not self._batches_recording

    @property
    def drained(self) -> bool:
        """Whether all that was begun has come to its end; claims that were only found again wait for the next run."""
        return not self._in_flight and not self._batches_recording

    @property
    def scan_needed(self) -> bool:
        """Whether files were left out for want of room, which is there again."""
        return self._settling.left_out and self._settling.half_empty

    def stuck_for_s(self, now: float) -> float:
        """For how long the slowest piece of work beside the loop has been going on, s."""
        oldest = self._work.oldest()
        return now - oldest[1] if oldest else 0.0

    # What comes in

    def take_hints(self, hints: list[Hint], now: float) -> None:
        """Look at the files that events spoke of."""
        for hint in hints:
            if self._names.ignores_path(hint.path):
                continue
            state = look(self._root / INCOMING / hint.path)
            if state is not None:
                self._settling.observe(hint.path, state, now, closed=hint.closed)

    def scan(self, now: float) -> None:
        """Look at every file in `incoming/`. Raises OSError when the folder cannot be read."""
        self._refresh_champions(now)
        self._settling.begin_scan()
        self.waiting = {}
        for path, state in scan(self._root / INCOMING, self._names):
            if self._can_score(path):
                self._settling.observe(path, state, now)

    def has_model(self, product: str) -> bool:
        """Return whether pictures of `product` can be scored now."""
        return self._scorers.has(product)

    def score_again(self, claims: list[Claim]) -> None:
        """Take on claims that an earlier run left; each goes alone, since one of them may have ended that run."""
        self._again.extend(claims)

    def give_up(self, rejected: list[Judged]) -> None:
        """Quarantine claims that have had all their attempts."""
        for judged in rejected:
            self._in_flight[judged.claim.id] = judged.claim
        self._rejected.extend(rejected)

    # The loop

    def step(self, now: float, *, claiming: bool = True) -> float | None:
        """Advance everything that can be; return the monotonic time at which there is something to do again, if known.

        With `claiming` false nothing new is begun; what is in flight is brought to its end. Raises what a
        stage raised, and StageStuck.
        """
        while True:
            try:
                self._done.get_nowait()(now)
            except queue.Empty:
                break
        self._check_decoding(now)
        self._decode_later(now, claiming)
        if claiming:
            self._begin(now)
        self._score_what_is_due(now)
        self._record_rejected()
        return self._next_at(claiming)

    def idle_row(self) -> None:
        """Have the energy since the last sample written as idling, if nothing is at work."""
        meter = self.meter
        if meter is not None and self.idle:
            self._record(lambda: self._recorder.add_idle_row(meter), lambda _result, _now: None)

    def close(self) -> None:
        """End the threads beside the loop; what is in flight stays in `processing/` for the next run."""
        for pool in (self._decoders, self._scoring, self._recording):
            pool.shutdown(wait=True, cancel_futures=True)

    # Begin: claim and decode

    def _begin(self, now: float) -> None:
        if self._again:
            if not self._in_flight:
                self._begin_again(self._again.popleft(), now)
            return
        room = min(self._limits.in_flight_max - len(self._in_flight), CLAIMS_A_STEP)
        if room <= 0:
            return
        ripe = self._settling.ripe(now, room)
        if not ripe:
            return
        if not self._in_flight:
            self.idle_row()
        self._refresh_champions(now)
        for path in ripe:
            settled_at = self._settled_since(path, now)
            if settled_at is None:
                continue
            # The scorer first: a model that cannot be loaded must not leave a claim behind.
            scorer = self._scorer(product_of(path.rpartition("/")[0]))
            if scorer is None:
                continue
            claim = self._claims.claim(path, settled_at)
            if claim is not None:
                self._in_flight[claim.id] = claim
                self._decode(claim, scorer)

    def _begin_again(self, claim: Claim, now: float) -> None:
        self._refresh_champions(now)
        scorer = self._scorer(claim.product)
        if scorer is not None:
            self._in_flight[claim.id] = claim
            self._decode(claim, scorer)

    def _scorer(self, product: str) -> Scorer | None:
        try:
            return self._scorers.get(product)
        except ConfigurationError:
            # Said by whoever raised it; the files wait in incoming, or where they were claimed, until it is mended.
            self.waiting[product] = self.waiting.get(product, 0) + 1
            return None

    def _settled_since(self, path: str, now: float) -> float | None:
        full = self._root / INCOMING / path
        state = look(full)
        if state is None:
            self._settling.forget(path)
            return None
        settled_at = self._settling.confirm(path, state, now)
        if settled_at is None:
            return None
        if not self._can_score(path):
            self._settling.forget(path)
            return None
        if being_written(full):
            self._settling.put_off(path, now)
            return None
        self._settling.forget(path)
        return settled_at

    def _can_score(self, path: str) -> bool:
        product = product_of(path.rpartition("/")[0])
        if self._scorers.has(product):
            return True
        self.waiting[product] = self.waiting.get(product, 0) + 1
        self._say_waiting(product)
        return False

    def _say_waiting(self, product: str) -> None:
        if product not in self._said_waiting:
            self._said_waiting.add(product)
            log.warning("no model; files wait", extra=fields(product=product, advice="tamis train --product"))

    def _refresh_champions(self, now: float) -> None:
        if now - self._champions_asked_at < CHAMPIONS_AGE_MAX_S:
            return
        self._champions_asked_at = now
        if self._scorers.refresh():
            self._said_waiting = {product for product in self._said_waiting if not self._scorers.has(product)}
            log.info("champions", extra=fields(products=",".join(self._scorers.products) or "none"))

    def _decode(self, claim: Claim, scorer: Scorer) -> None:
        self._decoding.add(claim.id)

        def job() -> _Decoded:
            self._work.since[claim.id] = time.monotonic()
            try:
                return self._read(claim, scorer)
            finally:
                del self._work.since[claim.id]

        self._submit(self._decoders, job, lambda future, now: self._decoded(claim, scorer, future, now))

    def _read(self, claim: Claim, scorer: Scorer) -> _Decoded:
        path = self._root / claim.path
        file = read_file(path, file_bytes_max=self._limits.file_bytes_max, durable=True)
        facts = FileFacts(file.state, file.sha256, len(file.data))
        try:
            picture = decode(file.data, scorer.detector.input_size, pixels_max=self._limits.pixels_max)
        except DecodeError as error:
            raise _Undecodable(error, facts) from None
        return _Decoded(claim, scorer, facts, picture)

    def _decoded(self, claim: Claim, scorer: Scorer, future: Future[_Decoded], now: float) -> None:
        self._decoding.discard(claim.id)
        try:
            decoded = future.result()
        except _Undecodable as error:
            self._reject(claim, error.facts, error.cause.code, str(error.cause))
        except DecodeError as error:
            self._reject(claim, self._unread(claim), error.code, str(error))
        except PermissionError as error:
            self._reject(claim, UNREAD, "not_readable", f"expected a file that the service may read; {error.strerror}")
        except StillChanging:
            self._later.append((now + self._limits.settle_time_s, claim))
        except FileNotFoundError:
            self._in_flight.pop(claim.id, None)
            log.warning("file removed while being scored", extra=fields(path=claim.path))
        else:
            self._batcher.add(id(scorer), decoded, now)

    def _unread(self, claim: Claim) -> FileFacts:
        state = look(self._root / claim.path)
        return FileFacts(state, None, state.size if state else None)

    def _decode_later(self, now: float, claiming: bool) -> None:
        due = [claim for at, claim in self._later if at <= now]
        if not claiming:
            # On the way out what is still being written stays in processing, for the next run.
            for _, claim in self._later:
                self._in_flight.pop(claim.id, None)
            self._later.clear()
            return
        self._later = [(at, claim) for at, claim in self._later if at > now]
        for claim in due:
            scorer = self._scorer(claim.product)
            if scorer is not None:
                self._decode(claim, scorer)
            else:
                self._in_flight.pop(claim.id, None)

    def _check_decoding(self, now: float) -> None:
        for id, since in list(self._work.since.items()):
            if id in self._decoding and now - since > self._limits.decode_timeout_s:
                name = shown_name(self._in_flight[id].path)
                raise StageStuck(f"{name}: expected it to decode within {self._limits.decode_timeout_s} s; it has not")

    # Score and decide

    def _score_what_is_due(self, now: float) -> None:
        while self._batches_scoring < 2:
            nothing_to_come = not self._decoding and self._batches_scoring == 0
            taken = self._batcher.take(now, nothing_to_come=nothing_to_come)
            if taken is None:
                return
            self._batches_scoring += 1
            batch = taken[1]
            self._timed(
                self._scoring,
                f"score:{batch[0].claim.id}",
                lambda batch=batch: _judge(batch),  # type: ignore[misc]
                self._scored,
            )

    def _scored(self, judged: list[Judged], now: float) -> None:
        self._batches_scoring -= 1
        self._commit(judged)

    # Record, deliver, finish

    def _record_rejected(self) -> None:
        if self._rejected and not self._batches_recording:
            batch, self._rejected = (
                self._rejected[: self._limits.batch_size_max],
                self._rejected[self._limits.batch_size_max :],
            )
            self._commit(batch)

    def _reject(self, claim: Claim, file: FileFacts, code: str, message: str) -> None:
        self._rejected.append(Judged(claim, file, error_code=code, error=message))

    def _commit(self, batch: list[Judged]) -> None:
        meter, began = self.meter, time.monotonic()
        self._record(
            lambda: self._recorder.commit(batch, meter),
            lambda report, now: self._finished(batch, report, now, now - began),
        )

    def _finished(self, batch: list[Judged], report: BatchReport, now: float, seconds: float) -> None:
        changed = {claim.id for claim in report.changed}
        for judged in batch:
            if judged.claim.id in changed:
                self._later.append((now + self._limits.settle_time_s, judged.claim))
            else:
                self._in_flight.pop(judged.claim.id, None)
        self.counts.placed += report.states.get("placed", 0)
        self.counts.quarantined += report.states.get("quarantined", 0)
        self.counts.anomalies += report.verdicts.get("anomaly", 0)
        self.counts.interfered += len(report.interfered)
        self.counts.last_placed_at = time.time()
        for judged in report.rejected:
            if self._rejected_lines.allows(now):
                name, reason = shown_name(judged.claim.file_name), judged.error
                log.warning("quarantined", extra=fields(file=name, code=judged.error_code, reason=reason))
        for state, path in report.interfered:
            log.error("file is not where it was", extra=fields(state=state, path=path))
        versions = {judged.model_version for judged in batch if judged.model_version}
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
                backlog=len(self._settling),
                lines_left_out=self._rejected_lines.take_left_out() or None,
            ),
        )

    # Stages beside the loop

    def _record(self, job: Callable[[], Any], then: Callable[[Any, float], None]) -> None:
        self._batches_recording += 1

        def finished(result: Any, now: float) -> None:
            self._batches_recording -= 1
            then(result, now)

        self._timed(self._recording, f"record:{time.monotonic_ns()}", job, finished)

    def _timed(
        self, pool: ThreadPoolExecutor, name: str, job: Callable[[], Any], then: Callable[[Any, float], None]
    ) -> None:
        def timed() -> Any:
            self._work.since[name] = time.monotonic()
            try:
                return job()
            finally:
                del self._work.since[name]

        self._submit(pool, timed, lambda future, now: then(future.result(), now))

    def _submit(
        self, pool: ThreadPoolExecutor, job: Callable[[], Any], then: Callable[[Future[Any], float], None]
    ) -> None:
        future = pool.submit(job)

        def hand_back(done: Future[Any]) -> None:
            if not done.cancelled():
                self._done.put(lambda now: then(done, now))
                self._wake()

        future.add_done_callback(hand_back)

    def _next_at(self, claiming: bool) -> float | None:
        times = [self._batcher.next_due_at() if self._batches_scoring < 2 else None]
        if self._decoding:
            oldest = self._work.oldest()
            times.append(oldest[1] + self._limits.decode_timeout_s + 0.1 if oldest else None)
        if claiming:
            times.append(min((at for at, _ in self._later), default=None))
            if not self._again and len(self._in_flight) < self._limits.in_flight_max:
                times.append(self._settling.next_ripe_at())
        return min((at for at in times if at is not None), default=None)


class _Undecodable(Exception):
    """A DecodeError of a file that was read, with what is known of it."""

    def __init__(self, cause: DecodeError, facts: FileFacts) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.facts = facts


def _judge(batch: list[_Decoded]) -> list[Judged]:
    scorer = batch[0].scorer
    scores, maps = score_pictures(scorer, [decoded.picture.pixels for decoded in batch])
    return [
        _judge_one(decoded, float(score), anomaly_map)
        for decoded, score, anomaly_map in zip(batch, scores, maps, strict=True)
    ]


def _judge_one(decoded: _Decoded, score: float, anomaly_map: Float32Array) -> Judged:
    scorer = decoded.scorer
    try:
        decision = scorer.judge.decide(score)
    except ScoreNotFinite as error:
        return Judged(
            decoded.claim,
            decoded.file,
            decoded.picture,
            model_version=scorer.version,
            error_code="score_not_finite",
            error=str(error),
        )
    return Judged(
        decoded.claim,
        decoded.file,
        decoded.picture,
        decision,
        scorer.version,
        anomaly_map,
        scorer.pixel_threshold,
    )
