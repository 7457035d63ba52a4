"""Connections to the attach socket of a daemon on this host: unary calls at a tenth of gRPC's cost, and descriptors.

One `Lanes` is one attachment: to one run of one daemon. The first lane is opened with it, up to MAX_LANES when calls
overlap. It is dead when its last lane is gone: the daemon has then released this worker's leases and staging. Whoever
keeps something of an attachment (mapped regions, staging) keeps the object and asks `is_alive`. Any thread.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from kvstore.client.forks import tell_of_forks
from kvstore.core.errors import InvalidInput, KVStoreError
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH, ERROR, LaneAnswer, LaneRequest, receive_answer, send_request
from kvstore.rpc.status import error_of_reason

MAX_LANES = 8  # calls of one worker in flight at once; the daemon has a thread for each

Answer = TypeVar("Answer", bound=Message)


class NoLane(ConnectionError):
    """Nothing was answered: no lane is free, or the one that was used has broken. gRPC has to take the call."""


class LanesBusy(NoLane):
    """All lanes are in use: nothing was sent."""


class LaneRefused(Exception):
    """The daemon answered with an error; `error` is what gRPC would have made of it, `reason` as in rpc/status."""

    def __init__(self, reason: str, error: KVStoreError) -> None:
        super().__init__(f"{reason}: {error}")
        self.reason, self.error = reason, error


class Lanes:
    """One attachment. Deadlines are on time.monotonic.

    Calls raise NoLane, LaneRefused, TimeoutError (no answer in time; that lane is closed, since its answer may still
    come) and InvalidInput (an answer that is none; closed likewise).
    """

    def __init__(self, path: str, worker_id: bytes, boot_epoch: int, deadline: float) -> None:
        """Opens the first lane. Raises OSError where there is no such socket, and what calls raise."""
        self._path = path
        self._attach = pb.AttachRequest(worker_id=worker_id, boot_epoch=boot_epoch).SerializeToString()
        self._lock = Lock()
        self._idle: list[socket.socket] = []
        self._all: set[socket.socket] = set()
        self._opening: set[socket.socket] = set()
        self._is_closed = False
        self.boot_epoch = boot_epoch
        tell_of_forks(self)
        lane, facts = self._open(deadline)
        self.region_pages = facts.region_pages  # pages of one region, in front of its stamp table
        self._idle.append(lane)

    @property
    def is_alive(self) -> bool:
        """Whether the daemon still knows this attachment. About 2 us: looks at one lane that nobody uses."""
        with self._lock:
            while self._idle:
                if _is_open(self._idle[-1]):
                    return True
                self._drop(self._idle.pop())
            return bool(self._all) and not self._is_closed

    def call(self, name: str, request: Message, response_type: type[Answer], deadline: float) -> Answer:
        """One unary call of service KVStore."""
        answer = self._ask(name, request, deadline)
        if answer.fd is not None:
            os.close(answer.fd)
        return _parsed(response_type, answer.body)

    def fetch_fd(self, name: str, request: Message, response_type: type[Answer], deadline: float) -> tuple[Answer, int]:
        """A REGION or STAGING request: its answer and the descriptor, which is the caller's to close."""
        answer = self._ask(name, request, deadline)
        if answer.fd is None:
            raise InvalidInput(f"the daemon answered {name} without a descriptor")
        try:
            return _parsed(response_type, answer.body), answer.fd
        except BaseException:
            os.close(answer.fd)
            raise

    def close(self) -> None:
        """Ends calls in flight at once. May be called twice."""
        with self._lock:
            self._is_closed = True
            for lane in self._all | self._opening:
                with contextlib.suppress(OSError):  # already gone
                    lane.shutdown(socket.SHUT_RDWR)  # a thread may be reading: it closes its own
            while self._idle:
                self._drop(self._idle.pop())

    def forked(self) -> None:
        self._lock = Lock()
        self._is_closed = True
        self._idle.clear()
        self._all |= self._opening
        self._opening.clear()
        while self._all:
            self._all.pop().close()  # this process's descriptor alone: no shutdown, which the parent would feel

    def _ask(self, name: str, request: Message, deadline: float) -> LaneAnswer:
        with self._lane(deadline) as lane:
            answer = _exchange(lane, name, request.SerializeToString(), deadline)
        if answer.status != ERROR:
            return answer
        if answer.fd is not None:
            os.close(answer.fd)
        raise refusal(answer.body)

    @contextmanager
    def _lane(self, deadline: float) -> Iterator[socket.socket]:
        """A lane for one exchange; closed where that fails."""
        lane = self._idle_lane()
        if lane is None:
            try:
                lane, _ = self._open(deadline)
            except OSError as error:
                raise NoLane(f"no further lane: {error}") from error
        try:
            yield lane
        except BaseException as error:
            with self._lock:
                self._drop(lane)
            if isinstance(error, OSError) and not isinstance(error, TimeoutError):
                raise NoLane(str(error)) from error
            raise
        with self._lock:
            if self._is_closed:
                self._drop(lane)
            else:
                self._idle.append(lane)

    def _idle_lane(self) -> socket.socket | None:
        """One that is open; None where one more may be opened."""
        with self._lock:
            while self._idle:
                lane = self._idle.pop()
                if _is_open(lane):
                    return lane
                self._drop(lane)  # the daemon hung up while nobody looked: nothing has been sent
            if self._is_closed or not self._all:
                raise NoLane("the attachment has ended")
            if len(self._all) + len(self._opening) >= MAX_LANES:
                raise LanesBusy(f"all {MAX_LANES} lanes are in use")
            return None

    def _open(self, deadline: float) -> tuple[socket.socket, pb.AttachResponse]:
        lane = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        with self._lock:
            self._opening.add(lane)
        try:
            lane.settimeout(max(deadline - time.monotonic(), 1e-3))
            lane.connect(self._path)
            answer = _exchange(lane, ATTACH, self._attach, deadline)
            if answer.fd is not None:
                os.close(answer.fd)
            if answer.status == ERROR:
                raise refusal(answer.body)
            facts = _parsed(pb.AttachResponse, answer.body)
            if facts.boot_epoch != self.boot_epoch or not 0 < facts.region_pages <= 1 << 31:
                raise InvalidInput(
                    f"the attach socket answers for epoch {facts.boot_epoch}, {facts.region_pages} pages"
                )
            with self._lock:
                if self._is_closed:  # meanwhile: nothing may be sent for an attachment that was given up
                    raise NoLane("the attachment has ended")
                self._all.add(lane)
        except BaseException:
            lane.close()
            raise
        finally:
            with self._lock:
                self._opening.discard(lane)
        return lane, facts

    def _drop(self, lane: socket.socket) -> None:
        self._all.discard(lane)
        lane.close()


def refusal(body: bytes) -> LaneRefused:
    """What an answer of status ERROR means."""
    error = _parsed(pb.LaneError, body)
    return LaneRefused(error.reason, error_of_reason(error.reason, error.message))


def _exchange(lane: socket.socket, name: str, body: bytes, deadline: float) -> LaneAnswer:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError(f"no time left for {name}")
    lane.settimeout(left)
    send_request(lane, LaneRequest(name, left, body))
    return receive_answer(lane, deadline)


def _is_open(lane: socket.socket) -> bool:
    """Whether a lane that nobody uses is as it should be: open, and silent."""
    try:
        lane.setblocking(False)
        lane.recv(1, socket.MSG_PEEK)
    except BlockingIOError:
        return True
    except OSError:
        pass
    return False


def _parsed(response_type: type[Answer], body: bytes) -> Answer:
    try:
        return response_type.FromString(body)
    except DecodeError as error:
        raise InvalidInput(f"an answer of {len(body)} bytes on the attach socket is no protobuf: {error}") from error
