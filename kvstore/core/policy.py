"""What an eviction policy is: an order of candidates. Space, leases, pins and quotas are the planner's alone.

For each owner in each tier the planner keeps one `Order` of the policy's making and tells it of every object there.
It offers only objects that may go: leaves of their tier, neither leased nor pinned nor in use. When the last child of
an object goes, the object is offered as if it had been used when the child was: a parent cannot be colder than what
it was needed for.

A new policy is one file in `policies/`, one line in `policies/__init__.py` and one test.
"""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey


class Order(Protocol):
    """The objects of one owner in one tier. Pure: no clock, no random, no state outside itself.

    What an order wants to know of an object it reads from the entry (`facts`, `last_used`, `uses`, `turn`, `node`)
    and never changes it; `last_used` is the time of the event it is told of, in seconds.
    """

    def admitted(self, entry: Entry) -> None:
        """The object got a copy here. Also again after it was evicted: an order may remember keys of what went."""

    def used(self, entry: Entry) -> None:
        """A request used it. What lies above it in its chain was used with it and is not told of."""

    def offer(self, entry: Entry, last_used: float) -> None:
        """It may go now, or its rank may have changed. `last_used` counts its states and what stood on it."""

    def withdraw(self, key: BlockKey) -> None:
        """It may not go now; told also of objects that were not offered."""

    def removed(self, entry: Entry, nbytes: int) -> None:
        """Its copy of so many bytes left: evicted, expired or lost."""

    def first(self) -> BlockKey | None:
        """Which candidate would go next; changes nothing that is not lazily kept."""

    def pop(self) -> BlockKey | None:
        """Take the next victim out of the candidates. `removed` follows, or `offer` where it may stay after all."""

    def __contains__(self, key: BlockKey) -> bool: ...

    def __len__(self) -> int:
        """Candidates."""


@runtime_checkable
class Placed(Protocol):
    """An order that can say how many candidates go before one of them, in time linear in all."""

    def ahead_of(self, key: BlockKey) -> int | None:
        """None where it turns out that it cannot."""


class Policy(Protocol):
    """Makes orders."""

    name: str

    def order(self, capacity_bytes: int) -> Order:
        """For an owner in a tier of this size. Orders share nothing unless the policy says so."""
