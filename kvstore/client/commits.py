"""Several queued puts in one call: the daemon copies them out of the staging region. The writer's thread.

The region is part of an attachment (lanes.py) and ends with it. No answer to a Commit means that the daemon may still
be reading the region: it is retired and the attachment given up. The daemon gives an attachment the same memory however
often it is asked, so memory that was retired is known again and not used: queued puts may lie in it yet.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.client.jobs import PutJob
from kvstore.client.lanes import LaneRefused, Lanes, LanesBusy, NoLane
from kvstore.client.link import Link, Session
from kvstore.client.staging import Staging
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.keys import CHECKSUM_BYTES
from kvstore.core.reserve import PutStatus, ReserveStatus
from kvstore.rpc.convert import chain_to_wire, hints_to_wire
from kvstore.rpc.enums import PUT_STATUS, RESERVE_STATUS
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import STAGING

log = logging.getLogger("kvstore.client")

ASK_SECONDS = 2.0  # for a region: the daemon has the kernel zero it, some 0.3 s a GiB
ASK_AGAIN_SECONDS = 5.0  # after it was refused


class Committed(NamedTuple):
    """What became of one job; statuses, outcomes (None: not wanted) and checksums go by its pieces."""

    reservation: int
    statuses: tuple[ReserveStatus, ...]
    outcomes: tuple[PutStatus | None, ...]
    contents: bytes


class Commits:
    """The region that there is at a time, and Commits out of it."""

    def __init__(self, link: Link, staging_bytes: int) -> None:
        self._link, self._staging_bytes = link, staging_bytes
        self._lanes: Lanes | None = None  # the attachment that was asked for a region
        self._staging: Staging | None = None
        self._spent: set[tuple[int, int]] = set()  # identities of regions that were retired
        self._ask_at = 0.0  # on time.monotonic

    @property
    def staging(self) -> Staging | None:
        """The region, once a put may use it. Any thread."""
        staging = self._staging
        return staging if staging is not None and staging.is_ready and not staging.is_retired else None

    @property
    def is_preparing(self) -> bool:
        """Whether `prepare` has something to do at once."""
        staging = self._staging
        return self._link.attaching.lanes is not self._lanes or (staging is not None and not staging.is_ready)

    def prepare(self) -> None:
        """Get a region of this attachment, or touch the next part of it."""
        lanes = self._link.attaching.lanes
        if lanes is not self._lanes:
            self._drop()
            self._lanes, self._ask_at = lanes, 0.0
        if lanes is None:
            return
        if self._staging is None and time.monotonic() >= self._ask_at:
            self._staging = self._ask(lanes)
        elif self._staging is not None and not self._staging.is_ready:
            self._staging.populate()

    def commit(self, session: Session, jobs: Sequence[PutJob], deadline: float) -> list[Committed] | None:
        """Have the daemon store these jobs, which lie in the region. One without a lineage follows one of them.

        None where that was not done, or may not have been: the jobs' bytes are still there to be sent another way.
        """
        lanes, staging = self._lanes, self.staging
        is_ours = all(job.extent is not None and job.extent.staging is staging for job in jobs)
        is_here = lanes is not None and lanes is self._link.attaching.lanes and lanes.boot_epoch == session.boot_epoch
        seconds = self._link.left(deadline)
        if lanes is None or staging is None or not is_ours or not is_here or seconds <= 0:
            return None
        request = pb.CommitRequest(
            namespace_id=session.namespace, boot_epoch=session.boot_epoch, staged=[_to_wire(job) for job in jobs]
        )
        self._link.counters.add("staged_commits")
        try:
            answer = lanes.call("Commit", request, pb.CommitResponse, time.monotonic() + seconds)
            self._link.same_epoch(session, answer.boot_epoch)
            return _from_wire(answer, jobs)
        except LanesBusy:
            self._link.counters.add("staged_no_lane")
        except LaneRefused as refused:
            self._link.failure(refused)
            self._link.counters.add("staged_refused")
            if not isinstance(refused.error, StoreUnavailable):  # not just busy: the region may be gone
                log.warning("kvstore: a Commit of staged objects was refused (%s); puts are streamed", refused)
                self._drop()
        except (NoLane, TimeoutError, InvalidInput, HelloAgain) as error:
            if isinstance(error, TimeoutError | InvalidInput):
                self._link.failure(error)
            self._link.counters.add("staged_unanswered")
            log.warning("kvstore: no answer to a Commit of staged objects (%s); attaching anew", error)
            self._drop()
            lanes.close()
        return None

    def _ask(self, lanes: Lanes) -> Staging | None:
        self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
        request = pb.StagingRequest(nbytes=self._staging_bytes)
        try:
            answer, fd = lanes.fetch_fd(STAGING, request, pb.StagingResponse, time.monotonic() + ASK_SECONDS)
            try:
                staging = Staging(fd, answer.nbytes)
            finally:
                os.close(fd)
            if staging.identity in self._spent:
                raise InvalidInput("the daemon gives memory that may still be in use")
        except (NoLane, LaneRefused, TimeoutError, InvalidInput, OSError) as error:
            self._link.counters.add("staging_refused")
            log.info("kvstore: no staging region (%s); puts are streamed", error)
            return None
        self._link.counters.add("staging_regions")
        return staging

    def _drop(self) -> None:
        if self._staging is not None:
            self._staging.retire()
            self._spent.add(self._staging.identity)
        self._staging = None


def _to_wire(job: PutJob) -> pb.StagedPut:
    assert job.extent is not None
    return pb.StagedPut(
        chain=chain_to_wire(job.chain),
        lineage=job.lineage or b"",
        blocks=[piece.block for piece in job.pieces],
        groups=[piece.group for piece in job.pieces],
        offsets=[job.extent.start + piece.start for piece in job.pieces],
        hints=hints_to_wire(job.hints),
    )


def _from_wire(answer: pb.CommitResponse, jobs: Sequence[PutJob]) -> list[Committed]:
    """Raises InvalidInput for an answer to something else."""
    if len(answer.staged) != len(jobs):
        raise InvalidInput(f"the store answered for {len(answer.staged)} of {len(jobs)} staged puts")
    committed = []
    for job, result in zip(jobs, answer.staged, strict=True):
        count = len(job.pieces)
        sizes = (len(result.statuses), len(result.outcomes), len(result.contents) // CHECKSUM_BYTES)
        if sizes != (count, count, count) or len(result.contents) % CHECKSUM_BYTES:
            raise InvalidInput(f"the store answered for {sizes} of {count} staged objects")
        committed.append(
            Committed(
                result.reservation,
                tuple(RESERVE_STATUS.to_core(value) for value in result.statuses),
                tuple(PUT_STATUS.to_core(value) if value else None for value in result.outcomes),
                result.contents,
            )
        )
    return committed
