"""What this worker's rows were computed on: chain position -> lineage, bounded.

Filled from what the worker loaded and from what it put. A put whose parent is not known here is not published: the
store could otherwise join rows of two runs. Where the same position was seen with two lineages (another run's rows
were loaded beside own ones) the answer is "not known" as well, unless the put names what it was computed on.

The lineage of a put is known when its bytes were summed up, after `put` has returned. Until then its positions are
*expected*: a put on top of them is taken, and asks again when its turn has come.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from enum import Enum
from threading import Lock

from kvstore.core.keys import HASH_BYTES, LINEAGE_BYTES
from kvstore.core.lineage import ROOT_LINEAGE


class Parent(Enum):
    """Why there is no lineage to name yet."""

    UNKNOWN = "unknown"  # never seen, forgotten, or seen with two lineages
    EXPECTED = "expected"  # a put that is still queued will tell


class Lineages:
    """Least recently used positions are forgotten first. Any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._known: OrderedDict[bytes, bytes | None] = OrderedDict()  # None: two lineages were seen
        self._expected: Counter[bytes] = Counter()  # queued puts by position; bounded as their queue is

    def note(self, hashes: bytes, lineages: bytes) -> None:
        """Remember positions (packed hashes, 32 bytes each) with their lineages (packed, 16 bytes each)."""
        assert len(hashes) // HASH_BYTES == len(lineages) // LINEAGE_BYTES
        with self._lock:
            for index, position in enumerate(positions(hashes)):
                lineage = lineages[index * LINEAGE_BYTES : (index + 1) * LINEAGE_BYTES]
                same = self._known.pop(position, lineage) == lineage
                self._known[position] = lineage if same else None
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def note_if_new(self, position: bytes, lineage: bytes) -> None:
        """What a lookup said: it counts only where nothing was loaded or put."""
        with self._lock:
            if position not in self._expected:
                self._known.setdefault(position, lineage)

    def expect(self, hashes: bytes) -> None:
        """A put of these positions was queued. Each `expect` is met by one `settle`."""
        with self._lock:
            self._expected.update(positions(hashes))

    def settle(self, hashes: bytes) -> None:
        """What was expected was noted, or will never come."""
        with self._lock:
            for position in positions(hashes):
                self._expected[position] -= 1
                if self._expected[position] <= 0:
                    del self._expected[position]

    def spoil(self, hashes: bytes) -> None:
        """What was expected there will never be noted: what another run leaves there is not what stands on it."""
        with self._lock:
            for position in positions(hashes):
                self._known.pop(position, None)
                self._known[position] = None

    def under(self, position: bytes, root: bytes) -> bytes | Parent:
        """Lineage of the rows up to `position`, where it is known for certain."""
        if position == root:
            return ROOT_LINEAGE
        with self._lock:
            known = self._known.get(position)
            if position in self._known:
                self._known.move_to_end(position)
                if known is None:
                    return Parent.UNKNOWN
            if position in self._expected:  # also beside a known one: they may turn out to differ
                return Parent.EXPECTED
            return Parent.UNKNOWN if known is None else known

    def certain(self, position: bytes) -> bytes | None:
        """Lineage there, whatever is expected beside it: for a put whose turn has come. Not asked for the root."""
        with self._lock:
            return self._known.get(position)

    def is_noted(self, position: bytes) -> bool:
        """Whether something was noted there, certain or not."""
        with self._lock:
            return position in self._known


def positions(hashes: bytes) -> list[bytes]:
    """Packed hashes, one by one."""
    return [hashes[start : start + HASH_BYTES] for start in range(0, len(hashes), HASH_BYTES)]
