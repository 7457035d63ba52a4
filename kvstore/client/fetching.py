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
from kvstore.client.target import Target
from kvstore.core.checksum import content_checksum, seal
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import CHECKSUM_BYTES, PAGE_BYTES, BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.rpc.enums import TIER
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.wire import FetchFrame

_TEMPERATURE = (Tier.GPU, Tier.HOST, Tier.DISK, Tier.REMOTE)


class Gone(Exception):
    """A required object is not to be had. `kind` is how it is counted; `corrupt` names one whose bytes were wrong."""

    def __init__(self, kind: str, corrupt: BlockKey | None = None) -> None:
        super().__init__(kind)
        self.kind, self.corrupt = kind, corrupt

    @property
    def is_foreign(self) -> bool:
        """It was whole, but of another run than the rows that are here."""
        return self.kind == FOREIGN


FOREIGN = "lineage_mismatch"


@dataclass(slots=True)
class Load:
    """What has been fetched of one sequence so far: rows of blocks [first, here), states at the last block's end."""

    hashed: HashedTokens
    target: Target
    room: int  # rows that the target takes
    blocks: int  # of the plan
    first: int  # own rows are [first, end); less than all of the plan's in a share
    here: int  # own rows [first, here) are verified
    expected: bytes | None  # lineage of the plan's rows as the store told it
    is_share: bool = False
    lineages: list[bytes] = field(default_factory=list)  # of the first rows, as far as their contents are known
    states: dict[int, Bytes] = field(default_factory=dict)  # verified, (1, object bytes) each
    tier: Tier | None = None
    saw_gone: bool = False
    saw_foreign: bool = False

    def lineage(self, blocks: int) -> bytes | None:
        """Of so many rows; None where not all of their contents are known."""
        if not blocks:
            return ROOT_LINEAGE
        return self.lineages[blocks - 1] if blocks <= len(self.lineages) else None

    def land(self, first_block: int, contents: bytes, end: int) -> None:
        """Own rows up to block `end` are verified; `contents`: packed checksums of rows from `first_block` on."""
        self.here = end
        self.know(first_block, contents, end)

    def know(self, first_block: int, contents: bytes, end: int) -> None:
        """Work out lineages up to block `end`, as far as that goes without a gap."""
        end = min(end, first_block + len(contents) // CHECKSUM_BYTES)
        while first_block <= len(self.lineages) < end:
            start = (len(self.lineages) - first_block) * CHECKSUM_BYTES
            parent = self.lineages[-1] if self.lineages else ROOT_LINEAGE
            self.lineages.append(child_lineage(parent, contents[start : start + CHECKSUM_BYTES]))

    def cut(self, here: int) -> None:
        """Forget what came in behind this block."""
        self.here = min(self.here, here)
        del self.lineages[self.here :]

    def note_tier(self, tier: Tier) -> None:
        self.tier = coldest((self.tier, tier))


class Wanted(NamedTuple):
    """One Fetch: rows [first, end) of the sequence, then the states at the end of its last block."""

    first: int
    end: int
    states: tuple[int, ...]  # groups
    required: int | None  # the group without which there is no resuming


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
                    raise Gone("missing")
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
        return self._load.target.place(block + self._base - self._load.first)

    def _finish(self, start: pb.ObjectStart, target: memoryview) -> None:
        block, group = start.name.block + self._base, start.name.group
        load = self._load
        key = BlockKey(load.hashed.position(block + 1), group)
        content = content_checksum((target,))
        if seal(key, start.generation, start.length, content, start.lineage) != start.seal:
            raise Gone("corrupt", key)
        if group:
            lineage = load.lineage(block + 1) or load.expected  # the store's word, of a share that was streamed
            if lineage is not None and start.lineage != lineage:
                raise Gone(FOREIGN)
            load.states[group] = self._room[group].reshape(1, -1)
        else:
            load.target.landed(block - load.first)
            load.land(block, content, block + 1)
        if start.tier != self._last_tier:  # hardly ever: most loads come from one tier
            self._last_tier = start.tier
            load.note_tier(TIER.to_core(start.tier))


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
