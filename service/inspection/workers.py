"""Workers: the thread pools beside the loop, and the one queue through which they hand results back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from operator import itemgetter
from typing import Any

READERS_MORE = 2


class Workers:
    """Threads for reading and decoding, one for scoring and one for recording; `clock` is the loop's.

    At most `decode_threads` decode at a time, each holding `decodes`. There are a few threads more, so that one that
    waits for the disk leaves no core idle.
    """

    def __init__(self, decode_threads: int, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._wake = wake
        self._clock = clock
        self.decodes = threading.BoundedSemaphore(decode_threads)
        self.decoding = ThreadPoolExecutor(decode_threads + READERS_MORE, "decode")
        self.scoring = ThreadPoolExecutor(1, "score")
        self.recording = ThreadPoolExecutor(1, "record")
        self._done: queue.SimpleQueue[Callable[[float], None]] = queue.SimpleQueue()
        self._since: dict[str, float] = {}

    def run(
        self, pool: ThreadPoolExecutor, name: str, job: Callable[[], Any], then: Callable[[Future[Any], float], None]
    ) -> None:
        """Run `job` in `pool` under a `name` of its own; `then` gets its future and the time, in the loop's thread."""

        def timed() -> Any:
            self._since[name] = self._clock()
            try:
                return job()
            finally:
                del self._since[name]

        def hand_back(done: Future[Any]) -> None:
            if not done.cancelled():
                self._done.put(lambda now: then(done, now))
                self._wake()

        pool.submit(timed).add_done_callback(hand_back)

    def hand_over(self, now: float) -> None:
        """Go on with everything that is done. Raises what a `then` raises."""
        while not self._done.empty():  # nobody else takes from it
            self._done.get()(now)

    def at_work(self) -> list[tuple[str, float]]:
        """Return what is running, by name, and since when, s on the loop's clock; the longest first."""
        return sorted(self._since.items(), key=itemgetter(1))

    def close(self) -> None:
        """End the threads once what they have begun is done; drop what has not begun."""
        for pool in (self.decoding, self.scoring, self.recording):
            pool.shutdown(wait=True, cancel_futures=True)
