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

Work = Callable[[int, int], float]  # what computing blocks [first, end) of a chain costs, in any unit


@dataclass(slots=True)
class Curve:
    """What one namespace asked, and at which distances it was used before. Blocks, tokens, bytes."""

    block_tokens: int
    work: Work | None = None
    blocks: float = 0.0  # asked
    tokens: float = 0.0  # of whole prompts, with what fills no block
    asked_work: float = 0.0
    near_blocks: dict[int, float] = field(default_factory=lambda: defaultdict(float))  # bucket -> references
    near_work: dict[int, float] = field(default_factory=lambda: defaultdict(float))

    # -- filling --------------------------------------------------------------------------------
    def asked(self, first: int, end: int, tokens: int) -> None:
        """A lookup of blocks [first, end), of a prompt of so many tokens."""
        self.blocks += end - first
        self.tokens += tokens
        if self.work is not None:
            self.asked_work += self.work(first, end)

    def used(self, distance: float, index: int, count: float) -> None:
        """Block `index` was used before, at this distance; it stands for `count` references."""
        at = bucket(distance)
        self.near_blocks[at] += count
        if self.work is not None:
            self.near_work[at] += count * self.work(index, index + 1)

    def used_run(self, distance: float, block_bytes: float, first: int, end: int) -> None:
        """Blocks [first, end) were used before, one behind the other; the first at this distance."""
        while first < end:
            at = bucket(distance)
            here = min(end - first, max(1, math.ceil((lower_edge(at + 1) - distance) / block_bytes)))
            self.near_blocks[at] += here
            if self.work is not None:
                self.near_work[at] += self.work(first, first + here)
            first, distance = first + here, distance + here * block_bytes

    def fade(self, share: float) -> None:
        """Let the past count for this share of what it did."""
        self.blocks, self.tokens, self.asked_work = self.blocks * share, self.tokens * share, self.asked_work * share
        for counts in (self.near_blocks, self.near_work):
            for at in counts:
                counts[at] *= share

    # -- asking ---------------------------------------------------------------------------------
    def miss_ratio(self, nbytes: float) -> float:
        """Share of the blocks asked for that a store of so many bytes would not have had."""
        return 1.0 - self._share(self.near_blocks, self.blocks, nbytes)

    def token_hits(self, nbytes: float) -> float:
        """Share of the prompts' tokens that such a store would have had."""
        return self._share(self.near_blocks, self.tokens / self.block_tokens, nbytes)

    def work_hits(self, nbytes: float) -> float:
        """Share of the prefill's work that such a store would have saved; of tokens where work is not known."""
        return self.token_hits(nbytes) if self.work is None else self._share(self.near_work, self.asked_work, nbytes)

    def gain(self, nbytes: float, extra_bytes: float) -> float:
        """What `extra_bytes` more than `nbytes` would add to the share of tokens, as a fraction of 1."""
        return self.token_hits(nbytes + extra_bytes) - self.token_hits(nbytes)

    @staticmethod
    def _share(counts: dict[int, float], asked: float, nbytes: float) -> float:
        if asked <= 0.0 or nbytes <= 0.0:
            return 0.0
        last = bucket(nbytes)
        low, high = lower_edge(last), lower_edge(last + 1)
        hits = sum(count for at, count in counts.items() if at < last)
        return min(1.0, (hits + counts.get(last, 0.0) * (nbytes - low) / (high - low)) / asked)


def bucket(distance: float) -> int:
    """The bucket of a distance in bytes."""
    mantissa, exponent = math.frexp(distance)
    return exponent * STEPS + int((mantissa - 0.5) * (2 * STEPS))


def lower_edge(at: int) -> float:
    """The least distance of a bucket, in bytes."""
    exponent, step = divmod(at, STEPS)
    return math.ldexp(0.5 + step / (2 * STEPS), exponent)
