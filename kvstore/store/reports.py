"""What the mover's threads tell the store (`mover.Reports`). Each call takes the lock for dictionary work."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from kvstore.core.actions import Drop
from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Tier
from kvstore.store.kept import Kept
from kvstore.store.mover import Described, Written
from kvstore.store.rates import Rates

MAX_FLOWS = 4096  # loaded by layers and remembered; the oldest have ended long ago

log = logging.getLogger("kvstore.store")


class MoverReports:
    """Called by the mover's threads; `lost` also by readers."""

    def __init__(self, kept: Kept) -> None:
        self._kept = kept

    @property
    def rates(self) -> Rates:
        return self._kept.rates

    def describe(self, namespace: bytes) -> Described:
        return self._kept.described[namespace]

    def give_slot(self, facts: Facts, frame_bytes: int) -> int | None:
        with self._kept.lock:
            slots, actions = self._kept.planner.encoded(facts.key, facts.generation, frame_bytes, self._kept.clock())
            self._kept.run(actions)
        return slots[0] if slots else None

    def is_superseded(self, drop: Drop) -> bool:
        """A newer copy of the same object has taken the manifest entry's place.

        One that is about to does so in this commit or a later one, and a commit drops before it puts. The newer copy
        may be of the same generation: a reader can hold on to a bad copy until after the good one is written anew.
        """
        with self._kept.lock:
            entry = self._kept.planner.entry(drop.key)
            return entry is not None and entry.is_ready(Tier.DISK)

    def should_erase(self, drop: Drop) -> bool:
        """The frame was found bad, and its slot has not been given out again."""
        with self._kept.lock:
            if (drop.key, drop.generation) not in self._kept.bad:
                return False
            self._kept.bad.discard((drop.key, drop.generation))
            return self._kept.planner.spaces[Tier.DISK].is_free(drop.slots[0])

    def ended(self, copies: Sequence[tuple[Facts, bool]], target: Tier) -> None:
        with self._kept.changed:
            now = self._kept.clock()
            for facts, is_whole in copies:
                if is_whole and target is Tier.HOST:
                    self._kept.arrived_on_host(facts)
                else:
                    end = self._kept.planner.arrived if is_whole else self._kept.planner.failed
                    self._kept.run(end(facts.key, facts.generation, target, now))
                self._kept.counters[f"copies_{target.value}" + ("" if is_whole else "_failed")] += 1
            is_well = copies and target is Tier.DISK and all(is_whole for _, is_whole in copies)
            if is_well and not self._kept.shut:
                self._kept.troubles.pop(Tier.DISK, None)
            self._kept.changed.notify_all()

    def layered(self, flow: int) -> None:
        """More leading layers of all copies of a flow are verified in their slots.

        How many is asked under the lock: while it is held a flow's first copies run ahead of those not submitted yet.
        """
        with self._kept.changed:
            layers = self._kept.mover.layers_done(flow)
            if layers is None:
                return  # all have ended meanwhile
            self._kept.layers.pop(flow, None)
            self._kept.layers[flow] = layers
            if len(self._kept.layers) > MAX_FLOWS:
                del self._kept.layers[next(iter(self._kept.layers))]
            self._kept.changed.notify_all()

    def lost(self, facts: Facts, tier: Tier, why: str) -> None:
        """A copy does not verify. Its slot keeps its bytes until it is given out again, its name is forgotten."""
        log.warning("dropped a %s copy of %s: %s", tier.value, facts.key.prefix[:4].hex(), why)
        with self._kept.changed:
            self._kept.counters[f"corrupt_{tier.value}"] += 1
            if tier is Tier.DISK:
                self._kept.bad.add((facts.key, facts.generation))
            self._kept.run(self._kept.planner.corrupt(facts.key, facts.generation, tier))
            self._kept.changed.notify_all()

    def retire(self, segment: int) -> None:
        with self._kept.changed:
            self._kept.counters["retired_segments"] += 1
            self._kept.run(self._kept.planner.retire(Tier.DISK, segment))
            if (
                self._kept.disk is not None
                and segment not in self._kept.disk.bad_segments
                and segment not in self._kept.shut
            ):
                self._kept.shut.append(segment)
            self._kept.changed.notify_all()

    def trouble(self, tier: Tier, why: str) -> None:
        self._kept.trouble(tier, why)

    def populated(self) -> None:
        with self._kept.changed:
            self._kept.planner.grow(Tier.HOST, 1)
            self._kept.changed.notify_all()

    def last_used(self, key: BlockKey) -> float:
        with self._kept.lock:
            return self._kept.last_used_wall(key)

    def on_disk(self) -> list[Written]:
        """Every whole copy on disk; for a manifest that is written anew."""
        with self._kept.lock:
            return [
                Written(entry.facts, entry.disk.slots[0], entry.disk.nbytes)
                for entry in self._kept.planner.entries()
                if entry.disk is not None and entry.is_ready(Tier.DISK)
            ]

    def try_a_shut_segment(self) -> None:
        """One segment that could not be made, for want of room as a rule, may be tried again: one a tick.

        Called under the lock.
        """
        if self._kept.shut and not self._kept.planner.revive(Tier.DISK, self._kept.shut[0]):
            self._kept.shut.rotate(-1)  # a copy there has not ended
        elif self._kept.shut:
            self._kept.shut.popleft()
