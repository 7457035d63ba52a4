"""Copies under way: how they start, how they end, and what happens when their object went meanwhile.

A copy keeps its source in place (`Held.busy`) and its target reserved (INCOMING). When the object is dropped from
the index before the copy ends, both are doomed: their slots are freed when the copy is reported, not before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from itertools import islice

from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.disk_admission import DiskGate
from kvstore.core.index import CopyStatus, Entry, Held, Namespace, Node, mark_ready
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.room import Room
from kvstore.core.settings import Counts

RETRIES_PER_TICK = 16  # failed copies to disk that one tick tries again
# Copies to disk that one call starts, under the lock; ticks start the others. A quarter of what the writer takes as one
# batch: where a chain of thousands of blocks is used a second time, a lookup waits only milliseconds for it.
STARTED_AT_ONCE = 256


class Copies:
    """Starts copies and hears of their ends."""

    def __init__(self, room: Room, counts: Counts, gate: DiskGate) -> None:
        self.flow = 0  # the last one given
        self.gate = gate  # to the disk
        self._promoting: Counter[int] = Counter()  # raw bytes that each flow still has to read
        self._room = room
        self._counts = counts

    # -- starting -------------------------------------------------------------------------------
    def host_room(self, namespace: Namespace, count: int, holding: Entry | None, actions: list[Action]) -> bool:
        """Make room on the host for an object on top of `holding`, which must stay readable.

        It may leave the host where it is on disk: of a chain larger than the host it is the only leaf there.
        """
        if self._room.spaces[Tier.HOST].room(namespace.name, namespace.slot_pages) >= count:
            return True
        if holding is not None and holding.is_ready(Tier.DISK):
            holding = None
        if holding is not None:
            holding.leases += 1
            self._room.review(holding)
        drops: list[Drop] = []
        has_room = self._room.make_room(Tier.HOST, namespace.name, namespace.slot_pages, count, drops)
        actions += self._evicted(drops)
        if holding is not None:
            holding.leases -= 1
            self._room.review(holding)
        return has_room

    @property
    def promoting_bytes(self) -> tuple[int, ...]:
        """Raw bytes that each flow of promotions still has to read."""
        return tuple(self._promoting.values())

    def promote(
        self, node: Node, states: Iterable[Entry], layers: bool = False, steps: Collection[Entry] = ()
    ) -> list[Action]:
        """Copies to the host of what a plan at `node` needs and has on disk only, root first, while there is room.

        `steps` are states of shallower boundaries: each comes right after the rows that it stands on. The copies make
        one flow, which is `self.flow` afterwards.
        """
        self.flow += 1
        cold: list[Entry] = []
        at = {step.node: step for step in steps if step.host is None}
        above: Node | None = node
        while above is not None and not above.hot and above.rows is not None:
            if above in at:
                cold.append(at.pop(above))
            if above.rows.host is None:
                cold.append(above.rows)
            above = above.parent
        cold += at.values()  # on rows that are hot: of use at once
        cold.reverse()
        cold += [state for state in states if state.host is None]
        actions: list[Action] = []
        namespace = node.namespace
        space = self._room.spaces[Tier.HOST]
        before: Entry | None = None
        for entry in cold:
            count = namespace.slots_needed(entry.facts.key.group)
            has_room = space.room(namespace.name, namespace.slot_pages) >= count
            if not entry.is_ready(Tier.DISK) or not (has_room or self.host_room(namespace, count, entry, actions)):
                break
            disk = entry.disk
            if disk is None:  # a state whose rows had lost their copy on disk and made the room: it went with them
                break
            slots = self._room.allocate(entry, Tier.HOST, namespace.name, namespace.slot_pages, count)
            disk.busy += 1
            held = Held(CopyStatus.INCOMING, slots, entry.facts.raw_bytes)
            held.flow = self.flow
            self._promoting[held.flow] += held.nbytes
            parent = entry.node.parent
            stands_on_one = entry.is_rows and before is not None and parent is not None and before is parent.rows
            self._room.attach_promotion(entry, held, stands_on_one=stands_on_one)
            before = entry if entry.is_rows else before
            target = (slots, held.stamp, self.flow, layers)
            actions.append(Copy(entry.facts, Tier.DISK, Tier.HOST, disk.slots, disk.nbytes, *target))
        return actions

    def used(self, entries: Iterable[Entry | None], now: float) -> list[Action]:
        """Copies to disk of what was held back when it came, with the rows under it: it was used again."""
        actions: list[Action] = []
        if self.gate.is_open or not self._room.spaces[Tier.DISK].regions:
            return actions
        self.gate.pass_time(now)
        for entry in entries:
            if entry is None or entry.disk is not None or self._room.find(entry.facts.key) is not entry:
                continue
            if self.gate.wants(entry) and self.gate.may_start():
                actions += self._write(entry)
        return actions

    def write_again(self, entry: Entry) -> None:
        """Let a later tick copy it to disk: its copy there is gone."""
        self._room.unwritten[entry.facts.key] = None

    def retry_writes(self, now: float) -> list[Action]:
        """Try again to copy to disk what failed before, oldest first and a few at a time. It was admitted then."""
        actions: list[Action] = []
        unwritten = self._room.unwritten
        self.gate.pass_time(now)
        if not self._room.spaces[Tier.DISK].regions:
            return actions
        for key in list(islice(unwritten, RETRIES_PER_TICK)):
            if not self.gate.has_budget:
                break
            del unwritten[key]
            entry = self._room.find(key)
            if entry is not None and entry.disk is None:
                actions += self._write(entry, again=True)
        return actions

    def encoded(self, key: BlockKey, generation: int, frame_bytes: int) -> tuple[tuple[int, ...], list[Action]]:
        """The slot of a frame of this length, as (page,); empty when the disk has no room or the object went."""
        entry = self._live(key, generation)
        actions: list[Action] = []
        if entry is None or entry.disk is None:
            return (), actions
        owner, pages, count = self._room.spaces[Tier.DISK].cut(frame_bytes)
        drops: list[Drop] = []
        has_room = self._room.make_room(Tier.DISK, owner, pages, count, drops)
        actions += self._evicted(drops)
        if not has_room:
            return (), actions
        entry.disk.nbytes = frame_bytes
        entry.disk.slots = self._room.allocate(entry, Tier.DISK, owner, pages, count)
        self._room.admitted(entry, Tier.DISK)
        self.gate.encoded(key, generation, frame_bytes)
        return entry.disk.slots, actions

    # -- ending ---------------------------------------------------------------------------------
    def arrived(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        if tier is Tier.DISK:
            self.gate.ended(key, generation)
        entry = self._live(key, generation)
        if entry is None or entry.held(tier) is None:
            return self._ended_doomed(key, generation, tier)
        held = entry.held(tier)
        assert held is not None
        self._read(held)
        mark_ready(entry, tier)
        actions = self._free_source(entry, tier)
        node = entry.node
        is_first_and_below = entry.disk is None and entry.is_rows and node.below_host > len(node.states)
        if not is_first_and_below:  # such rows were never offered and may not go: nothing changes
            self._room.review_all((entry,))
        if tier is Tier.HOST:
            actions += self._came(entry, now)
        return actions

    def failed(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        if tier is Tier.DISK:
            self.gate.ended(key, generation)
        entry = self._live(key, generation)
        held = None if entry is None else entry.held(tier)
        if entry is None or held is None:
            return self._ended_doomed(key, generation, tier)
        self._read(held)
        actions = self._free_source(entry, tier)
        held.status = CopyStatus.READY  # nobody writes it any more: its slots can be freed
        if tier is Tier.DISK:
            self.write_again(entry)
        return actions + list(self._room.lose(entry, tier))

    # -- using ----------------------------------------------------------------------------------
    def hold(self, key: BlockKey, tier: Tier, generation: int) -> Held | None:
        entry = self._live(key, generation)
        held = None if entry is None else entry.held(tier)
        if entry is None or held is None or held.status is not CopyStatus.READY:
            return None
        held.busy += 1
        self._room.review_use(entry, tier)
        return held

    def unhold(self, key: BlockKey, tier: Tier, generation: int, held: Held) -> list[Action]:
        held.busy -= 1
        if self._room.doomed.get((key, generation, tier)) is held:
            return self._settle(key, generation, tier)
        entry = self._room.find(key)
        if entry is not None:
            self._room.review_use(entry, tier)
        return []

    # -- private --------------------------------------------------------------------------------
    def _came(self, entry: Entry, now: float) -> list[Action]:
        """Copies to disk of an object that is on the host now, and of what waited for it; none if it is held back."""
        if entry.disk is not None or not self._room.spaces[Tier.DISK].regions:
            return []
        self.gate.pass_time(now)
        if not self.gate.wants(entry):
            self.gate.held_back += 1
            return []
        above = _stands_on(entry).rows
        if above is None or above.disk is not None:
            return self._write(entry)
        if above.is_ready(Tier.HOST):
            self.write_again(above)  # it was held back, left the disk, or waits for its own parent: a tick sees to all
        return []

    def _write(self, entry: Entry, again: bool = False) -> list[Action]:
        """Copies to disk of an object, in front of it of the rows that it stands on, and of what waited for these.

        The disk's rows are kept closed under prefix: none is written before those above it are there or on their way.
        What failed before is left to ticks, which try it `again`.
        """
        path = [entry]
        while (above := _stands_on(path[-1]).rows) is not None and above.disk is None:
            path.append(above)
        unwritten = self._room.unwritten
        is_left = bool(unwritten) and not again and any(each.facts.key in unwritten for each in path)
        actions: list[Action] = []
        if is_left or not all(each.is_ready(Tier.HOST) for each in path):
            return actions
        waiting: list[Entry] = []
        for needed in reversed(path):
            is_enough = len(actions) >= STARTED_AT_ONCE
            if is_enough or not self._start(needed, actions):
                if is_enough or again:
                    self.write_again(entry)
                return actions
            waiting += _standing_on(needed)
        while waiting:
            found = waiting.pop()
            if found.disk is not None or not found.is_ready(Tier.HOST) or not self.gate.wants(found):
                continue
            if len(actions) >= STARTED_AT_ONCE:
                self.write_again(found)
            elif not self._start(found, actions):
                break
            else:
                waiting += _standing_on(found)
        return actions

    def _start(self, entry: Entry, actions: list[Action]) -> bool:
        host = entry.host
        assert host is not None and entry.disk is None
        if not self.gate.start(entry):
            return False
        host.busy += 1
        self._room.attach(entry, Tier.DISK, Held(CopyStatus.INCOMING, (), 0))
        actions.append(Copy(entry.facts, Tier.HOST, Tier.DISK, host.slots, host.nbytes, ()))
        return True

    def _read(self, held: Held) -> None:
        """A copy ended; if it was a promotion, its flow has less to read."""
        if held.flow and held.status is CopyStatus.INCOMING:
            self._promoting[held.flow] -= held.nbytes
            if self._promoting[held.flow] <= 0:
                del self._promoting[held.flow]

    def _live(self, key: BlockKey, generation: int) -> Entry | None:
        entry = self._room.find(key)
        return entry if entry is not None and entry.facts.generation == generation else None

    def _free_source(self, entry: Entry, target: Tier) -> list[Action]:
        """A copy ended: its source is free again. An upload has no source."""
        source = Tier.DISK if target is Tier.HOST else Tier.HOST
        held = entry.held(source)
        if held is not None and held.busy and (target is Tier.DISK or entry.is_ready(Tier.DISK)):
            held.busy -= 1
            return []
        doomed = self._room.doomed.get((entry.facts.key, entry.facts.generation, source))
        if doomed is None:
            return []
        doomed.busy -= 1
        return self._settle(entry.facts.key, entry.facts.generation, source)

    def _ended_doomed(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        """A copy ended whose object was dropped meanwhile: free its slots, and its source's."""
        actions: list[Action] = []
        held = self._room.doomed.get((key, generation, tier))
        if held is None:
            return actions
        self._read(held)
        held.status = CopyStatus.READY
        actions += self._settle(key, generation, tier)
        source = Tier.DISK if tier is Tier.HOST else Tier.HOST
        origin = self._room.doomed.get((key, generation, source))
        if origin is not None and origin.busy:
            origin.busy -= 1
            actions += self._settle(key, generation, source)
        return actions

    def _settle(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        held = self._room.settle(key, generation, tier)
        return [] if held is None else [Drop(key, generation, tier, held.slots)]

    def _evicted(self, drops: list[Drop]) -> list[Action]:
        for drop in drops:
            self._counts.evicted[drop.tier] += 1
        return list(drops)


def _stands_on(entry: Entry) -> Node:
    above = entry.node.parent if entry.is_rows else entry.node
    assert above is not None
    return above


def _standing_on(entry: Entry) -> list[Entry]:
    if not entry.is_rows:
        return []
    below = [child.rows for child in reversed(entry.node.children()) if child.rows is not None]
    return [*below, *entry.node.states]
