"""Earliest expiry first, with lives learned from gaps (the idea: Continuum, arXiv 2511.02230, pins through tool calls).

An object lives as long after its last use as nine of ten of its class's gaps between uses last, gaps over which it had
gone included. The one that expires first goes first, so a class that comes back soon or never frees its room soon.
A request's own TTL, where it named one, stands instead. Where nothing is learned yet: least recently used.

Leaf-first order: an object that something stood on is offered with that one's last use, and lives on from there.
"""

from __future__ import annotations

from kvstore.core.index import Entry, ObjectClass
from kvstore.core.keys import BlockKey
from kvstore.core.policies.quantile import Quantile
from kvstore.core.policies.remembered import Remembered
from kvstore.core.policies.shelves import Shelves

GAPS_TO_OUTLIVE = 0.9  # of those of a class


class TTL:
    """Evict what expires first."""

    name = "ttl"

    def order(self, capacity_bytes: int) -> TtlOrder:
        return TtlOrder(capacity_bytes)


class TtlOrder:
    """A shelf a class by last use, so that a life that is learned anew holds for all of it; one by named expiry."""

    def __init__(self, capacity_bytes: int) -> None:
        self._lives: dict[ObjectClass, Quantile] = {}
        self._last: dict[BlockKey, float] = {}  # use of what is here
        self._gone = Remembered(capacity_bytes)
        self._shelves: Shelves[ObjectClass | None] = Shelves()  # None: those with a TTL of their own

    def admitted(self, entry: Entry) -> None:
        before = self._gone.take(entry.facts.key)
        if before is not None:
            self._learn(entry, before)
        self._last[entry.facts.key] = entry.last_used

    def used(self, entry: Entry) -> None:
        self._learn(entry, self._last.get(entry.facts.key, entry.last_used))
        self._last[entry.facts.key] = entry.last_used

    def offer(self, entry: Entry, last_used: float) -> None:
        ttl_seconds = entry.facts.ttl_seconds
        if ttl_seconds is None:
            self._shelves.put(entry.facts.key, entry.facts.object_class, last_used)
        else:
            self._shelves.put(entry.facts.key, None, last_used + ttl_seconds)

    def withdraw(self, key: BlockKey) -> None:
        self._shelves.take(key)

    def removed(self, entry: Entry, nbytes: int) -> None:
        self.withdraw(entry.facts.key)
        last = self._last.pop(entry.facts.key, None)
        if last is not None:
            self._gone.add(entry.facts.key, nbytes, last)

    def first(self) -> BlockKey | None:
        soonest: tuple[float, BlockKey] | None = None
        for shelf, rank, key in self._shelves.firsts():
            expiry = rank + self._life(shelf)
            if soonest is None or expiry < soonest[0]:
                soonest = (expiry, key)
        return None if soonest is None else soonest[1]

    def pop(self) -> BlockKey | None:
        key = self.first()
        if key is not None:
            self._shelves.take(key)
        return key

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._shelves

    def __len__(self) -> int:
        return len(self._shelves)

    def _life(self, shelf: ObjectClass | None) -> float:
        """Seconds from the last use; of those with an expiry of their own the rank is that."""
        life = None if shelf is None else self._lives.get(shelf)
        return 0.0 if life is None else life.value or 0.0

    def _learn(self, entry: Entry, before: float) -> None:
        life = self._lives.get(entry.facts.object_class)
        if life is None:
            life = self._lives[entry.facts.object_class] = Quantile(GAPS_TO_OUTLIVE)
        life.add(entry.last_used - before)
