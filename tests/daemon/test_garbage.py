"""When the daemon collects and freezes, and what the collector sees then."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from kvstore.daemon.garbage import COLLECT_AFTER, FREEZE_ENTRIES, MOST_COLLECTED, Garbage, Step, next_step


@pytest.fixture
def garbage() -> Iterator[Garbage]:
    thresholds = gc.get_threshold()
    garbage = Garbage()
    garbage.start(100)
    yield garbage
    garbage.stop()
    assert gc.get_threshold() == thresholds and not gc.get_freeze_count()


@pytest.mark.parametrize(
    ("new", "collections", "step"),
    [
        (0, 0, Step.NOTHING),
        (FREEZE_ENTRIES - 1, COLLECT_AFTER - 1, Step.NOTHING),
        (0, COLLECT_AFTER, Step.COLLECT),
        (FREEZE_ENTRIES, 0, Step.COLLECT_AND_FREEZE),
        (MOST_COLLECTED, 5, Step.COLLECT_AND_FREEZE),
        (MOST_COLLECTED + 1, 5, Step.FREEZE),
    ],
)
def test_what_a_tick_does_follows_from_how_much_came(new: int, collections: int, step: Step) -> None:
    assert next_step(new, collections) is step


def test_entries_are_counted_from_the_last_freeze(garbage: Garbage) -> None:
    assert garbage.tick(100 + FREEZE_ENTRIES - 1) is not Step.COLLECT_AND_FREEZE
    assert garbage.tick(100 + FREEZE_ENTRIES) is Step.COLLECT_AND_FREEZE
    assert garbage.tick(101 + FREEZE_ENTRIES) in (Step.NOTHING, Step.COLLECT)
    assert garbage.freezes == 1


def test_what_was_frozen_is_not_walked_again_and_still_ends_by_its_reference_count(garbage: Garbage) -> None:
    kept = [[index] for index in range(1000)]
    garbage.tick(100 + FREEZE_ENTRIES)
    seen = {id(found) for found in gc.get_objects()}  # without the frozen ones
    assert not seen & {id(item) for item in kept} and gc.get_freeze_count() >= len(kept)
    before = gc.get_freeze_count()
    del kept, seen
    assert gc.get_freeze_count() <= before - 1000


def test_a_dead_cycle_is_collected_before_the_freeze(garbage: Garbage) -> None:
    class Knot:
        ended = 0

        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            Knot.ended += 1

    Knot()
    garbage.tick(100 + FREEZE_ENTRIES)
    assert Knot.ended == 1


def test_the_longest_pause_is_that_of_any_collection(garbage: Garbage) -> None:
    assert garbage.longest_pause == 0.0
    gc.collect()
    longest = garbage.longest_pause
    assert longest > 0.0
    gc.collect(0)
    assert garbage.longest_pause >= longest
