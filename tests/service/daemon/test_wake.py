from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from service.daemon.wake import StopRequest, Wake


def interrupt_everywhere(
    trial: Callable[[], tuple[Callable[[], object], Callable[[], object]]], timeout_s: float = 20.0
) -> int:
    """Run the body of a trial again and again, each time calling its handler before one more of the body's bytecodes.

    That is where Python calls a signal handler. `trial` makes a body and its handler anew. Returns the number of
    bytecodes; AssertionError where the handler did not come back.
    """
    number = 0
    while True:
        reached: list[int] = []
        body, handler = trial()
        thread = threading.Thread(target=run_traced, args=(body, handler, number, reached), daemon=True)
        thread.start()
        thread.join(timeout_s)
        assert not thread.is_alive(), f"before bytecode {number} the handler waits for ever"
        if len(reached) <= number:
            return number
        number += 1


def run_traced(body: Callable[[], object], handler: Callable[[], object], number: int, reached: list[int]) -> None:
    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        frame.f_trace_opcodes = True
        if event == "opcode":
            reached.append(frame.f_lasti)
            if len(reached) == number + 1:
                handler()
        return trace

    sys.settrace(trace)
    try:
        body()
    finally:
        sys.settrace(None)


def test_set_before_any_bytecode_of_a_wait_comes_back_and_is_not_lost() -> None:
    wakes: list[Wake] = []

    def trial() -> tuple[Callable[[], object], Callable[[], object]]:
        wake = Wake()
        wakes.append(wake)
        return lambda: waited.append(wake.wait(0.0)), wake.set

    waited: list[bool] = []
    assert interrupt_everywhere(trial) > 5
    # By the wait itself, or left for the next one; the last trial was not interrupted any more.
    *interrupted, alone = [one or wake.wait(0.0) for one, wake in zip(waited, wakes, strict=True)]
    assert all(interrupted) and not alone


def test_set_before_any_bytecode_of_another_set_comes_back() -> None:
    def trial() -> tuple[Callable[[], object], Callable[[], object]]:
        wake = Wake()
        return wake.set, wake.set

    assert interrupt_everywhere(trial) > 5


def test_signal_before_any_bytecode_of_the_loops_wait_stops_the_daemon() -> None:
    def trial() -> tuple[Callable[[], object], Callable[[], object]]:
        stop = StopRequest()
        return lambda: stop.wake.wait(0.0), lambda: stop.on_signal(15, None)

    assert interrupt_everywhere(trial) > 5


def test_an_event_of_the_standard_library_would_wait_for_itself() -> None:
    def trial() -> tuple[Callable[[], object], Callable[[], object]]:
        event = threading.Event()
        return event.clear, event.set

    with pytest.raises(AssertionError, match="waits for ever"):
        interrupt_everywhere(trial, timeout_s=0.2)


def test_sets_of_other_threads_wake_the_one_that_waits_and_many_are_one() -> None:
    wake = Wake()
    threads = [threading.Thread(target=wake.set) for _ in range(5)]
    for thread in threads:
        thread.start()
    assert wake.wait(60.0)
    for thread in threads:
        thread.join()
    wake.wait(0.0)
    assert not wake.wait(0.0)
