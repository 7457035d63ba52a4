"""Leaving the exact cache of a stopped request for one other worker, and taking it. On the caller's thread.

Fail-open: a store that is away, slow or full is False for the one who leaves and None for the one who takes. What
comes out was checked against the checksum of what went in; what it means is the engines'.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from kvstore.client.buffers import BufferPool
from kvstore.client.hashing import Extras, Hasher, Tokens
from kvstore.client.link import Link, Session
from kvstore.client.settings import Timeouts
from kvstore.core.checksum import Buffer, content_checksum
from kvstore.core.errors import HelloAgain, InvalidInput, StoreUnavailable
from kvstore.core.keys import CHECKSUM_BYTES
from kvstore.core.prefix import handoff_key
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_HANDOFF_BYTES
from kvstore.rpc.wire import TakeHandoffFrame, chunks, frame_put_handoff


class HandoffCalls:
    """Handoffs over one link. Any thread."""

    def __init__(self, link: Link, hasher: Hasher, pool: BufferPool, timeouts: Timeouts, block_tokens: int) -> None:
        self._link, self._hasher, self._pool = link, hasher, pool
        self._timeouts, self._block_tokens = timeouts, block_tokens

    def put(self, tokens: Tokens, pieces: Sequence[memoryview], ttl_seconds: float, extras: Extras) -> bool:
        """Whether the store keeps it now."""
        deadline = self._link.deadline(self._timeouts.handoff_seconds)
        nbytes, content = sum(piece.nbytes for piece in pieces), content_checksum(pieces)

        def send(session: Session) -> pb.PutHandoffResponse:
            header = pb.PutHandoffHeader(
                namespace_id=session.namespace,
                boot_epoch=session.boot_epoch,
                key=self._key(session, tokens, extras),
                nbytes=nbytes,
                content=content,
                ttl_seconds=ttl_seconds,
            )
            return self._link.call(self._link.calls.put_handoff, _frames(header, pieces, session.chunk_bytes), deadline)

        try:
            answer = self._link.with_session(send, deadline)
        except (StoreUnavailable, HelloAgain):
            self._link.counters.add("handoffs_failed")
            return False
        self._link.counters.add("handoffs_put" if answer.kept else "handoffs_refused")
        self._link.counters.add("handoff_bytes_put", nbytes if answer.kept else 0)
        return answer.kept

    def take(self, tokens: Tokens, extras: Extras) -> memoryview | None:
        """The bytes, read-only, on a page; the buffer goes back when no view is left. Nobody else gets them."""
        deadline = self._link.deadline(self._timeouts.handoff_seconds)

        def ask(session: Session) -> memoryview | None:
            request = pb.TakeHandoffRequest(
                namespace_id=session.namespace,
                boot_epoch=session.boot_epoch,
                key=self._key(session, tokens, extras),
            )
            with contextlib.closing(self._link.take_handoff(request, deadline)) as frames:
                try:
                    return self._received(frames)
                except InvalidInput as error:
                    raise self._link.failure(error) from error

        try:
            taken = self._link.with_session(ask, deadline)
        except (StoreUnavailable, HelloAgain):
            self._link.counters.add("handoffs_failed")
            return None
        except OSError:  # no memory to map: then these bytes have no place here
            self._link.counters.add("handoffs_no_memory")
            return None
        if taken is not None:
            self._link.counters.add("handoffs_taken")
            self._link.counters.add("handoff_bytes_taken", taken.nbytes)
        return taken

    def _received(self, frames: Iterator[TakeHandoffFrame]) -> memoryview | None:
        """The stream's bytes, whole and checked. InvalidInput for a stream that no daemon would send."""
        first = next(frames, None)
        if first is None or first.header is None:
            raise InvalidInput("the stream of a handoff has no header")
        header = first.header
        if not header.nbytes:
            self._link.counters.add("handoffs_missed")
            return None
        if header.nbytes > MAX_HANDOFF_BYTES or len(header.content) != CHECKSUM_BYTES:
            raise InvalidInput(f"the stream announces a handoff of {header.nbytes} bytes, which cannot be")
        target = self._pool.take(header.nbytes).data
        filled, data = 0, first.data
        while True:
            end = filled + data.nbytes
            if end > target.nbytes:
                raise InvalidInput("the stream carries more bytes than its handoff has")
            target[filled:end] = data
            filled = end
            frame = next(frames, None)
            if frame is None:
                break
            data = frame.data
        if filled < target.nbytes:
            raise InvalidInput("the stream ended inside its handoff")
        if content_checksum((target,)) != header.content:
            self._link.counters.add("handoffs_corrupt")
            return None
        return target.toreadonly()

    def _key(self, session: Session, tokens: Tokens, extras: Extras) -> bytes:
        hashed = self._hasher.hashed(session.root, tokens, extras)
        rest = tokens[hashed.blocks * self._block_tokens :].astype("<i4", copy=False)
        # extras of a block of which there is no token yet are nobody's
        own = extras.get(hashed.blocks, ()) if len(rest) else ()
        return handoff_key(hashed.position(hashed.blocks), rest.tobytes(), self._block_tokens, own)


def checked_payload(payload: Sequence[Buffer]) -> tuple[memoryview, ...]:
    """The caller's buffers as flat bytes, not copied. Raises InvalidInput."""
    if isinstance(payload, bytes | bytearray | memoryview) or not isinstance(payload, Sequence):
        raise InvalidInput(f"payload is a {type(payload).__name__}: pass a list of buffers")
    try:
        pieces = tuple(memoryview(piece).cast("B") for piece in payload)
    except TypeError as error:
        raise InvalidInput(f"payload holds what is no contiguous buffer of bytes: {error}") from error
    nbytes = sum(piece.nbytes for piece in pieces)
    if not 0 < nbytes <= MAX_HANDOFF_BYTES:
        raise InvalidInput(f"payload has {nbytes} bytes: hand over 1 to {MAX_HANDOFF_BYTES}")
    return pieces


def _frames(header: pb.PutHandoffHeader, pieces: Sequence[memoryview], chunk_bytes: int) -> Iterator[bytes]:
    first: pb.PutHandoffHeader | None = header
    for chunk in chunks(pieces, chunk_bytes):
        yield frame_put_handoff(first, chunk)
        first = None
