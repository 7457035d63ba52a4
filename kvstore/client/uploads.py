"""One put on the wire: Reserve, Put what is wanted, Commit. Runs in the client's own thread.

A reservation is kept open for a moment after its bytes are there, so that a flush that follows can ask for
durability with the Commit that ends it. Later than that, a durable flush reserves the same objects again: they exist,
and the second Commit tells whether they are on disk.
"""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from kvstore.client.link import Link, Session
from kvstore.client.putting import PutJob, put_frames
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.reserve import Durability, PutStatus, ReserveStatus
from kvstore.rpc.convert import chain_to_wire, hints_to_wire, specs_to_wire
from kvstore.rpc.enums import DURABILITY, PUT_STATUS, RESERVE_STATUS
from kvstore.rpc.generated import kvstore_pb2 as pb

HOLD_SECONDS = 0.5  # far below the daemon's lease_seconds, after which it gives a reservation up
WAITED_SECONDS = 1.0  # a Reserve that took longer was waiting for room; the store does so for two
GIVE_UP_SECONDS = 1.0  # for the Commit that ends a failed upload's reservation
REMEMBERED_PUTS = 256  # whose durability a later flush can still ask for


Wire = TypeVar("Wire")
Core = TypeVar("Core")


@dataclass(slots=True)
class Uploaded:
    """One put whose bytes the store has, or had already."""

    request: pb.ReserveRequest
    root: bytes
    reservation: tuple[int, int] | None  # id and boot epoch while it is open
    since: float


