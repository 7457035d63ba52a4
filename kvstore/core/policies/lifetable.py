"""How likely things of a kind are used next, by age: a life table, learned as ages pass.

Buckets of age double: bucket 0 is the first second, bucket k the seconds from 2^(k-1) to 2^k. Of each kind and bucket
it counts how many came to be in it and how many of them were used in it; those still there count as not used so far.
A kind that was rarely seen is taken to be like all kinds together, and those like a thing whose chance of use is a
half in each bucket: that is worth less the older it is, so that an order that has learned nothing is LRU.

What an object is worth from some age on is its Gittins index (Gittins 1979; for caches the "hit density" of LHD,
Beckmann et al., NSDI 2018): over the best time to give up on it, chances of a use per second of keeping it until then.
"""

from __future__ import annotations

from collections.abc import Hashable

BUCKETS = 32  # to 68 years
PRIOR_WEIGHT = 8.0  # objects of all kinds in a bucket, against a kind's own
MEMORY = 1 << 15  # times that an object came to be in a bucket, of all kinds, after which what was learned counts half


class LifeTable:
    """Counts by kind; `index` is worked out for a kind when it is asked for, and again when enough was learned."""

    def __init__(self) -> None:
        self.version = 0  # of the indexes: they change all at once
        self._through: dict[Hashable, list[float]] = {}
        self._used: dict[Hashable, list[float]] = {}
        self._all_through = [0.0] * BUCKETS
        self._all_used = [0.0] * BUCKETS
        self._indexes: dict[Hashable, list[float]] = {}
        self._since_version = 0
        self._since_halving = 0
        self._seen = 0

    def enter(self, kind: Hashable, bucket: int, count: float = 1.0) -> None:
        """One of this kind is in this bucket now; negative: it was in none after all, or is followed no further."""
        through = self._through.get(kind)
        if through is None:
            through = self._through[kind] = [0.0] * BUCKETS
            self._used[kind] = [0.0] * BUCKETS
        through[bucket] += count
        self._all_through[bucket] += count
        if count < 1:
            return
        self._seen += 1
        self._since_version += 1
        self._since_halving += 1
        if self._since_halving >= MEMORY:
            self._halve()
        if self._since_version * 16 > min(self._seen, MEMORY):  # by then estimates have moved by a few percent
            self.version += 1
            self._since_version = 0
            self._indexes.clear()

    def use(self, kind: Hashable, bucket: int) -> None:
        """One that had entered was used there."""
        self._used[kind][bucket] += 1
        self._all_used[bucket] += 1

    def index(self, kind: Hashable, bucket: int) -> float:
        """Uses a second of keeping one of this age, at the best time to give up."""
        indexes = self._indexes.get(kind)
        if indexes is None:
            indexes = self._indexes[kind] = gittins(self.chances(kind))
        return indexes[bucket]

    def chances(self, kind: Hashable) -> list[float]:
        """By bucket, that one that reaches it is used in it."""
        through, used = self._through.get(kind), self._used.get(kind)
        found = []
        for bucket in range(BUCKETS):
            chance = (self._all_used[bucket] + 0.5) / (max(self._all_through[bucket], 0.0) + 1.0)
            if through is not None and used is not None:
                chance = (used[bucket] + PRIOR_WEIGHT * chance) / (max(through[bucket], 0.0) + PRIOR_WEIGHT)
            found.append(min(max(chance, 0.0), 1.0))  # halving may leave a use without the one that entered
        return found

    def _halve(self) -> None:
        self._since_halving = 0
        for counts in (*self._through.values(), *self._used.values(), self._all_through, self._all_used):
            counts[:] = [count / 2 for count in counts]


def bucket_of(age_seconds: float) -> int:
    """
    >>> [bucket_of(age) for age in (0.0, 0.9, 1.0, 3.0, 4.0, 100.0)]
    [0, 0, 1, 2, 3, 7]
    """
    return min(int(age_seconds).bit_length(), BUCKETS - 1)


def ends_at(bucket: int) -> float:
    """Seconds."""
    return float(1 << bucket)


_WIDTHS = [ends_at(bucket) - (ends_at(bucket - 1) if bucket else 0.0) for bucket in range(BUCKETS)]  # seconds


def gittins(chances: list[float]) -> list[float]:
    """By bucket: the most, over the buckets to stop after, of uses until then over seconds until a use or then.

    >>> falling = gittins([0.5] * 4)
    >>> falling == sorted(falling, reverse=True)
    True
    >>> rising = gittins([0.0, 0.0, 0.9, 0.0])
    >>> rising[0] < rising[1] < rising[2], rising[3]
    (True, 0.0)
    """
    found = []
    for start in range(len(chances)):
        best = uses = seconds = 0.0
        left = 1.0
        for bucket in range(start, len(chances)):
            chance = chances[bucket]
            uses += left * chance
            seconds += left * _WIDTHS[bucket] * (1 - chance / 2)  # a use comes halfway through its bucket
            left *= 1 - chance
            if uses > best * seconds:
                best = uses / seconds
        found.append(best)
    return found
