"""Record: what was decided of a micro-batch goes into the database, then its files to their folders.

Owns the order claim → record → deliver → finish, which is what makes a crash at any line harmless: the row
is committed before its file moves, and finished after. See "From drop to verdict" in docs/architecture.md.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sqlalchemy import Connection, Engine

from models.appearance import Appearance
from models.detector import Float32Array, UInt8Array
from models.regions import Region
from service.energy.meter import EnergyMeter
from service.filesystem.file_state import FileState, file_state
from service.filesystem.mounts import Mounts
from service.imaging.decode import DecodedImage, DecodeError, StillChanging, decode_within, read_file
from service.imaging.overlay import DRAWN_SIDE_MAX, draw_over, drawn_size, regions_of, save_overlay
from service.inspection.claim import Claim, Claims
from service.inspection.deliver import Delivery, Move, deliver
from service.inspection.relocate import batches, finished_as, move_to_destination
from service.logs import fields
from service.names import destination, shown_name
from service.root import ANOMALY, MAPS, PROCESSING, QUARANTINE
from service.scoring.decide import Decision
from service.scoring.shadow import ShadowDecision
from service.storage import energy as energy_rows
from service.storage import images, regions, shadow
from service.storage.database.base import AWAY_TIMEOUT_S, write
from service.storage.energy import EnergySample
from service.storage.images import Finished, ImageRecord
from service.storage.shadow import ShadowRecord
from service.storage.states import CONFLICT, MISSING, SCORED

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What is known of a file that was read: its state, SHA-256 in hex and size in bytes."""

    state: FileState | None
    sha256: str | None
    bytes: int | None


UNREAD = FileFacts(None, None, None)


@dataclass(frozen=True, slots=True)
class InspectedImage:
    """A claimed file with what became of it: a decision, or the reason why there is none."""

    claim: Claim
    file: FileFacts
    image: DecodedImage | None = None
    decision: Decision | None = None
    model_version: str | None = None
    anomaly_map: Float32Array | None = None
    pixel_threshold: float = 1.0
    error_code: str | None = None
    error: str | None = None
    appearance: Appearance | None = None
    shadow: ShadowDecision | None = None


@dataclass(slots=True)
class BatchReport:
    """What a micro-batch came to. `changed` holds the claims whose files changed since they were read."""

    verdicts: dict[str, int] = field(default_factory=dict)
    states: dict[str, int] = field(default_factory=dict)
    changed: list[Claim] = field(default_factory=list)
    rejected: list[InspectedImage] = field(default_factory=list)
    interfered: list[tuple[str, str]] = field(default_factory=list)
    wh: float | None = None
    latency_ms_max: float | None = None


