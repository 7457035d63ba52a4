"""Candidates in eviction order: a heap that forgets lazily, O(log n) an operation."""

from __future__ import annotations

import heapq
from itertools import count

from kvstore.core.keys import BlockKey


class Heap:
    """Keys by rank, lowest first.

    Of equal ranks a state goes before rows, then the one that arrived first.
    """

    def __init__(self) -> None:
        self._live: dict[BlockKey, tuple[float, int]] = {}
        self._heap: list[tuple[float, int, int, BlockKey]] = []
        self._arrivals = count()

    def __len__(self) -> int:
        return len(self._live)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._live

    def add(self, key: BlockKey, rank: float) -> None:
        """Make `key` a candidate, or move it to its new rank."""
        known = self._live.get(key)
        if known is not None and known[0] == rank:
            return
        arrival = next(self._arrivals)
        self._live[key] = (rank, arrival)
        heapq.heappush(self._heap, (rank, -key.group, arrival, key))
        if len(self._heap) > 64 + 2 * len(self._live):
            self._heap = [(rank, -key.group, arrival, key) for key, (rank, arrival) in self._live.items()]
            heapq.heapify(self._heap)

    def discard(self, key: BlockKey) -> None:
        self._live.pop(key, None)

    def ahead_of(self, key: BlockKey) -> int:
        """Candidates that go before this one. Looks at all of them."""
        rank, arrival = self._live[key]
        own = (rank, -key.group, arrival)
        return sum((other, -name.group, came) < own for name, (other, came) in self._live.items())

    def first(self) -> tuple[float, BlockKey] | None:
        """The candidate that would go next, and its rank."""
        while self._heap:
            rank, _, arrival, key = self._heap[0]
            if self._live.get(key) == (rank, arrival):
                return rank, key
            heapq.heappop(self._heap)
        return None

    def pop(self) -> tuple[float, BlockKey] | None:
        """Take the next candidate out."""
        found = self.first()
        if found is not None:
            heapq.heappop(self._heap)
            del self._live[found[1]]
        return found
