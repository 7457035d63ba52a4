"""The planner: events and `now` in, actions out. Decides everything, touches no byte.

The daemon runs its actions on real tiers, the simulator on counters, the tests late, out of order or failing.
One caller at a time; no call blocks. `now` is in seconds on any monotonic scale.

Life of an object: `reserve` makes an entry with room on the host; `arrived(HOST)` makes it readable and may return
`Copy(HOST -> DISK)`; `encoded` gives that copy its slot, `arrived(DISK)` ends it. A lookup that finds it on disk
only returns `Copy(DISK -> HOST)`. Copies are dropped to make room, entries when their last copy goes.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.cost import CostModel
from kvstore.core.index import CopyStatus, Entry, Facts, Held, Namespace, Node, ObjectClass, mark_ready
from kvstore.core.keys import PAGE_BYTES, BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lease import Leases, Pin
from kvstore.core.lineage import child_lineage
from kvstore.core.match import Hints, Match, SessionEvent
from kvstore.core.matching import Request, deepest, find
from kvstore.core.placement import DEFAULT_PLACEMENT, Placement
from kvstore.core.policies.lru import LRU
from kvstore.core.policy import Policy
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.room import Room
from kvstore.core.space import Space, class_pages, region_pages, slot_pages

RETRIES_PER_TICK = 16  # failed copies to disk that one tick tries again
MAX_SESSIONS = 65536  # remembered sessions; the oldest is forgotten


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides. Bytes and seconds."""

    host_bytes: int
    disk_bytes: int = 0
    placement: Placement = DEFAULT_PLACEMENT
    lease_seconds: float = 30.0
    pinned_share: float = 0.5  # pins hold at most this share of the host tier's bytes
    segment_bytes: int | None = None  # disk segment; None: 1/64 of the tier, at least 16 MiB where that fits four times


@dataclass(slots=True)
class Counts:
    """Events since the planner was made."""

    lookups: int = 0
    hit_tokens: int = 0
    asked_tokens: int = 0
    other_lineage: int = 0
    no_parent: int = 0
    no_room: int = 0
    evicted: dict[Tier, int] = field(default_factory=lambda: {Tier.HOST: 0, Tier.DISK: 0})
    expired: int = 0
    lost: int = 0


