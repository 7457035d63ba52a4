"""Answers to an operator's "why": about one lookup, the objects that it found, and what would be evicted next.

Pure functions over the index, asked now and then; each looks at a bounded number of blocks, because it runs under the
store's lock. Units: tokens, bytes, seconds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from kvstore.core.fingerprint import nearest_differing
from kvstore.core.ghosts import Ghost, Ghosts, Owner
from kvstore.core.index import Entry, Namespace, Node, ObjectClass
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import MissReason
from kvstore.core.misses import LastLookup, namesakes
from kvstore.core.policy import Order, Placed
from kvstore.core.room import TIERS, Room

MAX_BELOW = 4096  # blocks looked at for the deepest continuation: some 2 ms
MAX_CLASSED = 4096  # blocks of a chain that are counted by class
MAX_RANKED = 1 << 16  # candidates that are compared for one place
MAX_STATE_PROBES = 256  # boundaries asked about for a state that was there


class Place(NamedTuple):
    """A candidate's place in the eviction order of its tier."""

    tier: Tier
    ahead: int | None  # candidates that go before it; None where the policy cannot tell or there are too many
    candidates: int


class Standing(NamedTuple):
    """One stored object, its class and its place."""

    key: BlockKey
    block: int
    object_class: ObjectClass
    tiers: tuple[Tier, ...]  # with a finished copy
    places: tuple[Place, ...]  # where it is a candidate for eviction
    uses: int
    unused_seconds: float
    leases: int
    pins: int
    is_in_use: bool  # bytes of it are read or written right now
    raw_bytes: int


class Nearest(NamedTuple):
    """The stored chain that shares most with the one that was looked up, and the namespace most like its own."""

    shared_blocks: int
    continuations: int  # stored blocks that follow the shared ones
    deepest_block: int  # the last block of the longest continuation
    is_partial: bool  # there are too many blocks to look at all
    differing: tuple[str, ...]  # layout fields in which the nearest namespace of the same model differs
    namesake_rows: int  # blocks that it has


class Explanation(NamedTuple):
    lookup: LastLookup
    nearest: Nearest
    state: tuple[int, Ghost] | None  # the deepest state between rows and plan that left: its block, what is known
    objects: tuple[Standing, ...]  # of the chain, deepest first
    classes: Mapping[ObjectClass, int]  # objects of the `classed` deepest blocks
    classed: int


class Victim(NamedTuple):
    """What would be evicted next to make room for an owner, unless a colder region of another's is emptied first."""

    owner: Owner
    namespace: bytes
    standing: Standing
    candidates: int


def explained(
    lookup: LastLookup,
    namespaces: Mapping[bytes, Namespace],
    room: Room,
    ghosts: Ghosts,
    max_objects: int,
    now: float,
) -> Explanation:
    """What there is to say about a lookup now. Where the deepest block it found left since, the root stands for it."""
    namespace = namespaces[lookup.namespace]
    node = namespace.node(lookup.last) or namespace.root
    walked = _upwards(node, MAX_CLASSED)
    entries = [entry for block in walked for entry in (*block.states, block.rows) if entry is not None]
    classes: Counter[ObjectClass] = Counter(entry.facts.object_class for entry in entries)
    return Explanation(
        lookup,
        _nearest(node, namespaces.values()),
        _state_that_left(lookup, node, ghosts),
        tuple(standing(entry, room, now) for entry in entries[:max_objects]),
        classes,
        len(walked),
    )


def standing(entry: Entry, room: Room, now: float) -> Standing:
    places = tuple(
        _place(order, entry.facts.key, tier)
        for tier in TIERS
        for order in (room.order_of(entry, tier),)
        if order is not None and entry.facts.key in order
    )
    return Standing(
        entry.facts.key,
        entry.facts.block,
        ObjectClass.PINNED if entry.pins else entry.facts.object_class,
        tuple(tier for tier in TIERS if entry.is_ready(tier)),
        places,
        entry.uses,
        max(now - entry.last_used, 0.0),
        entry.leases,
        entry.pins,
        any(held.busy for _, held in entry.copies()),
        entry.facts.raw_bytes,
    )


def next_victims(room: Room, now: float, most: int) -> list[Victim]:
    """For each owner of room, the object that the policy would give up first; where there are candidates."""
    victims: list[Victim] = []
    for owner, order in room.orders():
        key = order.first()
        entry = None if key is None else room.find(key)
        if entry is not None:
            victims.append(Victim(owner, entry.facts.namespace, standing(entry, room, now), len(order)))
        if len(victims) == most:
            break
    return victims


def _place(order: Order, key: BlockKey, tier: Tier) -> Place:
    ahead = order.ahead_of(key) if isinstance(order, Placed) and len(order) <= MAX_RANKED else None
    return Place(tier, ahead, len(order))


def _upwards(node: Node, most: int) -> list[Node]:
    """Blocks from `node` to block 0, deepest first, at most so many."""
    walked: list[Node] = []
    while node.parent is not None and len(walked) < most:
        walked.append(node)
        node = node.parent
    return walked


def _nearest(node: Node, namespaces: Iterable[Namespace]) -> Nearest:
    deepest, seen = node.block, 0
    stack = list(node.children())
    while stack and seen < MAX_BELOW:
        below = stack.pop()
        seen += 1
        deepest = max(deepest, below.block)
        stack.extend(below.children())
    namespace = node.namespace
    others = namesakes(namespace, namespaces)
    differing, like = nearest_differing(namespace.layout, [other.layout for other in others])
    rows = sum(other.contents.rows for other in others if other.layout == like)
    return Nearest(node.block + 1, len(node.children()), deepest, bool(stack), differing, rows)


def _state_that_left(lookup: LastLookup, node: Node, ghosts: Ghosts) -> tuple[int, Ghost] | None:
    """The deepest boundary between the plan's and the rows' end whose state was there."""
    layout = node.namespace.layout
    group = layout.state_group
    if group is None or lookup.missing.reason is not MissReason.STATE_MISSING:
        return None
    step = layout.resume_alignment // layout.block_tokens
    probes = 0
    above: Node | None = node
    while above is not None and above.end_tokens > lookup.plan_tokens and probes < MAX_STATE_PROBES:
        if (above.block + 1) % step == 0 and above.end_tokens < lookup.prompt_tokens:
            probes += 1
            ghost = ghosts.find(BlockKey(above.prefix, group))
            if ghost is not None:
                return above.block, ghost
        above = above.parent
    return None
