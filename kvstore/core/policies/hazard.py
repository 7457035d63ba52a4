"""Learned reuse: keep what is most likely to be used soon, for its bytes. What that is, the traffic says.

Objects of one kind have the same group, size, class, turn, uses and place (end of its chain, or not). A turn that no
request named is counted: what is announced on top of an earlier request's objects is a turn later. How often a kind
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

from kvstore.core.index import Entry
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
    object_class: int  # value of ObjectClass: members hash slowly
    turn: int
    uses: int
    is_end: bool


class Past(NamedTuple):
    """What an entry does not say of itself: it is made anew with each announcement."""

    admitted_at: float
    turn: int  # how many requests after another built the chain up to it
    uses: int  # before it was announced this time


class Watched(NamedTuple):
    kind: int
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
        self._kinds: list[Kind] = []
        self._kind_numbers: dict[Kind, int] = {}
        self._shelves: Shelves[tuple[int, int]] = Shelves()  # by kind and bucket
        self._by_worth: list[tuple[int, int]] = []  # shelves, the least first; by the table's version
        self._places: dict[tuple[int, int], int] = {}  # of shelves in that list
        self._first_place = 0  # all shelves before it are empty
        self._version = -1
        self._stored: dict[BlockKey, Entry] = {}
        self._pasts: dict[BlockKey, Past] = {}
        self._watched: dict[BlockKey, Watched] = {}  # candidates, and what went
        self._due: list[tuple[float, BlockKey, float]] = []  # when it leaves its bucket; its last use
        self._gone = Remembered(capacity_bytes)
        self._uses_below: dict[BlockKey, int] = {}  # of what stood on it and went

    def admitted(self, entry: Entry) -> None:
        key = entry.facts.key
        self._pass_to(entry.last_used)
        self._stored[key] = entry
        below = stands_on(entry)
        under = None if below is None else self._pasts.get(below.facts.key)
        turn = 1 if under is None else under.turn + (entry.last_used > under.admitted_at)
        before = self._watched.get(key)
        uses = 0
        if self._gone.take(key) is not None and before is not None:
            uses = self._kinds[before.kind].uses + 1
            turn = max(turn, self._kinds[before.kind].turn)
            self._learn_use(entry)
        self._pasts[key] = Past(entry.last_used, min(turn, MOST_TURNS), min(uses, MOST_USES))

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
        if self._shelves.take(key):
            known = self._watched.pop(key)
            self._table.enter(known.kind, known.bucket, -1.0)

    def pop(self) -> BlockKey | None:
        key = self.first()
        if key is None:
            return None
        self._shelves.take(key)
        entry = self._stored[key]
        below = stands_on(entry) if entry.is_rows else None
        if below is not None and below.facts.key in self._stored:
            known = self._uses_below.get(below.facts.key, 0)
            self._uses_below[below.facts.key] = max(known, self._kinds[self._watched[key].kind].uses)
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
        self._pasts.pop(key, None)
        self._gone.add(key, nbytes)

    def first(self) -> BlockKey | None:
        """Of shelves worth the same, the older; of objects on it, the one used longest ago."""
        self._pass_to(self._now)
        if self._version != self._table.version or len(self._by_worth) != self._shelves.shelves:
            self._version = self._table.version
            self._by_worth = sorted(self._shelves.names(), key=self._worth)
            self._places = {shelf: place for place, shelf in enumerate(self._by_worth)}
            self._first_place = 0
        while self._first_place < len(self._by_worth):
            found = self._shelves.first(self._by_worth[self._first_place])
            if found is not None:
                return found[1]
            self._first_place += 1
        return None

    def _worth(self, shelf: tuple[int, int]) -> tuple[float, int]:
        kind, bucket = shelf
        return self._table.index(kind, bucket) / max(self._kinds[kind].nbytes, 1), -bucket

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._shelves

    def __len__(self) -> int:
        return len(self._shelves)

    def _kind(self, entry: Entry) -> int:
        facts = entry.facts
        below, past = self._uses_below.get(facts.key), self._pasts.get(facts.key)
        uses = max(entry.uses + (0 if past is None else past.uses), below or 0)
        turn = entry.turn or (1 if past is None else past.turn)
        is_end = below is None and not entry.node.children()
        kind = Kind(facts.key.group, facts.raw_bytes, facts.object_class.value, min(turn, MOST_TURNS),
                    min(uses, MOST_USES), is_end)  # fmt: skip
        number = self._kind_numbers.get(kind)
        if number is None:
            number = self._kind_numbers[kind] = len(self._kinds)
            self._kinds.append(kind)
        return number

    def _watch(self, key: BlockKey, watched: Watched) -> None:
        known = self._watched.get(key)
        if known is not None and known.last_used == watched.last_used and known.bucket == watched.bucket:
            self._table.enter(known.kind, known.bucket, -1.0)  # the same stay, seen otherwise
        shelf = (watched.kind, watched.bucket)
        self._shelves.put(key, shelf, watched.last_used)
        self._first_place = min(self._first_place, self._places.get(shelf, 0))
        self._remember(key, watched)

    def _remember(self, key: BlockKey, watched: Watched) -> None:
        self._watched[key] = watched
        self._table.enter(watched.kind, watched.bucket)
        heapq.heappush(self._due, (watched.last_used + ends_at(watched.bucket), key, watched.last_used))

    def _learn_use(self, entry: Entry) -> None:
        known = self._watched.get(entry.facts.key)
        if known is None or entry.last_used <= known.last_used:  # one request may name an object twice
            return
        self._table.use(known.kind, known.bucket)
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
            older = Watched(known.kind, last_used, known.bucket + 1)
            if key in self._shelves:
                older = older._replace(kind=self._kind(self._stored[key]))  # it may be no end any more
                self._watch(key, older)
            elif key in self._gone or key in self._stored:
                self._remember(key, older)
            else:
                del self._watched[key]  # forgotten: it was followed through half the bucket, say
                self._table.enter(known.kind, known.bucket, -0.5)
