"""An order from a rank: candidates in a heap, lowest rank first. What a policy without queues of its own needs."""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.order import Heap


class RankedOrder:
    """`rank(entry, last_used)` is asked when an object is offered; it must be pure."""

    def __init__(self, rank: Callable[[Entry, float], float]) -> None:
        self._rank = rank
        self._heap = Heap()
        self.withdraw = self._heap.discard  # asked at each use of each object: no call in between

    def admitted(self, entry: Entry) -> None:
        """A rank needs no history but the entry's."""

    def used(self, entry: Entry) -> None:
        """The offer that follows says it."""

    def offer(self, entry: Entry, last_used: float) -> None:
        self._heap.add(entry.facts.key, self._rank(entry, last_used))

    def removed(self, entry: Entry, nbytes: int) -> None:
        """A rank needs no history but the entry's."""

    def first(self) -> BlockKey | None:
        found = self._heap.first()
        return None if found is None else found[1]

    def pop(self) -> BlockKey | None:
        found = self._heap.pop()
        return None if found is None else found[1]

    def ahead_of(self, key: BlockKey) -> int:
        """Candidates that go before this one, for whoever asks why (`core/explain.py`)."""
        return self._heap.ahead_of(key)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._heap

    def __len__(self) -> int:
        return len(self._heap)
