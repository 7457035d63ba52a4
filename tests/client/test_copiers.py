"""Shared copies: every part once and in order, faults told, nothing written any more once it returned."""

from __future__ import annotations

import os
import threading

import pytest

from kvstore.client.copiers import SHARED_BYTES, Copiers


@pytest.fixture
def copiers(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2})
    copiers = Copiers()
    yield copiers
    copiers.close()


def test_every_part_is_done_once_and_by_more_than_one_thread(copiers):
    both = threading.Barrier(3)
    threads, lock = [], threading.Lock()

    def work(part):
        with lock:
            threads.append(threading.current_thread())
            is_first = len(threads) <= 3
        if is_first:
            both.wait(20)  # two helpers and the one who asked are at it at once
        return part * part

    assert copiers.each(work, range(100), SHARED_BYTES) == [part * part for part in range(100)]
    assert len(threads) == 100 and len(set(threads)) == 3 and threading.current_thread() in threads


def test_what_is_small_or_one_part_wakes_nobody(copiers):
    here = threading.current_thread()
    assert copiers.each(lambda part: threading.current_thread() is here, range(9), SHARED_BYTES - 1) == [True] * 9
    assert copiers.each(lambda part: threading.current_thread() is here, range(1), 8 * SHARED_BYTES) == [True]
    assert copiers.each(lambda part: part, [], 0) == []


@pytest.mark.parametrize("is_helper", [False, True])
def test_a_fault_is_told_when_nothing_is_being_copied_any_more(copiers, is_helper):
    here, running, begun = threading.current_thread(), [], threading.Event()

    def work(part):
        running.append(part)
        try:
            if (threading.current_thread() is not here) == is_helper:
                begun.set()
                raise MemoryError("none left")
            assert begun.wait(20)
        finally:
            running.remove(part)

    with pytest.raises(MemoryError, match="none left"):
        copiers.each(work, range(50), SHARED_BYTES)
    assert not running


def test_helpers_that_are_busy_or_gone_are_not_waited_for(copiers):
    release, asleep = threading.Event(), []

    def sleep(part):
        asleep.append(part)
        assert release.wait(20)

    slow = threading.Thread(target=copiers.each, args=(sleep, range(3), SHARED_BYTES))
    slow.start()
    while len(asleep) < 3:
        release.wait(0.001)
    assert copiers.each(lambda part: -part, range(5), SHARED_BYTES) == [0, -1, -2, -3, -4]
    release.set()
    slow.join()
    copiers.close()
    assert copiers.each(lambda part: -part, range(5), SHARED_BYTES) == [0, -1, -2, -3, -4]


def test_a_child_copies_alone(copiers):
    assert copiers.each(lambda part: part, range(5), SHARED_BYTES) == [*range(5)]
    child = os.fork()
    if not child:
        os._exit(0 if copiers.each(lambda part: part, range(5), SHARED_BYTES) == [*range(5)] else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
