"""A match's bytes out of shared memory: one copy, then a look at the stamps whether it was in time.

What is hot is copied at once; what is cold is located as its promotion goes on, and copied while the rest is read from
disk. What is not to be had here (no attachment, no room on the host) is left to the stream.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore.client.arena import Arena, Slots
from kvstore.client.buffers import BufferPool, Bytes
from kvstore.client.copiers import PART_BYTES, Copiers
from kvstore.client.fetching import Gone, Load
from kvstore.client.lanes import NoLane
from kvstore.client.link import Link
from kvstore.client.located import Located, located
from kvstore.client.match import ClientMatch
from kvstore.client.packing import Packing
from kvstore.client.runs import block_runs
from kvstore.client.target import join
from kvstore.client.views import Views
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.rpc.generated import kvstore_pb2 as pb

VERIFY_BYTES = 256 << 10  # copied, or one object, then hashed while it is in the CPU's second cache
LOCATE_BYTES = 16 << 20  # of cold rows that one Locate waits for: copied while the next ones are read
LOCATE_SECONDS = 2.0  # one Locate waits no longer
ANSWER_SECONDS = 0.5  # of the deadline kept back for a Locate's answer, at most; at least a fifth of what is left


class SharedReader:
    """Reads for one layout over one link. Any thread."""

    def __init__(self, link: Link, packings: tuple[Packing, ...], pool: BufferPool) -> None:
        self._link, self._packings, self._pool = link, packings, pool
        self._copiers = Copiers()

    def close(self) -> None:
        self._copiers.close()

    def take(
        self, match: ClientMatch, load: Load, end: int, states: Sequence[int], deadline: float, *, verify: bool
    ) -> None:
        """Copy what lies in shared memory of rows [load.here, end) and of the plan's states of these groups.

        Raises Gone for what went or is wrong, StoreUnavailable and HelloAgain, OSError where memory is out.
        """
        found, known_end, is_asked = match.located, 0, False
        located_states = states if match.plan.tokens == match.found.plan.tokens else ()  # the lease has no others
        while found is not None and found.arena.is_alive:
            if time.monotonic() >= found.valid_until:
                raise Gone("lease_over")
            before = (known_end, len(load.states))
            if found.rows is not None:
                self._rows(found.arena, found.rows, load, end, verify=verify)
                known_end = max(known_end, found.rows.end_block)
            self._states(found, load, located_states, verify=verify)
            if load.here >= end and all(group in load.states for group in located_states):
                return
            if is_asked and not found.is_loading and before == (known_end, len(load.states)):
                return  # nothing more comes this way
            # a share needs to know what lies below its rows: their lineage stands on it
            first_block = load.blocks if load.here >= end else known_end if load.is_share else max(known_end, load.here)
            found, is_asked = self.locate(match, found, first_block, end, deadline), True

    def views(self, match: ClientMatch, first: int, end: int, deadline: float) -> Views | None:
        """Rows [first, end) and the plan's states where they lie; None where not all of them are in shared memory."""
        found, slots = match.located, None if match.located is None else match.located.rows
        while found is not None and (slots is None or slots.end_block < end):
            found = self.locate(match, found, 0 if slots is None else slots.end_block, end, deadline)
            if found is not None and found.rows is not None:
                slots = found.rows if slots is None else slots.joined(found.rows)
            elif found is not None and not found.is_loading:
                return None
        if found is None or slots is None or not found.arena.is_alive or time.monotonic() >= found.valid_until:
            return None
        if found.arena.whole(slots, 0, len(slots)) < len(slots):
            self._link.counters.add("fetch_stamp_mismatch")
            return None
        states = tuple(state for state in found.states.values() if state.first_block == end - 1)
        return Views(found.arena, self._packings[0], slots, first, end, states, found.valid_until)

    def locate(
        self,
        match: ClientMatch,
        found: Located,
        first_block: int,
        end: int,
        deadline: float,
        seen_layers: int | None = None,
    ) -> Located | None:
        """Ask for what was cold; None where there is no lane to ask on. Raises StoreUnavailable and HelloAgain."""
        lease, arena = match.lease, found.arena
        if lease is None or lease.id is None or not arena.is_alive:
            return None
        left = self._link.left(deadline)
        request = pb.LocateRequest(
            namespace_id=arena.namespace,
            boot_epoch=lease.boot_epoch,
            lease=lease.id,
            first_block=first_block,
            min_blocks=max(1, min(end - first_block, -(-LOCATE_BYTES // self._packings[0].object_bytes))),
            wait_seconds=max(0.0, min(LOCATE_SECONDS, left - min(ANSWER_SECONDS, left / 5))),
            seen_layers=seen_layers,
        )
        self._link.counters.add("locates")
        try:
            answer = self._link.lane_call(arena.lanes, self._link.calls.locate, request, deadline)
            return located(arena, answer, first_block, found.valid_until, deadline)
        except NoLane:
            return None
        except InvalidInput as error:
            raise self._link.failure(error) from error

    def _rows(self, arena: Arena, slots: Slots, load: Load, end: int, *, verify: bool) -> None:
        load.know(slots.first_block, slots.contents, load.here)
        first, last = load.here, min(end, slots.end_block)
        if slots.first_block <= first < last:
            self._copy(arena, slots, load, first, last, verify=verify)
            load.note_tier(Tier.HOST)
        if load.is_share and load.here >= end:
            load.know(slots.first_block, slots.contents, load.blocks)

    def _copy(self, arena: Arena, slots: Slots, load: Load, first: int, last: int, *, verify: bool) -> None:
        object_bytes, base = self._packings[0].object_bytes, slots.first_block
        if slots.pages.shape[1] > 1:  # rows larger than a slot
            for block in range(first, last):
                load.target.assemble(block - load.first, arena.pieces(slots, block - base))
                self._land(arena, slots, load, block, 1, verify=verify)
            return

        def copy(part: _Part) -> int:
            load.target.copy(part.block - load.first, part.objects, part.data, part.offset, part.spacing)
            return _right(slots, load, part.block, part.objects) if verify else part.objects

        at_once = max(1, (VERIFY_BYTES if verify else PART_BYTES) // object_bytes)
        parts = list(_parts(arena, slots.pages[first - base : last - base, 0], first, at_once))
        rights = self._copiers.each(copy, parts, (last - first) * object_bytes)
        wrong = next((number for number, right in enumerate(rights) if right < parts[number].objects), len(parts))
        right = sum(rights[: wrong + 1])  # of all in front
        self._land(arena, slots, load, first, last - first, verify=verify, right=right)

    def _land(
        self, arena: Arena, slots: Slots, load: Load, block: int, count: int, *, verify: bool, right: int | None = None
    ) -> None:
        """Believe what was copied, as far as it was in time or its checksums say so. Raises Gone.

        `right`: so many checksums in front are known to be as they should.
        """
        index = block - slots.first_block
        kind = "stamp_mismatch"
        if not verify:
            right = arena.whole(slots, index, index + count)
        else:
            right = _right(slots, load, block, count) if right is None else right
            if right < count and arena.whole(slots, index + right, index + right + 1):
                kind = "corrupt"  # and not overwritten while it was copied
        load.land(slots.first_block, slots.contents, block + right)
        self._link.counters.add("fetched_shared_bytes", right * self._packings[0].object_bytes)
        if right < count:
            key = BlockKey(load.hashed.position(block + right + 1), 0)
            raise Gone(kind, key if kind == "corrupt" else None)

    def _states(self, found: Located, load: Load, wanted: Sequence[int], *, verify: bool) -> None:
        for group in wanted:
            slots = found.states.get(group)
            if slots is None or group in load.states or slots.first_block != load.blocks - 1:
                continue
            state = self.copied_state(found.arena, slots)
            if not found.arena.whole(slots, 0, 1):
                raise Gone("stamp_mismatch")
            if verify and content_checksum((state.data,)) != slots.content(slots.first_block):
                raise Gone("corrupt", BlockKey(load.hashed.position(load.blocks), group))
            self._link.counters.add("fetched_shared_bytes", len(state))
            load.states[group] = state.reshape(1, -1)

    def copied_state(self, arena: Arena, slots: Slots) -> Bytes:
        """A state's bytes; its stamps are the caller's to compare."""
        state = self._pool.take(self._packings[slots.group].object_bytes)
        join(arena.pieces(slots, 0), state)
        return state

    def viewed_states(self, views: Views) -> dict[int, Bytes] | None:
        """(1, object bytes) of each state, by group: where it lies if that is one slot, else a copy; None: gone."""
        states: dict[int, Bytes] = {}
        for slots in views.states:
            pieces = views.arena.pieces(slots, 0)
            states[slots.group] = (pieces[0] if len(pieces) == 1 else self.copied_state(views.arena, slots))[None]
        return states if all(views.arena.whole(slots, 0, 1) for slots in views.states) else None


class _Part(NamedTuple):
    """Evenly spaced objects that one thread copies at a time."""

    block: int
    objects: int
    data: Bytes
    offset: int
    spacing: int


def _parts(arena: Arena, pages: NDArray[np.int64], first: int, at_once: int) -> Iterator[_Part]:
    for run in block_runs(pages, arena.region_pages):
        data, offset = arena.at(run.page)
        spacing = run.step * PAGE_BYTES
        for start in range(0, run.objects, at_once):
            count = min(at_once, run.objects - start)
            yield _Part(first + run.first + start, count, data, offset + start * spacing, spacing)


def _right(slots: Slots, load: Load, block: int, count: int) -> int:
    """Of the blocks that were copied, how many in front have the bytes that the descriptors promise."""
    for index in range(count):
        if load.target.checksum(block + index - load.first) != slots.content(block + index):
            return index
    return count


def lineage_of(contents: bytes, blocks: int) -> bytes:
    """Lineage of the first `blocks` rows of a sequence from their packed content checksums."""
    lineage = ROOT_LINEAGE
    for start in range(0, 16 * blocks, 16):
        lineage = child_lineage(lineage, contents[start : start + 16])
    return lineage
