"""GreedyDual (Young, SODA 1991): what a use is worth, on top of a floor that rises with what is evicted.

An object ranks at the floor of its last use plus the worth of its uses; the floor is the rank of the last victim.
So what was used often sinks as the floor rises past it: this is the ageing of LFU-DA and the inflation of GDSF.

Leaf-first order: only the deepest object of a chain is told of a use. When it goes, the object it stood on takes over
its floor and adds its uses: every request that used the one had used the other.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.order import Heap
from kvstore.core.policies.chain import stands_on


class GreedyOrder:
    """`worth(entry)` of one use; it must be pure."""

    def __init__(self, worth: Callable[[Entry], float]) -> None:
        self._worth = worth
        self._floor = 0.0
        self._kept: dict[BlockKey, tuple[float, int]] = {}  # floor at the last use, uses after the first
        self._offered: dict[BlockKey, Entry] = {}
        self._heap = Heap()

    def admitted(self, entry: Entry) -> None:
        self._kept[entry.facts.key] = (self._floor, 0)

    def used(self, entry: Entry) -> None:
        _, uses = self._kept.get(entry.facts.key, (0.0, 0))
        self._kept[entry.facts.key] = (self._floor, uses + 1)

    def offer(self, entry: Entry, last_used: float) -> None:
        key = entry.facts.key
        known = self._kept.get(key)
        if known is None:
            known = self._kept[key] = (self._floor, 0)
        self._offered[key] = entry
        self._heap.add(key, known[0] + (1 + known[1]) * self._worth(entry))

    def withdraw(self, key: BlockKey) -> None:
        self._heap.discard(key)
        self._offered.pop(key, None)

    def removed(self, entry: Entry, nbytes: int) -> None:
        self._kept.pop(entry.facts.key, None)
        self.withdraw(entry.facts.key)

    def first(self) -> BlockKey | None:
        found = self._heap.first()
        return None if found is None else found[1]

    def pop(self) -> BlockKey | None:
        found = self._heap.pop()
        if found is None:
            return None
        rank, key = found
        self._floor = max(self._floor, rank)
        below = stands_on(self._offered.pop(key))
        known = None if below is None else self._kept.get(below.facts.key)
        if below is not None and known is not None:
            floor, uses = self._kept[key]
            self._kept[below.facts.key] = (max(known[0], floor), known[1] + uses)
        return key

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._heap

    def __len__(self) -> int:
        return len(self._heap)
