"""What is asked over the attach socket, answered: attaching, regions, staging, and the unary calls of the service.

A call goes through the same gate, deadline and counters as over gRPC (`calls.py`), and its errors carry the same
reasons. Runs in the lanes' threads.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from google.protobuf.message import Message

from kvstore.core.errors import InvalidInput, OtherBootEpoch
from kvstore.daemon.calls import Calls, Gate, Refused, parsed
from kvstore.daemon.service import KVStoreService
from kvstore.daemon.staged_commit import commit_staged
from kvstore.daemon.workers import Worker, Workers
from kvstore.rpc import convert
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH, ERROR, OK, REGION, STAGING, LaneAnswer, LaneRequest
from kvstore.rpc.methods import KVSTORE_SERVICE, METHODS, Method
from kvstore.store.store import Store

_UNARY = {
    method.name: method
    for method in METHODS
    if method.service == KVSTORE_SERVICE and not method.streams_requests and not method.streams_responses
}


class LaneService:
    """Answers requests; whatever is wrong with one is its answer. A descriptor in an answer is the caller's."""

    def __init__(self, store: Store, service: KVStoreService, calls: Calls, workers: Workers) -> None:
        self._store = store
        self._service = service
        self._calls = calls
        self._workers = workers
        self._asked: dict[str, Callable[[Worker, bytes], LaneAnswer]] = {REGION: self._region, STAGING: self._staging}

    def attach(self, request: LaneRequest, pid: int) -> tuple[LaneAnswer, Worker | None]:
        """The first request of a lane. None: the lane is to be closed."""
        try:
            with self._calls.admitted(ATTACH, Gate.CALL, _timeout(request)):
                if request.name != ATTACH:
                    raise InvalidInput(f"the first request of a lane is {request.name}: send {ATTACH} first")
                asked = parsed(pb.AttachRequest, request.body)
                id = convert.worker_from_wire(asked.worker_id)
                if asked.boot_epoch != self._store.boot_epoch:
                    raise OtherBootEpoch("the daemon was started anew since this worker's Hello: say Hello again")
                answer = pb.AttachResponse(
                    boot_epoch=self._store.boot_epoch,
                    region_pages=self._store.region_pages,
                    regions=self._store.region_count,
                )
                return LaneAnswer(OK, answer.SerializeToString()), self._workers.join(id, pid)
        except Refused as refused:
            return refusal(refused), None

    def answer(self, worker: Worker, request: LaneRequest) -> LaneAnswer:
        """One request of an attached worker."""
        try:
            asked = self._asked.get(request.name)
            if asked is not None:
                with self._calls.admitted(request.name, Gate.CALL, _timeout(request)):
                    return asked(worker, request.body)
            method = _UNARY.get(request.name)
            if method is None:
                with self._calls.admitted("unknown", Gate.CALL, None):
                    raise InvalidInput(f"{request.name[:80]!r} is no request of the attach socket")
            return self._call(worker, method, request)
        except Refused as refused:
            return refusal(refused)

    def left(self, worker: Worker) -> None:
        """A request was answered after its worker's end."""
        self._workers.release_late(worker)

    def _call(self, worker: Worker, method: Method, request: LaneRequest) -> LaneAnswer:
        gate = Gate.WAIT if method.name == "Locate" else Gate.CALL
        if method.name == "Commit":
            return self._commit(worker, request)
        with self._calls.admitted(method.name, gate, _timeout(request)) as deadline:
            message = parsed(method.request, request.body)
            # what is leased under another id would outlive this worker
            if getattr(message, "worker_id", worker.id) != worker.id:
                raise InvalidInput("worker_id is not the one that this lane was attached with")
            call: Callable[[Message, float], Message] = getattr(self._service, method.function)
            return LaneAnswer(OK, call(message, deadline).SerializeToString())

    def _commit(self, worker: Worker, request: LaneRequest) -> LaneAnswer:
        """Parsed twice where nothing is staged: which gate it goes through is in the message."""
        gate = Gate.PUT if _has_staged(request.body) else Gate.CALL
        with self._calls.admitted("Commit", gate, _timeout(request)) as deadline:
            message = parsed(pb.CommitRequest, request.body)
            if not message.staged:
                return LaneAnswer(OK, self._service.commit(message, deadline).SerializeToString())
            staging = worker.staging
            if staging is None:
                raise InvalidInput("staged objects without a staging region: ask for one first")
            with staging.used() as view:
                namespace = self._service.known(message.namespace_id)
                self._service.check_epoch(message.boot_epoch)
                answer = commit_staged(self._store, namespace, message, view, worker.id, deadline)
            return LaneAnswer(OK, answer.SerializeToString())

    def _region(self, worker: Worker, body: bytes) -> LaneAnswer:
        request = parsed(pb.RegionRequest, body)
        self._service.known(request.namespace_id)
        fd, _ = self._store.region_of(request.region)
        # a file of huge pages is longer than what is used of it, and can only be mapped whole
        answer = pb.RegionResponse(nbytes=os.fstat(fd).st_size)
        return LaneAnswer(OK, answer.SerializeToString(), os.dup(fd))

    def _staging(self, worker: Worker, body: bytes) -> LaneAnswer:
        staging = self._workers.stage(worker, parsed(pb.StagingRequest, body).nbytes)
        with staging.used():  # its descriptor is open for so long
            return LaneAnswer(OK, pb.StagingResponse(nbytes=staging.nbytes).SerializeToString(), os.dup(staging.fd))


def refusal(refused: Refused) -> LaneAnswer:
    error = pb.LaneError(reason=refused.reason.value, message=refused.message)
    return LaneAnswer(ERROR, error.SerializeToString())


def _timeout(request: LaneRequest) -> float | None:
    """The client's, None where it named none."""
    return request.timeout_seconds or None


def _has_staged(body: bytes) -> bool:
    """Whether a Commit asks for copies. False for what is no message: it is refused behind the gate."""
    try:
        return bool(parsed(pb.CommitRequest, body).staged)
    except InvalidInput:
        return False
