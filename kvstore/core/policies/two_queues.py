"""What SLRU, S3-FIFO and ARC share: each object is in the first queue (new) or the second (proven), by bytes.

Candidates of each queue lie in a heap by their place, so that a queue's end is the coldest that may go now. Bytes count
all objects of the queue, whether they may go or not. A victim's bytes leave with `pop`: planners choose several before
the first is gone.
"""

from __future__ import annotations

from kvstore.core.index import Entry
from kvstore.core.keys import BlockKey
from kvstore.core.order import Heap
from kvstore.core.policies.chain import stands_on


class Kept:
    """One object here."""

    __slots__ = ("entry", "is_leaving", "is_second", "nbytes", "place", "uses")

    def __init__(self, entry: Entry, is_second: bool, place: float) -> None:
        self.entry = entry
        self.is_second = is_second
        self.is_leaving = False  # popped, and neither removed nor offered again so far
        self.nbytes = entry.facts.raw_bytes
        self.place = place  # lowest goes first
        self.uses = 0


class TwoQueues:
    """Objects and candidates; a policy says what admission, use and leaving mean and which queue gives next."""

    def __init__(self) -> None:
        self._kept: dict[BlockKey, Kept] = {}
        self._candidates = (Heap(), Heap())
        self._bytes = [0, 0]

    def used(self, entry: Entry) -> None:
        raise NotImplementedError

    def left(self, kept: Kept, nbytes: int) -> None:
        """It is gone."""

    def inherit(self, below: Kept, gone: Kept) -> None:
        """What stood on `below` was chosen: every request that used the one had used the other."""

    def next_queue(self) -> int:
        """The queue that should give the next victim; the other does where this has no candidate."""
        raise NotImplementedError

    # -- the protocol ---------------------------------------------------------------------------
    def put(self, entry: Entry, is_second: bool, place: float) -> Kept:
        """Take a new object in."""
        kept = self._kept[entry.facts.key] = Kept(entry, is_second, place)
        self._bytes[is_second] += kept.nbytes
        return kept

    def admitted(self, entry: Entry) -> None:
        raise NotImplementedError

    def offer(self, entry: Entry, last_used: float) -> None:
        kept = self._kept.get(entry.facts.key)
        if kept is None:
            self.admitted(entry)
            kept = self._kept[entry.facts.key]
        if kept.is_leaving:
            kept.is_leaving = False
            self._bytes[kept.is_second] += kept.nbytes
        kept.place = self.place(kept, last_used)
        self._candidates[kept.is_second].add(entry.facts.key, kept.place)

    def place(self, kept: Kept, last_used: float) -> float:
        """Where in its queue an offered object stands."""
        return max(kept.place, last_used)

    def withdraw(self, key: BlockKey) -> None:
        for heap in self._candidates:
            heap.discard(key)

    def removed(self, entry: Entry, nbytes: int) -> None:
        self.withdraw(entry.facts.key)
        kept = self._kept.pop(entry.facts.key, None)
        if kept is None:
            return
        if not kept.is_leaving:
            self._bytes[kept.is_second] -= kept.nbytes
        self.left(kept, nbytes)

    def first(self) -> BlockKey | None:
        if not len(self):
            return None
        queue = self.next_queue()
        found = self._candidates[queue].first() or self._candidates[1 - queue].first()
        return None if found is None else found[1]

    def pop(self) -> BlockKey | None:
        key = self.first()
        if key is None:
            return None
        self.withdraw(key)
        kept = self._kept[key]
        kept.is_leaving = True
        self._bytes[kept.is_second] -= kept.nbytes
        rows = stands_on(kept.entry)
        below = None if rows is None else self._kept.get(rows.facts.key)
        if below is not None:
            self.inherit(below, kept)
        return key

    def move(self, kept: Kept, is_second: bool, place: float) -> None:
        """To this place of this queue, offered as it was."""
        key = kept.entry.facts.key
        is_offered = key in self
        self.withdraw(key)
        if not kept.is_leaving:
            self._bytes[kept.is_second] -= kept.nbytes
            self._bytes[is_second] += kept.nbytes
        kept.is_second, kept.place = is_second, place
        if is_offered:
            self._candidates[is_second].add(key, place)

    def prove(self, entry: Entry, place: float) -> None:
        """To the second queue with it and what it stands on: who used the one used the other.

        An object in the second queue stands on such only, so the way up ends at the first that is there.
        """
        above: Entry | None = entry
        while above is not None:
            kept = self._kept.get(above.facts.key)
            if kept is None or (kept.is_second and above is not entry):
                return
            self.move(kept, True, max(kept.place, place))
            above = stands_on(above)

    def __contains__(self, key: BlockKey) -> bool:
        return key in self._candidates[0] or key in self._candidates[1]

    def __len__(self) -> int:
        return len(self._candidates[0]) + len(self._candidates[1])
