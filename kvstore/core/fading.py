"""What fades goes first, whatever the policy thinks of it: an order in front of the policy's.

An object fades when it is known that little will be lost with it (`Room.fade`): a state that a later one of the same
chain made superfluous, or one that was taken only because there was room for it. One use, and it is the policy's again.
"""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.order import Heap
from kvstore.core.policy import Order, Placed


class FadingFirst:
    """An `Order`: fading candidates by their last use, then those of `order`."""

    def __init__(self, order: Order) -> None:
        self.order = order
        self._fading = Heap()
        self.admitted = order.admitted  # the policy hears of all objects, fading or not
        self.used = order.used
        self.removed = order.removed

    def offer(self, entry: Entry, last_used: float) -> None:
        key = entry.facts.key
        if entry.is_fading:
            self.order.withdraw(key)
            self._fading.add(key, last_used)
            return
        if key in self._fading:
            self._fading.discard(key)
        self.order.offer(entry, last_used)

    def withdraw(self, key: BlockKey) -> None:
        if key in self._fading:
            self._fading.discard(key)
        self.order.withdraw(key)

    def first(self) -> BlockKey | None:
        found = self._fading.first()
        return self.order.first() if found is None else found[1]

    def pop(self) -> BlockKey | None:
        found = self._fading.pop()
        return self.order.pop() if found is None else found[1]

    def ahead_of(self, key: BlockKey) -> int | None:
        """Candidates that go before this one; None where the policy cannot tell."""
        if key in self._fading:
            return self._fading.ahead_of(key)
        ahead = self.order.ahead_of(key) if isinstance(self.order, Placed) else None
        return None if ahead is None else len(self._fading) + ahead

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._fading or key in self.order

    def __len__(self) -> int:
        return len(self._fading) + len(self.order)
