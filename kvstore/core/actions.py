"""What the planner wants done, as values. The shell does it and reports back with `arrived` or `failed`."""

from __future__ import annotations

from typing import NamedTuple

from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Tier


class Copy(NamedTuple):
    """Copy one object between tiers. The source cannot go before the copy is reported.

    `target_slots` is empty for the disk: the length of a frame is known only when it is encoded, and
    `Planner.encoded` then gives the slot.
    """

    facts: Facts
    source: Tier
    target: Tier
    source_slots: tuple[int, ...]
    source_bytes: int  # raw bytes on the host, frame bytes on disk
    target_slots: tuple[int, ...]
    stamp: int = 0  # of the target copy on the host
    flow: int = 0  # copies of one request; the mover is fair between them
    layers: bool = False  # wanted layer by layer: the first layers of all copies of the flow before the last ones


class Drop(NamedTuple):
    """A copy is gone from the index and its slots may be given out again; forget what the tier knows of it."""

    key: BlockKey
    generation: int
    tier: Tier
    slots: tuple[int, ...]


Action = Copy | Drop
