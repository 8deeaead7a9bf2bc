from hypothesis import given
from hypothesis import strategies as st

from service.inspection.batch import Batcher


def test_batch_is_due_when_full() -> None:
    batcher: Batcher[int] = Batcher(2, 10.0)
    batcher.add(1, now=0.0)
    assert batcher.take(now=0.0) is None
    batcher.add(2, now=0.0)
    assert batcher.take(now=0.0) == [1, 2]
    assert batcher.next_due_at() is None


def test_batch_is_due_when_its_oldest_has_waited() -> None:
    batcher: Batcher[int] = Batcher(8, 0.02)
    batcher.add(1, now=1.0)
    batcher.add(2, now=1.01)
    assert batcher.next_due_at() == 1.02
    assert batcher.take(now=1.015) is None
    assert batcher.take(now=1.02) == [1, 2]


def test_nothing_waits_when_nothing_is_to_come() -> None:
    batcher: Batcher[int] = Batcher(8, 10.0)
    batcher.add(1, now=0.0)
    assert batcher.take(now=0.0, nothing_to_come=True) == [1]


def test_what_is_left_of_a_full_batch_has_waited_since_it_came() -> None:
    batcher: Batcher[int] = Batcher(2, 1.0)
    for number in range(3):
        batcher.add(number, now=float(number))
    assert batcher.take(now=2.0) == [0, 1]
    assert batcher.take(now=2.0) is None and batcher.next_due_at() == 3.0


@given(st.lists(st.integers()), st.integers(1, 5))
def test_every_item_comes_out_once_in_order(items: list[int], size: int) -> None:
    batcher: Batcher[int] = Batcher(size, 1.0)
    for now, item in enumerate(items):
        batcher.add(item, float(now))
    out: list[int] = []
    while (batch := batcher.take(0.0, nothing_to_come=True)) is not None:
        assert 1 <= len(batch) <= size
        out += batch
    assert out == items


def test_a_batch_that_others_may_join_waits_where_only_full_ones_are_wanted() -> None:
    batcher: Batcher[int] = Batcher(2, 0.02)
    batcher.add(1, now=0.0)
    assert batcher.take(now=9.0, full_only=True) is None
    assert batcher.take(now=9.0, nothing_to_come=True, full_only=True) is None
    batcher.add(2, now=9.0)
    assert batcher.take(now=9.0, full_only=True) == [1, 2]
