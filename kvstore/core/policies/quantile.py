"""A quantile of what was seen, learned one value at a time in a few bytes; it follows what changes.

Stochastic approximation (Robbins and Monro 1951) on the logarithm: each value above moves the estimate up, each below
moves it down, by steps that balance where the wanted share lies below. Steps shrink as values come, and no further than
to one that remembers some hundreds of them.
"""

from __future__ import annotations

from math import exp, sqrt

LEAST_STEP = 1 / 32


class Quantile:
    """Of positive values; None until one was seen."""

    def __init__(self, share: float) -> None:
        self.share = share  # of the values that should lie below
        self.value: float | None = None
        self._seen = 0

    def add(self, value: float) -> None:
        if value <= 0 or value == self.value:
            return
        self._seen += 1
        if self.value is None:
            self.value = value
            return
        step = max(1 / sqrt(self._seen), LEAST_STEP)
        self.value *= exp(step * (self.share if value > self.value else self.share - 1))
