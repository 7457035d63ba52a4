"""A store without bytes: a planner whose copies end at once. What a daemon of these settings would have kept.

Payloads are never made: an object's checksum is the same for all, so lineages agree as those of canonical runs do.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

from kvstore.core.actions import Action, Copy
from kvstore.core.keys import HASH_BYTES, Chain, Tier
from kvstore.core.match import Hints, Match, Snapshots
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.reserve import ObjectSpec, ReserveStatus

CONTENT = bytes(16)
OWNER = bytes(16)


class Rehearsal:
    """One planner in virtual time, and what it wrote."""

    def __init__(self, planner: Planner) -> None:
        self.planner = planner
        self.disk_bytes_written = 0
        self.host_bytes_written = 0
        self.states_written = 0
        self.refused = 0  # objects for which there was no room

    def lookup(self, name: bytes, request: Request, now: float) -> Match:
        """As a worker asks. The caller gives the lease back."""
        self._run(self.planner.tick(now), now)
        match, actions = self.planner.lookup(name, request, OWNER, now)
        self._run(actions, now)
        return match

    def put(self, name: bytes, chain: Chain, first: int, states_at: Collection[int], hints: Hints, now: float) -> None:
        """Store blocks of the chain from block `first` on, and states at these token counts.

        A state at the end of the block before comes too where it is missing, as a request's output may end there.
        Nothing happens where what stands before them is not here.
        """
        namespace = self.planner.namespaces[name]
        layout, group = namespace.layout, namespace.layout.state_group
        if first > chain.first_block and first * layout.block_tokens in states_at:
            before = namespace.node(chain.hash_at(first - 1 - chain.first_block))
            first -= before is not None and not before.states
        skipped = first - chain.first_block
        if skipped >= chain.blocks:
            return
        parent = chain.parent if not skipped else chain.hash_at(skipped - 1)
        above = namespace.node(parent)
        if above is None:
            return
        objects = []
        for index in range(chain.blocks - skipped):
            objects.append(ObjectSpec(index, 0, layout.rows.nbytes, CONTENT))
            if group is not None and (first + index + 1) * layout.block_tokens in states_at:
                objects.append(ObjectSpec(index, group, layout.groups[group].nbytes, CONTENT))
        tail = Chain(first, parent, chain.hashes[skipped * HASH_BYTES :])
        statuses, facts, actions = self.planner.reserve(name, tail, objects, above.lineage, OWNER, hints, now, now)
        self._run(actions, now)
        self.refused += statuses.count(ReserveStatus.NO_ROOM)
        for made in facts:
            if made is not None:
                self.host_bytes_written += made.raw_bytes
                self.states_written += made.key.group == group
                self._run(self.planner.arrived(made.key, made.generation, Tier.HOST, now), now)

    def _run(self, actions: Iterable[Action], now: float) -> None:
        """Copies end at once; drops have happened."""
        waiting = [action for action in actions if isinstance(action, Copy)]
        while waiting:
            copy = waiting.pop(0)
            key, generation = copy.facts.key, copy.facts.generation
            more: list[Action] = []
            if copy.target is Tier.DISK:
                slots, more = self.planner.encoded(key, generation, copy.facts.raw_bytes, now)
                if slots:
                    self.disk_bytes_written += copy.facts.raw_bytes
                    more = more + self.planner.arrived(key, generation, Tier.DISK, now)
                else:
                    more = more + self.planner.failed(key, generation, Tier.DISK, now)
            else:
                more = self.planner.arrived(key, generation, copy.target, now)
            waiting += [action for action in more if isinstance(action, Copy)]


def snapshot_ends(snapshots: Snapshots, first: int, end: int) -> set[int]:
    """Boundaries, in tokens, at which a worker that computes from `first` to `end` takes states."""
    ends = {tokens for tokens in snapshots.at if tokens <= end}
    if snapshots.every:
        ends |= set(range((first // snapshots.every + 1) * snapshots.every, end + 1, snapshots.every))
    return ends
