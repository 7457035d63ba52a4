"""The attach socket: a Unix socket beside the gRPC one, where workers of this host ask for memory and make cheap calls.

One thread watches (`run`): it accepts lanes and sees at once when a worker ends, SIGKILL included, also while a call
of its is under way. Each lane is served by a thread of the daemon's pool. Only the daemon's user and root may connect.
"""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc

from kvstore.core.errors import InvalidInput, SocketInUse
from kvstore.daemon.address import MAX_SOCKET_PATH, SocketHold
from kvstore.daemon.calls import Calls, Refused, shed
from kvstore.daemon.lanes import LaneService, refusal
from kvstore.daemon.workers import Worker, Workers
from kvstore.rpc.lane import REQUEST_SECONDS, LaneAnswer, receive_request, send_answer
from kvstore.rpc.status import Reason

log = logging.getLogger("kvstore.daemon")

SUFFIX = ".attach"
SPARE_LANES = 4  # beyond the limit, to say so
ATTACH_SECONDS = 5.0  # for the first request of a lane
SEND_SECONDS = 10.0  # for a worker that does not read its answer
BACKLOG = 64
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: struct ucred


@dataclass(slots=True, eq=False)
class Lane:
    """One connection. Its worker leaves once, when the watcher or the lane's own thread sees its end."""

    socket: socket.socket
    pid: int
    worker: Worker | None = None
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)  # for the two fields above


