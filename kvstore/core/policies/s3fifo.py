"""S3-FIFO (Yang et al., SOSP 2023): three FIFO queues, the first of them a short trial.

New objects are on trial in the first queue, a tenth of the room. At its end one that was used twice goes on to the main
queue, the others leave and their keys are remembered; one that comes back then goes to the main queue at once. At the
main queue's end an object that was used goes back to its beginning, with one use less (uses count to three).
Until the first eviction what the trial has no room for goes to the main queue, as libCacheSim has it.

Leaf-first order: a FIFO's end is the oldest leaf in it. Only the deepest object of a chain is told of a use, so what
one in the main queue stands on goes there with it, and what a chosen one stood on takes over its place and its uses.
Without that the chain above fails the trial that its end has passed.
"""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.policies.remembered import Remembered
from kvstore.core.policies.two_queues import Kept, TwoQueues

TRIAL_SHARE = 0.1  # of the room; the paper's
USES_TO_STAY = 2  # within the trial; the authors' code
MOST_USES = 3  # two bits; the paper's


class S3FIFO:
    """Evict what was not used soon after it came."""

    name = "s3fifo"

    def order(self, capacity_bytes: int) -> S3FifoOrder:
        return S3FifoOrder(capacity_bytes)


class S3FifoOrder(TwoQueues):
    def __init__(self, capacity_bytes: int) -> None:
        super().__init__()
        self._trial_bytes = TRIAL_SHARE * capacity_bytes
        self._gone = Remembered(capacity_bytes - self._trial_bytes)
        self._has_evicted = False
        self._arrivals = 0

    def admitted(self, entry: Entry) -> None:
        self._arrivals += 1
        comes_back = self._gone.take(entry.facts.key) is not None
        is_early = not self._has_evicted and self._bytes[0] >= self._trial_bytes
        self.put(entry, False, self._arrivals)
        if comes_back or is_early:
            self.prove(entry, self._arrivals)

    def used(self, entry: Entry) -> None:
        kept = self._kept.get(entry.facts.key)
        if kept is not None:
            kept.uses = min(kept.uses + 1, MOST_USES)

    def place(self, kept: Kept, last_used: float) -> float:
        return kept.place

    def next_queue(self) -> int:
        """After those at the ends that earned more time have got it: each was paid for by a use."""
        self._has_evicted = True
        trial, main = self._candidates
        while True:
            # of the owner's bytes, which may be a part of the tier
            is_main = self._bytes[1] > (1 - TRIAL_SHARE) * sum(self._bytes) or not len(trial)
            found = (main if is_main and len(main) else trial).first()
            assert found is not None, "asked without candidates"
            kept = self._kept[found[1]]
            if kept.uses < (1 if kept.is_second else USES_TO_STAY):
                return int(kept.is_second)
            self._arrivals += 1
            kept.uses = kept.uses - 1 if kept.is_second else 0
            self.prove(kept.entry, self._arrivals)

    def inherit(self, below: Kept, gone: Kept) -> None:
        below.uses = min(below.uses + gone.uses, MOST_USES)
        self.move(below, below.is_second, max(below.place, gone.place))

    def left(self, kept: Kept, nbytes: int) -> None:
        if not kept.is_second:
            self._gone.add(kept.entry.facts.key, kept.nbytes)
