"""When objects were used, and when those with a TTL are forgotten."""

from __future__ import annotations

import heapq

from kvstore.core.actions import Action
from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.room import Room

LOOK_AGAIN_SECONDS = 1.0  # an expired object that is still in use, or that others stand on, is looked at again


class Lifetimes:
    """Puts entries into the tree, touches them, and ends them."""

    def __init__(self, room: Room) -> None:
        self.touched: set[BlockKey] = set()  # used since the shell last emptied it, to be remembered over restarts
        self.expired = 0
        self._room = room
        self._expiry: list[tuple[float, BlockKey, int]] = []

    def add(self, entry: Entry) -> None:
        """A new entry; its copy is attached next."""
        if entry.is_rows:
            entry.node.rows = entry
        else:
            entry.node.add_state(entry)
        self.watch(entry)

    def watch(self, entry: Entry) -> None:
        """It has a TTL, or another one than before."""
        if entry.facts.ttl_seconds is not None:
            self._push(entry.last_used + entry.facts.ttl_seconds, entry)

    def touch(self, entry: Entry | None, now: float) -> None:
        """Record one use. A use of the deepest object counts for its ancestors: they outlive it."""
        if entry is None:
            return
        entry.last_used = max(entry.last_used, now)
        entry.uses += 1
        self.touched.add(entry.facts.key)
        self._room.used(entry)

    def expire(self, now: float) -> list[Action]:
        """Forget what was unused for its TTL and stands alone."""
        actions: list[Action] = []
        again: list[tuple[float, Entry]] = []
        while self._expiry and self._expiry[0][0] <= now:
            _, key, generation = heapq.heappop(self._expiry)
            entry = self._room.find(key)
            if entry is None or entry.facts.generation != generation or entry.facts.ttl_seconds is None:
                continue
            due = entry.last_used + entry.facts.ttl_seconds
            if due > now:
                again.append((due, entry))
            elif self._is_needed(entry):
                again.append((now + LOOK_AGAIN_SECONDS, entry))
            else:
                actions += self._forget_up(entry, now)
        for due, entry in again:
            self._push(due, entry)
        return actions

    def _forget_up(self, entry: Entry, now: float) -> list[Action]:
        """It, and what is due above it: else a chain would go a block a second."""
        actions: list[Action] = []
        above: Entry | None = entry
        while above is not None:
            entry, parent = above, above.node.parent if above.is_rows else above.node
            self.expired += 1
            actions += self._room.forget_all(entry)
            above = None if parent is None else parent.rows
            if above is not None:
                ttl_seconds = above.facts.ttl_seconds
                is_due = ttl_seconds is not None and above.last_used + ttl_seconds <= now
                above = above if is_due and not self._is_needed(above) else None
        return actions

    def _push(self, due: float, entry: Entry) -> None:
        heapq.heappush(self._expiry, (due, entry.facts.key, entry.facts.generation))

    def _is_needed(self, entry: Entry) -> bool:
        if entry.is_rows and (entry.node.children() or entry.node.states):
            return True
        return not all(self._room.may_go(entry, tier) for tier, _ in entry.copies())
