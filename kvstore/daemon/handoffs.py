"""The two streams of a handoff: into the store's buffers in one copy, out of them in one. Runs in the RPC threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from kvstore.core.errors import InvalidInput, OtherBootEpoch
from kvstore.daemon.streams import UploadedBytes, check
from kvstore.rpc import convert, wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_CHUNK_BYTES, MAX_HANDOFF_BYTES, MAX_HANDOFF_SECONDS
from kvstore.store.objects import OpenedNamespace
from kvstore.store.store import Store


def put(
    store: Store, messages: Iterator[bytes], known: Callable[[bytes], OpenedNamespace], deadline: float
) -> pb.PutHandoffResponse:
    """Keep what is uploaded. `known` raises UnknownNamespace for a namespace id that is not open."""
    first = next(messages, None)
    frame = wire.parse_put_handoff(first) if first is not None else wire.PutHandoffFrame(None, memoryview(b""))
    header = frame.header
    if header is None:
        raise InvalidInput("the first message of a PutHandoff has no header: send it with the key and the length")
    known(header.namespace_id)
    if header.boot_epoch != store.boot_epoch:
        raise OtherBootEpoch("the namespace was opened before the daemon's restart: say Hello again")
    key = convert.hash_from_wire(header.key, "key")
    content = convert.checksum_from_wire(header.content, "content")
    if not 0 < header.nbytes <= MAX_HANDOFF_BYTES:
        raise InvalidInput(f"a handoff of {header.nbytes} bytes: send 1 to {MAX_HANDOFF_BYTES}")
    ttl_seconds = convert.seconds_from_wire(header.ttl_seconds, "ttl_seconds")
    if not 0 < ttl_seconds <= MAX_HANDOFF_SECONDS:
        raise InvalidInput(f"ttl_seconds={ttl_seconds:g}: a handoff lives for up to {MAX_HANDOFF_SECONDS:g} s")
    held = store.handoffs.begin(header.namespace_id, key, header.nbytes, content, ttl_seconds)
    if held is None:
        return pb.PutHandoffResponse(reason="no room")
    try:
        stream = UploadedBytes(frame.data, (wire.parse_put_handoff(each).data for each in messages), deadline)
        for piece in held.pieces:
            stream.read_into(piece)
        stream.check_at_end()
    except BaseException:  # the stream broke off: nobody will ever take it
        store.handoffs.give_up(held)
        raise
    if not store.handoffs.finish(held):
        return pb.PutHandoffResponse(reason="the bytes do not match their checksum")
    return pb.PutHandoffResponse(kept=True)


def take(store: Store, request: pb.TakeHandoffRequest, deadline: float) -> Iterator[bytes]:
    """Frames of a TakeHandoff. What was begun is gone, however the stream ends."""
    taken = store.handoffs.take(request.namespace_id, convert.hash_from_wire(request.key, "key"))
    if taken is None:
        yield wire.frame_take_handoff(pb.TakeHandoffHeader(), ())
        return
    with taken:
        header: pb.TakeHandoffHeader | None = pb.TakeHandoffHeader(nbytes=taken.nbytes, content=taken.content)
        for chunk in wire.chunks(taken.pieces, MAX_CHUNK_BYTES):
            check(deadline)
            yield wire.frame_take_handoff(header, chunk)
            header = None
