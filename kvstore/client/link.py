"""The client's link to one daemon: who we are there (the session), whether it answers (the breaker), each call made.

Everything that can go wrong with a call leaves here as StoreUnavailable, counted by name, or as HelloAgain, which
`with_session` settles by itself. Any thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Generator
from typing import Any, NamedTuple, TypeVar

import grpc
from google.protobuf.message import Message

from kvstore.client.attaching import Attaching
from kvstore.client.breaker import Breaker
from kvstore.client.channel import Calls, Method, Unary, open_channel
from kvstore.client.counters import Counters
from kvstore.client.forks import tell_of_forks
from kvstore.client.lanes import LaneRefused, Lanes, NoLane
from kvstore.client.settings import Timeouts
from kvstore.core.errors import HelloAgain, InvalidInput, KVStoreError, LayoutMismatch, OtherBootEpoch, StoreUnavailable
from kvstore.core.fingerprint import fingerprint
from kvstore.core.layout import ModelLayout
from kvstore.rpc.convert import hash_from_wire, seconds_from_wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_to_wire
from kvstore.rpc.limits import MAX_BATCH_BLOCKS, MAX_CHUNK_BYTES
from kvstore.rpc.status import error_of
from kvstore.rpc.wire import FetchFrame, TakeHandoffFrame, parse_fetch, parse_take_handoff

log = logging.getLogger("kvstore.client")

Answer = TypeVar("Answer")
Request = TypeVar("Request")
Frame = TypeVar("Frame")
Sent = TypeVar("Sent", bound=Message)
Received = TypeVar("Received", bound=Message)

# Nothing came back in time. Every other status is an answer, if only "no".
_SILENT = ("unavailable", "draining", "deadline_exceeded")


class Session(NamedTuple):
    """What Hello answered. Another boot epoch or root makes another session."""

    namespace: bytes
    root: bytes
    boot_epoch: int
    chunk_bytes: int
    batch_blocks: int
    lease_seconds: float
    attach_path: str  # empty: there is none


class Link:
    """One channel with its breaker and session."""

    def __init__(
        self,
        address: str,
        layout: ModelLayout,
        timeouts: Timeouts,
        counters: Counters,
        *,
        existing_only: bool,
        share_memory: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.worker_id = os.urandom(16)
        self.breaker = Breaker(clock)
        self.counters = counters
        self.on_away: Callable[[], None] = lambda: None  # called when the breaker opens: somebody has to probe
        self.refused: LayoutMismatch | None = None  # the daemon has this model with another layout, or another version
        self._address, self._timeouts, self._clock = address, timeouts, clock
        self._channel = open_channel(address, timeouts)
        self.calls = Calls(self._channel)
        self._hello = pb.HelloRequest(
            layout=layout_to_wire(layout),
            fingerprint=fingerprint(layout),
            worker_id=self.worker_id,
            existing_only=existing_only,
        )
        self.attaching = Attaching(self.worker_id, counters, is_wanted=share_memory)
        self._session: Session | None = None
        self._is_closed = False
        self._is_inherited = False  # from the process that forked this one
        tell_of_forks(self)

    @property
    def is_connected(self) -> bool:
        return self._session is not None and self.breaker.is_closed and not self._is_closed

    @property
    def session(self) -> Session:
        """The session in use. Raises StoreUnavailable while there is none or the breaker refuses."""
        session = self._session
        if session is None or not self.breaker.is_closed or self._is_closed:
            self.counters.add("refused_by_breaker")
            raise StoreUnavailable(f"the store at {self._address} is away")
        return session

    def deadline(self, seconds: float) -> float:
        return self._clock() + seconds

    def now(self) -> float:
        """The clock of deadlines."""
        return self._clock()

    def left(self, deadline: float) -> float:
        return deadline - self._clock()

    def connect(self) -> None:
        """Say Hello: at first, and as the breaker's probe. Its outcome is in `is_connected`, never raised."""
        try:
            self._session = self._say_hello(self.deadline(self._timeouts.connect_seconds))
        except StoreUnavailable as error:
            # a daemon that answers but will have nothing to do with us is as good as away
            if self.breaker.failed():
                self._away(error)
            return
        self.counters.add("connects")
        if self.breaker.succeeded():
            log.info("kvstore at %s is back", self._address)

    def with_session(self, action: Callable[[Session], Answer], deadline: float) -> Answer:
        """Run `action`; where the daemon has forgotten us or restarted, say Hello and run it once more."""
        session = self.session
        try:
            return action(session)
        except HelloAgain:
            self.counters.add("hello_again")
        if self._session is session:  # else another thread has just said it
            self._session = self._say_hello(deadline)
        try:
            return action(self.session)
        except HelloAgain as error:
            raise StoreUnavailable(f"the store forgets its sessions: {error}") from error

    def call(self, method: Unary[Request, Answer], request: Request, deadline: float) -> Answer:
        """One call, over a lane while attached. Raises HelloAgain or StoreUnavailable, nothing else."""
        if isinstance(method, Method) and method is not self.calls.hello:
            lanes = self.attaching.usable(self._checked_left(deadline))
            if lanes is not None:
                try:
                    answer: Answer = self.lane_call(lanes, method, request, deadline)
                    return answer
                except NoLane:  # the daemon is gone, or all lanes are in use: gRPC tells
                    self.counters.add("lane_fallbacks")
        try:
            return method(request, timeout=self._checked_left(deadline))
        except (grpc.RpcError, ValueError) as failure:
            raise self.failure(failure) from failure

    def lane_call(self, lanes: Lanes, method: Method[Sent, Received], request: Sent, deadline: float) -> Received:
        """One call over this attachment and nothing else. Raises NoLane, HelloAgain or StoreUnavailable."""
        until = time.monotonic() + self._checked_left(deadline)
        try:
            return lanes.call(method.name, request, method.response, until)
        except (LaneRefused, TimeoutError, InvalidInput) as failure:
            raise self.failure(failure) from failure

    def lane_fd(
        self, lanes: Lanes, name: str, request: Message, response: type[Received], deadline: float
    ) -> tuple[Received, int]:
        """A descriptor of the daemon's, with the answer that came along. Raises as `lane_call`."""
        until = time.monotonic() + self._checked_left(deadline)
        try:
            return lanes.fetch_fd(name, request, response, until)
        except (LaneRefused, TimeoutError, InvalidInput) as failure:
            raise self.failure(failure) from failure

    def fetch(
        self, request: pb.FetchRequest, deadline: float, *, is_impatient: bool = False
    ) -> Generator[FetchFrame, None, None]:
        """The frames of one Fetch. Raises HelloAgain or StoreUnavailable while it is read.

        `is_impatient`: the deadline is one that a daemon in good health may miss, and says nothing about it.
        """
        return self._frames(self.calls.fetch, request, parse_fetch, deadline, may_be_late=is_impatient)

    def take_handoff(self, request: pb.TakeHandoffRequest, deadline: float) -> Generator[TakeHandoffFrame, None, None]:
        """The frames of one TakeHandoff. Raises HelloAgain or StoreUnavailable while it is read."""
        return self._frames(self.calls.take_handoff, request, parse_take_handoff, deadline)

    def _frames(
        self,
        method: Callable[..., Any],
        request: Message,
        parse: Callable[[bytes], Frame],
        deadline: float,
        *,
        may_be_late: bool = False,
    ) -> Generator[Frame, None, None]:
        stream, is_silent = None, not may_be_late
        try:
            stream = method(request, timeout=self._checked_left(deadline))
            for message in stream:
                is_silent = False
                yield parse(message)
        except (grpc.RpcError, ValueError) as failure:
            raise self.failure(failure, is_silent=is_silent) from failure
        finally:
            if stream is not None:
                stream.cancel()  # the reader may have stopped early

    def same_epoch(self, session: Session, boot_epoch: int) -> None:
        """Raise OtherBootEpoch where an answer came from another run of the daemon than the session."""
        if boot_epoch != session.boot_epoch:
            raise OtherBootEpoch("the daemon has restarted")

    def failure(self, failure: Exception, *, is_silent: bool = True) -> KVStoreError:
        """Count a failed call, tell the breaker, and say what it means for the caller.

        A stream that broke off after bytes came (`is_silent` False) may be slow and not dead: the next call tells.
        """
        if isinstance(failure, grpc.RpcError):
            error = error_of(failure)
            kind = (failure.code().name if isinstance(failure, grpc.Call) else "UNKNOWN").lower()
        elif isinstance(failure, LaneRefused):
            error, kind = failure.error, failure.reason.lower()
        elif isinstance(failure, TimeoutError):
            error, kind = StoreUnavailable(str(failure)), "deadline_exceeded"
        else:
            # InvalidInput: an answer that fails its checks; ValueError of grpc: the channel is closed
            self.counters.add("failed_malformed" if isinstance(failure, InvalidInput) else "failed_closed")
            return StoreUnavailable(str(failure))
        if isinstance(error, HelloAgain):
            return error
        if isinstance(error, StoreUnavailable):
            self.counters.add(f"failed_{kind}")
            if is_silent and kind in _SILENT and self.breaker.failed():
                self._away(error)
            return error
        if isinstance(error, LayoutMismatch):
            self.refused = error
        # The daemon refuses what we sent: a bug, or another version. The worker must not suffer for it.
        self.counters.add("failed_rejected")
        log.warning("kvstore at %s refused a call: %s", self._address, error)
        return StoreUnavailable(str(error))

    def close(self) -> None:
        """Ends calls in flight at once."""
        self._is_closed = True
        if self._is_inherited:
            return  # the channel is the parent's, and gRPC does nothing good in a forked child
        self.attaching.close()
        self._channel.close()

    def forked(self) -> None:
        self._is_closed = self._is_inherited = True

    def _away(self, error: KVStoreError) -> None:
        self.counters.add("breaker_opened")
        log.warning("kvstore at %s: %s; going on without it", self._address, error)
        self.on_away()

    def _checked_left(self, deadline: float) -> float:
        seconds = self.left(deadline)
        if seconds <= 0:
            self.counters.add("failed_out_of_time")
            raise StoreUnavailable("no time left for the call")
        return seconds

    def _say_hello(self, deadline: float) -> Session:
        try:
            answer = self.call(self.calls.hello, self._hello, deadline)
            session = _session_from_wire(answer)
        except (HelloAgain, InvalidInput) as error:
            self.counters.add("failed_malformed")
            raise StoreUnavailable(f"its Hello makes no sense: {error}") from error
        if answer.created and answer.differing_fields:
            fields = ", ".join(answer.differing_fields)
            log.warning("a cache of its own: this layout differs from a known one of this model in %s", fields)
        try:
            self.attaching.said_hello(session.attach_path, session.boot_epoch, self.left(deadline))
        except HelloAgain as error:
            raise StoreUnavailable(f"the store restarts: {error}") from error
        return session


def _session_from_wire(answer: pb.HelloResponse) -> Session:
    return Session(
        namespace=hash_from_wire(answer.namespace_id, "namespace_id"),
        root=hash_from_wire(answer.root, "root"),
        boot_epoch=answer.boot_epoch,
        chunk_bytes=min(answer.max_chunk_bytes or MAX_CHUNK_BYTES, MAX_CHUNK_BYTES),
        batch_blocks=min(answer.max_batch_blocks or MAX_BATCH_BLOCKS, MAX_BATCH_BLOCKS),
        lease_seconds=seconds_from_wire(answer.lease_seconds, "lease_seconds"),
        attach_path=answer.attach_path,
    )
