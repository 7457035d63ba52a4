"""The two bulk streams: bytes go from the tiers' memory to a frame in one copy, and from a frame into the arena.

One chunk spans objects and one object spans chunks: both streams are one run of bytes, cut wherever a chunk is full.
Runs in the RPC threads.
"""

from __future__ import annotations

import time
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain as joined
from threading import Lock

from kvstore.core.checksum import seal
from kvstore.core.errors import InvalidInput, OtherBootEpoch, StoreUnavailable
from kvstore.core.keys import BlockKey, Chain
from kvstore.core.layout import ModelLayout
from kvstore.core.reserve import ObjectSpec, PutStatus
from kvstore.rpc import convert, wire
from kvstore.rpc.enums import PUT_STATUS, TIER
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.limits import MAX_CHUNK_BYTES, MAX_OBJECTS
from kvstore.store.objects import OpenedNamespace, OpenObject
from kvstore.store.store import Store

MAX_STARTS = 1024  # objects named in one message; a missing object has no bytes that would fill it
MAX_RESERVED_OBJECTS = 1 << 20  # remembered at once, 8 B each; the uploads of forgotten ones are answered DROPPED


class ReservedLengths:
    """How many bytes each object of a reservation has, so that a stream can be cut where one was dropped meanwhile.

    Thread-safe. Bounded: a worker that never commits costs the oldest reservations, not memory.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._lengths: OrderedDict[int, array[int]] = OrderedDict()
        self._objects = 0

    def remember(self, reservation: int, objects: Sequence[ObjectSpec]) -> None:
        with self._lock:
            self._lengths[reservation] = array("Q", (spec.length for spec in objects))
            self._objects += len(objects)
            while self._objects > MAX_RESERVED_OBJECTS:
                self._objects -= len(self._lengths.popitem(last=False)[1])

    def of(self, reservation: int) -> array[int] | None:
        with self._lock:
            return self._lengths.get(reservation)

    def forget(self, reservation: int) -> None:
        with self._lock:
            self._objects -= len(self._lengths.pop(reservation, ()))


def fetch(
    store: Store, request: pb.FetchRequest, chain: Chain, layout: ModelLayout, deadline: float
) -> Iterator[bytes]:
    """Frames of a Fetch: every object asked for is named once, rows first; bytes follow for those that are there."""
    rows, states = convert.fetch_keys(request, chain, layout)
    names = {(block, 0): convert.key_at(chain, block, 0) for block in rows}
    yield from _frames(
        joined(
            _opened_rows(store, request.lease, names, deadline),
            _opened(store, request.lease, {name: convert.key_at(chain, *name) for name in states}, deadline),
        ),
        deadline,
    )


Name = tuple[int, int]  # block index into the chain, group


def _opened(
    store: Store, lease: int, keys: dict[Name, BlockKey], deadline: float
) -> Iterator[tuple[Name, OpenObject | None]]:
    if keys:
        yield from zip(keys, store.open_objects(lease, list(keys.values()), deadline), strict=True)


def _opened_rows(
    store: Store, lease: int, keys: dict[Name, BlockKey], deadline: float
) -> Iterator[tuple[Name, OpenObject | None]]:
    """Rows behind a missing one are of no use to anybody: they are named as missing and not read."""
    gone = False
    names = iter(keys)
    for name, opened in _opened(store, lease, keys, deadline):
        next(names)
        yield name, opened
        if opened is not None and opened.is_missing:
            gone = True
            break
    if gone:
        yield from ((name, None) for name in names)


def _frames(objects: Iterable[tuple[Name, OpenObject | None]], deadline: float) -> Iterator[bytes]:
    starts: list[pb.ObjectStart] = []
    pieces: list[memoryview] = []
    room = MAX_CHUNK_BYTES
    # Entered objects whose bytes are in `pieces`, not framed yet; the one being cut up is last. A list and not an
    # ExitStack, which costs 3 us an object: a fifth of all that an object of 64 KB costs here.
    held: list[OpenObject] = []
    try:
        for name, opened in objects:
            if opened is not None:
                held.append(opened.__enter__())
            starts.append(_start(name, opened))
            if opened is not None:
                for piece in opened.pieces:
                    while piece.nbytes:
                        part, piece = piece[:room], piece[room:]
                        pieces.append(part)
                        room -= part.nbytes
                        if not room:
                            frame = wire.frame_fetch(starts, pieces)
                            starts, pieces, room = [], [], MAX_CHUNK_BYTES
                            _close(held[:-1])
                            del held[:-1]
                            check(deadline)
                            yield frame
            if len(starts) >= MAX_STARTS:
                frame = wire.frame_fetch(starts, pieces)
                starts, pieces, room = [], [], MAX_CHUNK_BYTES
                _close(held)
                held.clear()
                yield frame
        if starts or pieces:
            yield wire.frame_fetch(starts, pieces)
    finally:
        _close(held)


def _close(objects: Sequence[OpenObject]) -> None:
    for opened in objects:
        opened.__exit__(None, None, None)


def _start(name: Name, opened: OpenObject | None) -> pb.ObjectStart:
    wire_name = pb.ObjectName(block=name[0], group=name[1])
    if opened is None or opened.is_missing:
        return pb.ObjectStart(name=wire_name, status=pb.FETCH_STATUS_MISSING)
    lineage = opened.lineage if opened.key.group else b""  # rows prove theirs by their bytes
    return pb.ObjectStart(
        name=wire_name,
        status=pb.FETCH_STATUS_OK,
        length=opened.length,
        generation=opened.generation,
        seal=seal(opened.key, opened.generation, opened.length, opened.content, lineage),
        tier=TIER.to_wire(opened.tier),
        lineage=lineage,
    )


def put(
    store: Store,
    messages: Iterator[bytes],
    lengths: ReservedLengths,
    known: Callable[[bytes], OpenedNamespace],
    deadline: float,
) -> pb.PutResponse:
    """Writes a Put stream into the arena. `known` raises UnknownNamespace for a namespace id that is not open."""
    first = next(messages, None)
    frame = wire.parse_put(first) if first is not None else wire.PutFrame(None, memoryview(b""))
    if frame.header is None:
        raise InvalidInput("the first message of a Put has no header: send it with the namespace and reservation")
    header = frame.header
    known(header.namespace_id)
    if header.boot_epoch != store.boot_epoch:
        raise OtherBootEpoch("the reservation is from before the daemon's restart: say Hello and reserve again")
    indices = header.objects
    if not 0 < len(indices) <= MAX_OBJECTS or len(set(indices)) != len(indices):
        raise InvalidInput(f"a Put names {len(indices)} objects: send 1 to {MAX_OBJECTS}, each once")
    sizes = lengths.of(header.reservation)
    if sizes is None:  # committed, or forgotten: nothing says where one object ends
        return pb.PutResponse(statuses=[pb.PUT_STATUS_DROPPED] * len(indices))
    if max(indices) >= len(sizes):
        raise InvalidInput(f"object index {max(indices)} is beyond the reservation's {len(sizes)} objects")
    stream = UploadedBytes(frame.data, (wire.parse_put(message).data for message in messages), deadline)
    statuses = []
    for index in indices:
        target = store.begin_object(header.reservation, index)
        if target is None:
            stream.skip(sizes[index])
            statuses.append(PutStatus.DROPPED)
            continue
        try:
            for piece in target:
                stream.read_into(piece)
        except BaseException:  # the stream broke off: its room must not wait for the reservation's end
            store.abandon_object(header.reservation, index)
            raise
        statuses.append(store.finish_object(header.reservation, index))
    stream.check_at_end()
    return pb.PutResponse(statuses=[PUT_STATUS.to_wire(status) for status in statuses])


class UploadedBytes:
    """The data of an upload as one run of bytes: that of its first message, then that of the others."""

    def __init__(self, data: memoryview, others: Iterator[memoryview], deadline: float) -> None:
        self._data = data
        self._others = others
        self._deadline = deadline

    def read_into(self, target: memoryview) -> None:
        filled = 0
        while filled < target.nbytes:
            part = self._take(target.nbytes - filled)
            target[filled : filled + part.nbytes] = part
            filled += part.nbytes

    def skip(self, nbytes: int) -> None:
        while nbytes:
            nbytes -= self._take(nbytes).nbytes

    def check_at_end(self) -> None:
        if self._data.nbytes or any(data.nbytes for data in self._others):
            raise InvalidInput("the stream carries more bytes than its objects have: send exactly theirs")

    def _take(self, most: int) -> memoryview:
        """Some bytes, at least one and at most `most`."""
        while not self._data.nbytes:
            check(self._deadline)
            data = next(self._others, None)
            if data is None:
                raise InvalidInput("the stream ended inside an object: send all bytes of everything announced")
            self._data = data
        part, self._data = self._data[:most], self._data[most:]
        return part


def check(deadline: float) -> None:
    """Raise StoreUnavailable behind a call's deadline."""
    if time.monotonic() > deadline:
        raise StoreUnavailable("the call took longer than its deadline allows")
