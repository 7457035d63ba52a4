"""One Fetch stream -> verified objects in page-aligned buffers.

Wire chunks are copied straight to where the object lies in the destination, and an object is verified when its last
byte is there, while it is still in the CPU's cache. Nothing unverified is ever counted as here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import NamedTuple

from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.hashing import HashedTokens
from kvstore.core.checksum import content_checksum, seal
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.rpc.enums import TIER
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.wire import FetchFrame

_TEMPERATURE = (Tier.GPU, Tier.HOST, Tier.DISK, Tier.REMOTE)


class Gone(Exception):
    """A required object is not to be had; `corrupt` names it where its bytes were wrong."""

    def __init__(self, corrupt: BlockKey | None = None, is_foreign: bool = False) -> None:
        super().__init__("corrupt" if corrupt else "of another run" if is_foreign else "missing")
        self.corrupt = corrupt
        self.is_foreign = is_foreign  # whole, but of another run than the rows that are here


@dataclass(slots=True)
class Load:
    """What has been fetched of one sequence so far."""

    hashed: HashedTokens
    rows: Bytes  # (blocks, object bytes); the first `len(lineages)` are verified
    rows_bytes: memoryview  # the same, flat
    lineages: list[bytes] = field(default_factory=list)  # of the rows here, computed from their bytes
    states: dict[int, Bytes] = field(default_factory=dict)  # verified states at `state_block`, (1, object bytes)
    tier: Tier | None = None
    saw_gone: bool = False
    saw_foreign: bool = False

    @property
    def rows_here(self) -> int:
        return len(self.lineages)

    def lineage(self, blocks: int) -> bytes:
        return self.lineages[blocks - 1] if blocks else ROOT_LINEAGE


class Wanted(NamedTuple):
    """One Fetch: rows [first, end) of the sequence, then the states at the end of its last block."""

    first: int
    end: int
    states: tuple[int, ...]  # groups
    required: int | None  # the group without which there is no resuming


def new_load(hashed: HashedTokens, blocks: int, object_bytes: int, pool: BufferPool) -> Load:
    flat = pool.take(blocks * object_bytes)
    return Load(hashed, flat.reshape(blocks, object_bytes), flat.data)


class Receiver:
    """Takes the frames of one Fetch; raises Gone at the first required object that is missing or wrong."""

    def __init__(self, load: Load, wanted: Wanted, base: int, layout: ModelLayout, pool: BufferPool) -> None:
        self._load, self._wanted, self._base = load, wanted, base  # base: block number of chain index 0
        self._lengths = [group.nbytes for group in layout.groups]
        rows = ((block - base, 0) for block in range(wanted.first, wanted.end))
        self._names = chain(rows, ((wanted.end - 1 - base, group) for group in wanted.states))  # still to be announced
        sizes = [-(-self._lengths[group] // PAGE_BYTES) * PAGE_BYTES for group in wanted.states]
        room = pool.take(sum(sizes)) if sizes else None
        self._room: dict[int, Bytes] = {}
        for index, group in enumerate(wanted.states):
            assert room is not None
            start = sum(sizes[:index])
            self._room[group] = room[start : start + self._lengths[group]]
        self._starts: deque[tuple[pb.ObjectStart, memoryview | None]] = deque()  # None: missing
        self._filled = 0
        self._last_tier: int | None = None  # on the wire, of the object that ended last

    def feed(self, frame: FetchFrame) -> None:
        """Raises Gone, and InvalidInput for a stream that no daemon would send."""
        self._starts.extend((start, self._target(start)) for start in frame.objects)
        data, position = frame.data, 0
        while self._starts:
            start, target = self._starts[0]
            if target is None:
                # only now: the bytes of the objects before it may be in this very frame
                if start.name.group in (0, self._wanted.required):
                    raise Gone
                self._starts.popleft()
                continue
            take = min(len(data) - position, len(target) - self._filled)
            if not take:
                return  # the rest is in later frames
            target[self._filled : self._filled + take] = data[position : position + take]
            position += take
            self._filled += take
            if self._filled == len(target):
                self._starts.popleft()
                self._filled = 0
                self._finish(start, target)
        if position < len(data):
            raise InvalidInput("the stream carries bytes of no object")

    def _target(self, start: pb.ObjectStart) -> memoryview | None:
        """Where the object's bytes go: each place is given out once, so nothing can overwrite what was verified."""
        block, group = start.name.block, start.name.group
        if (block, group) != next(self._names, None):
            raise InvalidInput(f"the stream names block {block} of group {group} where another object comes next")
        if start.status == pb.FETCH_STATUS_MISSING:
            return None
        length = self._lengths[group]
        if start.length != length:
            raise InvalidInput(f"the stream announces an object of group {group} with {start.length} bytes")
        if group:
            return self._room[group].data
        first = (block + self._base) * length
        return self._load.rows_bytes[first : first + length]

    def _finish(self, start: pb.ObjectStart, target: memoryview) -> None:
        block, group = start.name.block + self._base, start.name.group
        load = self._load
        key = BlockKey(load.hashed.position(block + 1), group)
        content = content_checksum((target,))
        if seal(key, start.generation, start.length, content, start.lineage) != start.seal:
            raise Gone(corrupt=key)
        if group:
            if start.lineage != load.lineage(block + 1):
                raise Gone(is_foreign=True)
            load.states[group] = self._room[group].reshape(1, -1)
        else:
            load.lineages.append(child_lineage(load.lineage(block), content))
        if start.tier != self._last_tier:  # hardly ever: most loads come from one tier
            self._last_tier = start.tier
            load.tier = coldest((load.tier, TIER.to_core(start.tier)))


def coldest(tiers: Sequence[Tier | None]) -> Tier | None:
    known = [tier for tier in tiers if tier is not None]
    return max(known, key=_TEMPERATURE.index, default=None)


def batches(first: int, end: int, states: tuple[int, ...], required: int | None, limit: int) -> Iterator[Wanted]:
    """The Fetches that bring rows [first, end) and the states at the end of block `end` - 1, each within the limit."""
    while end - first + len(states) > limit:
        middle = first + limit - len(states)
        yield Wanted(first, middle, (), None)
        first = middle
    yield Wanted(first, end, states, required)
