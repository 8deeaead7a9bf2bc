from hypothesis import given
from hypothesis import strategies as st

from service.filesystem.file_state import FileState
from service.inspection.settle import Settling, folder_of


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


def test_files_beyond_the_bound_are_left_for_a_scan_that_is_needed_once_half_are_gone() -> None:
    waiting = settling(candidates_max=4)
    for number in range(6):
        waiting.observe(f"{number}.png", state(), now=0.0)
    assert len(waiting) == 4 and waiting.left_out == {"": 1} and waiting.waiting("") == 5
    waiting.forget("0.png")
    assert waiting.has_enough("") and not waiting.scan_needed
    waiting.forget("1.png")
    assert not waiting.has_enough("") and waiting.scan_needed


def test_folder_that_fills_all_room_makes_way_for_another_and_loses_its_newest() -> None:
    waiting = settling(candidates_max=8)
    for number in range(20):
        waiting.observe(f"many/{number:02}.png", state(), now=0.0, closed=True)
    for number in range(2):
        waiting.observe(f"few/{number}.png", state(), now=0.0, closed=True)
    assert waiting.settled(1.0, 9, "few") == ["few/0.png", "few/1.png"]
    assert waiting.settled(1.0, 9, "many") == [f"many/{number:02}.png" for number in range(4)]
    assert waiting.left_out == {"many": 5} and waiting.waiting("many") == 9


@given(
    st.lists(st.tuples(st.sampled_from(["", "a", "b", "c/d", "e"]), st.integers(0, 30)), max_size=120),
    st.integers(4, 24),
)
def test_room_is_bounded_and_no_folder_is_turned_away_below_its_share(
    files: list[tuple[str, int]], candidates_max: int
) -> None:
    waiting = settling(candidates_max=candidates_max)
    offered: dict[str, set[str]] = {}
    for folder, number in files:
        path = f"{folder}/{number}.png".lstrip("/")
        offered.setdefault(folder_of(path), set()).add(path)
        waiting.observe(path, state(), now=0.0, closed=True)
        assert len(waiting) <= candidates_max
    for folder in offered:
        assert waiting.waiting(folder) >= waiting.held(folder) == len(waiting.settled(1.0, 1000, folder))
        assert set(waiting.settled(1.0, 1000, folder)) <= offered[folder]
    assert sum(waiting.held(folder) for folder in offered) == len(waiting)
    share = candidates_max // max(len(offered), 1)
    # What a folder had is put back, as the next scan would.
    for path in sorted(path for paths in offered.values() for path in paths):
        waiting.observe(path, state(), now=0.0, closed=True)
    for folder, paths in offered.items():
        assert waiting.held(folder) >= min(len(paths), share)


def test_folders_with_more_than_there_is_room_for_are_bounded_too() -> None:
    waiting = settling(candidates_max=4)
    for number in range(9):
        waiting.observe(f"{number}/a.png", state(), now=0.0, closed=True)
    assert len(waiting) == 4 and len(waiting.folders_settled(1.0)) == 4 and len(waiting.left_out) == 5


def test_files_of_a_folder_without_a_model_are_let_go_at_once() -> None:
    waiting = settling()
    for path in ("a/1.png", "a/2.png", "b/1.png"):
        waiting.observe(path, state(), now=0.0, closed=True)
    assert waiting.forget_product("a") == 2
    assert len(waiting) == 1 and waiting.folders_settled(1.0) == ["b"]


def test_next_settled_at_is_the_earliest() -> None:
    waiting = settling()
    assert waiting.next_settled_at() is None
    waiting.observe("a.png", state(), now=1.0)
    waiting.observe("b.png", state(), now=0.5)
    assert waiting.next_settled_at() == 2.5


def test_close_settles_nothing_where_the_settle_time_was_set_by_hand() -> None:
    waiting = Settling(settle_time_s=2.0, empty_file_timeout_s=60.0, close_settles=False)
    waiting.observe("a.png", state(), now=0.0, closed=True)
    assert waiting.settled(now=1.9, limit=9) == []
    waiting.observe("a.png", state(), now=1.5, closed=True)  # opened and closed again, with nothing added yet
    assert waiting.settled(now=3.4, limit=9) == [] and waiting.settled(now=3.5, limit=9) == ["a.png"]


def test_file_that_is_held_waits_until_then_or_until_it_changes() -> None:
    waiting = settling()
    waiting.observe("a.png", state(size=5), now=0.0, closed=True)
    waiting.hold("a.png", until=10.0)
    assert waiting.settled(now=9.9, limit=9) == [] and waiting.settled(now=10.0, limit=9) == ["a.png"]
    waiting.observe("a.png", state(size=9), now=4.0, closed=True)
    assert waiting.settled(now=4.0, limit=9) == ["a.png"]


def test_files_of_one_folder_are_dropped_together() -> None:
    waiting = settling()
    for path in ("a/1.png", "a/2.png", "a/b/3.png", "4.png"):
        waiting.observe(path, state(), now=0.0, closed=True)
    waiting.forget_folder("a")
    assert waiting.settled(now=0.0, limit=9) == ["a/b/3.png", "4.png"]


def test_only_what_is_not_settled_is_to_be_looked_at_again() -> None:
    waiting = settling()
    waiting.observe("closed.png", state(), now=0.0, closed=True)
    waiting.observe("growing.png", state(), now=0.0)
    waiting.observe("a/empty.png", state(size=0), now=0.0)
    waiting.observe("new.png", state(), now=0.9)
    assert waiting.unsettled(now=1.0, since=0.9) == ["growing.png", "a/empty.png"]
    assert waiting.unsettled(now=2.0, since=0.9) == ["a/empty.png"]
