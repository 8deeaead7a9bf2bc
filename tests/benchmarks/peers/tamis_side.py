"""Tamis's half of the comparison: infer from file to verdict, in a process of its own; JSON in a file, JSON out.

Reads, scores and judges with what the daemon uses. One thread is one image after the other; with two, one batch is
decoded while another is scored, as in `tamis score`.
"""

from __future__ import annotations

import functools
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.benchmarks.peers import metering

BATCH_SIZE = 8


def infer(job: dict[str, Any]) -> dict[str, Any]:
    """Say of each image of `job["captures"]` whether it is an anomaly; return what that cost."""
    metering.keep_to_cores(job["threads"])
    from models.evaluation.evaluate import score_files
    from models.registry import verify
    from models.runtime.openvino_detector import OpenVinoDetector
    from service.imaging.decode import read_image

    version = verify(Path(job["version"]))
    detector = OpenVinoDetector(version, threads=job["threads"])
    read = functools.partial(read_image, draft=version.draft)
    threshold = version.manifest.calibration.threshold
    captures = [Path(path) for path in job["captures"]]
    for path in captures[: job["warm_up"]]:
        detector.score(read(path, detector.input_size)[None])
    verdicts: list[bool] = []

    def one_by_one() -> int:
        for path in captures:
            scored = detector.score(read(path, detector.input_size)[None])
            verdicts.append(bool(scored.scores[0] > threshold))
        return len(verdicts)

    def in_batches() -> int:
        batches = score_files(detector, captures, read, batch_size=BATCH_SIZE, decode_threads=job["threads"])
        for batch in batches:
            verdicts.extend(file.score > threshold for file in batch.scored)
        return len(verdicts)

    took = metering.measured(one_by_one if job["threads"] == 1 else in_batches)
    return {**took, "anomalies": sum(verdicts)}


def main() -> None:
    began = time.perf_counter()
    result = infer(json.loads(Path(sys.argv[1]).read_text()))
    Path(sys.argv[2]).write_text(json.dumps({**result, "process_s": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
