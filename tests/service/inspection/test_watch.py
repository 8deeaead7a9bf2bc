import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from service.filesystem.file_state import NameFilter, file_state
from service.filesystem.lease import has_writer
from service.filesystem.open_below import open_file
from service.filesystem.scan import scan
from service.inspection.watch import HINTS_MAX, Hint, Watcher
from service.settings import IGNORED_NAMES
from tests.faults.mounts import tmpfs

NAMES = NameFilter(IGNORED_NAMES)


@pytest.mark.parametrize(
    "name",
    [".DS_Store", "._a.png", "a.png~", "a.jpg.part", "A.JPG.PART", "@eaDir", ".stfolder", "Thumbs.db", "thumbs.db",
     "x.tmp", "a.crdownload", "#recycle"],
)  # fmt: skip
def test_names_of_unfinished_and_foreign_files_are_ignored(name: str) -> None:
    assert NAMES.ignores(name)
    assert NAMES.ignores_path(f"gears/{name}") and NAMES.ignores_path(f"{name}/a.png")


@pytest.mark.parametrize("name", ["a.png", "part.jpg", "tmp", "a~b.png", "-a.png", "a\nb.png"])
def test_other_names_are_not_ignored(name: str) -> None:
    assert not NAMES.ignores(name)


def test_no_patterns_ignore_nothing() -> None:
    assert not NameFilter(()).ignores(".hidden")


def test_scan_finds_regular_files_alone(tmp_path: Path) -> None:
    (tmp_path / "gears" / "deep").mkdir(parents=True)
    (tmp_path / "@eaDir").mkdir()
    for name in ("a.png", "gears/b.png", "gears/deep/c.png", "@eaDir/d.png", ".hidden.png"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "link.png").symlink_to("a.png")
    (tmp_path / "linked_folder").symlink_to(tmp_path / "gears")
    os.mkfifo(tmp_path / "fifo.png")
    assert sorted(path for path, _ in scan(tmp_path, NAMES)) == ["a.png", "gears/b.png", "gears/deep/c.png"]


def test_scan_of_a_folder_that_is_gone_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(scan(tmp_path / "gone", NAMES))


