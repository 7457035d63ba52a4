"""What this worker's rows were computed on: chain position -> lineage, bounded.

Filled from what the worker loaded and from what it put. A put whose parent is not known here is not published: the
store could otherwise join rows of two runs. Where the same position was seen with two lineages (another run's rows
were loaded beside own ones) the answer is "not known" as well, unless the put names what it was computed on.
"""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from kvstore.core.keys import HASH_BYTES, LINEAGE_BYTES
from kvstore.core.lineage import ROOT_LINEAGE


class Lineages:
    """Least recently used positions are forgotten first. Any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._lock = Lock()
        self._known: OrderedDict[bytes, bytes | None] = OrderedDict()  # None: two lineages were seen

    def note(self, hashes: bytes, lineages: bytes) -> None:
        """Remember positions (packed hashes, 32 bytes each) with their lineages (packed, 16 bytes each)."""
        assert len(hashes) // HASH_BYTES == len(lineages) // LINEAGE_BYTES
        with self._lock:
            for index in range(len(hashes) // HASH_BYTES):
                position = hashes[index * HASH_BYTES : (index + 1) * HASH_BYTES]
                lineage = lineages[index * LINEAGE_BYTES : (index + 1) * LINEAGE_BYTES]
                same = self._known.pop(position, lineage) == lineage
                self._known[position] = lineage if same else None
            while len(self._known) > self._limit:
                self._known.popitem(last=False)

    def note_if_new(self, position: bytes, lineage: bytes) -> None:
        """What a lookup said: it counts only where nothing was loaded or put."""
        with self._lock:
            self._known.setdefault(position, lineage)

    def under(self, position: bytes, root: bytes) -> bytes | None:
        """Lineage of the rows up to `position`; None when it is not known for certain."""
        if position == root:
            return ROOT_LINEAGE
        with self._lock:
            if position in self._known:
                self._known.move_to_end(position)
            return self._known.get(position)
