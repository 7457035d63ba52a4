"""How queued puts reach the store, in order: out of the staging region, copied into it in parts, or streamed.

Checksums and lineages become known here: the daemon makes them from what lies in the region, or they are made from
the bytes before these are streamed. One thread, the writer's.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import replace

from kvstore.client.commits import Commits, Committed
from kvstore.client.jobs import PutJob, SummedPut, cut, packed_bytes, part_of, summed
from kvstore.client.lineages import Lineages, positions
from kvstore.client.link import Link, Session
from kvstore.client.stored import StoredPuts
from kvstore.client.streaming import WAITED_SECONDS, commit_of, count_refused, count_sent, stream
from kvstore.core.errors import HelloAgain, StoreUnavailable
from kvstore.core.keys import LINEAGE_BYTES
from kvstore.core.reserve import PutStatus, ReserveStatus
from kvstore.rpc.limits import MAX_OBJECTS

BATCH_JOBS = 32  # in one Commit
BATCH_BYTES = 64 << 20  # some 20 ms of the daemon's copying, after which the first of them is settled
PART_BYTES = 16 << 20  # what is copied into the region at once of a put that was packed elsewhere


class Uploads:
    """Sends jobs, notes their lineages, gives their room in the staging region back."""

    def __init__(
        self, link: Link, lineages: Lineages, commits: Commits, stored: StoredPuts, put_seconds: float
    ) -> None:
        self._link, self._lineages, self._commits, self._stored = link, lineages, commits, stored
        self._put_seconds = put_seconds

    def goes_along(self, batch: Sequence[PutJob], job: PutJob) -> bool:
        """Whether this job may be uploaded together with those before it."""
        together = [*batch, job]
        return (
            len(together) <= BATCH_JOBS
            and all(self._is_staged(one) for one in together)
            and sum(one.nbytes for one in together) <= BATCH_BYTES
            and sum(len(one.pieces) for one in together) <= MAX_OBJECTS
        )

    def upload(self, batch: Sequence[PutJob]) -> None:
        """One job, or several that go along."""
        waiting = deque(batch)
        try:
            while waiting:
                deadline = self._link.deadline(self._put_seconds)
                lineage = waiting[0].lineage or self._lineages.certain(waiting[0].chain.parent)
                if lineage is None:
                    self._link.counters.add("puts_unknown_parent")
                    self._drop(waiting.popleft())
                    continue
                first = replace(waiting[0], lineage=lineage)
                if self._is_staged(first):
                    stored = self._commit(self._named([first, *list(waiting)[1:]]), deadline)
                    for _ in stored:
                        self._end(waiting.popleft())
                    if stored:
                        continue
                    left: PutJob | None = first
                else:
                    left = self._in_parts(first, deadline)
                if left is not None:
                    self._stream(left, deadline)
                self._end(waiting.popleft())
        finally:
            for job in waiting:  # a fault of ours: its room is needed all the same
                self._drop(job)

    def _drop(self, job: PutJob) -> None:
        """It goes nowhere, and its lineage stays unknown: so does that of puts that stand on it."""
        self._lineages.spoil(job.chain.hashes)
        self._stored.failed()
        self._end(job)

    def _end(self, job: PutJob) -> None:
        """Nothing of it is used any more."""
        self._lineages.settle(job.chain.hashes)
        if job.extent is not None:
            job.extent.give_back()

    def _is_staged(self, job: PutJob) -> bool:
        return job.extent is not None and job.extent.staging is self._commits.staging

    def _named(self, waiting: Sequence[PutJob]) -> list[PutJob]:
        """The first jobs, as far as it is certain what each of them stands on: a lineage, or one of those before it."""
        batch = [waiting[0]]
        held = Counter(positions(waiting[0].chain.hashes) if len(waiting) > 1 else ())
        for job in waiting[1:]:
            parent = job.chain.parent
            # what was loaded there, or put twice, may differ from what this job was computed on
            if job.lineage is None and (held[parent] > 1 or (held[parent] and self._lineages.is_noted(parent))):
                break
            if job.lineage is None and not held[parent]:
                lineage = self._lineages.certain(parent)
                if lineage is None:
                    break
                job = replace(job, lineage=lineage)
            batch.append(job)
            held.update(positions(job.chain.hashes))
        return batch

    def _commit(self, batch: Sequence[PutJob], deadline: float) -> list[SummedPut]:
        """Settle the first of these jobs, which lie in the region: what they were. None of them: they must be sent
        another way."""
        while True:
            asked = self._link.deadline(0)
            try:
                session = self._link.session
            except StoreUnavailable:
                return []
            is_known = all(job.root == session.root for job in batch)
            answers = self._commits.commit(session, batch, deadline) if is_known else None
            if answers is None:
                return []
            has_waited = self._link.deadline(0) - asked >= WAITED_SECONDS
            # as in streaming.py: where there is no room as yet the first part must be there before the rest can be
            cut_off = [
                ReserveStatus.NO_ROOM in answer.statuses and (has_waited or PutStatus.STORED in answer.outcomes)
                for answer in answers
            ]
            done = cut_off.index(True) if True in cut_off else len(batch)
            for answer in answers[done:]:
                self._give_up(session, answer, deadline)
            if done:
                return self._settle(session, batch[:done], answers)
            self._link.counters.add("puts_continued")

    def _settle(self, session: Session, jobs: Sequence[PutJob], answers: Sequence[Committed]) -> list[SummedPut]:
        parents = {job.chain.parent for job in jobs if job.lineage is None}
        known: dict[bytes, bytes] = {}
        settled = []
        for job, answer in zip(jobs, answers, strict=False):
            put = summed(job, job.lineage or known[job.chain.parent], answer.contents)
            self._note(put)
            lineages = put.lineages
            for index, position in enumerate(positions(job.chain.hashes) if parents else ()):
                if position in parents:
                    known[position] = lineages[index * LINEAGE_BYTES : (index + 1) * LINEAGE_BYTES]
            for piece, status, outcome in zip(job.pieces, answer.statuses, answer.outcomes, strict=True):
                if outcome is not None:
                    count_sent(self._link, outcome, piece.length)
                elif status is not ReserveStatus.WANTED:
                    count_refused(self._link, status)
            if job.is_end:
                self._link.counters.add("puts_staged")
                self._link.counters.add("puts")
            self._stored.remember(put, answer.reservation, session)
            settled.append(put)
        return settled

    def _give_up(self, session: Session, answer: Committed, deadline: float) -> None:
        try:
            self._link.call(self._link.calls.commit, commit_of(session, answer.reservation, durable=False), deadline)
        except (StoreUnavailable, HelloAgain):  # it expires
            self._link.counters.add("commits_failed")

    def _in_parts(self, job: PutJob, deadline: float) -> PutJob | None:
        """Copy the job into the region part by part; what is left to be streamed, None where nothing is."""
        left, lineage = job.pieces, job.lineage
        for part in cut(job.pieces, PART_BYTES):
            staging = self._commits.staging
            extent = None if staging is None else staging.take(packed_bytes(part))
            if extent is None:  # none, or later puts fill it: nobody waits for them to go first
                break
            try:
                stored = self._commit([part_of(job, part, lineage, extent)], deadline)
            finally:
                extent.give_back()
            if not stored:
                break
            left, lineage = left[len(part) :], stored[0].end_lineage
        return part_of(job, left, lineage, None) if left else None

    def _stream(self, job: PutJob, deadline: float) -> None:
        assert job.lineage is not None
        put = summed(job, job.lineage, job.contents())
        self._note(put)

        def send(session: Session) -> None:
            self._stored.remember(put, stream(self._link, session, job, put, deadline), session)

        try:
            self._link.with_session(send, deadline)
            self._link.counters.add("puts")
        except StoreUnavailable:
            self._link.counters.add("puts_failed")
            self._stored.failed()

    def _note(self, put: SummedPut) -> None:
        self._lineages.note(put.chain.hashes, put.lineages)
