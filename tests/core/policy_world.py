"""Orders without a planner: flat blocks of equal size, each the only one of its chain, and short trees.

Such blocks are what textbook caches hold, so a policy's hits can be compared with another implementation's.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from hashlib import sha256

from kvstore.core.index import Entry, Facts, Namespace, Node, ObjectClass
from kvstore.core.keys import BlockKey
from kvstore.core.policy import Policy
from kvstore.core.presets import v4_flash

BLOCK_BYTES = 4096


def namespace() -> Namespace:
    return Namespace(b"n" * 32, b"r" * 32, v4_flash(revision="1"), 1)


def make_entry(
    space: Namespace,
    name: object,
    *,
    parent: Node | None = None,
    nbytes: int = BLOCK_BYTES,
    now: float = 0.0,
    ttl_seconds: float | None = None,
    group: int = 0,
    object_class: ObjectClass = ObjectClass.SESSION,
) -> Entry:
    """Rows of a new node, or a state on a node that has rows (`parent` is that node)."""
    parent = parent or space.root
    prefix = sha256(parent.prefix + repr(name).encode()).digest()
    if group:
        node = parent
    else:
        node = space.nodes.get(prefix) or space.add_node(prefix, parent)
    key = BlockKey(node.prefix, group)
    facts = Facts(key, space.name, parent.prefix, node.block, 1, b"", b"", b"", nbytes, now, b"", object_class,
                  ttl_seconds)  # fmt: skip
    entry = Entry(node, facts, now)
    if group:
        node.add_state(entry)
    else:
        node.rows = entry
    return entry


class FlatCache:
    """A cache of so many blocks that asks the policy's order whom to evict. Time is the number of the request."""

    def __init__(self, policy: Policy, blocks: int, seconds: float = 1.0) -> None:
        self.order = policy.order(blocks * BLOCK_BYTES)
        self.blocks = blocks
        self.seconds = seconds  # between requests
        self.stored: dict[int, Entry] = {}
        self.requests = 0
        self.hits = 0
        self._space = namespace()
        self._names: dict[BlockKey, int] = {}

    def ask(self, name: int) -> bool:
        self.requests += 1
        now = self.requests * self.seconds
        entry = self.stored.get(name)
        if entry is not None:
            self.hits += 1
            entry.last_used = now
            entry.uses += 1
            self.order.used(entry)
            self.order.offer(entry, now)
            return True
        while len(self.stored) >= self.blocks:
            key = self.order.pop()
            assert key is not None
            gone = self.stored.pop(self._names.pop(key))
            gone.node.rows = None
            self._space.remove_node(gone.node)
            self.order.removed(gone, BLOCK_BYTES)
        entry = self.stored[name] = make_entry(self._space, name, now=now)
        self._names[entry.facts.key] = name
        self.order.admitted(entry)
        self.order.offer(entry, now)
        return False

    def play(self, names: Iterable[int]) -> float:
        """Share of requests that hit."""
        for name in names:
            self.ask(name)
        return self.hits / self.requests


def zipf_trace(requests: int, objects: int, skew: float = 0.9, seed: int = 7) -> list[int]:
    """Independent draws: the most popular of `objects` is asked for most."""
    rng = random.Random(seed)
    weights = [1 / (rank + 1) ** skew for rank in range(objects)]
    return rng.choices(range(objects), weights, k=requests)


def scan_trace(requests: int, objects: int, seed: int = 7) -> list[int]:
    """A Zipf trace through which every 2,000 requests a scan of 600 objects goes that never come back."""
    popular = zipf_trace(requests, objects, seed=seed)
    found: list[int] = []
    fresh = objects
    for begin in range(0, requests, 2000):
        found += popular[begin : begin + 2000]
        found += range(fresh, fresh + 600)
        fresh += 600
    return found


def shifting_trace(requests: int, objects: int, phases: int = 4, seed: int = 7) -> list[int]:
    """A Zipf trace whose popular objects are others in each phase."""
    found: list[int] = []
    for phase in range(phases):
        part = zipf_trace(requests // phases, objects, seed=seed + phase)
        found += [name + phase * objects for name in part]
    return found


def most_hits(names: Sequence[int]) -> float:
    """Share of hits of a cache without end."""
    return 1 - len(set(names)) / len(names)
