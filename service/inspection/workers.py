"""Workers: the thread pools beside the loop, and the one queue through which they hand results back."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from operator import itemgetter
from typing import Any

READERS_MORE = 2


class Workers:
    """Threads for reading and for waiting on `decoders` processes, one for scoring and one for recording.

    There are enough that one that waits for the disk, or for slow images, leaves no decoder idle; `clock` is the
    loop's.
    """

    def __init__(self, decoders: int, wake: Callable[[], None], clock: Callable[[], float]) -> None:
        self._wake = wake
        self._clock = clock
        self.decoding = ThreadPoolExecutor(2 * decoders + READERS_MORE, "decode")
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
                self._since.pop(name, None)

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

    @contextmanager
    def elsewhere(self, name: str) -> Iterator[None]:
        """While entered, the work of that `name` is done by a process, whose time somebody else bounds."""
        del self._since[name]
        try:
            yield
        finally:
            self._since[name] = self._clock()

    def close(self) -> None:
        """End the threads once what they have begun is done; drop what has not begun."""
        for pool in (self.decoding, self.scoring, self.recording):
            pool.shutdown(wait=True, cancel_futures=True)
