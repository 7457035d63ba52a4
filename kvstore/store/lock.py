"""The store's lock, and how long it was held and waited for.

Two clock readings a hold, under 0.5 us together with what Python makes of a call. What they add up to is written by
whoever holds the lock.
"""

from __future__ import annotations

import threading
from time import perf_counter
from types import TracebackType
from typing import NamedTuple


class LockFigures(NamedTuple):
    """Seconds since the lock was made. Holds that have not ended are not in them."""

    held: float
    waited: float  # by all threads together
    longest: float  # of the holds


class MeasuredLock:
    """A `threading.Lock` that may stand under a `threading.Condition`; a condition's wait is not a hold."""

    __slots__ = ("_held", "_lock", "_longest", "_since", "_waited")

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._since = 0.0  # of the hold
        self._held = self._waited = self._longest = 0.0

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        if self._lock.acquire(False):  # the common case: nobody else has it, so there is no wait to measure
            self._since = perf_counter()
            return True
        if not blocking:
            return False
        start = perf_counter()
        if not self._lock.acquire(True, timeout):
            return False
        self._since = perf_counter()
        self._waited += self._since - start
        return True

    def release(self) -> None:
        held = perf_counter() - self._since
        self._held += held
        if held > self._longest:
            self._longest = held
        self._lock.release()

    def locked(self) -> bool:
        return self._lock.locked()

    def figures(self) -> LockFigures:
        """Exact for the thread that holds the lock."""
        return LockFigures(self._held, self._waited, self._longest)

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()
