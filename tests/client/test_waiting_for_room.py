"""A store without room at present keeps a Reserve waiting; the client asks again, and does not where it cannot help."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from kvstore.client.counters import Counters
from kvstore.client.jobs import Piece, PutJob, summed
from kvstore.client.streaming import WAITED_SECONDS, stream
from kvstore.core.keys import Chain
from kvstore.core.match import Hints
from kvstore.core.reserve import PutStatus, ReserveStatus
from kvstore.rpc.enums import PUT_STATUS, RESERVE_STATUS
from kvstore.rpc.generated import kvstore_pb2 as pb

ROOT = bytes(32)
OBJECT = memoryview(b"rows of one block")
SESSION = SimpleNamespace(namespace=bytes(32), root=ROOT, boot_epoch=1, chunk_bytes=1 << 20)


class StoreOfAnswers:
    """Answers each Reserve with the next (status, seconds it took), on a clock of its own."""

    def __init__(self, *answers):
        self.answers, self.now, self.reserved, self.committed = list(answers), 100.0, 0, []
        self.counters = Counters()
        self.session, self.worker_id = SESSION, bytes(16)
        self.calls = SimpleNamespace(reserve=self._reserve, put=self._put, commit=self._commit)

    def deadline(self, seconds):
        return self.now + seconds

    def with_session(self, action, deadline):
        return action(SESSION)

    def call(self, method, request, deadline):
        return method(request)

    def same_epoch(self, session, boot_epoch):
        assert boot_epoch == session.boot_epoch

    def _reserve(self, request):
        status, took = self.answers.pop(0)
        self.now += took
        self.reserved += 1
        return pb.ReserveResponse(boot_epoch=1, reservation=self.reserved, statuses=[RESERVE_STATUS.to_wire(status)])

    def _put(self, frames):
        return pb.PutResponse(statuses=[PUT_STATUS.to_wire(PutStatus.STORED) for _ in frames])

    def _commit(self, request):
        self.committed.append(request.reservation)
        return pb.CommitResponse()


@pytest.fixture
def job():
    return PutJob(ROOT, Chain(0, ROOT, bytes(32)), bytes(16), (Piece(0, 0, 0, len(OBJECT)),), OBJECT, Hints())


def upload(store, job):
    return stream(store, SESSION, job, summed(job, job.lineage, job.contents()), store.deadline(30))


def test_a_store_that_waited_for_room_is_asked_again(job):
    store = StoreOfAnswers(
        (ReserveStatus.NO_ROOM, WAITED_SECONDS), (ReserveStatus.NO_ROOM, 2.0), (ReserveStatus.WANTED, 0.1)
    )
    assert upload(store, job) == 3, "the reservation that is left open"
    assert store.counters.snapshot()["objects_stored"] == 1
    assert store.committed == [1, 2], "a reservation that is not used holds room until it is ended"


def test_a_store_that_has_no_room_at_all_is_asked_once(job):
    store = StoreOfAnswers((ReserveStatus.NO_ROOM, 0.01))
    upload(store, job)
    counters = store.counters.snapshot()
    assert counters["objects_no_room"] == 1 and "objects_stored" not in counters
