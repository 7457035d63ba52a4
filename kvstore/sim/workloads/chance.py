"""Draws from what was measured: a few quantiles, or a popularity that falls with rank."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate, pairwise

Quantiles = tuple[
    tuple[float, float], ...
]  # (share of draws at or below, value), rising; the first share 0, the last 1


def drawn(chance: random.Random, quantiles: Quantiles) -> float:
    """Between two quantiles the logarithm of the value is uniform.

    >>> chance = random.Random(1)
    >>> values = sorted(drawn(chance, ((0, 1), (0.5, 10), (1, 1000))) for _ in range(10_001))
    >>> 9 < values[5000] < 11 and values[-1] <= 1000
    True
    """
    share = chance.random()
    for (low_share, low), (high_share, high) in pairwise(quantiles):
        if share <= high_share:
            return low * math.exp((share - low_share) / (high_share - low_share) * math.log(high / low))
    return quantiles[-1][1]


def tokens(chance: random.Random, quantiles: Quantiles) -> int:
    return max(1, round(drawn(chance, quantiles)))


def fixed_tokens(name: str, quantiles: Quantiles) -> int:
    """A length that belongs to a name: drawn, and always the same."""
    return tokens(random.Random(f"{name}/length"), quantiles)


def popular(chance: random.Random, count: int, exponent: float = 1.0) -> int:
    """A rank below `count`, drawn in proportion to 1 / (rank + 1) ** exponent (Zipf)."""
    weights = _rising(count, exponent)
    return chance.choices(range(count), cum_weights=weights)[0]


def poisson(chance: random.Random, mean: float) -> int:
    """By exponential gaps; for means of some tens."""
    count, left = 0, mean - chance.expovariate(1.0)
    while left >= 0:
        count += 1
        left -= chance.expovariate(1.0)
    return count


@lru_cache(maxsize=64)
def _rising(count: int, exponent: float) -> Sequence[float]:
    return tuple(accumulate((rank + 1) ** -exponent for rank in range(count)))
