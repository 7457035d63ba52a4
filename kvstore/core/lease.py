"""Leases and pins: promises that copies stay readable.

A lease is held by a worker for seconds and expires; a pin is set by an operator or an API, has a TTL and a byte
bound. Both hold a few anchors, the deepest objects; ancestors are held by the leaf-first rule.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass

from kvstore.core.index import Entry


@dataclass(slots=True)
class Lease:
    number: int
    owner: bytes  # worker id, 16 bytes
    expires: float
    anchors: tuple[Entry, ...]
    rows: Entry  # the deepest rows of the plan
    states: tuple[Entry, ...] = ()  # the plan's
    flow: int = 0  # of the copies that were started for it (`Copy.flow`)


@dataclass(slots=True)
class Pin:
    number: int
    expires: float
    anchors: tuple[Entry, ...]
    tokens: int
    nbytes: int  # raw bytes of rows and state that this pin holds


class Leases:
    """All leases and pins, by number, with their expiry."""

    def __init__(self) -> None:
        self._leases: dict[int, Lease] = {}
        self._owned: dict[bytes, set[int]] = {}
        self._pins: dict[int, Pin] = {}
        self._expiry: list[tuple[float, int]] = []
        self._last_number = 0

    def lease(self, owner: bytes, rows: Entry, hot: Entry | None, states: tuple[Entry, ...], expires: float) -> Lease:
        """Hold a plan's deepest rows, the deepest of them that are hot, and its states."""
        anchors = tuple(dict.fromkeys(entry for entry in (rows, hot, *states) if entry is not None))
        lease = Lease(self._next(expires), owner, expires, anchors, rows, states)
        self._leases[lease.number] = lease
        self._owned.setdefault(owner, set()).add(lease.number)
        for entry in anchors:
            entry.leases += 1
        return lease

    def hold_too(self, lease: Lease, entry: Entry) -> None:
        """A lease holds one more object: rows that became hot since."""
        if entry not in lease.anchors:
            lease.anchors = (*lease.anchors, entry)
            entry.leases += 1

    def owned(self, owner: bytes) -> tuple[int, ...]:
        """Numbers of a worker's leases."""
        return tuple(self._owned.get(owner, ()))

    def pin(self, anchors: tuple[Entry, ...], expires: float, tokens: int, nbytes: int) -> Pin:
        pin = Pin(self._next(expires), expires, anchors, tokens, nbytes)
        self._pins[pin.number] = pin
        for entry in anchors:
            entry.pins += 1
        return pin

    def find(self, number: int) -> Lease | None:
        return self._leases.get(number)

    def release(self, number: int) -> tuple[Entry, ...]:
        """End a lease; its anchors, to be reviewed. Nothing for a lease that is over."""
        lease = self._leases.pop(number, None)
        if lease is None:
            return ()
        owned = self._owned[lease.owner]
        owned.discard(number)
        if not owned:
            del self._owned[lease.owner]
        for entry in lease.anchors:
            entry.leases -= 1
        return lease.anchors

    def unpin(self, number: int) -> tuple[Entry, ...]:
        pin = self._pins.pop(number, None)
        if pin is None:
            return ()
        for entry in pin.anchors:
            entry.pins -= 1
        return pin.anchors

    def expire(self, now: float) -> list[Entry]:
        """End what is due; the anchors, to be reviewed."""
        ended: list[Entry] = []
        while self._expiry and self._expiry[0][0] <= now:
            _, number = heapq.heappop(self._expiry)
            ended += self.release(number)
            ended += self.unpin(number)
        return ended

    def all_anchors(self) -> Iterator[tuple[Entry, bool]]:
        """Every anchor with whether it is a pin's; for `check()`."""
        for lease in self._leases.values():
            yield from ((entry, False) for entry in lease.anchors)
        for pin in self._pins.values():
            yield from ((entry, True) for entry in pin.anchors)

    @property
    def lease_count(self) -> int:
        return len(self._leases)

    @property
    def pin_count(self) -> int:
        return len(self._pins)

    @property
    def pinned_bytes(self) -> int:
        return sum(pin.nbytes for pin in self._pins.values())

    def _next(self, expires: float) -> int:
        self._last_number += 1
        heapq.heappush(self._expiry, (expires, self._last_number))
        return self._last_number