class AttachSocket:
    """Bound from construction; workers may connect from `listen` on and are served from `run` to `close`."""

    def __init__(self, path: Path, max_lanes: int, calls: Calls) -> None:
        """Raises SocketInUse or OperatorError, and then holds nothing."""
        self.path = path
        self._max_lanes = max_lanes
        self._calls = calls
        self._hold = SocketHold(path)
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        before = os.umask(0o177)  # bind makes the file with it; no thread of ours runs yet
        try:
            self._listener.bind(str(path))
        except OSError as error:
            self._listener.close()
            self._hold.close()
            raise SocketInUse(f"{path} cannot be listened on ({error.strerror}): choose another --listen") from error
        finally:
            os.umask(before)
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)  # a lane's thread ended
        self._lanes: dict[int, Lane] = {}  # by descriptor, which is open for as long
        self._is_listening = False
        self._is_closing = False

    def listen(self) -> None:
        """Before `run` is given a thread, which has to follow: it closes the socket."""
        self._listener.listen(BACKLOG)
        self._is_listening = True

    def run(self, service: LaneService, workers: Workers, submit: Callable[[Callable[[], None]], object]) -> None:
        """Accept and watch until `close`; `submit` starts a lane's thread. Top of a thread."""
        watch = select.epoll()
        with watch, self._listener:  # closed by nobody else: a closed one would wake nobody
            watch.register(self._listener.fileno(), select.EPOLLIN)
            while not self._is_closing:
                events = watch.poll()
                try:
                    # ends first: a lane accepted below may get the number of one that is closed meanwhile
                    for fd, _ in events:
                        if fd != self._listener.fileno():
                            self._ended(watch, fd, workers)
                    if any(fd == self._listener.fileno() for fd, _ in events) and not self._is_closing:
                        self._accept(watch, service, workers, submit)
                except Exception:  # top of a thread: without it no worker's end would be seen
                    self._calls.count("attach_errors")
                    log.exception("the attach socket failed")

    def close(self, timeout_seconds: float) -> bool:
        """End all lanes, remove the socket; True when no lane's thread is left. Harmless when done twice."""
        self._is_closing = True
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the watcher
        with self._lock:
            for lane in self._lanes.values():
                with suppress(OSError):  # it is gone already
                    lane.socket.shutdown(socket.SHUT_RDWR)
            has_ended = self._left.wait_for(lambda: not self._lanes, timeout_seconds)
        if not self._is_listening:
            self._listener.close()
        self._hold.close()
        return has_ended

    def _accept(
        self,
        watch: select.epoll,
        service: LaneService,
        workers: Workers,
        submit: Callable[[Callable[[], None]], object],
    ) -> None:
        try:
            connection, _ = self._listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor left: one that closes makes room, and the backlog keeps the rest
            self._calls.count("attach_errors")
            threading.Event().wait(0.05)
            return
        pid, uid, _ = _CREDENTIALS.unpack(
            connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        )
        lane = Lane(connection, pid)
        with self._lock:
            open_lanes = len(self._lanes)
            if uid not in (os.geteuid(), 0) or open_lanes >= self._max_lanes + SPARE_LANES or self._is_closing:
                self._calls.count("lanes_refused")
                connection.close()
                return
            self._lanes[connection.fileno()] = lane
        is_spare = open_lanes >= self._max_lanes
        watch.register(connection.fileno(), select.EPOLLRDHUP)
        try:
            submit(lambda: self._serve(lane, service, workers, is_spare))
        except RuntimeError:  # the pool is shut down, or the machine gives no thread
            self._calls.count("lanes_refused")
            self._forget(lane)

    def _ended(self, watch: select.epoll, fd: int, workers: Workers) -> None:
        """A worker closed its side: what is its alone goes now, whatever its lane's thread is at."""
        with self._lock:
            lane = self._lanes.get(fd)
            if lane is None:  # its thread was first, and has closed it
                return
            watch.unregister(fd)
        _leave(lane, workers)

    def _serve(self, lane: Lane, service: LaneService, workers: Workers, is_spare: bool) -> None:
        """Top of a lane's thread."""
        try:
            self._converse(lane, service, workers, is_spare)
        except InvalidInput as error:  # what cannot be read as a request leaves nothing to go on with
            self._calls.count("lanes_garbled")
            said = Refused(grpc.StatusCode.INVALID_ARGUMENT, Reason.INVALID_INPUT, str(error))
            with suppress(OSError):
                _send(lane.socket, refusal(said))
        except TimeoutError:
            self._calls.count("lanes_stalled")
        except OSError:  # the worker is gone
            pass
        except Exception:  # top of a thread
            self._calls.count("attach_errors")
            log.exception("a lane failed")
        finally:
            _leave(lane, workers)
            if lane.worker is not None:
                service.left(lane.worker)
            self._forget(lane)

    def _converse(self, lane: Lane, service: LaneService, workers: Workers, is_spare: bool) -> None:
        first = receive_request(lane.socket, REQUEST_SECONDS, ATTACH_SECONDS)
        if first is None:
            return
        if is_spare:
            self._calls.count("lanes_refused")
            _send(lane.socket, refusal(shed(f"{self._max_lanes} lanes are open, the limit")))
            return
        answer, worker = service.attach(first, lane.pid)
        if worker is not None and not _joined(lane, worker):
            workers.leave(worker)  # it ended before it was attached
            return
        _send(lane.socket, answer)
        if worker is None:
            return
        while (request := receive_request(lane.socket, REQUEST_SECONDS)) is not None:
            answer = service.answer(worker, request)
            try:
                _send(lane.socket, answer)
            finally:
                if answer.fd is not None:
                    os.close(answer.fd)

    def _forget(self, lane: Lane) -> None:
        with self._lock:
            self._lanes.pop(lane.socket.fileno(), None)
            lane.socket.close()
            self._left.notify_all()


def attach_path(socket_path: Path) -> Path | None:
    """Beside the gRPC socket; None where the name would be too long for a socket."""
    path = socket_path.with_name(socket_path.name + SUFFIX)
    return path if len(os.fsencode(path)) <= MAX_SOCKET_PATH else None


def _send(lane: socket.socket, answer: LaneAnswer) -> None:
    lane.settimeout(SEND_SECONDS)
    send_answer(lane, answer)


def _joined(lane: Lane, worker: Worker) -> bool:
    """The lane is the worker's from now on; False where it is over already."""
    with lane.lock:
        if lane.is_over:
            return False
        lane.worker = worker
        return True


def _leave(lane: Lane, workers: Workers) -> None:
    with lane.lock:
        if lane.is_over:
            return
        lane.is_over = True
        worker = lane.worker
    if worker is not None:
        workers.leave(worker)
