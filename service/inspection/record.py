"""Record: what was decided of a micro-batch goes into the database, then its files to their folders.

Owns the order claim → record → deliver → finish, which is what makes a crash at any line harmless: the row
is committed before its file moves, and finished after. See "From drop to verdict" in docs/architecture.md.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from sqlalchemy import Connection, Engine

from models.appearance import FIGURES
from models.regions import Region
from service.energy.meter import EnergyMeter
from service.filesystem.mounts import Mounts
from service.filesystem.odd_entries import OddEntries
from service.filesystem.open_below import state_below
from service.imaging.decoder import Decoder
from service.inspection.anomaly_maps import AnomalyMaps, regions_shown
from service.inspection.claim import Claim, Claims
from service.inspection.deliver import Delivery, Move, deliver
from service.inspection.inspected_image import InspectedImage
from service.inspection.private_copy import take_place
from service.inspection.relocate import finished_as, relocate
from service.names import destination, shown_name
from service.root import QUARANTINE
from service.storage import energy as energy_rows
from service.storage import images, regions, shadow
from service.storage.database.base import AWAY_TIMEOUT_S, write
from service.storage.energy_sample import EnergySample
from service.storage.images import Finished, ImageRecord
from service.storage.shadow import ShadowRecord
from service.storage.states import CONFLICT, MISSING, SCORED

_OF_DECISION = ("verdict", "score", "threshold", "p_value", "uncertain", "uncertainty")
_OF_IMAGE = ("width", "height", "mode")


@dataclass(slots=True)
class BatchReport:
    """What a micro-batch came to. `changed` holds the claims whose files changed since they were read, `unsynced` the
    ids of those that are not on record, since their renames could not be made to last.
    """

    verdicts: Counter[str] = field(default_factory=Counter)
    states: Counter[str] = field(default_factory=Counter)
    changed: list[Claim] = field(default_factory=list)
    unsynced: frozenset[str] = frozenset()
    interfered: list[tuple[str, str]] = field(default_factory=list)
    wh: float | None = None
    latency_ms_max: float | None = None


class Recorder:
    """Writes micro-batches of one instance. Used by one thread at a time; `clock` is the one claims are settled by,
    `decoder` reads what maps are drawn on.

    A file whose destination lies on one of `mounts` that is gone, or cannot take it now, which is noted in `odd`, is
    recorded and stays in `processing/`, where recovery finds it.
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
        odd: OddEntries | None = None,
        decoder: Decoder | None = None,
    ) -> None:
        self._root = root
        self._engine = engine
        self._claims = claims
        self._maps = AnomalyMaps(root, decoder) if anomaly_maps else None
        self._clock = clock
        self._mounts = mounts
        self.tries: Counter[str] = Counter()
        """How often recovery tried in vain to deliver what waits, by id."""
        self.noted_in_vain: set[str] = set()
        """What recovery found noted in `odd` and no delivery waiting for."""
        self.odd = odd if odd is not None else OddEntries()
        self._relocate = partial(relocate, root, engine, claims_are_own=True, mounts=mounts, odd=self.odd)

    def commit(self, batch: Sequence[InspectedImage], meter: EnergyMeter | None) -> BatchReport:
        """Record, deliver and finish `batch`; energy since the last sample is charged to it."""
        report = BatchReport()
        kept = []
        for one in batch:
            if self._is_as_judged(one):
                kept.append(one)
            else:
                report.changed.append(one.claim)
        report.unsynced = self._claims.sync(one.claim for one in kept)
        kept = [one for one in kept if one.claim.id not in report.unsynced]
        if not kept:
            return report
        found = regions_shown(kept)
        # Before the commit: what a crash interrupts here is scored again with the same id, and drawn again.
        if self._maps is not None:
            self._maps.draw(kept, found)
        records = {one.claim.id: _record_of(one, datetime.now(UTC)) for one in kept}
        report.verdicts.update(one.verdict or QUARANTINE for one in records.values())
        report.wh = self._record(records, found, kept, meter)
        # From where the claim is: a name that is not UTF-8 is another one in its row.
        moves = [Move(one.claim.id, one.claim.path, records[one.claim.id].destination, one.file.sha256) for one in kept]
        self._finish(kept, records, deliver(self._root, moves, self._mounts, self.odd), report)
        return report

    def _is_as_judged(self, one: InspectedImage) -> bool:
        """Return whether the file of `one` is the one that was read; from then on nobody can change its bytes."""
        if one.file.state is not None and state_below(one.claim.path, self._root) != one.file.state:
            return False
        return not one.file.copied or take_place(self._root, one.claim.path, one.claim.id)

    def finish_moves(self, moves: Sequence[Move], again: Collection[str]) -> dict[str, Finished]:
        """Finish what an earlier run recorded or a label asked for; `source` is where a file was seen.

        The rows of `again` (ids) say that the files have arrived, but they were seen elsewhere. Return by id how each
        now stands: the rows are read again, as they may have changed since this was planned.
        """
        found_at = {move.id: move.source for move in moves}
        return self._relocate(found_at, found_at=found_at, again=again)

    def add_row(self, sample: EnergySample | None, away_timeout_s: float = AWAY_TIMEOUT_S) -> None:
        """Write `sample`, if any, as a row of its own. Waits up to `away_timeout_s` for a server that is away."""
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
    ) -> float | None:
        scored = sum(one.decision is not None for one in kept)
        sample = meter.take("scoring", images=scored) if meter is not None and scored else None

        def add(connection: Connection) -> bool:
            energy_id = energy_rows.add(connection, sample) if sample is not None else None
            new = regions.without_row(connection, found)
            images.record(connection, [one for one in records.values() if one.verdict is not None], energy_id)
            images.record(connection, [one for one in records.values() if one.verdict is None], None)
            regions.record(connection, new)
            shadow.record(connection, _shadow_records(kept))
            return True

        write(self._engine, add, lambda connection: bool(images.find(connection, records)) or None)
        return sample.total_wh if sample is not None else None

    def _finish(
        self,
        kept: Sequence[InspectedImage],
        records: dict[str, ImageRecord],
        ended: dict[str, Delivery],
        report: BatchReport,
    ) -> None:
        now, clock = datetime.now(UTC), self._clock()
        latencies_ms = {
            one.claim.id: (clock - one.claim.settled_at) * 1000 if one.claim.settled_at is not None else None
            for one in kept
        }
        report.latency_ms_max = max((ms for ms in latencies_ms.values() if ms is not None), default=None)
        finished = [
            finished_as(one.id, one.path, one.destination, ended[one.id], now, latencies_ms[one.id])
            for one in records.values()
        ]
        delivered = [one for one in finished if ended[one.id] is Delivery.DONE]
        # What waits is on record as it is, on its way.
        found_at = {
            one.claim.id: one.claim.path for one in kept if ended[one.claim.id] not in (Delivery.DONE, Delivery.WAITS)
        }
        if not write(self._engine, lambda connection: images.finish_where_sent(connection, delivered)):
            found_at |= {one.id: one.path for one in delivered}
        stands = {one.id: one for one in finished} | self._relocate(
            found_at, found_at=found_at, latencies_ms=latencies_ms, away_timeout_s=AWAY_TIMEOUT_S
        )
        for end in stands.values():
            report.states[end.state] += 1
            if end.state in (MISSING, CONFLICT):
                report.interfered.append((end.state, records[end.id].path))


