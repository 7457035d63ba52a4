"""What every RPC goes through: a deadline, a gate, and one place where errors become a status.

A call without a deadline gets one; a longer one is cut. A watchdog (the daemon's tick) cancels what outlives it, so
that a stalled client cannot hold a thread. Unexpected exceptions fail that one request, logged and counted.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from typing import TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from kvstore.config import LimitsConfig
from kvstore.core.errors import InvalidInput, KVStoreError
from kvstore.rpc.status import Reason, status, status_of

log = logging.getLogger("kvstore.daemon")

RETRY_SECONDS = 0.1  # what shed work is told: about one 64 MiB upload later
NO_DEADLINE_SECONDS = 1e8  # grpc's sync server gives calls without a deadline one in the far future
Parsed = TypeVar("Parsed", bound=Message)


class Gate(Enum):
    """Kinds of work that are bounded apart, so that uploads never keep a lookup waiting."""

    CALL = "calls"
    FETCH = "fetches"
    PUT = "puts"


class Calls:
    """All calls in flight. Thread-safe: its own lock guards the counters and the table, for dictionary work only."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)  # a call ended
        self._running = 0
        self._room = {Gate.CALL: limits.calls, Gate.FETCH: limits.fetches, Gate.PUT: limits.puts}
        self._deadlines: dict[grpc.ServicerContext, float] = {}
        self._counters: Counter[str] = Counter()
        self._is_draining = False

    @property
    def counters(self) -> dict[str, int]:
        with self._lock:
            return dict(self._counters)

    @property
    def is_draining(self) -> bool:
        return self._is_draining

    def drain(self) -> None:
        """Refuse what comes from now on; what is in flight goes on."""
        self._is_draining = True

    def wait_idle(self, timeout_seconds: float) -> bool:
        """Until no call runs any more: a cancelled one is over for its client before its thread has noticed."""
        with self._lock:
            return self._left.wait_for(lambda: not self._running, timeout_seconds)

    def cancel_overdue(self) -> None:
        """End calls that outlived their deadline. Called by the tick thread."""
        now = self._clock()
        with self._lock:
            overdue = [context for context, deadline in self._deadlines.items() if deadline < now]
            for context in overdue:
                del self._deadlines[context]
            self._counters["rpc_overdue"] += len(overdue)
        for context in overdue:
            context.cancel()  # type: ignore[no-untyped-call]  # the stubs leave it bare

    @contextmanager
    def admitted(self, name: str, gate: Gate, context: grpc.ServicerContext) -> Iterator[float]:
        """Runs one call; yields its deadline (monotonic seconds). Every failure leaves as a status."""
        if self._is_draining:
            context.abort_with_status(
                status(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING, "the daemon is going down", RETRY_SECONDS)
            )
        deadline = self._enter(name, gate, context)
        if deadline is None:
            context.abort_with_status(
                status(
                    grpc.StatusCode.RESOURCE_EXHAUSTED,
                    Reason.SHED,
                    f"too many {gate.value} at once: come back in {RETRY_SECONDS} s",
                    RETRY_SECONDS,
                )
            )
            raise AssertionError("abort returned")
        try:
            yield deadline
        except KVStoreError as error:
            self.count(f"rpc_refused_{type(error).__name__}")
            context.abort_with_status(status_of(error))
        except grpc.RpcError:  # the client went away or the call was cancelled: grpc knows
            raise
        except Exception:
            if not context.is_active():  # an abort of our own, or the peer left
                raise
            self.count("rpc_internal_errors")
            log.exception("%s failed", name)
            context.abort_with_status(
                status(grpc.StatusCode.INTERNAL, Reason.INTERNAL, f"{name} failed: see the daemon's log")
            )
        finally:
            self._leave(gate, context)

    def count(self, counter: str) -> None:
        with self._lock:
            self._counters[counter] += 1

    def _enter(self, name: str, gate: Gate, context: grpc.ServicerContext) -> float | None:
        remaining = context.time_remaining()
        has_none = remaining is None or remaining > NO_DEADLINE_SECONDS
        allowed = self._limits.call_seconds if has_none else min(remaining, self._limits.max_call_seconds)
        with self._lock:
            self._counters[f"rpc_{name.lower()}"] += 1
            if not self._room[gate]:
                self._counters[f"rpc_shed_{gate.value}"] += 1
                return None
            self._room[gate] -= 1
            self._running += 1
            deadline = self._clock() + allowed
            self._deadlines[context] = deadline
            return deadline

    def _leave(self, gate: Gate, context: grpc.ServicerContext) -> None:
        with self._lock:
            self._room[gate] += 1
            self._running -= 1
            self._deadlines.pop(context, None)
            self._left.notify_all()


def parsed(into: type[Parsed], raw: bytes) -> Parsed:
    """Raises InvalidInput for bytes that are no such message."""
    try:
        return into.FromString(raw)
    except DecodeError as error:
        raise InvalidInput(f"the request is no {into.DESCRIPTOR.name}: {error}") from error
