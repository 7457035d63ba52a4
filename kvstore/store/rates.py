"""Measured speeds of the tiers: moving averages that price plans."""

from __future__ import annotations

from kvstore.core.keys import Tier

WEIGHT = 0.1  # of a new measurement
LEAST_BYTES = 64 << 10  # smaller transfers measure the call, not the tier


class Rates:
    """Bytes a second, read and written, by tier. The caller serialises."""

    def __init__(self) -> None:
        self.read: dict[Tier, float] = {}
        self.written: dict[Tier, float] = {}

    def note_read(self, tier: Tier, nbytes: int, seconds: float) -> None:
        _note(self.read, tier, nbytes, seconds)

    def note_written(self, tier: Tier, nbytes: int, seconds: float) -> None:
        _note(self.written, tier, nbytes, seconds)


def _note(rates: dict[Tier, float], tier: Tier, nbytes: int, seconds: float) -> None:
    if nbytes < LEAST_BYTES or seconds <= 0:
        return
    rate = nbytes / seconds
    known = rates.get(tier)
    rates[tier] = rate if known is None else known + WEIGHT * (rate - known)