def _record_of(inspected: InspectedImage, decided_at: datetime) -> ImageRecord:
    claim, decision = inspected.claim, inspected.decision
    parts = ((decision, _OF_DECISION), (inspected.image, _OF_IMAGE), (inspected.appearance, FIGURES))
    kind = decision.verdict if decision else QUARANTINE
    return ImageRecord(
        id=claim.id,
        product=claim.product,
        file_name=shown_name(claim.file_name),
        path=shown_name(claim.path),
        destination=destination(kind, claim.product, claim.received_at, claim.file_name, claim.id),
        state=SCORED,
        model_version=inspected.model_version,
        sha256=inspected.file.sha256,
        bytes=inspected.file.bytes,
        received_at=claim.received_at,
        decided_at=decided_at,
        attempts=claim.attempt,
        error_code=inspected.error_code,
        error=inspected.error,
        **{name: None if part is None else getattr(part, name) for part, names in parts for name in names},
    )


def _shadow_records(kept: Sequence[InspectedImage]) -> list[ShadowRecord]:
    found = []
    for one in kept:
        if one.shadow is not None and one.decision is not None:
            version, said = one.shadow, one.shadow.decision
            figures = (said.score, said.threshold, said.verdict, one.decision.verdict)
            found.append(ShadowRecord(one.claim.id, version.product, version.version, *figures))
    return found
