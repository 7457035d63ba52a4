"""A world of fake tiers for the planner: memory that remembers who wrote each slot, copies that end late or fail.

Seeded; the same seed gives the same events. `step()` does one event and checks every invariant, and that the
planner never reads, frees or gives out a slot that someone else still uses.
"""

from __future__ import annotations

import random
from hashlib import sha256

from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages
from kvstore.core.match import Hints, Match, Speeds
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.settings import Settings

WORKER = b"w" * 16
NO_SPEEDS = Speeds({})


def content_of(key: BlockKey, run: int = 0) -> bytes:
    return sha256(b"%d" % run + key.prefix + bytes([key.group])).digest()[:16]


class Document:
    """A token sequence of which only the hashes matter; documents of one family share a prefix."""

    def __init__(self, root: bytes, family: int, shared: int, suffix: int, blocks: int) -> None:
        self.root = root
        hashes, parent = [], root
        for index in range(blocks):
            name = f"{family}/{index}" if index < shared else f"{family}/{suffix}/{index}"
            parent = sha256(parent + name.encode()).digest()
            hashes.append(parent)
        self.hashes = hashes

    def chain(self, blocks: int | None = None, first: int = 0) -> Chain:
        parent = self.hashes[first - 1] if first else self.root
        return Chain(first, parent, b"".join(self.hashes[first:blocks]))

    def lineage(self, block: int, run: int = 0) -> bytes:
        """Lineage of the rows up to and including `block`."""
        contents = b"".join(content_of(BlockKey(prefix, 0), run) for prefix in self.hashes[: block + 1])
        return chain_lineages(ROOT_LINEAGE, contents)[-16:] if block >= 0 else ROOT_LINEAGE


