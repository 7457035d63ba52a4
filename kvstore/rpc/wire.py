"""Framing of the bulk streams, so that their bytes are copied once.

FetchResponse, PutRequest and those of handoffs look alike on the wire: small fields in field 1, then the bytes in
field 2, always last. Protobuf's own classes copy the bytes into a message and again into its serialisation; here the
frame is one join over borrowed views, and parsing cuts the bytes out as a view of the received message. Both are
plain protobuf: other languages use their generated classes.

    serialised small fields | 0x12 | varint length | data
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol, TypeVar

from google.protobuf.message import DecodeError

from kvstore.core.checksum import Buffer
from kvstore.core.errors import InvalidInput
from kvstore.rpc.generated import kvstore_pb2 as pb

_SMALL_TAG = 0x0A  # field 1, length-delimited
_DATA_TAG = 0x12  # field 2, length-delimited


class FetchFrame(NamedTuple):
    """One message of a Fetch stream. `data` borrows the received message and keeps it alive."""

    objects: Sequence[pb.ObjectStart]
    data: memoryview


class PutFrame(NamedTuple):
    """One message of a Put stream. `header` is in the first message only."""

    header: pb.PutHeader | None
    data: memoryview


class PutHandoffFrame(NamedTuple):
    """One message of a PutHandoff stream. `header` is in the first message only."""

    header: pb.PutHandoffHeader | None
    data: memoryview


class TakeHandoffFrame(NamedTuple):
    """One message of a TakeHandoff stream. `header` is in the first message only."""

    header: pb.TakeHandoffHeader | None
    data: memoryview


def frame_fetch(objects: Iterable[pb.ObjectStart], pieces: Sequence[Buffer]) -> bytes:
    """A serialised FetchResponse whose data is the pieces, joined."""
    return _frame(pb.FetchResponse(objects=objects).SerializeToString(), pieces)


def frame_put(header: pb.PutHeader | None, pieces: Sequence[Buffer]) -> bytes:
    """A serialised PutRequest whose data is the pieces, joined."""
    return _frame(b"" if header is None else pb.PutRequest(header=header).SerializeToString(), pieces)


def parse_fetch(message: bytes) -> FetchFrame:
    """Raises InvalidInput for bytes that are no FetchResponse."""
    start, data = _cut(message)
    if data is None:
        whole = _parsed(pb.FetchResponse(), message)
        return FetchFrame(whole.objects, memoryview(whole.data))
    return FetchFrame(_parsed(pb.FetchResponse(), message[:start]).objects if start else (), data)


def parse_put(message: bytes) -> PutFrame:
    """Raises InvalidInput for bytes that are no PutRequest."""
    start, data = _cut(message)
    if data is None:
        whole = _parsed(pb.PutRequest(), message)
        return PutFrame(whole.header if whole.HasField("header") else None, memoryview(whole.data))
    return PutFrame(_parsed(pb.PutRequest(), message[:start]).header if start else None, data)


def frame_put_handoff(header: pb.PutHandoffHeader | None, pieces: Sequence[Buffer]) -> bytes:
    """A serialised PutHandoffRequest whose data is the pieces, joined."""
    return _frame(b"" if header is None else pb.PutHandoffRequest(header=header).SerializeToString(), pieces)


def frame_take_handoff(header: pb.TakeHandoffHeader | None, pieces: Sequence[Buffer]) -> bytes:
    """A serialised TakeHandoffResponse whose data is the pieces, joined."""
    return _frame(b"" if header is None else pb.TakeHandoffResponse(header=header).SerializeToString(), pieces)


def parse_put_handoff(message: bytes) -> PutHandoffFrame:
    """Raises InvalidInput for bytes that are no PutHandoffRequest."""
    start, data = _cut(message)
    small = _parsed(pb.PutHandoffRequest(), message if data is None else message[:start])
    header = small.header if small.HasField("header") else None
    return PutHandoffFrame(header, memoryview(small.data) if data is None else data)


def parse_take_handoff(message: bytes) -> TakeHandoffFrame:
    """Raises InvalidInput for bytes that are no TakeHandoffResponse."""
    start, data = _cut(message)
    small = _parsed(pb.TakeHandoffResponse(), message if data is None else message[:start])
    header = small.header if small.HasField("header") else None
    return TakeHandoffFrame(header, memoryview(small.data) if data is None else data)


def chunks(pieces: Iterable[memoryview], chunk_bytes: int) -> Iterator[list[memoryview]]:
    """The pieces as one run of bytes, cut so that each part has `chunk_bytes`, the last one what is left."""
    chunk: list[memoryview] = []
    room = chunk_bytes
    for piece in pieces:
        rest = piece
        while rest.nbytes:
            part, rest = rest[:room], rest[room:]
            chunk.append(part)
            room -= part.nbytes
            if not room:
                yield chunk
                chunk, room = [], chunk_bytes
    if chunk:
        yield chunk


def _frame(small: bytes, pieces: Sequence[Buffer]) -> bytes:
    length = sum(memoryview(piece).nbytes for piece in pieces)
    if not length:
        return small
    return b"".join((small, bytes((_DATA_TAG,)), _varint(length), *pieces))


def _cut(message: bytes) -> tuple[int, memoryview | None]:
    """Where the data field starts, and its bytes; None for them where protobuf's parser has to look itself.

    That is so for any order but the one we write: unknown fields, data that is not last, a cut-off message.
    """
    position, end = 0, len(message)
    while position < end:
        tag = message[position]
        if tag not in (_SMALL_TAG, _DATA_TAG):
            return 0, None
        length, body = _read_varint(message, position + 1)
        if tag == _DATA_TAG:
            return (position, memoryview(message)[body:]) if body + length == end else (0, None)
        position = body + length
    return (end, memoryview(b"")) if position == end else (0, None)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _read_varint(message: bytes, position: int) -> tuple[int, int]:
    """The value and the position behind it; a value beyond the message where it is cut off or too long."""
    value = 0
    for shift, byte in zip(range(0, 35, 7), message[position : position + 5], strict=False):
        value |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            return value, position
    return len(message) + 1, position


class _Parsable(Protocol):
    def ParseFromString(self, serialized: bytes, /) -> int: ...


_Message = TypeVar("_Message", bound=_Parsable)


def _parsed(into: _Message, message: bytes) -> _Message:
    try:
        into.ParseFromString(message)
    except DecodeError as error:
        raise InvalidInput(f"a stream message of {len(message)} bytes is no protobuf: {error}") from error
    return into
