"""One miss-ratio curve: how much of what was asked an LRU store of any size would have answered. Pure.

Filled by `core/curves.py` with reuse distances, which are bytes: a reference is a hit in every store that holds at
least its distance. Kept as a histogram of 16 buckets an octave, so a curve is some kilobytes at any traffic; inside a
bucket distances count as evenly spread.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field

STEPS = 16  # buckets an octave: 3 to 6 % wide

MAX_RUNS = 1024  # that wait to be spread over the buckets

Work = Callable[[int, int], float]  # what computing blocks [first, end) of a chain costs, in any unit


@dataclass(slots=True)
class References:
    """References of one kind, in blocks or in work: how many were asked, and the distances of those weighed."""

    asked: float = 0.0
    weighed: float = 0.0  # what the sample takes for all that were asked
    near: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # bucket -> references

    def hits(self, nbytes: float) -> float:
        """Of those asked, in a store of so many bytes. A sample that has too much of them has too many hits, too."""
        if not self.weighed or nbytes <= 0.0:
            return 0.0
        last = bucket(nbytes)
        low, high = lower_edge(last), lower_edge(last + 1)
        hits = sum(count for at, count in self.near.items() if at < last)
        return (hits + self.near.get(last, 0.0) * (nbytes - low) / (high - low)) * self.asked / self.weighed

    def fade(self, share: float) -> None:
        self.asked, self.weighed = self.asked * share, self.weighed * share
        for at in self.near:
            self.near[at] *= share


@dataclass(slots=True)
class Curve:
    """What one namespace asked, and at which distances it was used before. Blocks, tokens, bytes."""

    block_tokens: int
    work: Work | None = None
    tokens: float = 0.0  # of whole prompts, with what fills no block
    hot: References = field(default_factory=References)  # each of them is weighed
    sampled: References = field(default_factory=References)
    hot_work: References = field(default_factory=References)
    sampled_work: References = field(default_factory=References)
    runs: dict[tuple[int, float, int, int], int] = field(default_factory=dict)  # of the hottest, by how often

    # -- filling --------------------------------------------------------------------------------
    def asked(self, first: int, hot_end: int, end: int, tokens: int) -> None:
        """A lookup of blocks [first, end), the hottest up to `hot_end`, of a prompt of so many tokens."""
        self.tokens += tokens
        self.hot.asked += hot_end - first
        self.hot.weighed += hot_end - first
        self.sampled.asked += end - hot_end
        if self.work is not None:
            hot_work = self.work(first, hot_end)
            self.hot_work.asked += hot_work
            self.hot_work.weighed += hot_work
            self.sampled_work.asked += self.work(hot_end, end)

    def used(self, distance: float | None, index: int, count: float) -> None:
        """Block `index` of the sample was used before, at this distance, or never; it stands for `count` references."""
        self.sampled.weighed += count
        if distance is not None:
            self.sampled.near[bucket(distance)] += count
        if self.work is not None:
            work = count * self.work(index, index + 1)
            self.sampled_work.weighed += work
            if distance is not None:
                self.sampled_work.near[bucket(distance)] += work

    def used_run(self, distance: float, block_bytes: float, first: int, end: int) -> None:
        """Blocks [first, end) of the hottest were used before, one behind the other; the first at this distance.

        The same runs come again and again: they are counted, in the bucket where they start, and spread when asked.
        """
        run = (bucket(distance), block_bytes, first, end)
        self.runs[run] = self.runs.get(run, 0) + 1
        if len(self.runs) > MAX_RUNS:
            self._spread_runs()

    def _spread_runs(self) -> None:
        for (start, block_bytes, first, end), count in self.runs.items():
            self._spread(lower_edge(start + 1), block_bytes, first, end, count)
        self.runs.clear()

    def _spread(self, distance: float, block_bytes: float, first: int, end: int, count: int) -> None:
        while first < end:
            at = bucket(distance)
            here = min(end - first, max(0, int((lower_edge(at + 1) - distance) / block_bytes)) + 1)
            self.hot.near[at] += count * here
            if self.work is not None:
                self.hot_work.near[at] += count * self.work(first, first + here)
            first, distance = first + here, distance + here * block_bytes

    def fade(self, share: float) -> None:
        """Let the past count for this share of what it did."""
        self._spread_runs()
        self.tokens *= share
        for references in (self.hot, self.sampled, self.hot_work, self.sampled_work):
            references.fade(share)

    # -- asking ---------------------------------------------------------------------------------
    @property
    def blocks(self) -> float:
        """Asked for."""
        return self.hot.asked + self.sampled.asked

    def miss_ratio(self, nbytes: float) -> float:
        """Share of the blocks asked for that a store of so many bytes would not have had."""
        self._spread_runs()
        return 1.0 - _share(self.hot.hits(nbytes) + self.sampled.hits(nbytes), self.blocks)

    def token_hits(self, nbytes: float) -> float:
        """Share of the prompts' tokens that such a store would have had."""
        self._spread_runs()
        hits = self.hot.hits(nbytes) + self.sampled.hits(nbytes)
        return _share(hits * self.block_tokens, self.tokens)

    def work_hits(self, nbytes: float) -> float:
        """Share of the prefill's work that such a store would have saved; of tokens where work is not known."""
        if self.work is None:
            return self.token_hits(nbytes)
        self._spread_runs()
        hits = self.hot_work.hits(nbytes) + self.sampled_work.hits(nbytes)
        return _share(hits, self.hot_work.asked + self.sampled_work.asked)

    def gain(self, nbytes: float, extra_bytes: float) -> float:
        """What `extra_bytes` more than `nbytes` would add to the share of tokens, as a fraction of 1."""
        return self.token_hits(nbytes + extra_bytes) - self.token_hits(nbytes)


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0.0 else 0.0


def bucket(distance: float) -> int:
    """The bucket of a distance in bytes: it has its upper edge, as a store has what just fits."""
    mantissa, exponent = math.frexp(distance)
    return exponent * STEPS + math.ceil((mantissa - 0.5) * (2 * STEPS)) - 1


def lower_edge(at: int) -> float:
    """Distances of a bucket are beyond this, in bytes."""
    exponent, step = divmod(at, STEPS)
    return math.ldexp(0.5 + step / (2 * STEPS), exponent)
