"""Making room: which copies may go, which do, and what goes with them.

A copy may go when nobody uses it and nothing below it needs it:

    a state     always
    rows        when no child has a copy on the tier (leaf first), and, if it is the last copy, no child has one
                anywhere: rows that can be read stay closed under prefix. Its own states go with it.

Leases and pins hold an object's copies on every tier; ancestors are held by the leaf-first rule.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Hashable, Iterable, Iterator

from kvstore.core.actions import Drop
from kvstore.core.changing import Changing
from kvstore.core.fading import FadingFirst
from kvstore.core.index import CopyStatus, Entry, Held, Node, attach_copy, detach_copy
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.policy import Order, Policy
from kvstore.core.space import Region, Space

TIERS = (Tier.HOST, Tier.DISK)
CLOSE_LOOKS = 64  # regions examined for one that can be emptied; together they walk each block below them once


class Room:
    """Space, candidates and the rules of dropping. Owns no index: entries come in by reference."""

    def __init__(
        self, spaces: dict[Tier, Space], policy: Policy, left: Callable[[Entry, tuple[Tier, Hashable] | None], None]
    ) -> None:
        """`left` hears of each entry that is forgotten, and for whom room was made last, as (tier, owner)."""
        self.spaces = spaces
        self.policy = policy
        self._left = left
        self._making: tuple[Tier, Hashable] | None = None
        self.doomed: dict[tuple[BlockKey, int, Tier], Held] = {}  # dropped from the index while still in use
        self.unwritten: dict[BlockKey, None] = {}  # not on disk: the copy there failed, went bad or was dropped
        self._last_stamp = 0
        self._orders: dict[tuple[Tier, Hashable], Order] = {}
        self._entries: dict[BlockKey, Entry] = {}  # every entry with a copy
        self.moved = 0  # objects, by all changes of policy
        self._to_move: list[BlockKey] = []  # from the old orders to the new ones, next last; see `change_policy`

    def find(self, key: BlockKey) -> Entry | None:
        return self._entries.get(key)

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def orders(self) -> Iterator[tuple[tuple[Tier, Hashable], Order]]:
        """Every order there is, by tier and pool of owners."""
        return iter(self._orders.items())

    def order_of(self, entry: Entry, tier: Tier) -> Order | None:
        """The order that ranks this copy; None without one that has its place."""
        held = entry.held(tier)
        if held is None or not (tier is Tier.HOST or held.slots):
            return None
        return self._order(tier, self.owner(entry, tier))

    # -- copies come ----------------------------------------------------------------------------
    def attach(self, entry: Entry, tier: Tier, held: Held) -> None:
        if entry.facts.key not in self._entries:
            self._entries[entry.facts.key] = entry
            entry.node.namespace.contents.count_entry(entry, 1)
        if tier is Tier.HOST:
            self._last_stamp += 1
            held.stamp = self._last_stamp
        attach_copy(entry, tier, held)
        if tier is Tier.HOST or held.slots:
            self.admitted(entry, tier)
        if entry.host is not held or held.status is CopyStatus.READY or entry.disk is not None:
            self.review(entry)  # else it is new and on its way: it may not go, and was never offered
        rows = _parent(entry).rows
        if rows is not None and rows is not entry and not _is_new(rows):
            self.review(rows)

    def attach_promotion(self, entry: Entry, held: Held, *, stands_on_one: bool) -> None:
        """A copy that is on its way to the host from the disk, whose copy there is in use.

        As `attach`, for thousands of blocks under the lock: neither copy may go, so there is nothing to rank.
        `stands_on_one`: the rows below are such a promotion too, and are not offered either.
        """
        self._last_stamp += 1
        held.stamp = self._last_stamp
        attach_copy(entry, Tier.HOST, held)
        self._order(Tier.DISK, self.owner(entry, Tier.DISK)).withdraw(entry.facts.key)
        self.admitted(entry, Tier.HOST)
        if not stands_on_one:
            self._review_parent(entry)

    def admitted(self, entry: Entry, tier: Tier) -> None:
        """A copy has its slots: the policy hears of it."""
        self._order(tier, self.owner(entry, tier)).admitted(entry)

    def used(self, entry: Entry) -> None:
        """A request used it, at `entry.last_used`: if it was fading, it is wanted again."""
        entry.is_fading = False
        for tier, held in entry.copies():
            self.spaces[tier].touch(held.slots, entry.last_used)
            if tier is Tier.HOST or held.slots:
                self._order(tier, self.owner(entry, tier)).used(entry)
        self.review_all((entry,))

    def fade(self, entry: Entry) -> None:
        """Little would be lost with it: it goes before everything that does not fade, until it is used."""
        if not entry.is_fading:
            entry.is_fading = True
            self.review_all((entry,))

    def review(self, entry: Entry) -> None:
        """Offer the entry's copies to the policy, or take the offer back, after anything about it changed."""
        host, disk = entry.host, entry.disk
        if host is not None:
            order = self._order(Tier.HOST, entry.node.namespace.name)
            if self.may_go(entry, Tier.HOST):
                order.offer(entry, _last_used(entry))
            else:
                order.withdraw(entry.facts.key)
        if disk is not None and disk.slots:
            order = self._order(Tier.DISK, self.owner(entry, Tier.DISK))
            if self.may_go(entry, Tier.DISK):
                order.offer(entry, _last_used(entry))
            else:
                order.withdraw(entry.facts.key)

    def review_all(self, entries: Iterable[Entry]) -> None:
        """Review entries that are still stored. A state's being in use decides also whether its rows may go."""
        for entry in entries:
            if self._entries.get(entry.facts.key) is not entry:
                continue
            self.review(entry)
            if not entry.is_rows and entry.node.rows is not None:
                self.review(entry.node.rows)

    def review_use(self, entry: Entry, tier: Tier) -> None:
        """A reader of this copy came or went. Rows with blocks standing on them may not go either way."""
        if not entry.is_rows or entry.node.below(tier) <= len(entry.node.states):
            self.review_all((entry,))

    def next_victim(self, tier: Tier, owner: Hashable) -> Entry | None:
        """What would go next for this owner."""
        key = self._order(tier, owner).first()
        return None if key is None else self._entries[key]

    def is_offered(self, entry: Entry, tier: Tier) -> bool:
        """Whether the policy has this copy among its candidates; equal to `may_go`, or a review was forgotten."""
        return entry.facts.key in self._order(tier, self.owner(entry, tier))

    def may_go(self, entry: Entry, tier: Tier, gone: int = 0) -> bool:
        """Whether this copy could be dropped if `gone` of the copies below it on this tier were dropped first."""
        if not _is_idle(entry, tier):
            return False
        if not entry.is_rows:
            return True
        node = entry.node
        below = node.below_host if tier is Tier.HOST else node.below_disk
        if below - gone > len(node.states):  # more than its states: nearly every block, so it is asked first
            return False
        other = _other(tier)
        own = own_other = 0
        for state in node.states:
            if state.held(tier) is not None:
                own += 1
                if not _is_idle(state, tier):
                    return False
            own_other += state.held(other) is not None
        if below - own - gone > 0:
            return False
        if entry.is_ready(other):
            return True
        if node.below(other) - own_other > 0:
            return False
        return all(_is_idle(state, other) for state in node.states if state.held(other) is not None)

    # -- copies go ------------------------------------------------------------------------------
    def make_room(self, tier: Tier, owner: Hashable, slot_pages: int, count: int, drops: list[Drop]) -> bool:
        """Leave `count` slots free for `owner`, adding to `drops`; False where that cannot be.

        Another owner's region is emptied first where all of it is colder than what this owner would lose.
        """
        space = self.spaces[tier]
        if space.slots_in_region(slot_pages) == 0:
            return False
        while (missing := count - space.room(owner, slot_pages)) > 0:
            first = self._order(tier, owner).first()
            colder_than = self._coldness(self._entries[first]) if first is not None else None
            region = self._coldest_foreign(tier, owner, colder_than)
            if self._making != (tier, owner):  # else the same tuple: whoever compares it does so for each object
                self._making = (tier, owner)
            if region is None:
                chosen = self._choose(tier, owner, missing)
                if chosen is not None:
                    for entry in chosen:
                        drops += self.drop(entry, tier)
                    continue
                region = self._coldest_foreign(tier, owner, None)
            if region is None:
                return False
            drops += self._empty(tier, region)
            if region.owner is not None:
                return False  # a doomed copy in it is still in use
        return True

    def allocate(self, entry: Entry, tier: Tier, owner: Hashable, slot_pages: int, count: int) -> tuple[int, ...]:
        return self.spaces[tier].allocate(owner, slot_pages, count, entry.facts.key, entry.last_used, entry.node.block)

    def drop(self, entry: Entry, tier: Tier) -> list[Drop]:
        """Drop one copy and, where it was the last, the entry; states that lose their rows go with them."""
        drops: list[Drop] = []
        if entry.is_rows:
            goes_for_good = not entry.is_ready(_other(tier))
            for state in entry.node.states:
                for state_tier in TIERS if goes_for_good else (tier,):
                    if state.held(state_tier) is not None:
                        drops += self.drop(state, state_tier)
        self._inherit(entry)
        drops += self._detach(entry, tier)
        self._review_parent(entry)
        if entry.host is None and entry.disk is None:
            self._forget(entry)
        else:
            self.review(entry)
        return drops

    def lose(self, entry: Entry, tier: Tier) -> list[Drop]:
        """A copy turned out bad or never came. What cannot be read without it goes too, whoever uses it."""
        drops = self._detach(entry, tier)
        if entry.is_stored:
            self.review(entry)
            self._review_parent(entry)
            return drops
        return drops + self.forget_all(entry)

    def forget_all(self, entry: Entry) -> list[Drop]:
        """Drop an entry with everything below it; copies in use are freed when their users are done."""
        drops: list[Drop] = []
        nodes = list(entry.node.subtree()) if entry.is_rows else []
        below = [found for node in reversed(nodes) for found in (*node.states, node.rows) if found is not None]
        for found in below or [entry]:
            for tier, _ in tuple(found.copies()):
                drops += self._detach(found, tier)
            self._review_parent(found)
            self._forget(found)
        return drops

    def settle(self, key: BlockKey, generation: int, tier: Tier) -> Held | None:
        """The last user of a doomed copy is done: free it. None while someone else still uses it."""
        held = self.doomed[key, generation, tier]
        if held.busy or held.status is CopyStatus.INCOMING:
            return None
        del self.doomed[key, generation, tier]
        self.spaces[tier].free(held.slots)
        return held

    def owner(self, entry: Entry, tier: Tier) -> Hashable:
        """Whose slots a copy takes: the namespace's on the host, the size class's on disk."""
        if tier is Tier.HOST:
            return entry.node.namespace.name
        held = entry.disk
        assert held is not None
        return self.spaces[tier].cut(held.nbytes)[0]

    # -- another policy -------------------------------------------------------------------------
    def change_policy(self, policy: Policy) -> None:
        """Rank by another policy from now on; `change_some` has to be called until it says 0.

        Moving an object costs some 10 us, a million of them ten seconds, and no lookup may wait for that: whoever
        holds a lock moves few at a time. Here is only what cannot be divided: one list of the keys, 10 ms a million.
        """
        self.policy = policy
        for (tier, pool), order in self._orders.items():
            new = FadingFirst(policy.order(self.spaces[tier].capacity_bytes))
            self._orders[tier, pool] = Changing(order, new, lambda key: _last_used(self._entries[key]))
        self._to_move = list(reversed(self._entries))  # what came first moves first: parents, and the old in FIFOs
        self.change_some(0)

    def change_some(self, count: int) -> int:
        """Move so many objects to the orders of the policy in charge; how many are left.

        The call that ends it lets go of the old orders at once: 20 ms for a million objects in plain heaps, 300 in
        hazard's tables.
        """
        for _ in range(min(count, len(self._to_move))):
            entry = self._entries.get(self._to_move.pop())
            self.moved += 1
            if entry is None:
                continue
            for tier, held in entry.copies():
                order = self.order_of(entry, tier)
                if isinstance(order, Changing):
                    order.move(entry, held.nbytes)
            self.review(entry)
        if not self._to_move:
            for name, changed in self._orders.items():
                if isinstance(changed, Changing):
                    self._orders[name] = changed.new
        return len(self._to_move)

    @property
    def left_to_move(self) -> int:
        """Objects that the last change of policy did not come to yet."""
        return len(self._to_move)

    # -- private --------------------------------------------------------------------------------
    def _order(self, tier: Tier, owner: Hashable) -> Order:
        space = self.spaces[tier]
        name = (tier, space.pool(owner))
        order = self._orders.get(name)
        if order is None:
            order = self._orders[name] = FadingFirst(self.policy.order(space.capacity_bytes))
        return order

    def _choose(self, tier: Tier, owner: Hashable, missing: int) -> list[Entry] | None:
        """Victims in order, worth `missing` slots of this owner. Changes nothing where there are not enough."""
        space = self.spaces[tier]
        order, pool = self._order(tier, owner), space.pool(owner)
        chosen: list[Entry] = []
        gone: dict[Node, int] = {}
        exposed: dict[BlockKey, float] = {}
        freed: set[int] = set()  # slots: a state may be chosen by itself, and then with its rows
        found = 0
        while found < missing:
            popped = order.pop()
            if popped is None:
                break
            entry = self._entries[popped]
            chosen.append(entry)
            if entry.is_rows and not entry.node.states:  # its slots are no other's
                held = entry.held(tier)
                assert held is not None
                found += space.room_in(held.slots)
            else:
                fresh = set(self._slots(entry, tier, pool)) - freed
                freed |= fresh
                found += space.room_in(fresh)
            if not entry.is_rows:
                continue
            parent = _parent(entry)
            gone[parent] = gone.get(parent, 0) + 1
            rows = parent.rows
            if rows is not None and rows.held(tier) is not None:
                same_order = space.pool(self.owner(rows, tier)) == pool
                if same_order and self.may_go(rows, tier, gone[parent]):
                    exposed.setdefault(rows.facts.key, rows.last_used)
                    rows.last_used = max(rows.last_used, entry.last_used)
                    order.offer(rows, _last_used(rows))
        if found >= missing:
            rows_chosen = {entry for entry in chosen if entry.is_rows}
            return [entry for entry in chosen if entry.is_rows or entry.node.rows not in rows_chosen]
        for key, last_used in exposed.items():
            self._entries[key].last_used = last_used
            order.withdraw(key)
        for entry in chosen:
            self.review(entry)
        return None

    @staticmethod
    def _coldness(entry: Entry) -> float:
        """Of a next victim, to compare with other owners': nobody else's is given up before what fades."""
        return -math.inf if entry.is_fading else entry.last_used

    def _slots(self, entry: Entry, tier: Tier, pool: Hashable) -> Iterator[int]:
        goes = (entry, *entry.node.states) if entry.is_rows else (entry,)
        for found in goes:
            held = found.held(tier)
            if held is not None and self.spaces[tier].pool(self.owner(found, tier)) == pool:
                yield from held.slots

    def _detach(self, entry: Entry, tier: Tier) -> list[Drop]:
        held = entry.held(tier)
        if held is None:
            return []
        if tier is Tier.HOST or held.slots:
            order = self._order(tier, self.owner(entry, tier))
            order.withdraw(entry.facts.key)
            order.removed(entry, held.nbytes)
        detach_copy(entry, tier)
        key, generation = entry.facts.key, entry.facts.generation
        if held.busy or held.status is CopyStatus.INCOMING:
            self.doomed[key, generation, tier] = held
            return []
        self.spaces[tier].free(held.slots)
        return [Drop(key, generation, tier, held.slots)]

    def _forget(self, entry: Entry) -> None:
        """Take an entry without copies out of the tree, and its node when nothing is left of it."""
        key, node = entry.facts.key, entry.node
        if self._entries.get(key) is entry:
            del self._entries[key]
            self._left(entry, self._making)
            node.namespace.contents.count_entry(entry, -1)
            self.unwritten.pop(key, None)
        if entry.is_rows:
            node.rows = None
            node.readable = False
            assert not node.states, "states outlived their rows"
            if not node.children():
                node.namespace.remove_node(node)
        else:
            node.remove_state(entry)

    def _inherit(self, entry: Entry) -> None:
        """A parent cannot be colder than the child it was needed for."""
        rows = _parent(entry).rows
        if rows is not None:
            rows.last_used = max(rows.last_used, entry.last_used)
            rows.uses = max(rows.uses, entry.uses)  # each of its uses was one of these rows too

    def _review_parent(self, entry: Entry) -> None:
        rows = _parent(entry).rows
        if rows is not None and rows is not entry:
            self.review(rows)

    def _coldest_foreign(self, tier: Tier, owner: Hashable, colder_than: float | None) -> Region | None:
        """The region of another owner that was used longest ago and that nobody holds on to.

        `Region.last_used` knows touches of its own objects only, but what lies above a used block counts as used: the
        coldest is looked at closely, and put back where that makes it warmer. Of equally cold ones the deepest
        goes, because everything above it can stay. None where none is colder than `colder_than`.
        """
        space = self.spaces[tier]
        if space.owners <= (1 if space.owns(owner) else 0):
            return None
        waiting = [(r.last_used, -r.depth, r.number) for r in space.foreign_regions(owner)]
        heapq.heapify(waiting)
        known: dict[Node, tuple[float, bool]] = {}  # regions share chains: each block is looked at once
        for _ in range(CLOSE_LOOKS):
            if not waiting or (colder_than is not None and waiting[0][0] >= colder_than):
                return None
            _, depth, number = heapq.heappop(waiting)
            region = space.regions[number]
            entries = [self._entries.get(key) for key in set(region.holders.values())]
            below = [_with_all_below(entry.node, known) for entry in entries if entry is not None]
            warmth = max((last_used for last_used, _ in below), default=region.last_used)
            if warmth > region.last_used:
                region.last_used = warmth
                heapq.heappush(waiting, (warmth, depth, number))
            elif None not in entries and all(is_free for _, is_free in below):
                return region
        return None

    def _empty(self, tier: Tier, region: Region) -> list[Drop]:
        """Empty a region: copies that lie elsewhere too just leave, the others go with all below them."""
        drops: list[Drop] = []
        for key in sorted(set(region.holders.values())):
            entry = self._entries.get(key)
            if entry is None or entry.held(tier) is None:
                continue  # went with an ancestor
            if entry.is_ready(_other(tier)) or not entry.is_rows:
                drops += self.drop(entry, tier)
            else:
                drops += self.forget_all(entry)
        return drops


