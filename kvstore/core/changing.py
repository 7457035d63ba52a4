"""A changeover from one policy to another while objects are there: two orders that look like one.

What was moved or admitted since the change is in the new order, the rest in the old one, and no object is in both. The
victim is the one of the two firsts that was used longest ago: that is all that two policies have in common. So nothing
is forgotten and room is made at every moment, by the old order's knowledge where the new one has none yet.

A change during a change puts the one in the other: what the first had not moved yet moves once, to the last.
"""

from __future__ import annotations

from collections.abc import Callable

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.policy import Order

# An entry counts its uses, an order is told of each: of so many an order that was not there is told at once. S3-FIFO
# and hazard count no further; where every use counts (LFU, GDSF) the ageing makes up for what an old object had more.
MOST_USES_TOLD = 3


class Changing:
    """An `Order` over `old` and `new`; `last_used(key)` is asked of candidates, in seconds."""

    def __init__(self, old: Order, new: Order, last_used: Callable[[BlockKey], float]) -> None:
        self.old, self.new = old, new
        self._last_used = last_used
        self._moved: set[BlockKey] = set()  # everything in the new order, candidate or not

    def move(self, entry: Entry, nbytes: int) -> None:
        """From the old order to the new, where it is not there already. The caller offers it again where it may go."""
        key = entry.facts.key
        if key in self._moved:
            return
        self.old.withdraw(key)
        self.old.removed(entry, nbytes)  # else it counted in what the old order compares, its queues' bytes
        self.admitted(entry)
        for _ in range(min(entry.uses, MOST_USES_TOLD)):
            self.new.used(entry)

    def admitted(self, entry: Entry) -> None:
        self._moved.add(entry.facts.key)
        self.new.admitted(entry)

    def used(self, entry: Entry) -> None:
        self._order_of(entry.facts.key).used(entry)

    def offer(self, entry: Entry, last_used: float) -> None:
        self._order_of(entry.facts.key).offer(entry, last_used)

    def withdraw(self, key: BlockKey) -> None:
        self._order_of(key).withdraw(key)

    def removed(self, entry: Entry, nbytes: int) -> None:
        self._order_of(entry.facts.key).removed(entry, nbytes)
        self._moved.discard(entry.facts.key)

    def first(self) -> BlockKey | None:
        return self._next()[1]

    def pop(self) -> BlockKey | None:
        order, _ = self._next()
        return order.pop()

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._order_of(key)

    def __len__(self) -> int:
        return len(self.old) + len(self.new)

    def _order_of(self, key: BlockKey) -> Order:
        return self.new if key in self._moved else self.old

    def _next(self) -> tuple[Order, BlockKey | None]:
        """The order that gives the next victim, and which it is. Of equally old ones the old order's goes."""
        before, since = self.old.first(), self.new.first()
        if before is None or (since is not None and self._last_used(since) < self._last_used(before)):
            return self.new, since
        return self.old, before