class Uploads:
    """Sends puts and settles their durability. One thread."""

    def __init__(self, link: Link, put_seconds: float) -> None:
        self._link, self._put_seconds = link, put_seconds
        self._uploaded: deque[Uploaded] = deque()  # not known to be durable, oldest first
        self._has_failed = False  # a put since the last flush got no answer
        self._has_forgotten = False  # a put since the last durable flush is no longer among `_uploaded`

    def upload(self, job: PutJob) -> None:
        deadline = self._link.deadline(self._put_seconds)
        try:
            self._link.with_session(lambda session: self._upload(session, job, deadline), deadline)
        except StoreUnavailable:
            self._link.counters.add("puts_failed")
            self._has_failed = True

    def _upload(self, session: Session, job: PutJob, deadline: float) -> None:
        if job.root != session.root:
            raise StoreUnavailable("the namespace has another root since this was put")
        request = pb.ReserveRequest(
            namespace_id=session.namespace,
            worker_id=self._link.worker_id,
            chain=chain_to_wire(job.chain),
            lineage=job.lineage,
            objects=specs_to_wire(job.specs),
            hints=hints_to_wire(job.hints),
        )
        while True:
            asked = self._link.deadline(0)
            reservation, statuses = self._reserve(session, request, deadline)
            wanted = [index for index, status in enumerate(statuses) if status is ReserveStatus.WANTED]
            if wanted:
                try:
                    self._send(session, job, reservation, wanted, deadline)
                except StoreUnavailable:
                    self._give_up(session, reservation)
                    raise
            # Room ran out half-way: the first part must be there before it can leave the host for the second. Or there
            # is none yet: a store that kept us waiting is copying to disk, one that would not be answers at once.
            is_worth_asking = wanted or self._link.deadline(0) - asked >= WAITED_SECONDS
            if ReserveStatus.NO_ROOM not in statuses or not is_worth_asking:
                break
            self._link.call(self._link.calls.commit, _commit_of(session, reservation, durable=False), deadline)
            self._link.counters.add("puts_continued")
        for status in statuses:
            if status is not ReserveStatus.WANTED:
                self._link.counters.add(f"objects_{status.value.replace(' ', '_')}")
        self._link.counters.add("puts")
        self._remember(Uploaded(request, job.root, (reservation, session.boot_epoch), self._link.deadline(0)))

    def _send(self, session: Session, job: PutJob, reservation: int, wanted: list[int], deadline: float) -> None:
        header = pb.PutHeader(
            namespace_id=session.namespace,
            boot_epoch=session.boot_epoch,
            reservation=reservation,
            objects=wanted,
        )
        frames = put_frames(header, [job.objects[index] for index in wanted], session.chunk_bytes)
        answer = self._link.call(self._link.calls.put, frames, deadline)
        if len(answer.statuses) != len(wanted):
            raise self._link.failure(InvalidInput("the store answered for other objects than were put"))
        for index, value in zip(wanted, answer.statuses, strict=True):
            outcome = self._core(PUT_STATUS.to_core, value)
            self._link.counters.add(f"objects_{outcome.value}")
            if outcome is PutStatus.STORED:
                self._link.counters.add("put_bytes", job.specs[index].length)

    def _give_up(self, session: Session, reservation: int) -> None:
        """The store keeps room for what was announced: a Commit gives it back at once, else it waits a minute."""
        with contextlib.suppress(StoreUnavailable, HelloAgain):
            if self._link.session is session:  # else the store is away, or it has forgotten the reservation
                deadline = self._link.deadline(GIVE_UP_SECONDS)
                self._link.call(self._link.calls.commit, _commit_of(session, reservation, durable=False), deadline)

    def _reserve(
        self, session: Session, request: pb.ReserveRequest, deadline: float
    ) -> tuple[int, list[ReserveStatus]]:
        answer = self._link.call(self._link.calls.reserve, request, deadline)
        self._link.same_epoch(session, answer.boot_epoch)
        if len(answer.statuses) != len(request.objects):
            raise self._link.failure(InvalidInput("the store answered for other objects than were announced"))
        return answer.reservation, [self._core(RESERVE_STATUS.to_core, value) for value in answer.statuses]

    def commit_old(self, *, all_of_them: bool = False) -> None:
        """End the reservations that no flush came for."""
        before = self._link.deadline(0) - HOLD_SECONDS
        for uploaded in self._uploaded:
            if uploaded.reservation is not None and (all_of_them or uploaded.since <= before):
                self._settle(uploaded, durable=False, deadline=self._link.deadline(self._put_seconds))

    @property
    def has_open_reservations(self) -> bool:
        return bool(self._uploaded) and self._uploaded[-1].reservation is not None

    def flush(self, durable: bool, deadline: float) -> bool:
        """True if every put since the last flush was answered and, with `durable`, all its objects are on disk."""
        answered, self._has_failed = not self._has_failed, False
        if not durable:
            self.commit_old(all_of_them=True)
            return answered
        on_disk, self._has_forgotten = not self._has_forgotten, False
        while self._uploaded:
            settled = self._settle(self._uploaded[0], durable=True, deadline=deadline)
            if settled is None:
                self._has_failed = True
                return False
            self._uploaded.popleft()
            on_disk = on_disk and settled
        return answered and on_disk

    def _settle(self, uploaded: Uploaded, *, durable: bool, deadline: float) -> bool | None:
        """Commit one put: whether all of it is on disk; None when there was no answer."""
        try:
            return self._link.with_session(
                lambda session: self._commit(session, uploaded, durable=durable, deadline=deadline), deadline
            )
        except StoreUnavailable:
            uploaded.reservation = None
            self._link.counters.add("commits_failed")
            return None

    def _commit(self, session: Session, uploaded: Uploaded, *, durable: bool, deadline: float) -> bool:
        if uploaded.reservation is None or uploaded.reservation[1] != session.boot_epoch:
            if uploaded.root != session.root:
                return False
            reservation, _ = self._reserve(session, uploaded.request, deadline)
        else:
            reservation = uploaded.reservation[0]
        uploaded.reservation = None
        answer = self._link.call(self._link.calls.commit, _commit_of(session, reservation, durable=durable), deadline)
        levels = [self._core(DURABILITY.to_core, value) for value in answer.durabilities]
        return len(levels) == len(uploaded.request.objects) and all(level is Durability.DISK for level in levels)

    def _core(self, convert: Callable[[Wire], Core], value: Wire) -> Core:
        try:
            return convert(value)
        except InvalidInput as error:
            raise self._link.failure(error) from error

    def _remember(self, uploaded: Uploaded) -> None:
        self._uploaded.append(uploaded)
        if len(self._uploaded) > REMEMBERED_PUTS:
            oldest = self._uploaded.popleft()
            if oldest.reservation is not None:
                self._settle(oldest, durable=False, deadline=self._link.deadline(self._put_seconds))
            self._has_forgotten = True


def _commit_of(session: Session, reservation: int, *, durable: bool) -> pb.CommitRequest:
    return pb.CommitRequest(
        namespace_id=session.namespace, boot_epoch=session.boot_epoch, reservation=reservation, durable=durable
    )
