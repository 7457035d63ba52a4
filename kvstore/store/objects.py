"""What the store hands out: namespaces, opened objects, reservations, and figures about itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import NamedTuple

from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.reserve import ReserveStatus
from kvstore.store.lock import LockFigures


class OpenedNamespace(NamedTuple):
    """Answer to Hello. `root` is the parent of block 0; only authenticated workers get it."""

    id: bytes
    root: bytes
    layout: ModelLayout
    created: bool
    differing: tuple[str, ...]  # fields in which the nearest other layout of this model differs


class OpenObject:
    """One object's bytes, readable until the `with` block ends. A missing one has no pieces."""

    __slots__ = ("_close", "content", "generation", "key", "length", "lineage", "pieces", "tier")

    def __init__(
        self,
        key: BlockKey,
        facts: Facts | None = None,
        tier: Tier = Tier.HOST,
        pieces: Sequence[memoryview] = (),
        close: Callable[[], None] | None = None,
    ) -> None:
        self.key = key
        self.length = facts.raw_bytes if facts is not None else 0
        self.generation = facts.generation if facts is not None else 0
        self.lineage = facts.lineage if facts is not None else bytes(16)
        self.content = facts.content if facts is not None else bytes(16)
        self.tier = tier
        self.pieces = [piece.toreadonly() for piece in pieces]
        self._close = close

    @property
    def is_missing(self) -> bool:
        return not self.pieces

    def __enter__(self) -> OpenObject:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give the bytes back; harmless when done twice."""
        self.pieces = []
        close, self._close = self._close, None
        if close is not None:
            close()


@dataclass(slots=True)
class Reservation:
    """Objects that a writer announced. `facts` are those of wanted ones that were not finished yet."""

    id: int
    statuses: tuple[ReserveStatus, ...]
    keys: tuple[BlockKey, ...]
    facts: list[Facts | None]
    expires: float
    writing: set[int] = field(default_factory=set)  # indices whose pieces are being written now


class TierState(NamedTuple):
    tier: Tier
    capacity_bytes: int
    ready_bytes: int
    used_bytes: int
    objects: int
    is_writable: bool
    trouble: str  # empty when all is well
    read_bytes_per_second: float | None
    write_bytes_per_second: float | None
    huge_bytes: int = 0  # of `ready_bytes`, those in huge pages


class CurvePoint(NamedTuple):
    """What host memory of another size would have answered lately."""

    nbytes: int
    token_hits: float  # share of prompt tokens, by the rows alone
    work_hits: float  # share of the prefill's work


class NamespaceState(NamedTuple):
    id: bytes
    layout: ModelLayout
    rows: int
    states: int
    host_bytes: int
    curve: tuple[CurvePoint, ...] = ()  # by size; empty until something was asked


class StoreStatus(NamedTuple):
    tiers: tuple[TierState, ...]
    namespaces: tuple[NamespaceState, ...]
    leases: int
    pins: int
    queued_copies: int
    counters: Mapping[str, int]
    handoffs: int
    handoff_bytes: int  # their room, those that are being sent or filled included
    lock: LockFigures
