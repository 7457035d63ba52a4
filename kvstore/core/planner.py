"""The planner: events and `now` in, actions out. Decides everything, touches no byte.

The daemon runs its actions on real tiers, the simulator on counters, the tests late, out of order or failing.
One caller at a time; no call blocks. `now` is in seconds on any monotonic scale; events carry it whether or not
today's rules ask for it.

Life of an object: `reserve` makes an entry with room on the host; `arrived(HOST)` makes it readable and may return
`Copy(HOST -> DISK)`; `encoded` gives that copy its slot, `arrived(DISK)` ends it. A lookup that finds it on disk
only returns `Copy(DISK -> HOST)`. Copies are dropped to make room, entries when their last copy goes.

Its parts: `matching` answers lookups, `reserving` answers writers, `copies` starts and ends copies, `room` drops
them, `lifetimes` and `lease` say how long; `index` and `space` are the books they keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from kvstore.core import invariants
from kvstore.core.actions import Action, Copy
from kvstore.core.classes import Classes, is_kept, is_shared
from kvstore.core.climb import with_states
from kvstore.core.copies import Copies
from kvstore.core.cost import CostModel
from kvstore.core.curves import REACH, Curves, work_of
from kvstore.core.disk_admission import DiskGate
from kvstore.core.ghosts import Departure, Ghosts
from kvstore.core.ideal import IdealSpace
from kvstore.core.index import CopyStatus, Entry, Facts, Held, Namespace, Node, ObjectClass
from kvstore.core.keys import PAGE_BYTES, BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lease import Lease, Leases, Pin
from kvstore.core.lifetimes import Lifetimes
from kvstore.core.match import Hints, Match, SessionEvent
from kvstore.core.matching import Found, Request, deepest, find, is_readable
from kvstore.core.misses import LastLookup, Misses, first_missing, last_lookup
from kvstore.core.placement import Placement
from kvstore.core.policies.lru import LRU
from kvstore.core.policy import Policy
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.reserving import Reserving, Writing
from kvstore.core.room import Room
from kvstore.core.settings import Counts, Settings, segment_pages
from kvstore.core.space import Space, class_pages, region_pages, slot_pages
from kvstore.core.speculation import speculative_boundaries
from kvstore.core.watching import Watcher

MAX_SPECULATIVE = 8192  # boundaries that were asked for and not put yet
MAX_SESSIONS = 65536  # remembered sessions; the oldest is forgotten
MOVES_A_TICK = 64  # objects, under 1 ms: a changeover ends where nobody else calls `change_some`
# A tool call that takes longer may find its chain evicted again, or nobody left: promoting for it would push others
# out. Half a minute is the lease's default, the time that the store holds copies for a worker anyway.
PREFETCH_GAP_SECONDS = 30.0


class Planner:
    """See the module's docstring. All methods that change something return what is to be done about it."""

    def __init__(self, settings: Settings, policy: Policy | None = None, first_generation: int = 1) -> None:
        self.settings = settings
        self.counts = Counts()
        host: Space
        disk: Space
        if settings.ideal_space:
            host, disk = IdealSpace(settings.host_bytes), IdealSpace(settings.disk_bytes)
        else:
            host, disk = Space(region_pages(settings.host_bytes)), Space(segment_pages(settings), header_pages=1)
        self.spaces = {Tier.HOST: host, Tier.DISK: disk}
        self.namespaces: dict[bytes, Namespace] = {}
        self.leases = Leases()
        stored_bytes = settings.host_bytes + settings.disk_bytes
        self.curves = Curves(float(REACH * stored_bytes)) if settings.curves else None
        self.misses = Misses(Ghosts(settings.host_bytes + settings.disk_bytes))
        self._room = Room(self.spaces, policy or LRU(), self.misses.ghosts.left)
        self.gate = DiskGate(settings.disk_admission, settings.disk_write_bytes_per_day)
        self._copies = Copies(self._room, self.counts, self.gate)
        self._lifetimes = Lifetimes(self._room)
        self.classes = Classes(settings.lives, self._class_changed)
        self._reserving = Reserving(
            self._room, self._copies, self._lifetimes, self.classes, first_generation, settings.keep_seconds
        )
        self._reserving.fades_superseded = settings.placement.is_adaptive
        self._costs: dict[bytes, CostModel | None] = {}
        self._watcher: Watcher | None = None
        self._sessions: dict[tuple[bytes, str], bytes] = {}  # the deepest block that was found, by prefix

    # -- space and namespaces -------------------------------------------------------------------
    def grow(self, tier: Tier, regions: int) -> None:
        """Let the planner use `regions` more regions of a tier: they are populated."""
        self.spaces[tier].add_regions(regions)

    def retire(self, tier: Tier, region: int) -> list[Action]:
        """A region's device failed or has no room: nothing lies there any more, nor will before `revive`."""
        space = self.spaces[tier]
        actions: list[Action] = []
        for key in sorted(set(space.regions[region].holders.values())):
            entry = self._room.find(key)
            if entry is not None and entry.is_ready(tier):
                actions += self.corrupt(key, entry.facts.generation, tier)
        space.retire(region)
        return actions

    def revive(self, tier: Tier, region: int) -> bool:
        """A retired region may be tried again. False while a copy there has not ended."""
        return self.spaces[tier].revive(region)

    def add_namespace(self, name: bytes, root: bytes, layout: ModelLayout) -> Namespace:
        """Open a namespace, or find it open."""
        if name not in self.namespaces:
            is_ideal = self.settings.ideal_space
            pages = 0 if is_ideal else slot_pages(layout.rows.nbytes, self.spaces[Tier.HOST].region_pages)
            as_pages = self.settings.as_region_pages
            as_slot_pages = slot_pages(layout.rows.nbytes, as_pages) if is_ideal and as_pages else 0
            self.namespaces[name] = Namespace(name, root, layout, pages, as_slot_pages)
            self._costs[name] = CostModel.of(layout)
            if self.curves is not None:
                self.curves.open(name, layout.block_tokens, work_of(self._costs[name], layout.block_tokens))
            if self._watcher is not None:
                self._watcher.open(name, root, layout)
        return self.namespaces[name]

    # -- what an operator changes ---------------------------------------------------------------
    @property
    def policy(self) -> str:
        """Name of the policy in charge."""
        return self._room.policy.name

    @property
    def left_to_move(self) -> int:
        """Objects that are still ranked by the policy that was in charge before."""
        return self._room.left_to_move

    @property
    def moved(self) -> int:
        """Objects that were moved, by all changes of policy."""
        return self._room.moved

    def set_policy(self, policy: Policy) -> None:
        """Another policy from now on; nothing where it is in charge already. See `change_some`."""
        if policy.name != self.policy:
            self._room.change_policy(policy)

    def change_some(self, count: int) -> int:
        """Move at most so many objects to the policy in charge; how many are left. Ticks move some, too."""
        return self._room.change_some(count)

    def set_keep_seconds(self, keep_seconds: float) -> None:
        """See `Settings.keep_seconds`; 0 admits everything."""
        self.settings = replace(self.settings, keep_seconds=keep_seconds)
        self._reserving.keep_seconds = keep_seconds

    def set_placement(self, placement: Placement) -> None:
        """Which states are asked for from now on; those that are there stay."""
        self.settings = replace(self.settings, placement=placement)
        self._reserving.fades_superseded = placement.is_adaptive

    def watch(self, watcher: Watcher) -> None:
        """Tell it of every lookup and of every announcement from now on."""
        self._watcher = watcher
        for name, namespace in self.namespaces.items():
            watcher.open(name, namespace.root.prefix, namespace.layout)

    # -- questions ------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._room)

    @property
    def next_generation(self) -> int:
        """Grows by one with each object that is announced."""
        return self._reserving.generation

    def entry(self, key: BlockKey) -> Entry | None:
        """The live entry of a key, with its copies; read it, do not change it."""
        return self._room.find(key)

    def entries(self) -> Iterator[Entry]:
        """Every live entry; read them, do not change them."""
        return self._room.entries()

    def is_live(self, key: BlockKey, generation: int) -> bool:
        entry = self._room.find(key)
        return entry is not None and entry.facts.generation == generation

    def snapshot(self) -> dict[BlockKey, frozenset[tuple[str, str]]]:
        """Contents: for each object its copies as (tier, status). Two planners in one state have equal snapshots."""
        return {
            entry.facts.key: frozenset((tier.value, held.status.value) for tier, held in entry.copies())
            for entry in self._room.entries()
        }

    def survives(self, key: BlockKey, known: set[bytes]) -> bool:
        """Whether a restart brings this object back: it and the rows that it stands on are on disk.

        `known` are prefixes of which that was found before; what is found now is added.
        """
        entry = self._room.find(key)
        if entry is None or not entry.is_ready(Tier.DISK):
            return False
        walked: list[bytes] = []
        node: Node | None = entry.node
        while node is not None and node.parent is not None and node.prefix not in known:
            if node.rows is None or not node.rows.is_ready(Tier.DISK):
                return False
            walked.append(node.prefix)
            node = node.parent
        known.update(walked)
        return True

    @property
    def promoting_bytes(self) -> tuple[int, ...]:
        """Raw bytes that each flow of promotions still has to read from disk."""
        return self._copies.promoting_bytes

    def take_touched(self) -> set[BlockKey]:
        """Objects used since the last call, for a shell that remembers recency over restarts."""
        touched, self._lifetimes.touched = self._lifetimes.touched, set()
        return touched

    @property
    def room(self) -> Room:
        """For `explain.py`, which looks and changes nothing."""
        return self._room

    def asked(self, name: bytes, request: Request, now: float) -> LastLookup:
        """What a lookup would find and lack now: no lease, no use, no count."""
        namespace = self.namespaces[name]
        found = find(namespace, request, self.settings.placement, self._costs[name])
        missing = first_missing(request, found, namespace, self.misses.ghosts, self.namespaces.values())
        return last_lookup(request, found, namespace, missing, now)

    def check(self) -> None:
        """Assert every invariant; tests call it after each step."""
        invariants.check(self._room, self.leases, self.namespaces.values())

    # -- GET ------------------------------------------------------------------------------------
    def lookup(self, name: bytes, request: Request, owner: bytes, now: float) -> tuple[Match, list[Action]]:
        """Match a chain, lease what the plan needs, promote what of it is cold."""
        found = find(self.namespaces[name], request, self.settings.placement, self._costs[name])
        match = self._judged(name, request, found, now)
        if self.settings.placement.is_adaptive:
            match = self._speculate(name, request, match)
        self.counts.lookups += 1
        self.counts.asked_tokens += request.prompt_tokens
        self.counts.hit_tokens += match.plan.tokens
        if self.curves is not None and not request.hot_only:  # that one asks again for what a load brought meanwhile
            self.curves.looked_up(self.namespaces[name], request.chain, request.prompt_tokens, now)
        if self._watcher is not None:
            self._watcher.looked_up(name, request, now)
        actions: list[Action] = []
        if found.last is not None:
            self._count_classes(found, request.chain, match.plan.tokens)
            self.classes.reached(found.last, request.hints)
            self._lifetimes.touch(found.last.rows, now)
            self._remember(name, request.hints.session, found.last)
            actions += self._copies.used((found.last.rows,), now)
        if match.plan.tokens == 0:
            return match, actions
        assert found.rows is not None
        for entry in (*found.states, found.rows):
            self._lifetimes.touch(entry, now)
        expires = now + self.settings.lease_seconds
        lease = self.leases.lease(owner, found.rows, found.hot, found.states, expires)
        self._room.review_all(lease.anchors)
        for step in found.steps:
            self._lifetimes.touch(step, now)  # else they are the first to leave again
        actions += self._copies.used((found.rows, *found.states), now)
        actions += self._copies.promote(found.rows.node, found.states, request.layers, found.steps)
        lease.flow = self._copies.flow
        return replace(match, lease=lease.number), actions

    def prefetch(self, name: bytes, request: Request, now: float) -> tuple[int, int, list[Action]]:
        """Promote what a lookup of this chain would need. Objects and bytes under way, and the copies."""
        found = find(self.namespaces[name], request, self.settings.placement, self._costs[name])
        if found.match.plan.tokens == 0 or found.rows is None:
            return 0, 0, []
        self._lifetimes.touch(found.rows, now)
        actions = self._copies.promote(found.rows.node, found.states)
        copies = [action for action in actions if isinstance(action, Copy)]
        return len(copies), sum(copy.facts.raw_bytes for copy in copies), actions

    def release(self, lease: int) -> bool:
        """End a lease. False if it is over already."""
        anchors = self.leases.release(lease)
        self._room.review_all(anchors)
        return bool(anchors)

    def release_owner(self, owner: bytes) -> int:
        """End all leases of a worker that is gone; how many there were."""
        return sum(self.release(lease) for lease in self.leases.owned(owner))

    def extend(self, lease: Lease, entry: Entry) -> None:
        """Rows of a lease's chain became hot: hold them on the host as well."""
        if self.leases.find(lease.number) is lease:
            self.leases.hold_too(lease, entry)
            self._room.review_all((entry,))

    def hold(self, key: BlockKey, tier: Tier, generation: int) -> Held | None:
        """Use a copy's bytes now: its slots stay as they are until `unhold`. None when it is gone."""
        return self._copies.hold(key, tier, generation)

    def unhold(self, key: BlockKey, tier: Tier, generation: int, held: Held) -> list[Action]:
        return self._copies.unhold(key, tier, generation, held)

    # -- PUT ------------------------------------------------------------------------------------
    def reserve(
        self,
        name: bytes,
        chain: Chain,
        objects: Sequence[ObjectSpec],
        lineage: bytes,
        writer: bytes,
        hints: Hints,
        now: float,
        written_at: float,
    ) -> tuple[list[ReserveStatus], list[Facts | None], list[Action]]:
        """Say for each object whether its bytes are wanted, and make room for those that are.

        `lineage` is what the chain's first block was computed on; objects come in chain order, rows before the
        states of their block. Facts are those of wanted objects.
        """
        writing = Writing(self.namespaces[name], chain, lineage, writer, hints, written_at, now)
        self.misses.ghosts.now = now
        statuses, facts = self._reserving.reserve(writing, list(objects))
        if ReserveStatus.NO_ROOM in statuses:
            self.misses.ghosts.refused(chain, objects, statuses)
        if self._watcher is not None:
            self._watcher.written(name, chain, objects, hints, now)
        self.counts.other_lineage += statuses.count(ReserveStatus.OTHER_LINEAGE)
        return statuses, facts, writing.actions

    def arrived(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        """A copy is complete and verified (host: checksummed in place; disk: synced)."""
        return self._copies.arrived(key, generation, tier, now)

    def failed(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        """A copy that was under way will not come."""
        self.misses.ghosts.now = now
        with self.misses.ghosts.because(Departure.UNFINISHED, key):
            return self._copies.failed(key, generation, tier)

    def encoded(
        self, key: BlockKey, generation: int, frame_bytes: int, now: float
    ) -> tuple[tuple[int, ...], list[Action]]:
        """The frame of a copy to disk has this length: its slot, as (page,); empty when the disk has no room."""
        return self._copies.encoded(key, generation, frame_bytes)

    # -- faults, lifetime -----------------------------------------------------------------------
    def corrupt(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        """A copy failed its checksum: drop it, and whatever cannot be read without it."""
        entry = self._room.find(key)
        if entry is None or entry.facts.generation != generation or not entry.is_ready(tier):
            return []
        self.counts.lost += 1
        with self.misses.ghosts.because(Departure.CORRUPT, key):
            drops = self._room.lose(entry, tier)
        if entry.is_ready(Tier.HOST):  # what stands on it on disk would not survive a restart without it
            self._copies.write_again(entry)
        return list(drops)

    def report(self, key: BlockKey) -> list[Action]:
        """A worker found an object wrong: drop all its copies."""
        entry = self._room.find(key)
        if entry is None:
            return []
        self.counts.lost += 1
        with self.misses.ghosts.because(Departure.REPORTED, key):
            return list(self._room.forget_all(entry))

    def session(
        self, name: bytes, session: str, event: SessionEvent, now: float, gap_seconds: float | None = None
    ) -> list[Action]:
        """A session's life; see `SessionEvent` for what each event does. `gap_seconds` is expected, None unknown."""
        prefix = self._sessions.get((name, session))
        if prefix is None:
            return []
        if event is SessionEvent.CLOSED:
            del self._sessions[name, session]
            self._fade_path(name, prefix)
            return []
        rows = self._room.find(BlockKey(prefix, 0))
        if rows is None or not rows.node.readable:
            return []
        self._lifetimes.touch(rows, now)
        is_soon = gap_seconds is not None and gap_seconds <= PREFETCH_GAP_SECONDS
        if event is SessionEvent.OPENED or (event is SessionEvent.TOOL_CALL and is_soon):
            return self._copies.promote(rows.node, self._resumable(rows.node))
        return []

    def _fade_path(self, name: bytes, prefix: bytes) -> None:
        """A session ended: what only it used goes first, from its end up to what others share or branch off from."""
        node = self.namespaces[name].node(prefix)
        if node is None or node.children():
            return  # somebody went on from there
        while node is not None and node.rows is not None and len(node.children()) <= 1:
            if node.rows.facts.object_class is not ObjectClass.SESSION:
                return
            for entry in (*node.states, node.rows):
                if entry.is_rows and node.children():
                    entry.is_fading = True  # no candidate now: there is nothing to rank
                else:
                    self._room.fade(entry)
            node = node.parent

    def _resumable(self, node: Node) -> tuple[Entry, ...]:
        """The states of the deepest boundary that can be resumed at or above a block."""
        group = node.namespace.layout.state_group
        for above in with_states(node):
            state = None if group is None else above.state(group)
            if state is not None and state.is_stored and state.facts.lineage == above.lineage:
                return above.states
        return ()

    def pin(self, name: bytes, chain: Chain, ttl_seconds: float, now: float) -> Pin | None:
        """Hold a chain's readable rows and its deepest state. None: nothing readable, or over the byte bound."""
        namespace = self.namespaces[name]
        parent = namespace.node(chain.parent)
        if parent is None or parent.block != chain.first_block - 1 or not parent.readable:
            return None
        node = deepest(namespace, parent, chain, is_readable)
        if node.rows is None:
            return None
        anchors = [node.rows]
        above = next(with_states(node), None)
        if above is not None and above.rows is not None:
            anchors += [*above.states, above.rows]
        nbytes = (node.block + 1) * namespace.layout.rows.nbytes
        nbytes += sum(entry.facts.raw_bytes for entry in anchors if not entry.is_rows)
        bound = self.settings.pinned_share * self.spaces[Tier.HOST].total_pages * PAGE_BYTES
        if self.leases.pinned_bytes + nbytes > bound:
            return None
        pin = self.leases.pin(tuple(dict.fromkeys(anchors)), now + ttl_seconds, node.end_tokens, nbytes)
        self._room.review_all(pin.anchors)
        return pin

    def unpin(self, number: int) -> bool:
        anchors = self.leases.unpin(number)
        self._room.review_all(anchors)
        return bool(anchors)

    def tick(self, now: float) -> list[Action]:
        """End leases and pins that are due, drop what was unused for its TTL, retry failed copies to disk.

        A change of policy that is not over goes on.
        """
        self._room.review_all(self.leases.expire(now))
        self.misses.ghosts.now = now
        with self.misses.ghosts.because(Departure.EXPIRED):
            actions = self._lifetimes.expire(now)
        actions += self._copies.retry_writes(now)
        self._room.change_some(MOVES_A_TICK)
        self.counts.expired = self._lifetimes.expired
        return actions

    # -- recovery -------------------------------------------------------------------------------
    def restore(self, facts: Facts, page: int, frame_bytes: int, last_used: float) -> bool:
        """Take back one object from disk, parents first. False where it does not fit what was taken before."""
        namespace, group = self.namespaces[facts.namespace], facts.key.group
        if group >= len(namespace.layout.groups) or facts.raw_bytes != namespace.layout.groups[group].nbytes:
            return False
        is_rows = group == 0
        parent = namespace.node(facts.parent if is_rows else facts.key.prefix)
        if parent is None or parent.block != (facts.block - 1 if is_rows else facts.block):
            return False
        if not parent.readable or parent.lineage != (facts.parent_lineage if is_rows else facts.lineage):
            return False
        if self._room.find(facts.key) is not None:
            return False
        owner = class_pages(frame_bytes)
        if not self.spaces[Tier.DISK].take(owner, owner, page, facts.key, last_used, facts.block):
            return False
        entry = Entry(namespace.add_node(facts.key.prefix, parent) if is_rows else parent, facts, last_used)
        self._lifetimes.add(entry)
        self._room.attach(entry, Tier.DISK, Held(CopyStatus.READY, (page,), frame_bytes))
        if facts.object_class is ObjectClass.SHARED:  # it may have become that after what it stands on was written
            self.classes.share(entry.node.parent if is_rows and entry.node.parent is not None else entry.node)
        self._reserving.generation = max(self._reserving.generation, facts.generation + 1)
        return True

    # -- private --------------------------------------------------------------------------------
    def _class_changed(self, entry: Entry, old: ObjectClass) -> None:
        if entry.facts.ttl_seconds is not None:
            self._lifetimes.watch(entry)
        if old is ObjectClass.SCRATCH:
            self._copies.write_again(entry)
            self._room.review_all((entry,))

    def _count_classes(self, found: Found, chain: Chain, tokens: int) -> None:
        """Tokens of a hit by class: shared up to some block, then the session's, scratch at the end if at all."""
        if not tokens or found.last is None:
            return
        namespace, counted = found.last.namespace, self.counts.class_hit_tokens
        parent = namespace.node(chain.parent)
        assert parent is not None
        shared = min(deepest(namespace, parent, chain, is_shared).end_tokens, tokens) if chain.blocks else 0
        kept = min(deepest(namespace, parent, chain, is_kept).end_tokens, tokens) if chain.blocks else tokens
        for kind, count in (
            (ObjectClass.SHARED, shared),
            (ObjectClass.SESSION, kept - shared),
            (ObjectClass.SCRATCH, tokens - kept),
        ):
            if count:
                counted[kind] = counted.get(kind, 0) + count

    def _judged(self, name: bytes, request: Request, found: Found, now: float) -> Match:
        """The match with the reason that the store's memory of what left gives it; counted and kept."""
        self.misses.ghosts.now = now
        reason = self.misses.judge(request, found, self.namespaces[name], self.namespaces.values())
        return found.match if reason is found.match.reason else replace(found.match, reason=reason)

    def _speculate(self, name: bytes, request: Request, match: Match) -> Match:
        """More snapshots, where there is room that nobody needs."""
        namespace, space = self.namespaces[name], self.spaces[Tier.HOST]
        spare = space.room(name, namespace.slot_pages) * (namespace.slot_pages * PAGE_BYTES or 1)
        extra = speculative_boundaries(namespace.layout, match, request.prompt_tokens, spare)
        known = self._reserving.speculative
        for tokens in extra:
            index = tokens // namespace.layout.block_tokens - 1 - request.chain.first_block
            if 0 <= index < request.chain.blocks:
                known[request.chain.hash_at(index)] = True
        while len(known) > MAX_SPECULATIVE:
            del known[next(iter(known))]
        if not extra:
            return match
        at = tuple(sorted((*match.snapshots.at, *extra)))
        return replace(match, snapshots=match.snapshots._replace(at=at))

    def _remember(self, name: bytes, session: str, node: Node) -> None:
        if not session:
            return
        self._sessions.pop((name, session), None)
        self._sessions[name, session] = node.prefix
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]
