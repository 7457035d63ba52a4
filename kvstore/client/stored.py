"""Puts that the store has, and whether they are on disk: what a flush asks for. The writer's thread.

A reservation is kept open for a moment after its bytes are there, so that a flush that follows can ask for
durability with the Commit that ends it. Later than that, a durable flush reserves the same objects again: they exist,
and the second Commit tells whether they are on disk.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

from kvstore.client.jobs import SummedPut
from kvstore.client.link import Link, Session
from kvstore.client.streaming import commit_of, reserve, to_core
from kvstore.core.errors import StoreUnavailable
from kvstore.core.reserve import Durability
from kvstore.rpc.enums import DURABILITY

HOLD_SECONDS = 0.5  # far below the daemon's lease_seconds, after which it gives a reservation up
REMEMBERED_PUTS = 256  # whose durability a later flush can still ask for


@dataclass(slots=True)
class Stored:
    """One put whose bytes the store has, or had already."""

    put: SummedPut
    reservation: tuple[int, int] | None  # id and boot epoch while it is open
    since: float


class StoredPuts:
    """Not known to be durable yet, oldest first; bounded."""

    def __init__(self, link: Link, put_seconds: float) -> None:
        self._link, self._put_seconds = link, put_seconds
        self._stored: deque[Stored] = deque()
        self._has_failed = False  # a put since the last flush got no answer
        self._has_forgotten = False  # a put since the last durable flush is no longer among `_stored`

    def failed(self) -> None:
        """A put was given up."""
        self._has_failed = True

    def remember(self, put: SummedPut, reservation: int, session: Session) -> None:
        self._stored.append(Stored(put, (reservation, session.boot_epoch), self._link.deadline(0)))
        if len(self._stored) > REMEMBERED_PUTS:
            oldest = self._stored.popleft()
            if oldest.reservation is not None:
                self._settle(oldest, durable=False, deadline=self._link.deadline(self._put_seconds))
            self._has_forgotten = True

    def commit_old(self, *, all_of_them: bool = False) -> None:
        """End the reservations that no flush came for."""
        before = self._link.deadline(0) - HOLD_SECONDS
        for stored in self._stored:
            if stored.reservation is not None and (all_of_them or stored.since <= before):
                self._settle(stored, durable=False, deadline=self._link.deadline(self._put_seconds))

    @property
    def has_open_reservations(self) -> bool:
        return bool(self._stored) and self._stored[-1].reservation is not None

    def flush(self, durable: bool, deadline: float) -> bool:
        """True if every put since the last flush was answered and, with `durable`, all its objects are on disk."""
        answered, self._has_failed = not self._has_failed, False
        if not durable:
            self.commit_old(all_of_them=True)
            return answered
        on_disk, self._has_forgotten = not self._has_forgotten, False
        while self._stored:
            settled = self._settle(self._stored[0], durable=True, deadline=deadline)
            if settled is None:
                self._has_failed = True
                return False
            self._stored.popleft()
            on_disk = on_disk and settled
        return answered and on_disk

    def _settle(self, stored: Stored, *, durable: bool, deadline: float) -> bool | None:
        """Commit one put: whether all of it is on disk; None when there was no answer."""
        try:
            return self._link.with_session(
                lambda session: self._commit(session, stored, durable=durable, deadline=deadline), deadline
            )
        except StoreUnavailable:
            stored.reservation = None
            self._link.counters.add("commits_failed")
            return None

    def _commit(self, session: Session, stored: Stored, *, durable: bool, deadline: float) -> bool:
        if stored.reservation is None or stored.reservation[1] != session.boot_epoch:
            if stored.put.root != session.root:
                return False
            reservation, _ = reserve(self._link, session, stored.put, deadline)
        else:
            reservation = stored.reservation[0]
        stored.reservation = None
        answer = self._link.call(self._link.calls.commit, commit_of(session, reservation, durable=durable), deadline)
        levels = [to_core(self._link, DURABILITY.to_core, value) for value in answer.durabilities]
        return len(levels) == len(stored.put.pieces) and all(level is Durability.DISK for level in levels)