def test_look_tells_one_content_from_another(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    assert file_state(path) is None
    path.write_bytes(b"one")
    first = file_state(path)
    path.write_bytes(b"four")
    assert first is not None and file_state(path) != first


def being_written(path: Path) -> bool:
    descriptor = open_file(path)
    try:
        return has_writer(descriptor)
    finally:
        os.close(descriptor)


def test_file_held_open_for_writing_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    assert not being_written(path)
    with path.open("ab"):
        assert being_written(path)
    with path.open("rb"):
        assert not being_written(path)


_OPENED_MEANWHILE = """
import fcntl, os, sys
from service.filesystem.lease import has_writer
from service.filesystem.open_below import open_file
ask = fcntl.fcntl
path = sys.argv[1]
def and_open(descriptor, command, argument):
    answer = ask(descriptor, command, argument)
    if (command, argument) == (fcntl.F_SETLEASE, fcntl.F_RDLCK):
        try:
            os.open(path, os.O_WRONLY | os.O_NONBLOCK)
        except BlockingIOError:
            print("a lease was in the way", flush=True)
    return answer
fcntl.fcntl = and_open
print(has_writer(open_file(path)))
"""


def test_a_writer_that_opens_the_file_while_it_is_asked_about_does_not_end_the_process(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(b"x")
    asked = subprocess.run([sys.executable, "-c", _OPENED_MEANWHILE, path], capture_output=True, text=True, timeout=60)
    assert (asked.returncode, asked.stdout) == (0, "a lease was in the way\nFalse\n"), asked.stderr


class _Events:
    """A running watcher, and a way to wait for the hints it gives."""

    def __init__(self, folder: Path) -> None:
        self.woken = threading.Event()
        self.watcher = Watcher(folder, self.woken.set)
        self.hints: list[Hint] = []
        self.scan_needed = False

    def gave(self, hint: Hint) -> bool:
        """Whether `hint` has come, waiting for it for up to 10 s."""
        for _ in range(100):
            self.woken.wait(0.1)
            self.woken.clear()
            hints, scan_needed = self.watcher.take()
            self.hints += hints
            self.scan_needed |= scan_needed
            if hint in self.hints:
                return True
        return False


@pytest.fixture
def events(tmp_path: Path):
    folder = tmp_path / "incoming"
    folder.mkdir()
    events = _Events(folder)
    events.watcher.start()
    yield events
    events.watcher.stop()


def test_closing_a_written_file_gives_a_hint(events: _Events, tmp_path: Path) -> None:
    (tmp_path / "incoming" / "a.png").write_bytes(b"x")
    assert events.gave(Hint("a.png", closed=True))


def test_file_renamed_in_from_outside_gives_a_hint_that_settles_it(events: _Events, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    (tmp_path / "a.png").rename(tmp_path / "incoming" / "a.png")
    assert events.gave(Hint("a.png", closed=True))


def test_file_renamed_from_a_temporary_name_gives_a_hint(events: _Events, tmp_path: Path) -> None:
    partial = tmp_path / "incoming" / "a.png.part"
    partial.write_bytes(b"x")
    partial.rename(tmp_path / "incoming" / "a.png")
    assert events.gave(Hint("a.png", closed=True))


def test_new_folder_asks_for_a_scan_and_is_watched(events: _Events, tmp_path: Path) -> None:
    (tmp_path / "incoming" / "gears").mkdir()
    (tmp_path / "incoming" / "gears" / "a.png").write_bytes(b"x")
    (tmp_path / "incoming" / "b.png").write_bytes(b"x")
    assert events.gave(Hint("b.png", closed=True))
    assert events.scan_needed


def test_files_leaving_the_folder_hold_no_event_back(events: _Events, tmp_path: Path) -> None:
    # watchdog pairs moves by holding IN_MOVED_FROM back for 0.5 s, and everything behind it: 20 in a row would be 10 s.
    import time

    began = time.monotonic()
    for number in range(20):
        path = tmp_path / "incoming" / f"{number}.png"
        path.write_bytes(b"x")
        assert events.gave(Hint(f"{number}.png", closed=True))
        path.rename(tmp_path / f"{number}.png")
    assert time.monotonic() - began < 5


def test_more_hints_than_the_bound_ask_for_a_scan(tmp_path: Path) -> None:
    watcher = Watcher(tmp_path, lambda: None)
    for number in range(HINTS_MAX + 1):
        watcher.hint(str(tmp_path / f"{number}.png"), closed=True)
    hints, scan_needed = watcher.take()
    assert len(hints) == HINTS_MAX and scan_needed
    assert watcher.take() == ([], False)


def test_watcher_that_lost_its_folder_says_so(events: _Events, tmp_path: Path) -> None:
    assert events.watcher.alive()
    (tmp_path / "incoming").rmdir()
    for emitter in events.watcher._observer.emitters:  # type: ignore[union-attr]
        emitter.join(5)
    assert not events.watcher.alive()


@pytest.mark.parametrize("how", ["moved", "replaced at once"])
def test_folder_that_is_replaced_asks_for_a_scan_and_to_be_watched_anew(
    events: _Events, tmp_path: Path, how: str
) -> None:
    (tmp_path / "incoming").rename(tmp_path / "elsewhere")
    if how == "replaced at once":
        (tmp_path / "incoming").mkdir()
    assert events.woken.wait(10) and events.watcher.take() == ([], True)
    assert not events.watcher.alive()


def test_folder_mounted_over_is_not_the_one_that_is_watched(events: _Events, tmp_path: Path) -> None:
    # No event tells of a mount; another device and inode do.
    with tmpfs(tmp_path / "incoming", "size=1m"):
        assert not events.watcher.alive()


def test_watched_folder_may_be_a_link_to_one(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "incoming").symlink_to(tmp_path / "real")
    events = _Events(tmp_path / "incoming")
    events.watcher.start()
    try:
        (tmp_path / "incoming/a.png").write_bytes(b"x")
        assert events.gave(Hint("a.png", closed=True))
    finally:
        events.watcher.stop()
