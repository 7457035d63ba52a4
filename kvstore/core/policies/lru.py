"""Least recently used, leaf first."""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.policies.ranked import RankedOrder


class LRU:
    """Evict what was used longest ago. The planner's offer of leaves only makes it leaf-first."""

    name = "lru"

    def order(self, capacity_bytes: int) -> RankedOrder:
        return _Recency()


class _Recency(RankedOrder):
    """The rank is given with the offer."""

    def __init__(self) -> None:
        super().__init__(lambda entry, last_used: last_used)

    def offer(self, entry: Entry, last_used: float) -> None:
        self._heap.add(entry.facts.key, last_used)
