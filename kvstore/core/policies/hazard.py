"""Learned reuse: keep what is most likely to be used soon, for its bytes. What that is, the traffic says.

Objects of one kind have the same group, size, class, turn, uses and place (end of its chain, or not). How often a kind
is used at which age is learned from what is here and from keys of what went (`lifetable.py`), so that nothing is set
but the kinds. Kinds and ages are those of DESIGN section 9: after a tool call a session comes back soon, scratch does
not come back, what was used four times is used again.

A kind's objects of one age bucket are worth the same and lie on one shelf; they grow older from shelf to shelf. The
victim is the one used longest ago of the shelf worth least.

Leaf-first order: only what may go is watched, so chances are those of a chain's end, given that the rest is kept. What
a victim stood on is a kind of its own from then on: no end any more, and used as often.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

from kvstore.core.index import Entry, ObjectClass
from kvstore.core.keys import BlockKey
from kvstore.core.policies.chain import stands_on
from kvstore.core.policies.lifetable import LifeTable, bucket_of, ends_at
from kvstore.core.policies.remembered import Remembered
from kvstore.core.policies.shelves import Shelves

MOST_TURNS = 5  # "5 or later": MEASURED section 7 sees chances differ by turn up to there
MOST_USES = 3


class Kind(NamedTuple):
    """What objects have in common that are expected to be used alike."""

    group: int
    nbytes: int
    object_class: ObjectClass
    turn: int
    uses: int
    is_end: bool


class Watched(NamedTuple):
    kind: Kind
    last_used: float
    bucket: int


class Hazard:
    """Evict what is least likely to be used, for its bytes."""

    name = "hazard"

    def order(self, capacity_bytes: int) -> HazardOrder:
        return HazardOrder(capacity_bytes)


class HazardOrder:
    def __init__(self, capacity_bytes: int) -> None:
        self._now = 0.0  # of the latest event
        self._table = LifeTable()
        self._shelves: Shelves[tuple[Kind, int]] = Shelves()
        self._worth: dict[tuple[Kind, int], float] = {}  # of shelves, by the table's version
        self._version = -1
        self._stored: dict[BlockKey, Entry] = {}
        self._watched: dict[BlockKey, Watched] = {}  # candidates, and what went
        self._due: list[tuple[float, BlockKey, float]] = []  # when it leaves its bucket; its last use
        self._gone = Remembered(capacity_bytes)
        self._uses_below: dict[BlockKey, int] = {}  # of what stood on it and went

    def admitted(self, entry: Entry) -> None:
        key = entry.facts.key
        self._pass_to(entry.last_used)
        self._stored[key] = entry
        if self._gone.take(key) is not None:
            self._learn_use(entry)

    def used(self, entry: Entry) -> None:
        self._pass_to(entry.last_used)
        self._uses_below.pop(entry.facts.key, None)  # it is where a request's match ended: an end again
        self._learn_use(entry)

    def offer(self, entry: Entry, last_used: float) -> None:
        self._now = max(self._now, last_used)
        key, kind = entry.facts.key, self._kind(entry)
        known = self._watched.get(key)
        if known is not None and known.last_used == last_used and known.kind == kind and key in self._shelves:
            return
        self._watch(key, Watched(kind, last_used, bucket_of(self._now - last_used)))
        self._stored[key] = entry

    def withdraw(self, key: BlockKey) -> None:
        """Nobody could have used it by itself from now on: a lease holds it, or something stands on it."""
        if self._shelves.take(key) is not None:
            del self._watched[key]

    def pop(self) -> BlockKey | None:
        key = self.first()
        if key is None:
            return None
        self._shelves.take(key)
        entry = self._stored[key]
        below = stands_on(entry) if entry.is_rows else None
        if below is not None and below.facts.key in self._stored:
            known = self._uses_below.get(below.facts.key, 0)
            self._uses_below[below.facts.key] = max(known, self._watched[key].kind.uses)
        return key

    def removed(self, entry: Entry, nbytes: int) -> None:
        """It is watched on: had it been kept, would it have been used?"""
        key = entry.facts.key
        self._stored.pop(key, None)
        self._shelves.take(key)
        if key not in self._watched:  # taken back before it was dropped, as the planner does
            last_used = entry.last_used
            self._remember(key, Watched(self._kind(entry), last_used, bucket_of(max(self._now - last_used, 0.0))))
        self._uses_below.pop(key, None)
        self._gone.add(key, nbytes)

    def first(self) -> BlockKey | None:
        """Of shelves worth the same, the older; of objects on it, the one used longest ago."""
        self._pass_to(self._now)
        if self._version != self._table.version:
            self._version = self._table.version
            self._worth.clear()
        least: tuple[float, int] | None = None
        first: BlockKey | None = None
        for shelf, _, key in self._shelves.firsts():
            worth = self._worth.get(shelf)
            if worth is None:
                worth = self._worth[shelf] = self._table.index(*shelf) / max(shelf[0].nbytes, 1)
            if least is None or (worth, -shelf[1]) < least:
                least, first = (worth, -shelf[1]), key
        return first

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._shelves

    def __len__(self) -> int:
        return len(self._shelves)

    def _kind(self, entry: Entry) -> Kind:
        facts, below = entry.facts, self._uses_below.get(entry.facts.key)
        is_end = below is None and not entry.node.children()
        uses = min(max(entry.uses, below or 0), MOST_USES)
        return Kind(facts.key.group, facts.raw_bytes, facts.object_class, min(entry.turn, MOST_TURNS), uses, is_end)

    def _watch(self, key: BlockKey, watched: Watched) -> None:
        self._shelves.put(key, (watched.kind, watched.bucket), watched.last_used)
        self._remember(key, watched)

    def _remember(self, key: BlockKey, watched: Watched) -> None:
        self._watched[key] = watched
        heapq.heappush(self._due, (watched.last_used + ends_at(watched.bucket), key, watched.last_used))

    def _learn_use(self, entry: Entry) -> None:
        known = self._watched.get(entry.facts.key)
        if known is None or entry.last_used <= known.last_used:  # one request may name an object twice
            return
        self._table.learn(known.kind, known.bucket, True)
        if entry.facts.key in self._shelves:
            self._watch(entry.facts.key, Watched(self._kind(entry), entry.last_used, 0))
        else:
            del self._watched[entry.facts.key]

    def _pass_to(self, now: float) -> None:
        """Time goes on: what was not used in its bucket is in the next."""
        self._now = max(self._now, now)
        while self._due and self._due[0][0] <= self._now:
            ended, key, last_used = heapq.heappop(self._due)
            known = self._watched.get(key)
            if known is None or known.last_used != last_used or last_used + ends_at(known.bucket) != ended:
                continue
            self._table.learn(known.kind, known.bucket, False)
            older = Watched(known.kind, last_used, known.bucket + 1)
            if key in self._shelves:
                older = older._replace(kind=self._kind(self._stored[key]))  # it may be no end any more
                self._watch(key, older)
            elif key in self._gone or key in self._stored:
                self._remember(key, older)
            else:
                del self._watched[key]  # forgotten
