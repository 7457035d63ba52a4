"""What the mover is told of a namespace, and what it tells the store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from kvstore.core.actions import Drop
from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.store.rates import Rates


class Described(NamedTuple):
    """What the mover needs to know of an object's namespace."""

    layout: ModelLayout
    fingerprint: bytes
    cuts: tuple[tuple[int, ...], ...]  # per group: ends of the object's parts, one part a slot


class Written(NamedTuple):
    """A frame that lies in its slot."""

    facts: Facts
    page: int
    frame_bytes: int


class Reports(Protocol):
    """How the mover's threads tell the store. Each call takes the store's lock for dictionary work."""

    @property
    def rates(self) -> Rates: ...  # has a lock of its own
    def describe(self, namespace: bytes) -> Described: ...
    def give_slot(self, facts: Facts, frame_bytes: int) -> int | None: ...
    def is_superseded(self, drop: Drop) -> bool: ...
    def should_erase(self, drop: Drop) -> bool: ...
    def ended(self, copies: Sequence[tuple[Facts, bool]], target: Tier) -> None: ...
    def layered(self, flow: int) -> None: ...  # `Mover.layers_done` has changed
    def lost(self, facts: Facts, tier: Tier, why: str) -> None: ...
    def retire(self, segment: int) -> None: ...
    def trouble(self, tier: Tier, why: str) -> None: ...
    def populated(self) -> None: ...
    def last_used(self, key: BlockKey) -> float: ...
    def on_disk(self) -> Sequence[Written]: ...