class World:
    def __init__(self, seed: int, layouts: list[ModelLayout], settings: Settings, failures: float = 0.1) -> None:
        self.rng = random.Random(seed)
        self.now = 0.0
        self.failures = failures
        self.settings = settings
        self.planner = Planner(settings)
        self.planner.grow(Tier.HOST, settings.host_bytes // 4096 // self.planner.spaces[Tier.HOST].region_pages)
        self.planner.grow(Tier.DISK, settings.disk_bytes // 4096 // self.planner.spaces[Tier.DISK].region_pages)
        self.names = [bytes([65 + index]) * 32 for index in range(len(layouts))]
        self.documents: list[tuple[bytes, Document]] = []
        for name, layout in zip(self.names, layouts, strict=True):
            root = sha256(name).digest()
            self.planner.add_namespace(name, root, layout)
            for family in range(4):
                for suffix in range(4):
                    blocks = self.rng.randrange(1, 9)
                    self.documents.append((name, Document(root, family, self.rng.randrange(0, 6), suffix, blocks)))
        self.memory: dict[Tier, dict[int, tuple[BlockKey, int]]] = {Tier.HOST: {}, Tier.DISK: {}}
        self.uploads: list[Facts] = []
        self.copies: list[Copy] = []
        self.leases: list[int] = []
        self.readers: list[tuple[BlockKey, Tier, int, object]] = []
        self.log: list[object] = []

    # -- events ---------------------------------------------------------------------------------
    def step(self) -> None:
        self.now += self.rng.random()
        event = self.rng.choices(
            [self.put, self.end_upload, self.end_copy, self.get, self.end_lease, self.read, self.end_read, self.fault],
            weights=[5, 9, 9, 5, 4, 3, 3, 0.3],
        )[0]
        event()
        if self.rng.random() < 0.05:
            self.do(self.planner.tick(self.now))
        self.check()

    def put(self, run: int | None = None) -> list[ReserveStatus]:
        name, document = self.rng.choice(self.documents)
        first = self.rng.choice([0, 0, self.rng.randrange(len(document.hashes))])
        blocks = self.rng.randrange(first + 1, len(document.hashes) + 1)
        run = (0 if self.rng.random() < 0.95 else 1) if run is None else run
        return self.put_blocks(name, document, first, blocks, run, self.rng.random() < 0.5)

    def put_blocks(
        self, name: bytes, document: Document, first: int, blocks: int, run: int = 0, with_states: bool = True
    ) -> list[ReserveStatus]:
        layout = self.planner.namespaces[name].layout
        objects = []
        for block in range(blocks - first):
            for group in range(len(layout.groups)):
                is_wanted = group == 0 or (with_states and (self.rng.random() < 0.5 or block == blocks - first - 1))
                if is_wanted:
                    key = BlockKey(document.hashes[first + block], group)
                    objects.append(ObjectSpec(block, group, layout.groups[group].nbytes, content_of(key, run)))
        ttl = 5.0 if self.rng.random() < 0.1 else None
        statuses, facts, actions = self.planner.reserve(
            name, document.chain(blocks, first), objects, document.lineage(first - 1, run), WORKER,
            Hints(ttl_seconds=ttl), self.now, 0.0,
        )  # fmt: skip
        self.do(actions)
        for made in facts:
            if made is not None:
                entry = self.planner.entry(made.key)
                assert entry is not None and entry.host is not None
                self._claim(Tier.HOST, entry.host.slots, made.key, made.generation)
                self.uploads.append(made)
        self.log.append(("put", statuses))
        return statuses

    def end_upload(self) -> None:
        if self.uploads:
            facts = self.uploads.pop(self.rng.randrange(len(self.uploads)))
            self._end(facts, Tier.HOST)

    def end_copy(self) -> None:
        if not self.copies:
            return
        copy = self.copies.pop(self.rng.randrange(len(self.copies)))
        key, generation = copy.facts.key, copy.facts.generation
        for slot in copy.source_slots:
            assert self.memory[copy.source][slot] == (key, generation), "the source of a copy was given away"
        if copy.target is Tier.DISK:
            frame_bytes = copy.facts.raw_bytes + 3000
            slots, actions = self.planner.encoded(key, generation, frame_bytes, self.now)
            self.do(actions)
            if not slots:
                self.do(self.planner.failed(key, generation, Tier.DISK, self.now))
                return
            self._claim(Tier.DISK, slots, key, generation)
        self._end(copy.facts, copy.target)

    def get(self) -> Match:
        name, document = self.rng.choice(self.documents)
        layout = self.planner.namespaces[name].layout
        tokens = max(1, len(document.hashes) * layout.block_tokens + self.rng.randrange(-3, 4))
        first = self.rng.choice([0, 0, 0, self.rng.randrange(len(document.hashes))])
        request = Request(document.chain(None, first), tokens, Hints(), self.rng.random() < 0.5, NO_SPEEDS)
        match, actions = self.planner.lookup(name, request, WORKER, self.now)
        self.do(actions)
        if match.lease is not None:
            self.leases.append(match.lease)
        self.log.append(("get", match.plan))
        return match

    def end_lease(self) -> None:
        if self.leases:
            self.planner.release(self.leases.pop(self.rng.randrange(len(self.leases))))

    def read(self) -> None:
        keys = list(self.planner.snapshot())
        if keys:
            key, tier = self.rng.choice(keys), self.rng.choice([Tier.HOST, Tier.DISK])
            entry = self.planner.entry(key)
            assert entry is not None
            held = self.planner.hold(key, tier, entry.facts.generation)
            if held is not None:
                self.readers.append((key, tier, entry.facts.generation, held))

    def end_read(self) -> None:
        if self.readers:
            key, tier, generation, held = self.readers.pop(self.rng.randrange(len(self.readers)))
            for slot in held.slots:  # type: ignore[attr-defined]
                assert self.memory[tier][slot] == (key, generation), "a slot was reused under its reader"
            self.do(self.planner.unhold(key, tier, generation, held))  # type: ignore[arg-type]

    def fault(self) -> None:
        keys = list(self.planner.snapshot())
        if keys:
            key = self.rng.choice(keys)
            entry = self.planner.entry(key)
            assert entry is not None
            if self.rng.random() < 0.3:
                self.do(self.planner.report(key))
            else:
                tier = self.rng.choice([Tier.HOST, Tier.DISK])
                self.do(self.planner.corrupt(key, entry.facts.generation, tier))

    def quiesce(self) -> None:
        """Let everything that is under way end."""
        while self.uploads or self.copies or self.readers:
            self.end_upload()
            self.end_copy()
            self.end_read()
            self.check()

    # -- the shell's part -----------------------------------------------------------------------
    def do(self, actions: list[Action]) -> None:
        for action in actions:
            self.log.append(action)
            if isinstance(action, Drop):
                for slot in action.slots:
                    held = self.memory[action.tier].pop(slot)
                    assert held == (action.key, action.generation), "a drop of someone else's slot"
            else:
                for slot in action.source_slots:
                    assert self.memory[action.source][slot] == (action.facts.key, action.facts.generation)
                self._claim(action.target, action.target_slots, action.facts.key, action.facts.generation)
                self.copies.append(action)

    def check(self) -> None:
        self.planner.check()
        for tier in (Tier.HOST, Tier.DISK):
            for key, copies in self.planner.snapshot().items():
                if (tier.value, "ready") in copies:
                    entry = self.planner.entry(key)
                    assert entry is not None
                    held = entry.held(tier)
                    assert held is not None and held.slots
                    for slot in held.slots:
                        assert self.memory[tier][slot] == (key, entry.facts.generation)

    def _end(self, facts: Facts, tier: Tier) -> None:
        if self.rng.random() < self.failures:
            self.do(self.planner.failed(facts.key, facts.generation, tier, self.now))
        else:
            self.do(self.planner.arrived(facts.key, facts.generation, tier, self.now))

    def _claim(self, tier: Tier, slots: tuple[int, ...], key: BlockKey, generation: int) -> None:
        for slot in slots:
            assert slot not in self.memory[tier], "a slot was given out twice"
            self.memory[tier][slot] = (key, generation)
