"""Named counts of what happened, so that failing open is never silent (RELIABILITY C21)."""

from __future__ import annotations

from collections import Counter
from threading import Lock

from kvstore.client.forks import tell_of_forks


class Counters:
    """Counts by name. Any thread may add; the lock is held for one addition."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = Lock()
        tell_of_forks(self)

    def add(self, name: str, amount: int = 1) -> None:
        with self._lock:
            self._counts[name] += amount

    def snapshot(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counts)

    def forked(self) -> None:
        self._lock = Lock()
