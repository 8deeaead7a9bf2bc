from service.filesystem.file_state import FileState
from service.inspection.settle import Settling


def state(size: int = 10, mtime_ns: int = 1) -> FileState:
    return FileState(device=1, inode=2, size=size, mtime_ns=mtime_ns)


def settling(**options: int) -> Settling:
    return Settling(settle_time_s=2.0, empty_file_timeout_s=60.0, **options)


def test_half_written_file_waits_for_settle_time() -> None:
    waiting = settling()
    waiting.observe("a.png", state(size=5), now=0.0)
    waiting.observe("a.png", state(size=9), now=1.9)
    assert waiting.settled(now=2.1, limit=9) == []
    assert waiting.settled(now=3.9, limit=9) == ["a.png"]
    assert waiting.confirm("a.png", state(size=9), now=3.9) == 3.9


def test_file_that_changed_unseen_waits_anew() -> None:
    waiting = settling()
    waiting.observe("a.png", state(mtime_ns=1), now=0.0)
    assert waiting.confirm("a.png", state(mtime_ns=2), now=5.0) is None
    assert waiting.confirm("a.png", state(mtime_ns=2), now=7.0) == 7.0


def test_closed_file_settles_at_once() -> None:
    waiting = settling()
    waiting.observe("a.png", state(), now=0.0)
    waiting.observe("a.png", state(), now=0.5, closed=True)
    assert waiting.settled(now=0.5, limit=9) == ["a.png"]
    assert waiting.confirm("a.png", state(), now=0.6) == 0.0


def test_closing_does_not_settle_what_changed_since() -> None:
    waiting = settling()
    waiting.observe("a.png", state(size=5), now=0.0, closed=True)
    assert waiting.confirm("a.png", state(size=6), now=0.1) is None


def test_file_held_open_waits_the_whole_settle_time_again() -> None:
    waiting = settling()
    waiting.observe("a.png", state(), now=0.0, closed=True)
    waiting.postpone("a.png", now=1.0)
    assert waiting.settled(now=2.9, limit=9) == []
    assert waiting.settled(now=3.0, limit=9) == ["a.png"]


def test_empty_file_waits_for_its_own_timeout_even_when_closed() -> None:
    waiting = settling()
    waiting.observe("a.png", state(size=0), now=0.0, closed=True)
    assert waiting.settled(now=59.0, limit=9) == []
    assert waiting.settled(now=60.0, limit=9) == ["a.png"]


def test_files_are_taken_in_order_of_arrival_and_bounded() -> None:
    waiting = settling()
    for number in range(5):
        waiting.observe(f"{number}.png", state(), now=float(number), closed=True)
    assert waiting.settled(now=9.0, limit=3) == ["0.png", "1.png", "2.png"]


def test_files_beyond_the_bound_are_left_for_the_next_scan() -> None:
    waiting = settling(candidates_max=2)
    for number in range(3):
        waiting.observe(f"{number}.png", state(), now=0.0)
    assert len(waiting) == 2
    assert waiting.left_out and not waiting.half_empty
    waiting.forget("0.png")
    assert waiting.half_empty
    waiting.left_out = False
    assert not waiting.left_out


def test_next_settled_at_is_the_earliest() -> None:
    waiting = settling()
    assert waiting.next_settled_at() is None
    waiting.observe("a.png", state(), now=1.0)
    waiting.observe("b.png", state(), now=0.5)
    assert waiting.next_settled_at() == 2.5
