"""Segmented LRU (Karedla, Love and Wherry, IEEE Computer 1994): a second use moves an object to a protected part.

New objects are on probation (the first queue), those used again are protected (the second), each by their last use.
Protected ones may have four fifths of the room; beyond that the one used longest ago goes back to probation, as if it
had been used just now. Victims come from probation.

Leaf-first order: a part's end is the coldest leaf in it; what a protected object stood on is protected when that goes.
"""

from __future__ import annotations

from collections import OrderedDict

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.policies.two_queues import Kept, TwoQueues

PROTECTED_SHARE = 0.8  # of the room; common in memcached-like caches, Caffeine among them


class SLRU:
    """Evict the least recent of what was used once, while there is such."""

    name = "slru"

    def order(self, capacity_bytes: int) -> SlruOrder:
        return SlruOrder()


class SlruOrder(TwoQueues):
    def __init__(self) -> None:
        super().__init__()
        self._protected: OrderedDict[BlockKey, None] = OrderedDict()  # by last use, oldest first
        self._now = 0.0

    def admitted(self, entry: Entry) -> None:
        self.put(entry, False, entry.last_used)

    def used(self, entry: Entry) -> None:
        kept = self._kept.get(entry.facts.key)
        if kept is not None:
            self._protect(kept, entry.last_used)

    def next_queue(self) -> int:
        return 0 if len(self._candidates[0]) else 1

    def inherit(self, below: Kept, gone: Kept) -> None:
        if gone.is_second:
            self._protect(below, gone.place)

    def left(self, kept: Kept, nbytes: int) -> None:
        self._protected.pop(kept.entry.facts.key, None)

    def _protect(self, kept: Kept, now: float) -> None:
        key = kept.entry.facts.key
        self._now = max(self._now, now)
        self._protected.pop(key, None)
        self._protected[key] = None
        self.move(kept, True, max(kept.place, now))
        while self._bytes[1] > PROTECTED_SHARE * sum(self._bytes) and len(self._protected) > 1:
            oldest, _ = self._protected.popitem(last=False)
            self.move(self._kept[oldest], False, self._now)
