"""Measured speeds of the tiers: moving averages that price plans."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable

from kvstore.core.keys import Tier

MEMORY_BYTES = 64 << 20  # what was measured so many bytes ago has lost 63 % of its weight
LEAST_BYTES = 64 << 10  # less than this measures the call, not the tier


class Meter:
    """Bytes that ended per second in which at least one transfer was under way.

    A transfer's own bytes a second would be a quarter of the tier's speed with four of them under way. Bytes and
    seconds fade with the bytes that follow, not with the number of transfers: a thousand small ones weigh as much as
    the few large ones of the same length. The caller serialises; `now` in seconds never goes back.
    """

    def __init__(self) -> None:
        self._under_way = 0
        self._counted_until = 0.0
        self._new_seconds = 0.0  # busy since the last transfer ended
        self._bytes = 0.0
        self._seconds = 0.0

    def begin(self, now: float) -> None:
        self._count(now, now)
        self._under_way += 1

    def end(self, nbytes: int, now: float) -> float | None:
        """The rate in bytes a second, once there is enough to tell. A transfer that failed has moved 0 bytes."""
        self._count(now, now)
        self._under_way -= 1
        return self._add(nbytes)

    def note(self, nbytes: int, seconds: float, now: float) -> float | None:
        """A transfer that took so long and ends now, and whose beginning nobody told."""
        self._count(now - seconds, now)
        return self._add(nbytes)

    def _count(self, busy_since: float, now: float) -> None:
        since = self._counted_until if self._under_way else max(busy_since, self._counted_until)
        self._new_seconds += now - since
        self._counted_until = now

    def _add(self, nbytes: int) -> float | None:
        weight = math.exp(-nbytes / MEMORY_BYTES)
        self._bytes = self._bytes * weight + nbytes
        self._seconds = self._seconds * weight + self._new_seconds
        self._new_seconds = 0.0
        if self._bytes < LEAST_BYTES or self._seconds <= 0:
            return None
        return self._bytes / self._seconds


class Rates:
    """Bytes a second, read and written, by tier. Any thread: its lock is a leaf."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.read: dict[Tier, float] = {}  # only ever grows by whole entries: may be read without the lock
        self.written: dict[Tier, float] = {}
        self._clock = clock
        self._lock = threading.Lock()
        self._meters = {(is_read, tier): Meter() for is_read in (True, False) for tier in Tier}

    def begin_read(self, tier: Tier) -> None:
        """A thread starts to read; it says `end_read`, whatever happens."""
        with self._lock:
            self._meters[True, tier].begin(self._clock())

    def end_read(self, tier: Tier, nbytes: int) -> None:
        """So many bytes have arrived, 0 where it failed."""
        with self._lock:
            _set(self.read, tier, self._meters[True, tier].end(nbytes, self._clock()))

    def note_read(self, tier: Tier, nbytes: int, seconds: float) -> None:
        """A read that ends now and of which nobody said when it began."""
        with self._lock:
            _set(self.read, tier, self._meters[True, tier].note(nbytes, seconds, self._clock()))

    def begin_write(self, tier: Tier) -> None:
        with self._lock:
            self._meters[False, tier].begin(self._clock())

    def end_write(self, tier: Tier, nbytes: int) -> None:
        """So many bytes are durable."""
        with self._lock:
            _set(self.written, tier, self._meters[False, tier].end(nbytes, self._clock()))


def _set(rates: dict[Tier, float], tier: Tier, rate: float | None) -> None:
    if rate is not None:
        rates[tier] = rate
