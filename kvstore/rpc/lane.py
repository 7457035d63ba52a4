"""Framing of the attach socket: unary calls between a daemon and a worker on its host, without gRPC.

A call over gRPC costs some 0.7 to 1.3 ms of two interpreters (MEASURED section 2), over a Unix socket 0.03 to 0.1. The
messages are the same protobuf messages.

    request   name length (u8) | zero (u8) | zero (u16) | timeout in ms (u32) | body length (u32) | name | body
    answer    status (u8: 0 answer, 1 LaneError) | descriptors (u8: 0 or 1) | zero (u16) | body length (u32) | body

Little-endian. `name` is that of a unary method of service KVStore, or one of ATTACH, REGION and STAGING, whose
answers carry a file descriptor (SCM_RIGHTS) with their first byte. One request at a time on a connection.
"""

from __future__ import annotations

import os
import socket
import struct
import time
from typing import NamedTuple

from kvstore.core.errors import InvalidInput
from kvstore.rpc.limits import MAX_MESSAGE_BYTES

ATTACH, REGION, STAGING = "Attach", "Region", "Staging"
OK, ERROR = 0, 1
REQUEST_SECONDS = 10.0  # from the first byte of a request to its last; a worker on this host needs milliseconds

_REQUEST = struct.Struct("<BBHII")
_ANSWER = struct.Struct("<BBHI")


class LaneRequest(NamedTuple):
    name: str
    timeout_seconds: float
    body: bytes


class LaneAnswer(NamedTuple):
    status: int  # OK or ERROR
    body: bytes
    fd: int | None = None  # the receiver's own


def send_request(lane: socket.socket, request: LaneRequest) -> None:
    """OSError where the other side is gone, TimeoutError where it does not read."""
    name = request.name.encode()
    head = _REQUEST.pack(len(name), 0, 0, max(1, int(request.timeout_seconds * 1e3)), len(request.body))
    lane.sendall(b"".join((head, name, request.body)))


def receive_request(
    lane: socket.socket, within_seconds: float = REQUEST_SECONDS, idle_seconds: float | None = None
) -> LaneRequest | None:
    """The next request; None where the other side has closed.

    Waits for its first byte, without limit where `idle_seconds` names none, and then no longer than `within_seconds`
    for its last one. OSError (TimeoutError where it is late), InvalidInput for what is no request.
    """
    lane.settimeout(idle_seconds)
    head = lane.recv(_REQUEST.size)
    if not head:
        return None
    deadline = time.monotonic() + within_seconds
    if len(head) < _REQUEST.size:
        more = _receive(lane, _REQUEST.size - len(head), deadline)
        if more is None:
            return None
        head += more
    name_bytes, zero, zeros, timeout_ms, length = _REQUEST.unpack(head)
    if zero or zeros or length > MAX_MESSAGE_BYTES:
        raise InvalidInput(f"a request of {length} bytes on the attach socket: send at most {MAX_MESSAGE_BYTES}")
    rest = _receive(lane, name_bytes + length, deadline)
    if rest is None:
        return None
    try:
        name = rest[:name_bytes].decode("ascii")
    except UnicodeDecodeError as error:
        raise InvalidInput("a request on the attach socket names no method") from error
    return LaneRequest(name, timeout_ms / 1e3, rest[name_bytes:])


def send_answer(lane: socket.socket, answer: LaneAnswer) -> None:
    """OSError where the other side is gone. The descriptor stays the sender's."""
    head = _ANSWER.pack(answer.status, answer.fd is not None, 0, len(answer.body))
    if answer.fd is None:
        lane.sendall(head + answer.body)
        return
    socket.send_fds(lane, [head], [answer.fd])
    lane.sendall(answer.body)


def receive_answer(lane: socket.socket, deadline: float) -> LaneAnswer:
    """The answer to the request just sent; `deadline` on time.monotonic.

    OSError where the other side is gone (ConnectionError) or late (TimeoutError); InvalidInput for no answer at all.
    """
    _set_timeout(lane, deadline)
    head, fds, _, _ = socket.recv_fds(lane, _ANSWER.size, 1)
    fd = fds[0] if fds else None
    try:
        while len(head) < _ANSWER.size:
            _set_timeout(lane, deadline)
            more = lane.recv(_ANSWER.size - len(head))
            if not more:
                raise ConnectionResetError("the daemon closed the attach socket")
            head += more
        status, has_fd, _, length = _ANSWER.unpack(head)
        if status not in (OK, ERROR) or length > MAX_MESSAGE_BYTES or bool(has_fd) != (fd is not None):
            raise InvalidInput("the attach socket carries what is no answer")
        body = _receive(lane, length, deadline)
        if body is None:
            raise ConnectionResetError("the daemon closed the attach socket inside an answer")
    except BaseException:
        if fd is not None:
            os.close(fd)
        raise
    return LaneAnswer(status, body, fd)


def _receive(lane: socket.socket, nbytes: int, deadline: float) -> bytes | None:
    """Exactly so many bytes; None where the other side closed first."""
    if not nbytes:
        return b""
    _set_timeout(lane, deadline)
    first = lane.recv(nbytes)
    if len(first) == nbytes:  # as a rule
        return first
    if not first:
        return None
    whole = bytearray(nbytes)
    view, filled = memoryview(whole), len(first)
    view[:filled] = first
    while filled < nbytes:
        _set_timeout(lane, deadline)
        got = lane.recv_into(view[filled:])
        if not got:
            return None
        filled += got
    return bytes(whole)


def _set_timeout(lane: socket.socket, deadline: float) -> None:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("the other side of the attach socket did not send in time")
    lane.settimeout(left)
