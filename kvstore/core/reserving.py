"""PUT's decisions: is an object wanted, does it stand on the rows it was computed on, is there room for it."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import islice

from kvstore.core.actions import Action
from kvstore.core.classes import Classes, announced_class, is_shared, output_is_awaited, owner_of
from kvstore.core.climb import with_states
from kvstore.core.copies import Copies
from kvstore.core.index import CopyStatus, Entry, Facts, Held, Namespace, Node, ObjectClass
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.lifetimes import Lifetimes
from kvstore.core.lineage import child_lineage
from kvstore.core.match import Hints
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.room import Room

MOST_WALKED = 64  # boundaries with states that are looked at for what a new one makes superfluous


@dataclass(slots=True)
class Writing:
    """One call of `reserve`: what all its objects have in common, and what was found out on the way."""

    namespace: Namespace
    chain: Chain
    lineage: bytes  # of the rows that the chain's first block was computed on
    writer: bytes
    hints: Hints
    written_at: float
    now: float
    is_admitted: bool = True  # what is new; see `Settings.keep_seconds`
    lineages: dict[int, bytes] = field(default_factory=dict)  # of the writer's rows, by index into the chain
    actions: list[Action] = field(default_factory=list)

    def parent_prefix(self, block: int) -> bytes:
        return self.chain.hash_at(block - 1) if block else self.chain.parent


class Reserving:
    """Answers `reserve`, object by object."""

    def __init__(
        self,
        room: Room,
        copies: Copies,
        lifetimes: Lifetimes,
        classes: Classes,
        first_generation: int,
        keep_seconds: float = 0.0,
    ) -> None:
        self.fades_superseded = False
        self.speculative: dict[bytes, bool] = {}  # boundaries whose states were asked for because there was room
        self.generation = first_generation  # of the next object; never given twice, also across restarts
        self._room = room
        self._copies = copies
        self._lifetimes = lifetimes
        self._classes = classes
        self.keep_seconds = keep_seconds  # changes while it runs

    def reserve(self, writing: Writing, objects: list[ObjectSpec]) -> tuple[list[ReserveStatus], list[Facts | None]]:
        parent = writing.namespace.node(writing.chain.parent)
        if parent is None or parent.block != writing.chain.first_block - 1:
            return [ReserveStatus.NO_PARENT] * len(objects), [None] * len(objects)
        writing.lineages[-1] = writing.lineage
        stopped = ReserveStatus.OTHER_LINEAGE if parent.lineage != writing.lineage else None
        if stopped is None:
            self._classes.reached(parent, writing.hints)
            self._make_room(writing, parent, objects)
        statuses: list[ReserveStatus] = []
        facts: list[Facts | None] = []
        for spec in objects:
            status, made = stopped, None
            if status is None:
                status, made = self._one(writing, spec)
                if spec.group == 0 and status in (ReserveStatus.OTHER_LINEAGE, ReserveStatus.NO_ROOM):
                    stopped = status  # nothing below these rows can stand
            statuses.append(status)
            facts.append(made)
        return statuses, facts

    def _make_room(self, writing: Writing, parent: Node, objects: list[ObjectSpec]) -> None:
        """Room for all that looks new at once: victims of a call are chosen together, at half the price of one by one.

        Where there is not so much, each object is left to find its own.
        """
        namespace, last, count = writing.namespace, parent, 0
        for spec in objects:
            node = namespace.nodes.get(writing.chain.hash_at(spec.block))
            if node is not None and spec.group == 0:
                last = node
            is_new = node is None or node.entry(spec.group) is None
            if is_new and self._may_push_out(writing, spec):
                count += namespace.slots_needed(spec.group)
        if not count:
            return
        if self.keep_seconds and self._room.spaces[Tier.HOST].room(namespace.name, namespace.slot_pages) < count:
            victim = self._room.next_victim(Tier.HOST, namespace.name)
            if victim is not None and not victim.is_fading and not victim.is_ready(Tier.DISK):
                writing.is_admitted = writing.now - victim.last_used >= self.keep_seconds
        if writing.is_admitted:
            self._copies.host_room(namespace, count, last.rows, writing.actions)

    def _one(self, writing: Writing, spec: ObjectSpec) -> tuple[ReserveStatus, Facts | None]:
        namespace, prefix = writing.namespace, writing.chain.hash_at(spec.block)
        node = namespace.nodes.get(prefix)
        if spec.group == 0:
            above = namespace.node(writing.parent_prefix(spec.block))
            if above is None:
                return ReserveStatus.NO_PARENT, None
            below = writing.lineages.get(spec.block - 1)
            if below is None or below != above.lineage:  # on other rows, or it was not shown on which
                return ReserveStatus.OTHER_LINEAGE, None
            lineage = writing.lineages[spec.block] = child_lineage(below, spec.content)
            if node is not None:
                if self._class_of(writing, spec) is not ObjectClass.SCRATCH:
                    self._classes.reached(node, writing.hints)
                return self._known(node.rows, node.lineage == lineage, writing.now), None
        else:
            above = node
            if above is None:
                return ReserveStatus.NO_PARENT, None
            lineage = above.lineage
            if writing.lineages.get(spec.block) != lineage:  # it was not shown on which rows the state was computed
                return ReserveStatus.OTHER_LINEAGE, None
            state = above.state(spec.group)
            if state is not None:
                return self._known(state, state.facts.content == spec.content, writing.now), None
        count = namespace.slots_needed(spec.group)
        object_class = self._class_of(writing, spec)
        if spec.group and is_shared(above):
            object_class = ObjectClass.SHARED
        if not (self._may_push_out(writing, spec) or self._has_scratch_room(namespace, count)):
            return ReserveStatus.NO_ROOM, None
        if not writing.is_admitted or not self._copies.host_room(namespace, count, above.rows, writing.actions):
            return ReserveStatus.NO_ROOM, None
        assert namespace.node(above.prefix) is above, "the parent went to make room for its child"
        if node is None:
            node = namespace.add_node(prefix, above)
            node.session = owner_of(writing.hints)
        # What neighbours have in common is one object and not equal ones: of a million entries that is 150 MB.
        facts = Facts(
            key=BlockKey(node.prefix, spec.group),
            namespace=namespace.name,
            parent=above.prefix,
            block=node.block,
            generation=self.generation,
            lineage=lineage,
            parent_lineage=above.lineage,
            content=spec.content,
            raw_bytes=namespace.lengths[spec.group],
            written_at=writing.written_at,
            writer=writing.writer,
            object_class=object_class,
            ttl_seconds=self._classes.ttl_seconds(object_class, writing.hints),
        )
        self.generation += 1
        entry = Entry(node, facts, writing.now)
        entry.turn = writing.hints.turn
        entry.is_fading = not entry.is_rows and self.speculative.pop(node.prefix, False)
        self._add(entry, count)
        if self.fades_superseded and not entry.is_rows:
            self._fade_superseded(entry)
        return ReserveStatus.WANTED, facts

    def _class_of(self, writing: Writing, spec: ObjectSpec) -> ObjectClass:
        block = writing.chain.first_block + spec.block
        return announced_class((block + 1) * writing.namespace.layout.block_tokens, writing.hints)

    def _may_push_out(self, writing: Writing, spec: ObjectSpec) -> bool:
        hints = writing.hints
        if hints.prompt_tokens is None or output_is_awaited(hints):
            return True
        return self._class_of(writing, spec) is not ObjectClass.SCRATCH

    def _has_scratch_room(self, namespace: Namespace, count: int) -> bool:
        """Scratch takes what is free and what other scratch has. Nothing that may be used goes for it."""
        if self._room.spaces[Tier.HOST].room(namespace.name, namespace.slot_pages) >= count:
            return True
        victim = self._room.next_victim(Tier.HOST, namespace.name)
        return victim is not None and (victim.is_fading or victim.facts.object_class is ObjectClass.SCRATCH)

    def _fade_superseded(self, new: Entry) -> None:
        """States two requests older than this one on its path, where nothing branches off: they fade a request late.

        Not at once: the last request may be asked again, and a turn that is taken back resumes before it.
        """
        generations = 0
        written_at = new.facts.written_at
        for node in islice(with_states(new.node), MOST_WALKED):
            for state in node.states:
                if state.is_fading:
                    continue
                if state.facts.written_at != written_at:
                    written_at = state.facts.written_at
                    generations += 1
                if generations > 2:
                    return
                is_junction = len(node.children()) > 1
                if generations == 2 and not is_junction and state.facts.object_class is ObjectClass.SESSION:
                    self._room.fade(state)

    def _known(self, entry: Entry | None, is_same: bool, now: float) -> ReserveStatus:
        """The object is stored, or on its way: from the same run or from another?"""
        self._lifetimes.touch(entry, now)
        return ReserveStatus.EXISTS if is_same else ReserveStatus.OTHER_LINEAGE

    def _add(self, entry: Entry, count: int) -> None:
        namespace, tier = entry.node.namespace, Tier.HOST
        slots = self._room.allocate(entry, tier, namespace.name, namespace.slot_pages, count)
        self._lifetimes.add(entry)
        self._room.attach(entry, tier, Held(CopyStatus.INCOMING, slots, entry.facts.raw_bytes))
