"""Python's garbage collector beside an index of millions of objects: it never walks the index.

A collection costs about 0.16 us for each object it walks, six objects an entry: a second for a million entries, while
no thread runs. So what the index has grown by is frozen (taken out of the collector's sight) every few thousand
entries, and the collector walks only what is younger. Frozen objects are still freed by their reference counts, which
is how everything in the index ends: it takes its own cycles (parent and child, entry and node) apart when it drops
something (tests/core/test_freed.py). What would be lost for good is a cycle that was alive at a freeze and dies later;
a million calls leave none, and a full collection before each freeze keeps dead ones from being frozen.

Counts entries and not time: what bounds a pause is how many objects there are to walk.
"""

from __future__ import annotations

import gc
from enum import Enum
from time import perf_counter

FREEZE_ENTRIES = 4096  # new ones between two freezes; a collection over them takes about 4 ms
COLLECT_AFTER = 10  # collections of middle-aged objects: Python's own threshold
MOST_COLLECTED = 8192  # above it, of entries since the last tick, no collection before the freeze: it takes 10 ms
NO_FULL_COLLECTIONS = 1 << 30  # of the collector's own: it would start one in the middle of a burst of puts


class Step(Enum):
    """What a tick does."""

    NOTHING = "nothing"
    COLLECT = "collect"
    COLLECT_AND_FREEZE = "collect and freeze"
    FREEZE = "freeze"


def next_step(new_entries: int, middle_collections: int) -> Step:
    """For so many entries since the last freeze, and collections of middle-aged objects since the last full one."""
    if new_entries < FREEZE_ENTRIES:
        return Step.COLLECT if middle_collections >= COLLECT_AFTER else Step.NOTHING
    return Step.COLLECT_AND_FREEZE if new_entries <= MOST_COLLECTED else Step.FREEZE


class Garbage:
    """Called by one thread, the daemon's tick. `longest_pause` is of the whole process."""

    def __init__(self) -> None:
        self.longest_pause = 0.0  # seconds
        self.freezes = 0
        self._frozen_at = 0  # entries made until then
        self._started = 0.0
        self._thresholds = gc.get_threshold()

    def start(self, entries_made: int) -> None:
        """Freeze what was loaded, and leave only collections of young objects to the collector itself."""
        self._frozen_at = entries_made
        self._thresholds = gc.get_threshold()
        young, middle, _ = self._thresholds
        gc.set_threshold(young, middle, NO_FULL_COLLECTIONS)
        gc.callbacks.append(self._watch)
        gc.freeze()

    def stop(self) -> None:
        """Give the collector back as it was; harmless without `start`."""
        if self._watch in gc.callbacks:
            gc.callbacks.remove(self._watch)
            gc.set_threshold(*self._thresholds)
            gc.unfreeze()

    def tick(self, entries_made: int) -> Step:
        """`entries_made` counts all that were ever made, those that are gone included."""
        step = next_step(entries_made - self._frozen_at, gc.get_count()[2])
        if step in (Step.COLLECT, Step.COLLECT_AND_FREEZE):
            gc.collect()
        if step in (Step.FREEZE, Step.COLLECT_AND_FREEZE):
            gc.freeze()
            self.freezes += 1
            self._frozen_at = entries_made
        return step

    def _watch(self, phase: str, info: dict[str, int]) -> None:
        """Time one collection; the collector calls this in whichever thread it stopped."""
        if phase == "start":
            self._started = perf_counter()
        else:
            self.longest_pause = max(self.longest_pause, perf_counter() - self._started)
