"""What a client may be told: deadlines and bounds, with defaults for production. Frozen values, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, fields

from kvstore.core.errors import InvalidInput

MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Longest time that each part of a call may take, in seconds.

    A dead daemon costs none of these: a refused connection fails in about 3 ms and then the breaker answers. They
    bound what a *slow* or black-holed daemon can cost, once, before the breaker opens; probing is done by the
    client's own thread. A latency-critical worker sets `lookup_seconds` to what a lookup may save it.
    """

    connect_seconds: float = 1.0  # the first Hello, inside connect(), and each later probe
    lookup_seconds: float = 1.0  # about 1 ms is normal; 1 s leaves room for a loaded two-core host
    fetch_seconds: float = 10.0  # a whole fetch with its one second try: 3.6 MB at 0.5 GB/s take 7 ms
    put_seconds: float = 30.0  # one queued put with Reserve, upload and Commit; nobody waits for it
    handoff_seconds: float = 5.0  # one handoff, either way: 16 MB at 0.5 GB/s take 32 ms
    control_seconds: float = 1.0  # release, report, pin, unpin, session, prefetch
    close_seconds: float = 2.0  # how long close() lets the queue drain
    keepalive_seconds: float = 1.0  # a ping after so long without news, while a call is in flight ...
    keepalive_reply_seconds: float = 0.5  # ... and the connection is dead when no answer came for so long

    def __post_init__(self) -> None:
        for field in fields(self):
            seconds = getattr(self, field.name)
            if not isinstance(seconds, int | float) or not 0 < seconds < 86400:
                raise InvalidInput(f"{field.name}={seconds!r} is out of range: give seconds above 0 and below 86400")


@dataclass(frozen=True, slots=True)
class Bounds:
    """What a client may hold at most."""

    queue_bytes: int = 256 * MIB  # packed bytes waiting for upload; a put beyond it is shed
    queue_jobs: int = 256
    staging_bytes: int = 64 * MIB  # of the daemon's memory, where puts are packed on its host; others are copied there
    pool_bytes: int = 256 * MIB  # free buffers kept for reuse
    memo_bytes: int = 32 * MIB  # tokens and hashes of recent sequences
    lineages: int = 65_536  # chain positions whose lineage is remembered; about 10 MB

    def __post_init__(self) -> None:
        for field in fields(self):
            bound = getattr(self, field.name)
            if not isinstance(bound, int) or bound < 1:
                raise InvalidInput(f"{field.name}={bound!r} is out of range: give a whole number above 0")
