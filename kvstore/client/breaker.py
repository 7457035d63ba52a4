"""Circuit breaker: after a failure, calls are answered "no" in a microsecond until a probe succeeds.

Pure state machine with an injected clock: it calls nobody and starts nothing. The client's thread asks
`probe_due()` and reports what became of the probe, so that no worker's call ever pays for one.

    CLOSED --failed()--> OPEN --probe_due()--> PROBING --succeeded()--> CLOSED
                          ^                        |
                          +---failed(), 2x wait----+
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from threading import Lock

FIRST_WAIT_SECONDS = 0.1  # a daemon that restarts is back within a second
LONGEST_WAIT_SECONDS = 2.0  # a probe of a dead Unix socket costs about 1 ms of CPU


class BreakerState(Enum):
    CLOSED = "closed"  # calls pass
    OPEN = "open"  # calls are refused, nothing is sent
    PROBING = "probing"  # calls are refused, one probe is on its way


class Breaker:
    """One per client, shared by the worker's threads and the client's own."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = Lock()
        self._state = BreakerState.CLOSED
        self._wait = FIRST_WAIT_SECONDS  # before the next probe, once open
        self._probe_at = 0.0

    @property
    def state(self) -> BreakerState:
        return self._state

    @property
    def is_closed(self) -> bool:
        return self._state is BreakerState.CLOSED

    def seconds_to_probe(self) -> float | None:
        """Time until a probe is due, 0 when it is; None while calls pass or a probe is under way."""
        with self._lock:
            if self._state is not BreakerState.OPEN:
                return None
            return max(0.0, self._probe_at - self._clock())

    def probe_due(self) -> bool:
        """True once per wait: the asker must probe and report `succeeded` or `failed`."""
        with self._lock:
            if self._state is not BreakerState.OPEN or self._clock() < self._probe_at:
                return False
            self._state = BreakerState.PROBING
            return True

    def succeeded(self) -> bool:
        """An answer came, whatever it said. True if this closed the breaker.

        While OPEN a late success of an older call changes nothing: only the probe closes.
        """
        with self._lock:
            if self._state is not BreakerState.PROBING:
                return False
            self._state = BreakerState.CLOSED
            self._wait = FIRST_WAIT_SECONDS
            return True

    def failed(self) -> bool:
        """No answer came. True if this opened the breaker; a failed probe doubles the wait up to 2 s."""
        with self._lock:
            if self._state is BreakerState.OPEN:  # several calls were in flight: one outage, one wait
                return False
            opened = self._state is BreakerState.CLOSED
            self._wait = FIRST_WAIT_SECONDS if opened else min(2 * self._wait, LONGEST_WAIT_SECONDS)
            self._probe_at = self._clock() + self._wait
            self._state = BreakerState.OPEN
            return opened