def _with_all_below(node: Node, known: dict[Node, tuple[float, bool]]) -> tuple[float, bool]:
    """The latest use of a block or of any below it, and whether nobody holds on to one of them; fills `known`."""
    stack = [node]
    while stack:
        top = stack[-1]
        waiting = [child for child in top.children() if child not in known]
        if waiting:
            stack += waiting
            continue
        own = [entry for entry in (*top.states, top.rows) if entry is not None]
        below = [known[child] for child in top.children()]
        known[top] = (
            max([*(entry.last_used for entry in own), *(last_used for last_used, _ in below)]),
            all(map(_is_free, own)) and all(is_free for _, is_free in below),
        )
        stack.pop()
    return known[node]


def _is_free(entry: Entry) -> bool:
    return not (entry.leases or entry.pins) and all(_is_idle(entry, tier) for tier, _ in entry.copies())


def _is_idle(entry: Entry, tier: Tier) -> bool:
    held = entry.host if tier is Tier.HOST else entry.disk
    return (
        held is not None and held.status is CopyStatus.READY and not held.busy and not entry.leases and not entry.pins
    )


def _last_used(entry: Entry) -> float:
    """Of an object and its states, which go with it."""
    if entry.is_rows and entry.node.states:
        return max(entry.last_used, *(state.last_used for state in entry.node.states))
    return entry.last_used


def _is_new(entry: Entry) -> bool:
    """On its way for the first time: no order was ever offered it."""
    return entry.disk is None and entry.host is not None and entry.host.status is CopyStatus.INCOMING


def _other(tier: Tier) -> Tier:
    return Tier.DISK if tier is Tier.HOST else Tier.HOST


def _parent(entry: Entry) -> Node:
    if not entry.is_rows:
        return entry.node
    assert entry.node.parent is not None
    return entry.node.parent
