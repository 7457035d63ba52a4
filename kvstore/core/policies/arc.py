"""ARC (Megiddo and Modha, FAST 2003): recency and frequency share the room, and what went too soon moves the border.

New objects are in the first queue (T1), those used again in the second (T2), each in the order of their last use. Keys
of what went are remembered for each (B1, B2). One that comes back from B1 gives T1 more room, one from B2 gives T2
more, by its own bytes, times the ratio of the two directories where the other is larger.

Room is made before the object that needs it is announced, so the border moves one eviction later than in the paper.
Leaf-first order: a queue's end is the coldest leaf in it; what an object of T2 stands on is of T2, too.
"""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.policies.remembered import Remembered
from kvstore.core.policies.two_queues import Kept, TwoQueues


class ARC:
    """Evict the least recent of what was used once or of what was used again, as the traffic asks."""

    name = "arc"

    def order(self, capacity_bytes: int) -> ArcOrder:
        return ArcOrder(capacity_bytes)


class ArcOrder(TwoQueues):
    def __init__(self, capacity_bytes: int) -> None:
        super().__init__()
        self._capacity = capacity_bytes
        self._first_share = 0.0  # bytes that T1 should have: the paper's p
        self._gone = (Remembered(capacity_bytes), Remembered(2 * capacity_bytes))

    def admitted(self, entry: Entry) -> None:
        once, again = self._gone
        key, nbytes = entry.facts.key, entry.facts.raw_bytes
        comes_back = key in once or key in again
        if key in once:
            self._first_share += nbytes * max(1.0, again.nbytes / once.nbytes)
        elif key in again:
            self._first_share -= nbytes * max(1.0, once.nbytes / again.nbytes)
        # an owner that has a part of the tier moves its border within that part
        most = min(self._capacity, sum(self._bytes) + nbytes)
        self._first_share = min(max(self._first_share, 0.0), most)
        once.take(key)
        again.take(key)
        self.put(entry, False, entry.last_used)
        if comes_back:
            self.prove(entry, entry.last_used)
        while len(once) and self._bytes[0] + once.nbytes > self._capacity:
            once.forget_oldest()
        while len(again) and sum(self._bytes) + once.nbytes + again.nbytes > 2 * self._capacity:
            again.forget_oldest()

    def used(self, entry: Entry) -> None:
        kept = self._kept.get(entry.facts.key)
        if kept is not None and not kept.is_second:
            self.prove(entry, entry.last_used)

    def next_queue(self) -> int:
        return 0 if self._bytes[0] > self._first_share else 1

    def left(self, kept: Kept, nbytes: int) -> None:
        self._gone[kept.is_second].add(kept.entry.facts.key, kept.nbytes, kept.place)