class Planner:
    """See the module's docstring. All methods that change something return what is to be done about it."""

    def __init__(self, settings: Settings, policy: Policy | None = None, first_generation: int = 1) -> None:
        self.settings = settings
        self.counts = Counts()
        host = Space(region_pages(settings.host_bytes))
        disk = Space(segment_pages(settings), header_pages=1)
        self.spaces = {Tier.HOST: host, Tier.DISK: disk}
        self.namespaces: dict[bytes, Namespace] = {}
        self.leases = Leases()
        self.generation = first_generation  # of the next object; never given twice, also across restarts
        self._room = Room(self.spaces, policy or LRU())
        self._costs: dict[bytes, CostModel | None] = {}
        self._expiry: list[tuple[float, BlockKey, int]] = []
        self._sessions: dict[tuple[bytes, str], Node] = {}
        self._unwritten: dict[BlockKey, None] = {}  # on the host only, because a copy to disk failed
        self.touched: set[BlockKey] = set()  # used since the shell last emptied it, to be remembered over restarts

    # -- space and namespaces -------------------------------------------------------------------
    def grow(self, tier: Tier, regions: int) -> None:
        """Let the planner use `regions` more regions of a tier: they are populated."""
        self.spaces[tier].add_regions(regions)

    def add_namespace(self, name: bytes, root: bytes, layout: ModelLayout) -> Namespace:
        """Open a namespace, or find it open."""
        if name not in self.namespaces:
            pages = slot_pages(layout.rows.nbytes, self.spaces[Tier.HOST].region_pages)
            self.namespaces[name] = Namespace(name, root, layout, pages)
            self._costs[name] = CostModel.of(layout)
        return self.namespaces[name]

    # -- questions ------------------------------------------------------------------------------
    def __len__(self) -> int:
        return len(self._room)

    def entry(self, key: BlockKey) -> Entry | None:
        """The live entry of a key, with its copies; read it, do not change it."""
        return self._room.find(key)

    def is_live(self, key: BlockKey, generation: int) -> bool:
        entry = self._room.find(key)
        return entry is not None and entry.facts.generation == generation

    def snapshot(self) -> dict[BlockKey, frozenset[tuple[str, str]]]:
        """Contents: for each object its copies as (tier, status). Two planners in one state have equal snapshots."""
        return {
            entry.facts.key: frozenset((tier.value, held.status.value) for tier, held in entry.copies())
            for entry in self._room.entries()
        }

    # -- GET ------------------------------------------------------------------------------------
    def lookup(self, name: bytes, request: Request, owner: bytes, now: float) -> tuple[Match, list[Action]]:
        """Match a chain, lease what the plan needs, promote what of it is cold."""
        namespace = self.namespaces[name]
        found = find(namespace, request, self.settings.placement, self._costs[name])
        match, actions = found.match, list[Action]()
        self.counts.lookups += 1
        self.counts.asked_tokens += request.prompt_tokens
        self.counts.hit_tokens += match.plan.tokens
        if found.last is not None:
            self._touch(found.last.rows, now)
            self._remember(name, request.hints.session, found.last)
        if match.plan.tokens == 0:
            return match, actions
        for state in found.states:
            self._touch(state, now)
        self._touch(found.rows, now)
        anchors = [entry for entry in (found.rows, found.hot, *found.states) if entry is not None]
        lease = self.leases.lease(owner, tuple(dict.fromkeys(anchors)), now + self.settings.lease_seconds)
        self._review(lease.anchors)
        assert found.rows is not None
        actions += self._promote(found.rows.node, found.states)
        return replace(match, lease=lease.number), actions

    def prefetch(self, name: bytes, request: Request, now: float) -> tuple[int, int, list[Action]]:
        """Promote what a lookup of this chain would need. Objects and bytes under way, and the copies."""
        namespace = self.namespaces[name]
        found = find(namespace, request, self.settings.placement, self._costs[name])
        if found.match.plan.tokens == 0 or found.rows is None:
            return 0, 0, []
        self._touch(found.rows, now)
        actions = self._promote(found.rows.node, found.states)
        copies = [action for action in actions if isinstance(action, Copy)]
        return len(copies), sum(copy.facts.raw_bytes for copy in copies), actions

    def release(self, lease: int) -> bool:
        """End a lease. False if it is over already."""
        anchors = self.leases.release(lease)
        self._review(anchors)
        return bool(anchors)

    def hold(self, key: BlockKey, tier: Tier, generation: int) -> Held | None:
        """Use a copy's bytes now: its slots stay as they are until `unhold`. None when it is gone."""
        entry = self._room.find(key)
        if entry is None or entry.facts.generation != generation or not entry.is_ready(tier):
            return None
        held = entry.held(tier)
        assert held is not None
        held.busy += 1
        self._review((entry,))
        return held

    def unhold(self, key: BlockKey, tier: Tier, generation: int, held: Held) -> list[Action]:
        held.busy -= 1
        if (key, generation, tier) in self._room.doomed:
            return self._settle(key, generation, tier)
        entry = self._room.find(key)
        if entry is not None:
            self._review((entry,))
        return []

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
        namespace, actions = self.namespaces[name], list[Action]()
        parent = self._parent(namespace, chain)
        if parent is None or (parent.block >= 0 and parent.rows is None):
            self.counts.no_parent += len(objects)
            return [ReserveStatus.NO_PARENT] * len(objects), [None] * len(objects), actions
        statuses: list[ReserveStatus] = []
        facts: list[Facts | None] = []
        writing = _Writing(chain, writer, hints, written_at, now)
        stopped = ReserveStatus.OTHER_LINEAGE if parent.lineage != lineage else None
        lineages: dict[int, bytes] = {-1: lineage}
        for spec in objects:
            status, made = stopped, None
            if status is None:
                status, made = self._reserve_one(namespace, writing, spec, lineages, actions)
                if status in (ReserveStatus.OTHER_LINEAGE, ReserveStatus.NO_ROOM) and spec.group == 0:
                    stopped = status  # nothing below these rows can stand
            statuses.append(status)
            facts.append(made)
        self.counts.other_lineage += statuses.count(ReserveStatus.OTHER_LINEAGE)
        self.counts.no_parent += statuses.count(ReserveStatus.NO_PARENT)
        self.counts.no_room += statuses.count(ReserveStatus.NO_ROOM)
        return statuses, facts, actions

    def arrived(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        """A copy is complete and verified (host: checksummed in place; disk: synced)."""
        if not self.is_live(key, generation):
            return self._ended_doomed(key, generation, tier)
        entry = self._room.find(key)
        assert entry is not None
        if entry.held(tier) is None:  # dropped meanwhile, the entry lives on another copy
            return self._ended_doomed(key, generation, tier)
        mark_ready(entry, tier)
        actions = self._unhold_source(entry, tier)
        self._review((entry,))
        if tier is Tier.HOST:
            actions += self._write_through(entry)
        return actions

    def failed(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        """A copy that was under way will not come."""
        if not self.is_live(key, generation):
            return self._ended_doomed(key, generation, tier)
        entry = self._room.find(key)
        assert entry is not None
        held = entry.held(tier)
        if held is None:
            return self._ended_doomed(key, generation, tier)
        actions = self._unhold_source(entry, tier)
        held.status = CopyStatus.READY  # nobody writes it any more: its slots can be freed
        if tier is Tier.DISK:
            self._unwritten[key] = None
        return actions + list(self._room.lose(entry, tier))

    def encoded(
        self, key: BlockKey, generation: int, frame_bytes: int, now: float
    ) -> tuple[tuple[int, ...], list[Action]]:
        """The frame of a copy to disk has this length: its slot, as (page,); empty when the disk has no room."""
        entry = self._room.find(key)
        actions: list[Action] = []
        if entry is None or entry.facts.generation != generation or entry.disk is None:
            return (), actions
        owner = class_pages(frame_bytes)
        drops: list[Drop] = []
        has_room = self._room.make_room(Tier.DISK, owner, owner, 1, drops)
        actions += self._evicted(drops)
        if not has_room:
            return (), actions
        entry.disk.nbytes = frame_bytes
        entry.disk.slots = self._room.allocate(entry, Tier.DISK, owner, owner, 1)
        return entry.disk.slots, actions

    # -- faults, lifetime -----------------------------------------------------------------------
    def corrupt(self, key: BlockKey, generation: int, tier: Tier, now: float) -> list[Action]:
        """A copy failed its checksum: drop it, and whatever cannot be read without it."""
        entry = self._room.find(key)
        if entry is None or entry.facts.generation != generation or not entry.is_ready(tier):
            return []
        self.counts.lost += 1
        return list(self._room.lose(entry, tier))

    def retire(self, tier: Tier, region: int) -> list[Action]:
        """A region's device failed or has no room: nothing lies there any more, and nothing will."""
        space = self.spaces[tier]
        actions: list[Action] = []
        for key in sorted(set(space.regions[region].holders.values())):
            entry = self._room.find(key)
            if entry is not None and entry.is_ready(tier):
                actions += self.corrupt(key, entry.facts.generation, tier, entry.last_used)
        space.retire(region)
        return actions

    def report(self, key: BlockKey, now: float) -> list[Action]:
        """A worker found an object wrong: drop all its copies."""
        entry = self._room.find(key)
        if entry is None:
            return []
        self.counts.lost += 1
        return list(self._room.forget_all(entry))

    def session(self, name: bytes, session: str, event: SessionEvent, now: float) -> list[Action]:
        """A session's life: an event of an open one keeps its chain warm, a closed one is forgotten."""
        node = self._sessions.get((name, session))
        if node is None:
            return []
        if event is SessionEvent.CLOSED:
            del self._sessions[name, session]
        elif node.rows is not None:
            self._touch(node.rows, now)
        return []

    def pin(self, name: bytes, chain: Chain, ttl_seconds: float, now: float) -> Pin | None:
        """Hold a chain's readable rows and its deepest state. None: nothing readable, or over the byte bound."""
        namespace = self.namespaces[name]
        parent = self._parent(namespace, chain)
        if parent is None or not parent.readable:
            return None
        node = deepest(namespace, parent, chain, is_hot=False)
        if node.rows is None:
            return None
        anchors = [node.rows]
        above: Node | None = node
        while above is not None and not above.states:
            above = above.parent
        if above is not None:
            anchors += above.states
            if above.rows is not None:
                anchors.append(above.rows)
        nbytes = (node.block + 1) * namespace.layout.rows.nbytes
        nbytes += sum(entry.facts.raw_bytes for entry in anchors if not entry.is_rows)
        bound = self.settings.pinned_share * self.spaces[Tier.HOST].total_pages * PAGE_BYTES
        if self.leases.pinned_bytes + nbytes > bound:
            return None
        pin = self.leases.pin(tuple(dict.fromkeys(anchors)), now + ttl_seconds, node.end_tokens, nbytes)
        self._review(pin.anchors)
        return pin

    def unpin(self, number: int) -> bool:
        anchors = self.leases.unpin(number)
        self._review(anchors)
        return bool(anchors)

    def tick(self, now: float) -> list[Action]:
        """End leases and pins that are due, drop what was unused for its TTL, retry missing disk copies."""
        self._review(tuple(self.leases.expire(now)))
        actions: list[Action] = []
        again: list[tuple[float, BlockKey, int]] = []
        while self._expiry and self._expiry[0][0] <= now:
            _, key, generation = heapq.heappop(self._expiry)
            entry = self._room.find(key)
            if entry is None or entry.facts.generation != generation or entry.facts.ttl_seconds is None:
                continue
            due = entry.last_used + entry.facts.ttl_seconds
            tiers = [tier for tier, _ in entry.copies()]
            if due > now:
                again.append((due, key, generation))
            elif self._is_needed(entry) or not all(self._room.may_go(entry, tier) for tier in tiers):
                again.append((now + 1.0, key, generation))  # in use, or others stand on it: look again
            else:
                self.counts.expired += 1
                actions += self._room.forget_all(entry)
        for item in again:
            heapq.heappush(self._expiry, item)
        return actions + self._retry_writes()

    # -- recovery -------------------------------------------------------------------------------
    def restore(self, facts: Facts, page: int, frame_bytes: int, now: float, last_used: float) -> bool:
        """Take back one object from disk, parents first. False where it does not fit what was taken before."""
        namespace = self.namespaces[facts.namespace]
        group = facts.key.group
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
        if not self.spaces[Tier.DISK].take(owner, owner, page, facts.key, last_used):
            return False
        node = namespace.add_node(facts.key.prefix, parent) if is_rows else parent
        entry = Entry(node, facts, last_used)
        self._add_entry(entry, now)
        self._room.attach(entry, Tier.DISK, Held(CopyStatus.READY, (page,), frame_bytes))
        self.generation = max(self.generation, facts.generation + 1)
        return True

    # -- checks ---------------------------------------------------------------------------------
    def check(self) -> None:
        """Every invariant, in one place; tests call it after each step."""
        for space in self.spaces.values():
            space.check()
        leases: dict[int, list[int]] = {}
        for entry, is_pin in self.leases.all_anchors():
            leases.setdefault(id(entry), [0, 0])[is_pin] += 1
        pages = dict.fromkeys(self.spaces, 0)
        for entry in self._room.entries():
            key, node = entry.facts.key, entry.node
            assert node.namespace.nodes.get(key.prefix) is node and node.entry(key.group) is entry, key
            assert entry.host is not None or entry.disk is not None, key
            assert [entry.leases, entry.pins] == leases.get(id(entry), [0, 0]), key
            assert entry.is_rows or node.rows is not None, key
            for tier, held in entry.copies():
                holders = self.spaces[tier].regions
                for slot in held.slots:
                    region = holders[slot // self.spaces[tier].region_pages]
                    assert region.holders.get(slot) == key and region.owner == self._room.owner(entry, tier), key
                    pages[tier] += region.slot_pages
                assert held.busy >= 0, key
        for (key, _, tier), held in self._room.doomed.items():
            assert held.busy or held.status is CopyStatus.INCOMING, key
            space = self.spaces[tier]
            pages[tier] += sum(space.regions[slot // space.region_pages].slot_pages for slot in held.slots)
        for tier, space in self.spaces.items():
            assert pages[tier] == space.used_pages, (tier, pages[tier], space.used_pages)
        for namespace in self.namespaces.values():
            for node in namespace.nodes.values():
                self._check_node(node)

    def _check_node(self, node: Node) -> None:
        parent, rows = node.parent, node.rows
        assert parent is not None and rows is not None, "a block without rows is kept"
        assert parent.parent is None or parent.rows is not None, "rows outlived their parent"
        assert node.block == parent.block + 1 and node in parent.children()
        assert node.readable == (parent.readable and rows.is_stored), node.block
        assert node.hot == (parent.hot and rows.is_ready(Tier.HOST)), node.block
        for tier in self.spaces:
            rows_below = [child.rows for child in node.children() if child.rows is not None]
            below = [entry for entry in (*rows_below, *node.states) if entry.held(tier) is not None]
            assert node.below(tier) == len(below), (node.block, tier)

    # -- private --------------------------------------------------------------------------------
    @staticmethod
    def _parent(namespace: Namespace, chain: Chain) -> Node | None:
        parent = namespace.node(chain.parent)
        return parent if parent is not None and parent.block == chain.first_block - 1 else None

    def _reserve_one(
        self,
        namespace: Namespace,
        writing: _Writing,
        spec: ObjectSpec,
        lineages: dict[int, bytes],
        actions: list[Action],
    ) -> tuple[ReserveStatus, Facts | None]:
        prefix = writing.chain.hash_at(spec.block)
        parent_prefix = writing.chain.hash_at(spec.block - 1) if spec.block else writing.chain.parent
        node = namespace.nodes.get(prefix)
        key = BlockKey(prefix, spec.group)
        if spec.group == 0:
            parent = namespace.node(parent_prefix)
            below = lineages.get(spec.block - 1) or (parent.lineage if parent is not None else None)
            if parent is None or below is None or (parent.parent is not None and parent.rows is None):
                return ReserveStatus.NO_PARENT, None
            lineage = lineages[spec.block] = child_lineage(below, spec.content)
            if node is not None and node.rows is not None:
                same = node.rows.facts.lineage == lineage
                self._touch(node.rows, writing.now)
                return ReserveStatus.EXISTS if same else ReserveStatus.OTHER_LINEAGE, None
        else:
            if node is None or node.rows is None:
                return ReserveStatus.NO_PARENT, None
            below = lineage = node.lineage
            if lineages.get(spec.block) != lineage:  # the writer did not show on which rows it computed the state
                return ReserveStatus.OTHER_LINEAGE, None
            state = node.state(spec.group)
            if state is not None:
                self._touch(state, writing.now)
                same = state.facts.content == spec.content
                return ReserveStatus.EXISTS if same else ReserveStatus.OTHER_LINEAGE, None
        count = namespace.slots_needed(spec.group)
        holding = self._room.find(BlockKey(parent_prefix if spec.group == 0 else prefix, 0))
        if not self._host_room(namespace, count, holding, actions):
            return ReserveStatus.NO_ROOM, None
        if spec.group == 0:
            node = namespace.add_node(prefix, self._node(namespace, parent_prefix))
        assert node is not None
        facts = Facts(
            key=key,
            namespace=namespace.name,
            parent=parent_prefix if spec.group == 0 else prefix,
            block=node.block,
            generation=self.generation,
            lineage=lineage,
            parent_lineage=below,
            content=spec.content,
            raw_bytes=spec.length,
            written_at=writing.written_at,
            writer=writing.writer,
            object_class=_class_of(node, writing.hints),
            ttl_seconds=writing.hints.ttl_seconds,
        )
        self.generation += 1
        entry = Entry(node, facts, writing.now)
        slots = self.spaces[Tier.HOST].allocate(namespace.name, namespace.slot_pages, count, key, writing.now)
        self._add_entry(entry, writing.now)
        self._room.attach(entry, Tier.HOST, Held(CopyStatus.INCOMING, slots, spec.length))
        return ReserveStatus.WANTED, facts

    def _host_room(self, namespace: Namespace, count: int, holding: Entry | None, actions: list[Action]) -> bool:
        """Make room on the host for an object on top of `holding`, which must stay readable.

        It may leave the host where it is on disk: of a chain larger than the host it is the only leaf there.
        """
        if holding is not None and holding.is_ready(Tier.DISK):
            holding = None
        if holding is not None:
            holding.leases += 1
            self._room.review(holding)
        drops: list[Drop] = []
        has_room = self._room.make_room(Tier.HOST, namespace.name, namespace.slot_pages, count, drops)
        actions += self._evicted(drops)
        if holding is not None:
            holding.leases -= 1
            self._room.review(holding)
        return has_room

    def _add_entry(self, entry: Entry, now: float) -> None:
        if entry.is_rows:
            entry.node.rows = entry
        else:
            entry.node.states = (*entry.node.states, entry)
        if entry.facts.ttl_seconds is not None:
            item = (entry.last_used + entry.facts.ttl_seconds, entry.facts.key, entry.facts.generation)
            heapq.heappush(self._expiry, item)

    def _promote(self, node: Node, states: tuple[Entry, ...]) -> list[Action]:
        """Copies to the host of what a plan at `node` needs and has on disk only, root first, while there is room."""
        cold: list[Entry] = []
        above: Node | None = node
        while above is not None and not above.hot and above.rows is not None:
            if above.rows.host is None:
                cold.append(above.rows)
            above = above.parent
        cold.reverse()
        cold += [state for state in states if state.host is None]
        actions: list[Action] = []
        for entry in cold:
            namespace = entry.node.namespace
            count = namespace.slots_needed(entry.facts.key.group)
            if not entry.is_ready(Tier.DISK) or not self._host_room(namespace, count, entry, actions):
                break
            disk = entry.disk
            assert disk is not None
            slots = self._room.allocate(entry, Tier.HOST, namespace.name, namespace.slot_pages, count)
            disk.busy += 1
            self._room.attach(entry, Tier.HOST, Held(CopyStatus.INCOMING, slots, entry.facts.raw_bytes))
            actions.append(Copy(entry.facts, Tier.DISK, Tier.HOST, disk.slots, disk.nbytes, slots))
        return actions

    def _write_through(self, entry: Entry) -> list[Action]:
        """Copies to disk of this object and of what waited for it: the disk's rows are kept closed under prefix."""
        actions: list[Action] = []
        if not self.spaces[Tier.DISK].regions:
            return actions
        waiting = [entry]
        while waiting:
            entry = waiting.pop()
            host, node = entry.host, entry.node
            if host is None or host.status is not CopyStatus.READY or entry.disk is not None:
                continue
            above = node.parent if entry.is_rows else node
            assert above is not None
            if above.parent is not None and (above.rows is None or above.rows.disk is None):
                continue
            host.busy += 1
            self._room.attach(entry, Tier.DISK, Held(CopyStatus.INCOMING, (), 0))
            actions.append(Copy(entry.facts, Tier.HOST, Tier.DISK, host.slots, host.nbytes, ()))
            if entry.is_rows:
                waiting += [child.rows for child in reversed(node.children()) if child.rows is not None]
                waiting += node.states
        return actions

    def _retry_writes(self) -> list[Action]:
        """Try again to copy to disk what failed before, oldest first and a few at a time."""
        actions: list[Action] = []
        for key in list(self._unwritten)[:RETRIES_PER_TICK]:
            del self._unwritten[key]
            entry = self._room.find(key)
            if entry is not None:
                actions += self._write_through(entry)
        return actions

    def _unhold_source(self, entry: Entry, target: Tier) -> list[Action]:
        """A copy ended: its source is free again. An upload has no source."""
        source = Tier.DISK if target is Tier.HOST else Tier.HOST
        held = entry.held(source)
        if held is not None and held.busy and (target is Tier.DISK or entry.is_ready(Tier.DISK)):
            held.busy -= 1
            return []
        if (entry.facts.key, entry.facts.generation, source) in self._room.doomed:
            self._room.doomed[entry.facts.key, entry.facts.generation, source].busy -= 1
            return self._settle(entry.facts.key, entry.facts.generation, source)
        return []

    def _ended_doomed(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        """A copy ended whose object was dropped meanwhile: free its slots, and its source's."""
        actions: list[Action] = []
        held = self._room.doomed.get((key, generation, tier))
        if held is None:
            return actions
        held.status = CopyStatus.READY
        actions += self._settle(key, generation, tier)
        source = Tier.DISK if tier is Tier.HOST else Tier.HOST
        origin = self._room.doomed.get((key, generation, source))
        if origin is not None and origin.busy:
            origin.busy -= 1
            actions += self._settle(key, generation, source)
        return actions

    def _settle(self, key: BlockKey, generation: int, tier: Tier) -> list[Action]:
        held = self._room.settle(key, generation, tier)
        return [] if held is None else [Drop(key, generation, tier, held.slots)]

    def _touch(self, entry: Entry | None, now: float) -> None:
        if entry is None:
            return
        entry.last_used = max(entry.last_used, now)
        self.touched.add(entry.facts.key)
        for tier, held in entry.copies():
            self.spaces[tier].touch(held.slots, now)
        self._room.review(entry)
        if not entry.is_rows:
            self._room.review_node(entry.node)

    def _remember(self, name: bytes, session: str, node: Node) -> None:
        if not session:
            return
        self._sessions.pop((name, session), None)
        self._sessions[name, session] = node
        if len(self._sessions) > MAX_SESSIONS:
            del self._sessions[next(iter(self._sessions))]

    def _evicted(self, drops: list[Drop]) -> list[Action]:
        for drop in drops:
            self.counts.evicted[drop.tier] += 1
        return list(drops)

    def _is_needed(self, entry: Entry) -> bool:
        return entry.is_rows and bool(entry.node.children() or entry.node.states)

    def _review(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            if self._room.find(entry.facts.key) is entry:
                self._room.review(entry)
                self._review_above(entry)

    def _review_above(self, entry: Entry) -> None:
        """A state's being in use, or not, decides whether its rows may go."""
        if not entry.is_rows:
            self._room.review_node(entry.node)

    @staticmethod
    def _node(namespace: Namespace, prefix: bytes) -> Node:
        node = namespace.node(prefix)
        assert node is not None
        return node


@dataclass(frozen=True, slots=True)
class _Writing:
    """What one call of `reserve` has in common for all its objects."""

    chain: Chain
    writer: bytes
    hints: Hints
    written_at: float
    now: float


def segment_pages(settings: Settings) -> int:
    """Pages of a disk segment; large enough for the frames of the largest states where the tier allows it."""
    if settings.segment_bytes is not None:
        return settings.segment_bytes // PAGE_BYTES
    least = min(16 << 20, settings.disk_bytes // 4) // PAGE_BYTES
    return max(region_pages(settings.disk_bytes), least, 2)


def _class_of(node: Node, hints: Hints) -> ObjectClass:
    """Rows and states up to a breakpoint are shared by declaration; the rest belongs to the session."""
    is_shared = any(node.end_tokens <= point for point in hints.breakpoints)
    return ObjectClass.SHARED if is_shared else ObjectClass.SESSION
