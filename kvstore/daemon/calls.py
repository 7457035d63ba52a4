"""What every call goes through, over gRPC and over the attach socket: a deadline, a gate, and one place for errors.

A call without a deadline gets one; a longer one is cut. Over gRPC a watchdog (the daemon's tick) cancels what outlives
it, so that a stalled client cannot hold a thread. Unexpected exceptions fail that one request, logged and counted.
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
from kvstore.rpc.status import Reason, rule_of, status

log = logging.getLogger("kvstore.daemon")

RETRY_SECONDS = 0.1  # what shed work is told: about one 64 MiB upload later
NO_DEADLINE_SECONDS = 1e8  # grpc's sync server gives calls without a deadline one in the far future
Parsed = TypeVar("Parsed", bound=Message)


class Gate(Enum):
    """Kinds of work that are bounded apart, so that uploads never keep a lookup waiting."""

    CALL = "calls"
    FETCH = "fetches"
    PUT = "puts"
    WAIT = "waits"  # a Locate over the attach socket waits in its lane's own thread


class Refused(Exception):
    """A call that is not answered: what its client is told, whichever way it came."""

    def __init__(self, code: grpc.StatusCode, reason: Reason, message: str, retry_seconds: float | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.retry_seconds = retry_seconds


def shed(message: str) -> Refused:
    """Too much at once: the client is told when to come back."""
    return Refused(
        grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SHED, f"{message}: come back in {RETRY_SECONDS} s", RETRY_SECONDS
    )


class Calls:
    """All calls in flight. Thread-safe: its own lock guards the counters and the table, for dictionary work only."""

    def __init__(self, limits: LimitsConfig, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._lock = threading.Lock()
        self._left = threading.Condition(self._lock)  # a call ended
        self._running = 0
        self._room = {
            Gate.CALL: limits.calls,
            Gate.FETCH: limits.fetches,
            Gate.PUT: limits.puts,
            Gate.WAIT: limits.lanes,
        }
        self._deadlines: dict[grpc.ServicerContext, float] = {}
        self._counters: Counter[str] = Counter()
        self._is_draining = False
        self._is_hasty = False

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
            self._left.wait_for(lambda: not self._running or self._is_hasty, timeout_seconds)
            self._is_hasty = False
            return not self._running

    def hasten(self) -> None:
        """Cut the `wait_idle` that runs now, or the next one, short."""
        with self._lock:
            self._is_hasty = True
            self._left.notify_all()

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
    def admitted(
        self, name: str, gate: Gate, timeout_seconds: float | None, is_gone: Callable[[], bool] = bool
    ) -> Iterator[float]:
        """Runs one call; yields its deadline (monotonic seconds). Every failure leaves as Refused.

        `timeout_seconds` is the client's; None where it named none. Once `is_gone` nobody is told anything.
        """
        if self._is_draining:
            raise Refused(grpc.StatusCode.UNAVAILABLE, Reason.DRAINING, "the daemon is going down", RETRY_SECONDS)
        deadline = self._enter(name, gate, timeout_seconds)
        try:
            yield deadline
        except Refused as refused:
            self.count(f"rpc_refused_{refused.reason.value}")
            raise
        except KVStoreError as error:
            self.count(f"rpc_refused_{type(error).__name__}")
            code, reason = rule_of(error)
            raise Refused(code, reason, str(error)) from error
        except grpc.RpcError:  # the client went away or the call was cancelled: grpc knows
            raise
        except Exception as error:
            if is_gone():
                raise
            self.count("rpc_internal_errors")
            log.exception("%s failed", name)
            message = f"{name} failed: see the daemon's log"
            raise Refused(grpc.StatusCode.INTERNAL, Reason.INTERNAL, message) from error
        finally:
            self._leave(gate)

    @contextmanager
    def over_grpc(self, name: str, gate: Gate, context: grpc.ServicerContext) -> Iterator[float]:
        """As `admitted`; failures leave as a gRPC status, and the call is cancelled when it is overdue."""
        remaining = context.time_remaining()
        has_none = remaining is None or remaining > NO_DEADLINE_SECONDS
        try:
            with self.admitted(
                name, gate, None if has_none else remaining, lambda: not context.is_active()
            ) as deadline:
                with self._lock:
                    self._deadlines[context] = deadline
                try:
                    yield deadline
                finally:
                    with self._lock:
                        self._deadlines.pop(context, None)
        except Refused as refused:
            context.abort_with_status(status(refused.code, refused.reason, refused.message, refused.retry_seconds))

    def count(self, counter: str) -> None:
        with self._lock:
            self._counters[counter] += 1

    def _enter(self, name: str, gate: Gate, timeout_seconds: float | None) -> float:
        limits = self._limits
        allowed = limits.call_seconds if timeout_seconds is None else min(timeout_seconds, limits.max_call_seconds)
        with self._lock:
            self._counters[f"rpc_{name.lower()}"] += 1
            if not self._room[gate]:
                self._counters[f"rpc_shed_{gate.value}"] += 1
                raise shed(f"too many {gate.value} at once")
            self._room[gate] -= 1
            self._running += 1
            return self._clock() + allowed

    def _leave(self, gate: Gate) -> None:
        with self._lock:
            self._room[gate] += 1
            self._running -= 1
            self._left.notify_all()


def parsed(into: type[Parsed], raw: bytes) -> Parsed:
    """Raises InvalidInput for bytes that are no such message."""
    try:
        return into.FromString(raw)
    except DecodeError as error:
        raise InvalidInput(f"the request is no {into.DESCRIPTOR.name}: {error}") from error
