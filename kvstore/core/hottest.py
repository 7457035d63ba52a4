"""The hottest prefixes of all chains, each block of them counted: a bounded radix tree over packed hashes. Pure.

One system prompt can be in every lookup. A sample either has it, and then counts it many times over, or has it not;
so the few prefixes that most lookups share are kept out of the sample and counted one by one (one hot block bent a
sampled curve by 3.5 points at every rate). Blocks that are always used together form one span, so a walk costs what
the chain has branches in the tree, whatever its length.

A prefix comes in when the first block below the tree was seen `ADMIT_USES` times lately; the coldest spans leave.
"""

from __future__ import annotations

from kvstore.core.keys import HASH_BYTES
from kvstore.core.recency import Moment

ADMIT_USES = 8  # of about CANDIDATES lookups: of what is rarer a sample has enough to be right about
CANDIDATES = 1024  # first blocks below the tree, counted; halved when full, so what is rare falls out
ADMIT_BLOCKS = 256  # come in at once; where the next chain leaves them the span is cut, and the cold end goes


class Span:
    """Consecutive blocks that every lookup used together, last at `moment`."""

    __slots__ = ("below", "hashes", "moment", "parent", "uses")

    def __init__(self, hashes: bytes, parent: Span | None, moment: Moment, uses: int) -> None:
        self.hashes = hashes  # packed
        self.parent = parent
        self.moment = moment
        self.uses = uses  # lately
        self.below: dict[bytes, Span] = {}  # by first hash

    @property
    def blocks(self) -> int:
        return len(self.hashes) // HASH_BYTES


class Hottest:
    """The tree and its candidates; at most `capacity` blocks."""

    def __init__(self, capacity: int) -> None:
        self.blocks = 0
        self._capacity = capacity
        self._top = Span(b"", None, Moment(-1, 0), 0)
        self._candidates: dict[bytes, int] = {}

    def spans(self) -> list[Span]:
        found, index = list(self._top.below.values()), 0
        while index < len(found):
            found += found[index].below.values()
            index += 1
        return found

    def walk(self, hashes: bytes) -> list[Span]:
        """The spans that a chain begins with, root first. A span that it leaves halfway is cut there."""
        path = list[Span]()
        start, above = 0, self._top
        while (span := above.below.get(hashes[start : start + HASH_BYTES])) is not None:
            end = start + len(span.hashes)
            if hashes[end - HASH_BYTES : end] != span.hashes[-HASH_BYTES:]:
                span = self._cut(span, _shared(span.hashes, hashes[start:end]))
                end = start + len(span.hashes)
            span.uses += 1
            path.append(span)
            start, above = end, span
        return path

    def is_due(self, first: bytes) -> bool:
        """Count one use of the first block below the tree. Whether it should come in."""
        uses = self._candidates.get(first, 0) + 1
        self._candidates[first] = uses
        if len(self._candidates) > CANDIDATES:
            self._candidates = {key: count // 2 for key, count in self._candidates.items() if count > 1}
        return uses >= ADMIT_USES

    def admit(self, path: list[Span], hashes: bytes, moment: Moment) -> Span:
        """Take in what a chain has below its path, used at `moment`."""
        start = sum(len(span.hashes) for span in path)
        above = path[-1] if path else self._top
        span = Span(hashes[start : start + HASH_BYTES * ADMIT_BLOCKS], above, moment, ADMIT_USES)
        first = span.hashes[:HASH_BYTES]
        self._candidates.pop(first, None)
        above.below[first] = span
        self.blocks += span.blocks
        return span

    @property
    def is_full(self) -> bool:
        return self.blocks > self._capacity

    def prune(self) -> list[Span]:
        """Take out the coldest spans until an eighth is free, and let uses fade."""
        leaves_first = self.spans()[::-1]
        for span in leaves_first:
            if span.parent is not None:  # a use of a block is one of all before it
                span.parent.uses = max(span.parent.uses, span.uses)
        gone = list[Span]()
        for span in sorted(leaves_first, key=lambda span: span.uses):
            if self.blocks <= self._capacity * 7 // 8:
                break
            assert span.parent is not None and not span.below
            del span.parent.below[span.hashes[:HASH_BYTES]]
            self.blocks -= span.blocks
            gone.append(span)
        for span in self.spans():
            span.uses //= 2
        return gone

    def _cut(self, span: Span, blocks: int) -> Span:
        """Cut a span after `blocks`; the upper part."""
        at = blocks * HASH_BYTES
        assert span.parent is not None and 0 < at < len(span.hashes)
        upper = Span(span.hashes[:at], span.parent, span.moment, span.uses)
        span.parent.below[upper.hashes[:HASH_BYTES]] = upper
        span.hashes, span.parent = span.hashes[at:], upper
        upper.below[span.hashes[:HASH_BYTES]] = span
        return upper


def _shared(one: bytes, other: bytes) -> int:
    """Blocks that two packed chains begin with together; a hash names all before it, so bisection finds out."""
    low, high = 0, min(len(one), len(other)) // HASH_BYTES
    while low < high:
        middle = (low + high + 1) // 2
        at = slice((middle - 1) * HASH_BYTES, middle * HASH_BYTES)
        low, high = (middle, high) if one[at] == other[at] else (low, middle - 1)
    return low
