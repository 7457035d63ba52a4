"""The lock's figures: on a clock that the test moves, with threads that really wait."""

from __future__ import annotations

import threading
from typing import cast

import pytest

from kvstore.store import lock as lock_module
from kvstore.store.lock import MeasuredLock


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(lock_module, "perf_counter", clock)
    return clock


def test_holds_add_up_and_the_longest_is_kept(clock: Clock) -> None:
    lock = MeasuredLock()
    for seconds in (2.0, 5.0, 1.0):
        with lock:
            clock.now += seconds
        clock.now += 50.0
    assert lock.figures() == (8.0, 0.0, 5.0)


def test_a_wait_is_counted_for_who_gets_the_lock_and_for_nobody_else(clock: Clock) -> None:
    lock = MeasuredLock()
    waiting = threading.Event()

    class Watched:
        """Says when a thread is about to wait for the real lock."""

        def __init__(self) -> None:
            self._real = threading.Lock()

        def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
            if blocking:
                waiting.set()
            return self._real.acquire(blocking, timeout)

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

    lock._lock = cast(threading.Lock, Watched())
    assert lock.acquire()
    assert not lock.acquire(False)
    assert not lock.acquire(True, 0.001)
    waiting.clear()
    held = threading.Event()

    def other() -> None:
        with lock:
            held.set()

    thread = threading.Thread(target=other)
    thread.start()
    assert waiting.wait(10)
    clock.now += 3.0
    lock.release()
    thread.join(10)
    assert held.is_set()
    assert lock.figures() == (3.0, 3.0, 3.0)


def test_waiting_on_a_condition_is_no_hold(clock: Clock) -> None:
    lock = MeasuredLock()
    changed = threading.Condition(cast(threading.Lock, lock))
    told = []

    def waiter() -> None:
        with changed:
            clock.now += 1.0
            ready.set()
            told.append(changed.wait(10))
            clock.now += 2.0

    ready = threading.Event()
    thread = threading.Thread(target=waiter)
    thread.start()
    assert ready.wait(10)
    with changed:
        pass  # the waiter let go of it: it waits now
    clock.now += 40.0
    with changed:
        changed.notify_all()
    thread.join(10)
    assert told == [True]
    assert lock.figures() == (3.0, 0.0, 2.0)
    with pytest.raises(RuntimeError):
        changed.notify()  # not by a thread that does not hold it
