"""A planner whose copies end at once, and chains made from names: for tests of one promise each."""

from __future__ import annotations

from hashlib import sha256

from kvstore.core import presets
from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.keys import BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE, chain_lineages
from kvstore.core.match import Hints, Match, Speeds
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.settings import Settings

MIB = 1 << 20
NAME, ROOT, WORKER = b"n" * 32, b"r" * 32, b"w" * 16
TINY = presets.v4_tiny()  # one page a rows object, one a state: counting slots is counting pages


class Bench:
    """A planner whose copies end at once, and chains made from names."""

    def __init__(self, layout: ModelLayout = TINY, pages: int = 4096, disk: int = 0, **settings: object) -> None:
        self.layout = layout
        self.planner = Planner(Settings(host_bytes=pages * 4096, disk_bytes=disk, **settings))  # type: ignore[arg-type]
        self.planner.grow(Tier.HOST, pages // self.planner.spaces[Tier.HOST].region_pages)
        self.planner.grow(Tier.DISK, disk // 4096 // self.planner.spaces[Tier.DISK].region_pages)
        self.planner.add_namespace(NAME, ROOT, layout)
        self.now = 0.0
        self.dropped: list[Drop] = []

    def chain(self, name: str, blocks: int, first: int = 0) -> Chain:
        hashes, parent = [ROOT], ROOT
        for index in range(blocks):
            parent = sha256(
                parent + f"{name if '/' not in name or index >= 4 else name.split('/')[0]}{index}".encode()
            ).digest()
            hashes.append(parent)
        return Chain(first, hashes[first], b"".join(hashes[first + 1 :]))

    def key(self, name: str, block: int, group: int = 0) -> BlockKey:
        return BlockKey(self.chain(name, block + 1).hash_at(block), group)

    def put(
        self, name: str, blocks: int, states: tuple[int, ...] = (), first: int = 0, **hints: object
    ) -> list[ReserveStatus]:
        """Rows of blocks [first, blocks) and states at the ends of `states`; uploads end at once."""
        chain = self.chain(name, blocks, first)
        specs = [
            ObjectSpec(block - first, group, self.layout.groups[group].nbytes, self._content(name, block, group))
            for block in range(first, blocks)
            for group in range(len(self.layout.groups))
            if group == 0 or block in states
        ]
        below = b"".join(self._content(name, block, 0) for block in range(first))
        lineage = chain_lineages(ROOT_LINEAGE, below)[-16:] if first else ROOT_LINEAGE
        self.now += 1.0
        statuses, facts, actions = self.planner.reserve(
            NAME,
            chain,
            specs,
            lineage,
            WORKER,
            Hints(**hints),
            self.now,
            0.0,  # type: ignore[arg-type]
        )
        self.do(actions)
        for made in facts:
            if made is not None:
                self.do(self.planner.arrived(made.key, made.generation, Tier.HOST, self.now))
        self.planner.check()
        return statuses

    def lookup(
        self,
        name: str,
        blocks: int,
        prompt: int | None = None,
        can_replay: bool = False,
        speeds: Speeds | None = None,
        **hints: object,
    ) -> Match:
        self.now += 1.0
        tokens = blocks * self.layout.block_tokens + 1 if prompt is None else prompt
        request = Request(self.chain(name, blocks), tokens, Hints(**hints), can_replay, speeds or Speeds({}))  # type: ignore[arg-type]
        match, actions = self.planner.lookup(NAME, request, WORKER, self.now)
        self.do(actions)
        self.planner.check()
        return match

    def do(self, actions: list[Action]) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Drop):
                self.dropped.append(action)
                continue
            assert isinstance(action, Copy)
            key, generation = action.facts.key, action.facts.generation
            if action.target is Tier.DISK:
                slots, more = self.planner.encoded(key, generation, action.facts.raw_bytes + 1000, self.now)
                waiting += more
                if not slots:
                    waiting += self.planner.failed(key, generation, Tier.DISK, self.now)
                    continue
            waiting += self.planner.arrived(key, generation, action.target, self.now)

    def tiers(self, name: str, block: int, group: int = 0) -> set[Tier]:
        entry = self.planner.entry(self.key(name, block, group))
        return set() if entry is None else {tier for tier, _ in entry.copies()}

    def _content(self, name: str, block: int, group: int) -> bytes:
        return sha256(repr(self.key(name, block, group)).encode()).digest()[:16]
