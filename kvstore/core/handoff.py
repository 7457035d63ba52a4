"""Which handoffs are kept, and for whom: exact caches of stopped requests, each for one other worker, for seconds.

Decides and holds no byte: `store/handoffs.py` does what is said here. Room is counted from the admission until the
bytes are of no use to anybody: while they come in, while they wait, while they are sent. Nothing is pushed out for
a new one: who waits for a handoff would find it gone, and who is refused goes on with an ordinary miss.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple


class Name(NamedTuple):
    """Two namespaces never share one, whatever their keys are."""

    namespace: bytes
    key: bytes  # `prefix.handoff_key`


class Stage(Enum):
    FILLING = "filling"
    KEPT = "kept"
    TAKEN = "taken"
    GONE = "gone"


@dataclass(slots=True, eq=False)
class Handoff:
    """One handoff's room, from its admission to its end."""

    name: Name
    room_bytes: int
    ttl_seconds: float
    stage: Stage = Stage.FILLING
    expires: float = field(default=0.0)  # set when its last byte is there


class Handoffs:
    """All handoffs of a store, at most `capacity_bytes` of room at once. Time comes in as `now`, seconds."""

    def __init__(self, capacity_bytes: int) -> None:
        self.capacity_bytes = capacity_bytes
        self.used_bytes = 0
        self._kept: dict[Name, Handoff] = {}
        self._expiry: list[tuple[float, int, Handoff]] = []
        self._admitted = 0  # orders handoffs that expire together

    @property
    def count(self) -> int:
        """Those that could be taken."""
        return len(self._kept)

    def admit(self, name: Name, room_bytes: int, ttl_seconds: float, now: float) -> Handoff | None:
        """Room for one more, to be filled; None where there is none. Call `expire` before."""
        if room_bytes > self.capacity_bytes - self.used_bytes:
            return None
        self.used_bytes += room_bytes
        return Handoff(name, room_bytes, ttl_seconds)

    def filled(self, handoff: Handoff, now: float) -> Handoff | None:
        """It can be taken from now on. One of the same name makes way, and is returned: the latest is the one meant."""
        assert handoff.stage is Stage.FILLING
        before = self._kept.get(handoff.name)
        if before is not None:
            self.end(before)
        handoff.stage = Stage.KEPT
        handoff.expires = now + handoff.ttl_seconds
        self._kept[handoff.name] = handoff
        self._admitted += 1
        heapq.heappush(self._expiry, (handoff.expires, self._admitted, handoff))
        return before

    def take(self, name: Name, now: float) -> Handoff | None:
        """Give it to the one reader who gets it; its room is in use until `end`. None: none, expired, or taken."""
        handoff = self._kept.get(name)
        if handoff is None or handoff.expires <= now:
            return None
        del self._kept[name]
        handoff.stage = Stage.TAKEN
        return handoff

    def end(self, handoff: Handoff) -> None:
        """Its room is free: it was sent, given up while it was filled, or is of no use. Harmless when done twice."""
        if handoff.stage is Stage.GONE:
            return
        if handoff.stage is Stage.KEPT:
            del self._kept[handoff.name]
        handoff.stage = Stage.GONE
        self.used_bytes -= handoff.room_bytes

    def expire(self, now: float) -> list[Handoff]:
        """End those that nobody came for in time, and return them."""
        ended = []
        while self._expiry and self._expiry[0][0] <= now:
            handoff = heapq.heappop(self._expiry)[2]
            if handoff.stage is Stage.KEPT:
                self.end(handoff)
                ended.append(handoff)
        return ended
