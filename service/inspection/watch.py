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
from watchdog.observers.inotify_move_event_grouper import GroupedInotifyEvent, PathedInotifyEvent

HINTS_MAX = 4096
# The kernel's words for a watched folder that is no longer where it was.
_LEFT = InotifyConstants.IN_MOVE_SELF | InotifyConstants.IN_UNMOUNT
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
        self._watched: tuple[int, int] | None = None
        self._at = folder

    def start(self) -> None:
        """Ask for events. Raises OSError where the kernel has no watch or instance left to give."""
        # Before the watch: should another folder be put there in between, that is seen with the next look.
        self._watched = _identity(self._folder)
        # A watch of a link would be one of the link itself.
        self._at = self._folder.resolve()
        observer = _ArrivalObserver()
        try:
            observer.schedule(self, str(self._at), recursive=True)
            observer.start()
        except OSError:
            observer.stop()
            raise
        self._observer = observer

    def alive(self) -> bool:
        """Return whether events still come: not where the folder was replaced, moved, mounted over or unmounted."""
        observer = self._observer
        if observer is None or not observer.is_alive() or not all(e.is_alive() for e in observer.emitters):
            return False
        return self._watched is not None and _identity(self._folder) == self._watched

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
                self._hints.append(Hint(os.path.relpath(path, self._at), closed))
        self._wake()

    def dispatch(self, event: events.FileSystemEvent) -> None:
        """Take `event` from the observer, in its thread."""
        left = isinstance(event, events.DirDeletedEvent) and event.src_path == str(self._at)
        if left or isinstance(event, (events.DirCreatedEvent, events.DirMovedEvent)):
            # Events do not tell what lies in a folder that appeared, nor in one that takes the place of the watched.
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
        arrivals = kinds.IN_CLOSE_WRITE | kinds.IN_MOVED_TO | kinds.IN_CREATE
        return Mask(arrivals | kinds.IN_DELETE_SELF | kinds.IN_MOVE_SELF)

    def build_and_queue_event(self, event: GroupedInotifyEvent, *, full_events: bool = True) -> None:
        if isinstance(event, PathedInotifyEvent) and event.ev.mask & _LEFT:
            # Of a folder below, the one above tells that it moved or that another came.
            if event.path == os.fsencode(self.watch.path):
                self.queue_event(events.DirDeletedEvent(self.watch.path))
                self.stop()
            return
        super().build_and_queue_event(event, full_events=full_events)


class _ArrivalObserver(InotifyObserver):
    def __init__(self) -> None:
        super().__init__(generate_full_events=True)
        self._emitter_class = _ArrivalEmitter


def _identity(folder: Path) -> tuple[int, int] | None:
    """Return what tells `folder` from another at its place: device and inode; None where there is none."""
    try:
        status = folder.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino
