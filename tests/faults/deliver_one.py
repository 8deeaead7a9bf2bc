"""One picture through claim, record, deliver and finish, then a label: all of the protocol, without its daemon.

`python -m tests.faults.deliver_one ROOT STEP` runs STEP (`sort`, `label` or `recover`) in a process that makes its
system calls on the root in the same order every time, so that each of them can be the last.
"""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from service.claim import Claims
from service.decide import Decision
from service.decode import decode, read_file
from service.record import FileFacts, Judged, Recorder
from service.recover import Recovered, recover
from service.review import label_pictures
from service.storage import images
from service.storage.engine import open_database

MARKER = b"the protocol begins\n"


def judged(root: Path, claims: Claims, claim: object) -> Judged:
    file = read_file(root / claim.path, durable=True)  # type: ignore[attr-defined]
    picture = decode(file.data, (16, 24))
    decision = Decision("anomaly", 150.0, 100.0, 0.01, False, 0.1)
    return Judged(
        claim,  # type: ignore[arg-type]
        FileFacts(file.state, file.sha256, len(file.data)),
        picture,
        decision,
        "v1",
        np.full((4, 6), 2.0, np.float32),
    )


def main(root: Path, step: str) -> None:
    engine = open_database(root, migrate=False)
    claims = Claims(root, "main")
    recorder = Recorder(root, engine, claims, anomaly_maps=True)
    with engine.begin() as connection:
        images.count(connection)
    # What comes after this line is the protocol's.
    os.write(2, MARKER)
    if step == "sort":
        claim = claims.claim("part.png", 0.0)
        assert claim is not None
        recorder.commit([judged(root, claims, claim)], None)
    elif step == "label":
        with engine.connect() as connection:
            [row] = images.search(connection, since=datetime(2000, 1, 1, tzinfo=UTC))
        label_pictures(root, engine, [row["id"]], "normal", by="ada", source="web", burst_gap_s=1.0)
    else:
        found: Recovered = recover(
            root, engine, claims, recorder, in_flight=(), attempts_max=99, has_model=lambda _: True
        )
        for claim in found.again:
            recorder.commit([judged(root, claims, claims.next_attempt(claim))], None)
    engine.dispose()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
