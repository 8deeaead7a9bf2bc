"""Chooses by a short measurement how many images are scored side by side, and how many make a micro-batch.

Pure but for the clock. The default stays unless another is clearly better, so that a busy machine does not decide by
chance.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

SECONDS_MAX = 0.4
GAIN_MIN = 1.1
BATCH_S = 0.2
BATCH_MIN = 8
# So many micro-batches are on their way at once: decoding, scoring, recording and one to spare.
BATCHES_IN_FLIGHT = 4


@dataclass(frozen=True)
class Measured:
    """What was chosen, and images a second for each number of streams that was tried; the default is the largest."""

    streams: int
    images_per_s: dict[int, float]

    @property
    def chosen_images_per_s(self) -> float:
        return self.images_per_s[self.streams]


def measure_streams(
    run: Callable[[int], None],
    streams: int,
    seconds_max: float = SECONDS_MAX,
    clock: Callable[[], float] = time.perf_counter,
) -> Measured:
    """Return how many of `streams` to use; `run(n)` scores one image on each of n streams at once.

    All, all but one, half and one are tried in turn until `seconds_max` are over; where not even one turn of all
    of them fits in, the default is kept.
    """
    began = clock()
    run(streams)  # the first one also allocates
    tried = sorted({streams, streams - 1, streams // 2, 1} - {0}, reverse=True)
    best: dict[int, float] = {}
    longest_s = 0.0
    while not best or (len(tried) > 1 and clock() - began + longest_s < seconds_max):
        for count in tried:
            started = clock()
            run(count)
            took_s = max(clock() - started, 1e-9)
            best[count] = max(best.get(count, 0.0), count / took_s)
            if len(best) == 1 and took_s * (1 + len(tried)) > seconds_max:
                return Measured(streams, best)
        longest_s = sum(count / best[count] for count in tried)
    return Measured(chosen(best), best)


def chosen(images_per_s: dict[int, float]) -> int:
    """Return the number of streams to use: the largest, unless another is more than a tenth faster."""
    default = max(images_per_s)
    fastest = max(images_per_s, key=lambda count: images_per_s[count])
    return fastest if images_per_s[fastest] > GAIN_MIN * images_per_s[default] else default


def batch_size(images_per_s: float, in_flight_max: int) -> int:
    """Return how many images make a micro-batch: what 0.2 s score, at least 8, as long as four are in flight.

    A commit costs the same for one image as for many; more than 0.2 s of them would make the first one wait.
    """
    most = max(1, in_flight_max // BATCHES_IN_FLIGHT)
    return min(max(BATCH_MIN, round(images_per_s * BATCH_S)), most)
