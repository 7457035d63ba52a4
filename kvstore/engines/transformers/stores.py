"""The part of `kvstore.Client` that the worker uses. None of it raises for a fault of the store."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from kvstore.core.keys import Tier
from kvstore.core.match import Hints, Plan, Snapshots
from kvstore.engines.transformers.cache import Bytes

Tokens = NDArray[np.int32]


class MatchView(Protocol):
    """What the worker reads of a match."""

    @property
    def plan(self) -> Plan: ...
    @property
    def snapshots(self) -> Snapshots: ...


class BlocksView(Protocol):
    """What the worker reads of fetched blocks. Arrays are borrowed until the fetch's context ends."""

    @property
    def plan(self) -> Plan: ...
    @property
    def tier(self) -> Tier | None: ...
    @property
    def rows(self) -> Mapping[str, Bytes]: ...
    @property
    def state(self) -> Mapping[str, Bytes] | None: ...
    @property
    def lineage(self) -> bytes: ...


MatchT = TypeVar("MatchT", bound=MatchView)


class Store(Protocol[MatchT]):
    """Where rows and states are found and put."""

    worker_flops: float | None  # what lookups say of this worker's speed

    @property
    def is_connected(self) -> bool: ...
    def lookup(self, tokens: Tokens, *, hints: Hints) -> AbstractContextManager[MatchT]: ...
    def fetch(self, match: MatchT) -> AbstractContextManager[BlocksView]: ...
    def catch_up(self, match: MatchT, computed_tokens: int) -> AbstractContextManager[BlocksView] | None: ...
    def put(
        self,
        tokens: Tokens,
        *,
        first_block: int,
        rows: Mapping[str, Bytes],
        states: Mapping[int, Mapping[str, Bytes]],
        hints: Hints,
    ) -> bool: ...


class HandoffStore(Store[MatchT], Protocol[MatchT]):
    """One that also keeps exact caches for seconds, each for one reader."""

    def put_handoff(self, tokens: Tokens, payload: Sequence[memoryview], ttl_seconds: float) -> bool: ...
    def take_handoff(self, tokens: Tokens) -> memoryview | None: ...
