from hypothesis import given
from hypothesis import strategies as st

from service.inspection.batch import Batcher


def test_batch_is_due_when_full() -> None:
    batcher: Batcher[str, int] = Batcher(2, 10.0)
    batcher.add("m", 1, now=0.0)
    assert batcher.take(now=0.0) is None
    batcher.add("m", 2, now=0.0)
    assert batcher.take(now=0.0) == ("m", [1, 2])
    assert batcher.next_due_at() is None


def test_batch_is_due_when_its_oldest_has_waited() -> None:
    batcher: Batcher[str, int] = Batcher(8, 0.02)
    batcher.add("m", 1, now=1.0)
    assert batcher.next_due_at() == 1.02
    assert batcher.take(now=1.01) is None
    assert batcher.take(now=1.02) == ("m", [1])


def test_nothing_waits_when_nothing_is_to_come() -> None:
    batcher: Batcher[str, int] = Batcher(8, 10.0)
    batcher.add("m", 1, now=0.0)
    assert batcher.take(now=0.0, nothing_to_come=True) == ("m", [1])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers())), st.integers(1, 5))
def test_every_item_comes_out_once_in_order_within_its_key(items: list[tuple[str, int]], size: int) -> None:
    batcher: Batcher[str, int] = Batcher(size, 1.0)
    for now, (key, value) in enumerate(items):
        batcher.add(key, value, float(now))
    out: dict[str, list[int]] = {}
    while (taken := batcher.take(0.0, nothing_to_come=True)) is not None:
        key, batch = taken
        assert 1 <= len(batch) <= size
        out.setdefault(key, []).extend(batch)
    for key in "abc":
        assert out.get(key, []) == [value for k, value in items if k == key]


def test_a_batch_that_others_may_join_waits_where_only_full_ones_are_wanted():
    batcher: Batcher[str, int] = Batcher(2, 0.02)
    batcher.add("m", 1, now=0.0)
    assert batcher.take(now=9.0, full_only=True) is None
    assert batcher.take(now=9.0, nothing_to_come=True, full_only=True) is None
    batcher.add("m", 2, now=9.0)
    assert batcher.take(now=9.0, full_only=True) == ("m", [1, 2])
