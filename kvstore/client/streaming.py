"""One put over gRPC: Reserve, stream what is wanted. The way for workers on other hosts, and when there is no staging.

The writer's thread.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import TypeVar

from kvstore.client.jobs import PutJob, SummedPut
from kvstore.client.link import Link, Session
from kvstore.client.putting import put_frames
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.reserve import PutStatus, ReserveStatus
from kvstore.rpc.enums import PUT_STATUS, RESERVE_STATUS
from kvstore.rpc.generated import kvstore_pb2 as pb

WAITED_SECONDS = 1.0  # a Reserve that took longer was waiting for room; the store does so for two
GIVE_UP_SECONDS = 1.0  # for the Commit that ends a failed upload's reservation

Wire = TypeVar("Wire")
Core = TypeVar("Core")


def stream(link: Link, session: Session, job: PutJob, put: SummedPut, deadline: float) -> int:
    """The reservation that holds the put, left open. Raises StoreUnavailable, HelloAgain."""
    if put.root != session.root:
        raise StoreUnavailable("the namespace has another root since this was put")
    while True:
        asked = link.deadline(0)
        reservation, statuses = reserve(link, session, put, deadline)
        wanted = [index for index, status in enumerate(statuses) if status is ReserveStatus.WANTED]
        if wanted:
            try:
                _send(link, session, job, reservation, wanted, deadline)
            except StoreUnavailable:
                _give_up(link, session, reservation)
                raise
        # Room ran out half-way: the first part must be there before it can leave the host for the second. Or there
        # is none yet: a store that kept us waiting is copying to disk, one that would not be answers at once.
        is_worth_asking = wanted or link.deadline(0) - asked >= WAITED_SECONDS
        if ReserveStatus.NO_ROOM not in statuses or not is_worth_asking:
            break
        link.call(link.calls.commit, commit_of(session, reservation, durable=False), deadline)
        link.counters.add("puts_continued")
    for status in statuses:
        if status is not ReserveStatus.WANTED:
            count_refused(link, status)
    return reservation


def reserve(link: Link, session: Session, put: SummedPut, deadline: float) -> tuple[int, list[ReserveStatus]]:
    request = put.request(session.namespace, link.worker_id)
    answer = link.call(link.calls.reserve, request, deadline)
    link.same_epoch(session, answer.boot_epoch)
    if len(answer.statuses) != len(request.objects):
        raise link.failure(InvalidInput("the store answered for other objects than were announced"))
    return answer.reservation, [to_core(link, RESERVE_STATUS.to_core, value) for value in answer.statuses]


def commit_of(session: Session, reservation: int, *, durable: bool) -> pb.CommitRequest:
    return pb.CommitRequest(
        namespace_id=session.namespace, boot_epoch=session.boot_epoch, reservation=reservation, durable=durable
    )


def to_core(link: Link, convert: Callable[[Wire], Core], value: Wire) -> Core:
    """An enum of an answer; one that is none is the store's failure."""
    try:
        return convert(value)
    except InvalidInput as error:
        raise link.failure(error) from error


def count_refused(link: Link, status: ReserveStatus) -> None:
    link.counters.add(f"objects_{status.value.replace(' ', '_')}")


def count_sent(link: Link, outcome: PutStatus, nbytes: int) -> None:
    link.counters.add(f"objects_{outcome.value}")
    if outcome is PutStatus.STORED:
        link.counters.add("put_bytes", nbytes)


def _send(link: Link, session: Session, job: PutJob, reservation: int, wanted: list[int], deadline: float) -> None:
    header = pb.PutHeader(
        namespace_id=session.namespace,
        boot_epoch=session.boot_epoch,
        reservation=reservation,
        objects=wanted,
    )
    frames = put_frames(header, [job.bytes_of(job.pieces[index]) for index in wanted], session.chunk_bytes)
    answer = link.call(link.calls.put, frames, deadline)
    if len(answer.statuses) != len(wanted):
        raise link.failure(InvalidInput("the store answered for other objects than were put"))
    for index, value in zip(wanted, answer.statuses, strict=True):
        count_sent(link, to_core(link, PUT_STATUS.to_core, value), job.pieces[index].length)


def _give_up(link: Link, session: Session, reservation: int) -> None:
    """The store keeps room for what was announced: a Commit gives it back at once, else it waits a minute."""
    with contextlib.suppress(StoreUnavailable, HelloAgain):
        if link.session is session:  # else the store is away, or it has forgotten the reservation
            deadline = link.deadline(GIVE_UP_SECONDS)
            link.call(link.calls.commit, commit_of(session, reservation, durable=False), deadline)