class Recorder:
    """Writes micro-batches of one instance. Used by one thread at a time; `clock` is the one claims are settled by.

    What is to go to one of `mounts` that is gone is recorded and stays in `processing/`, where recovery finds it.
    """

    def __init__(
        self,
        root: Path,
        engine: Engine,
        claims: Claims,
        *,
        anomaly_maps: bool,
        clock: Callable[[], float] = time.monotonic,
        mounts: Mounts | None = None,
    ) -> None:
        self._root = root
        self._engine = engine
        self._claims = claims
        self._anomaly_maps = anomaly_maps
        self._clock = clock
        self._mounts = mounts
        self._place = partial(move_to_destination, root, claims_are_own=True, mounts=mounts)
        self._no_maps: int | None = None

    def commit(self, batch: Sequence[InspectedImage], meter: EnergyMeter | None) -> BatchReport:
        """Record, deliver and finish `batch`; energy since the last sample is charged to it."""
        report = BatchReport()
        kept = []
        for inspected in batch:
            if (
                inspected.file.state is not None
                and file_state(self._root / inspected.claim.path) != inspected.file.state
            ):
                report.changed.append(inspected.claim)
            else:
                kept.append(inspected)
        if not kept:
            return report
        self._claims.sync(inspected.claim for inspected in kept)
        found = {inspected.claim.id: _regions(inspected) for inspected in kept if _is_shown(inspected)}
        # Before the commit: what a crash interrupts here is scored again with the same id, and drawn again.
        if self._anomaly_maps:
            self._draw_maps(kept, found)
        records = {inspected.claim.id: _record_of(inspected, datetime.now(UTC)) for inspected in kept}
        self._record(records, found, kept, meter, report)
        ended = deliver(self._root, (_move_of(record) for record in records.values()), self._mounts)
        self._finish(kept, records, ended, report)
        return report

    def finish_moves(self, moves: Sequence[Move], again: Collection[str]) -> dict[str, Finished]:
        """Bring to its end what an earlier run recorded or a label asked for; `source` is where a file was seen.

        Of `again` (ids) the rows say that the files have arrived, and they were seen elsewhere. Return by id how each
        now stands: the rows are read again, as they may have changed since this was planned.
        """
        found_at = {move.id: move.source for move in moves}
        finished: dict[str, Finished] = {}
        for part in batches(found_at):
            with self._engine.begin() as connection:
                finished |= self._place(connection, part, found_at=found_at, again=again)
        return finished

    def add_idle_row(self, meter: EnergyMeter) -> None:
        """Write the energy since the last sample as idling."""
        self.add_row(meter.take("idle"))

    def add_row(self, sample: EnergySample | None, away_timeout_s: float = AWAY_TIMEOUT_S) -> None:
        """Write `sample` as a row of its own; None is no row. Waits so long for a server that is away."""
        if sample is not None:
            write(
                self._engine,
                lambda connection: energy_rows.add(connection, sample),
                lambda connection: energy_rows.find(connection, sample),
                away_timeout_s=away_timeout_s,
            )

    def _record(
        self,
        records: dict[str, ImageRecord],
        found: dict[str, tuple[Region, ...]],
        kept: Sequence[InspectedImage],
        meter: EnergyMeter | None,
        report: BatchReport,
    ) -> None:
        scored = sum(inspected.decision is not None for inspected in kept)
        sample = meter.take("scoring", images=scored) if meter is not None and scored else None
        for inspected in kept:
            verdict = inspected.decision.verdict if inspected.decision else QUARANTINE
            report.verdicts[verdict] = report.verdicts.get(verdict, 0) + 1
            if inspected.decision is None:
                report.rejected.append(inspected)

        def add(connection: Connection) -> bool:
            energy_id = energy_rows.add(connection, sample) if sample is not None else None
            new = regions.without_row(connection, found)
            with_energy = [r for r in records.values() if r.error_code is None]
            without = [r for r in records.values() if r.error_code is not None]
            if with_energy:
                images.record(connection, with_energy, energy_id)
            if without:
                images.record(connection, without, None)
            regions.record(connection, new)
            shadow.record(connection, [_shadow_of(inspected) for inspected in kept if _is_shadowed(inspected)])
            return True

        write(self._engine, add, lambda connection: bool(images.find(connection, records)) or None)
        report.wh = sample.total_wh if sample is not None else None

    def _finish(
        self,
        kept: Sequence[InspectedImage],
        records: dict[str, ImageRecord],
        ended: dict[str, Delivery],
        report: BatchReport,
    ) -> None:
        now, clock = datetime.now(UTC), self._clock()
        finished = []
        for inspected in kept:
            record = records[inspected.claim.id]
            settled_at = inspected.claim.settled_at
            latency_ms = (clock - settled_at) * 1000 if settled_at is not None else None
            finished.append(finished_as(record.id, record.path, record.destination, ended[record.id], now, latency_ms))
            if latency_ms is not None:
                report.latency_ms_max = max(report.latency_ms_max or 0.0, latency_ms)
        delivered = [one for one in finished if ended[one.id] is Delivery.DONE]

        def finish(connection: Connection) -> list[Finished]:
            all_delivered = images.finish_where_sent(connection, delivered) and len(delivered) == len(finished)
            return finished if all_delivered else self._finish_one_by_one(connection, finished)

        for one in write(self._engine, finish):
            report.states[one.state] = report.states.get(one.state, 0) + 1
            if one.state in (MISSING, CONFLICT):
                report.interfered.append((one.state, records[one.id].path))

    def _finish_one_by_one(self, connection: Connection, finished: Sequence[Finished]) -> list[Finished]:
        """Bring a micro-batch to its end of which a label sent some elsewhere, or someone interfered with some."""
        ids = [one.id for one in finished]
        delivered_to = {one.id: one.path for one in finished}
        latencies_ms = {one.id: one.latency_ms for one in finished}
        placed = self._place(connection, ids, found_at=delivered_to, latencies_ms=latencies_ms)
        return [placed[id] for id in ids]

    def _draw_maps(self, kept: Sequence[InspectedImage], found: dict[str, tuple[Region, ...]]) -> None:
        for inspected in kept:
            id, image = inspected.claim.id, inspected.image
            if id not in found or image is None or inspected.anomaly_map is None:
                continue
            canvas = self._image(inspected.claim, image)
            size = (image.height, image.width)
            draw_over(canvas, inspected.anomaly_map, inspected.pixel_threshold, found[id], size)
            self._save_map(self._root / MAPS / f"{id}.png", np.asarray(canvas))

    def _save_map(self, path: Path, drawn: UInt8Array) -> None:
        """Write the map; where that cannot be, the verdict stands without it, and it is said once."""
        try:
            try:
                save_overlay(path, drawn)
            except FileNotFoundError:
                self._make_maps()
                save_overlay(path, drawn)
        except OSError as error:
            if self._no_maps != error.errno:
                log.error("no anomaly map; images are sorted without", extra=fields(reason=error))
            self._no_maps = error.errno
        else:
            self._no_maps = None

    def _make_maps(self) -> None:
        """Make the folder that somebody tidied away, beside `processing/`: where the root is gone, that is too.

        By its path it could come to be in the bare mount point, and be hidden when the root is mounted again.
        """
        beside = os.open(self._root / PROCESSING, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            with suppress(FileExistsError):
                os.mkdir(f"../{MAPS}", dir_fd=beside)
        finally:
            os.close(beside)

    def _image(self, claim: Claim, image: DecodedImage) -> Image.Image:
        """Return the image, RGB, at the size at which it is drawn.

        Read again, because in memory there is only what the model takes, in which a person cannot see a scratch;
        and few images are drawn. What can no longer be read is drawn from memory: a map is no reason to stop.
        """
        try:
            data = read_file(self._root / claim.path).data
            return decode_within(data, DRAWN_SIDE_MAX).image
        except (DecodeError, StillChanging, OSError):
            height, width = drawn_size(image.height, image.width)
            return Image.fromarray(image.pixels).resize((width, height), Image.Resampling.BICUBIC)


def _is_shown(inspected: InspectedImage) -> bool:
    """Return whether people look at the map of `inspected`: that of an anomaly, or of an image that is uncertain."""
    decision = inspected.decision
    return decision is not None and (decision.verdict == ANOMALY or decision.uncertain)


def _regions(inspected: InspectedImage) -> tuple[Region, ...]:
    image = inspected.image
    if image is None or inspected.anomaly_map is None:
        return ()
    return regions_of(inspected.anomaly_map, inspected.pixel_threshold, image.height, image.width)


def _record_of(inspected: InspectedImage, decided_at: datetime) -> ImageRecord:
    claim, decision, image, seen = inspected.claim, inspected.decision, inspected.image, inspected.appearance
    kind = decision.verdict if decision else QUARANTINE
    return ImageRecord(
        id=claim.id,
        product=claim.product,
        file_name=shown_name(claim.file_name),
        path=shown_name(claim.path),
        destination=destination(kind, claim.product, claim.received_at, claim.file_name, claim.id),
        state=SCORED,
        verdict=decision.verdict if decision else None,
        score=decision.score if decision else None,
        threshold=decision.threshold if decision else None,
        p_value=decision.p_value if decision else None,
        model_version=inspected.model_version,
        sha256=inspected.file.sha256,
        width=image.width if image else None,
        height=image.height if image else None,
        mode=image.mode if image else None,
        bytes=inspected.file.bytes,
        received_at=claim.received_at,
        decided_at=decided_at,
        attempts=claim.attempt,
        error_code=inspected.error_code,
        error=inspected.error,
        uncertain=decision.uncertain if decision else None,
        uncertainty=decision.uncertainty if decision else None,
        brightness=seen.brightness if seen else None,
        contrast=seen.contrast if seen else None,
        sharpness=seen.sharpness if seen else None,
    )


def _is_shadowed(inspected: InspectedImage) -> bool:
    return inspected.shadow is not None and inspected.decision is not None


def _shadow_of(inspected: InspectedImage) -> ShadowRecord:
    beside, own = inspected.shadow, inspected.decision
    assert beside is not None
    assert own is not None
    said = beside.decision
    return ShadowRecord(
        inspected.claim.id, beside.product, beside.version, said.score, said.threshold, said.verdict, own.verdict
    )


def _move_of(record: ImageRecord) -> Move:
    return Move(record.id, record.path, record.destination, record.sha256)
