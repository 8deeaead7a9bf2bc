"""Watch: hints from the file system about what arrived. They only wake the loop; the next scan finds what they miss."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from watchdog import events
from watchdog.observers.inotify import InotifyFullEmitter, InotifyObserver
from watchdog.observers.inotify_c import InotifyConstants, Mask

from service.filesystem.lease import has_writer
from service.filesystem.open_below import open_file

HINTS_MAX = 4096
STOP_TIMEOUT_S = 2.0


@dataclass(frozen=True, slots=True)
class Hint:
    """`path` (relative to the watched folder) is worth a look; `closed` when its writer closed or renamed it."""

    path: str
    closed: bool


class Watcher(events.FileSystemEventHandler):
    """Collects hints about the files below `folder`, bounded in number; `wake` is called for each."""

    def __init__(self, folder: Path, wake: Callable[[], None]) -> None:
        self._folder = folder
        self._wake = wake
        self._hints: deque[Hint] = deque()
        self._lock = threading.Lock()
        self._scan_needed = False
        self._observer: InotifyObserver | None = None

    def start(self) -> None:
        """Ask for events. Raises OSError where the kernel has no watch or instance left to give."""
        observer = _ArrivalObserver()
        try:
            observer.schedule(self, str(self._folder), recursive=True)
            observer.start()
        except OSError:
            observer.stop()
            raise
        self._observer = observer

    def alive(self) -> bool:
        """Return whether events still come; they end when the folder itself is replaced."""
        observer = self._observer
        return observer is not None and observer.is_alive() and all(e.is_alive() for e in observer.emitters)

    def stop(self) -> None:
        if self._observer is not None:
            self._observer.stop()
            if self._observer.is_alive():
                self._observer.join(STOP_TIMEOUT_S)
            self._observer = None

    def take(self) -> tuple[list[Hint], bool]:
        """Return the hints since the last call, and whether some were lost, so that the folder must be scanned."""
        with self._lock:
            hints, self._hints = list(self._hints), deque()
            scan_needed, self._scan_needed = self._scan_needed, False
        return hints, scan_needed

    def hint(self, path: str, *, closed: bool) -> None:
        """Take note of an event about the file at the absolute `path`."""
        with self._lock:
            if len(self._hints) >= HINTS_MAX:
                self._scan_needed = True
            else:
                self._hints.append(Hint(os.path.relpath(path, self._folder), closed))
        self._wake()

    def dispatch(self, event: events.FileSystemEvent) -> None:
        """Take `event` from the observer, in its thread."""
        if isinstance(event, (events.DirCreatedEvent, events.DirMovedEvent)):
            # Events do not tell what lies in a folder that appeared.
            with self._lock:
                self._scan_needed = True
            self._wake()
        elif isinstance(event, events.FileMovedEvent):
            if event.dest_path:
                self.hint(os.fsdecode(event.dest_path), closed=True)
        elif isinstance(event, (events.FileClosedEvent, events.FileCreatedEvent)):
            self.hint(os.fsdecode(event.src_path), closed=isinstance(event, events.FileClosedEvent))


class _ArrivalEmitter(InotifyFullEmitter):
    """Asks the kernel for arrivals alone: with IN_MOVED_FROM, watchdog holds each event half a second to pair it.

    Every claim, being a rename out of the folder, would delay the next image.
    """

    def get_event_mask_from_filter(self) -> Mask:
        kinds = InotifyConstants
        return Mask(kinds.IN_CLOSE_WRITE | kinds.IN_MOVED_TO | kinds.IN_CREATE | kinds.IN_DELETE_SELF)


class _ArrivalObserver(InotifyObserver):
    def __init__(self) -> None:
        super().__init__(generate_full_events=True)
        self._emitter_class = _ArrivalEmitter


def being_written(path: Path) -> bool:
    """Return whether some process has the file open for writing, as far as `has_writer` tells."""
    try:
        descriptor = open_file(path)
    except OSError:
        return False
    try:
        return has_writer(descriptor)
    finally:
        os.close(descriptor)
