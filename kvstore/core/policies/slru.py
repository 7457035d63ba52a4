"""Segmented LRU (Karedla, Love and Wherry, IEEE Computer 1994): a second use moves an object to a protected part.

New objects are on probation (the first queue), those used again are protected (the second), each by their last use.
Protected ones may have four fifths of the room; beyond that the one used longest ago goes back to probation, as if it
had been used just now. Victims come from probation.

Leaf-first order: a part's end is the coldest leaf in it. What a protected object stands on is protected with it and
goes back to probation after it, never before.
"""

from __future__ import annotations

from collections import OrderedDict

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.policies.chain import stands_on
from kvstore.core.policies.two_queues import Kept, TwoQueues

PROTECTED_SHARE = 0.8  # of the room; common in memcached-like caches, Caffeine among them


class SLRU:
    """Evict the least recent of what was used once, while there is such."""

    name = "slru"

    def order(self, capacity_bytes: int) -> SlruOrder:
        return SlruOrder(capacity_bytes)


class SlruOrder(TwoQueues):
    def __init__(self, capacity_bytes: int) -> None:
        super().__init__()
        self._room = capacity_bytes
        self._ends: OrderedDict[BlockKey, None] = OrderedDict()  # protected, used or bared longest ago first
        self._on: dict[BlockKey, int] = {}  # protected objects that stand on it
        self._now = 0.0

    def admitted(self, entry: Entry) -> None:
        self.put(entry, False, entry.last_used)

    def used(self, entry: Entry) -> None:
        key = entry.facts.key
        if key not in self._kept:
            return
        self._now = max(self._now, entry.last_used)
        self.prove(entry, self._now)
        self._ends.pop(key, None)
        self._ends[key] = None
        while self._bytes[1] > PROTECTED_SHARE * self._room and self._ends:
            self._demote_oldest()

    def move(self, kept: Kept, is_second: bool, place: float) -> None:
        has_changed = is_second != kept.is_second
        super().move(kept, is_second, place)
        if has_changed:
            self._count_on_below(kept, 1 if is_second else -1)

    def next_queue(self) -> int:
        self._room = sum(self._bytes)  # room is short: this is what the owner has of the tier
        return 0 if len(self._candidates[0]) else 1

    def left(self, kept: Kept, nbytes: int) -> None:
        self._ends.pop(kept.entry.facts.key, None)
        self._on.pop(kept.entry.facts.key, None)
        if kept.is_second:
            self._count_on_below(kept, -1)

    def _demote_oldest(self) -> None:
        key, _ = self._ends.popitem(last=False)
        if not self._on.get(key):  # else it is an end again when the last of them is demoted
            self.move(self._kept[key], False, self._now)

    def _count_on_below(self, kept: Kept, change: int) -> None:
        """Keep `_on`; what was bared is demoted next."""
        rows = stands_on(kept.entry)
        below = None if rows is None else self._kept.get(rows.facts.key)
        if below is None:
            return
        key = below.entry.facts.key
        self._on[key] = max(self._on.get(key, 0) + change, 0)
        if not self._on[key] and below.is_second and key not in self._ends:
            self._ends[key] = None
            self._ends.move_to_end(key, last=False)
