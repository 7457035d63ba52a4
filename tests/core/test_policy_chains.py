"""What leaf-first order changes: each policy on chains, whose ends alone are told of uses."""

from __future__ import annotations

import pytest
from policy_world import make_entry, namespace

from kvstore.core.index import Entry, ObjectClass
from kvstore.core.keys import BlockKey
from kvstore.core.policies import policy_named
from kvstore.core.policies.gdsf import recompute_cost_per_byte
from kvstore.core.policy import Order

SIZE = 4096


class Chains:
    """Chains under an order, offered as the planner offers: leaves only, a parent when its last child is popped."""

    def __init__(self, policy: str, capacity_blocks: int = 100) -> None:
        self.order: Order = policy_named(policy).order(capacity_blocks * SIZE)
        self.space = namespace()
        self.entries: dict[BlockKey, Entry] = {}

    def add(
        self,
        name: str,
        blocks: int,
        now: float,
        on: Entry | None = None,
        nbytes: int = SIZE,
        ttl_seconds: float | None = None,
        object_class: ObjectClass = ObjectClass.SESSION,
    ) -> list[Entry]:
        found: list[Entry] = []
        for depth in range(blocks):
            parent = on.node if on is not None else None
            entry = make_entry(self.space, (name, depth), parent=parent, nbytes=nbytes, now=now,
                               ttl_seconds=ttl_seconds, object_class=object_class)  # fmt: skip
            self.entries[entry.facts.key] = entry
            if on is not None:
                self.order.withdraw(on.facts.key)
            self.order.admitted(entry)
            self.order.offer(entry, now)
            found.append(entry)
            on = entry
        return found

    def use(self, entry: Entry, now: float) -> None:
        entry.last_used = now
        entry.uses += 1
        self.order.used(entry)
        if not entry.node.children():
            self.order.offer(entry, now)

    def evict(self) -> Entry:
        key = self.order.pop()
        assert key is not None
        entry = self.entries.pop(key)
        parent = entry.node.parent
        assert parent is not None
        self.order.removed(entry, entry.facts.raw_bytes)
        entry.node.rows = None
        self.space.remove_node(entry.node)
        if parent.rows is not None:
            parent.rows.last_used = max(parent.rows.last_used, entry.last_used)
            if not parent.children():
                self.order.offer(parent.rows, parent.rows.last_used)
        return entry


@pytest.mark.parametrize("name", ["lru", "lfu", "slru", "s3fifo", "arc", "gdsf", "hazard", "ttl", "tlru"])
def test_chains_go_from_their_end(name: str) -> None:
    world = Chains(name)
    chain = world.add("a", 5, now=1.0)
    assert [world.evict() for _ in chain] == chain[::-1]


@pytest.mark.parametrize("name", ["lru", "slru", "s3fifo", "arc", "lfu", "hazard"])
def test_a_chain_that_was_used_again_outlives_those_that_were_not(name: str) -> None:
    """Only its last block is told of the uses; all of it stays."""
    world = Chains(name, capacity_blocks=32)
    old = world.add("old", 8, now=1.0)
    world.use(old[-1], now=2.0)
    world.use(old[-1], now=3.0)
    for number in range(3):
        world.add(f"fresh{number}", 8, now=2.5 + number / 10)
    victims = [world.evict() for _ in range(24)]
    assert not set(victims) & set(old)


@pytest.mark.parametrize("name", ["slru", "s3fifo", "arc", "lfu"])
def test_a_scan_does_not_push_out_what_is_used(name: str) -> None:
    world = Chains(name, capacity_blocks=40)
    kept = world.add("kept", 10, now=1.0)
    for second in range(2, 5):
        world.use(kept[-1], now=float(second))
    for number in range(40):
        world.add(f"scan{number}", 1, now=10.0 + number)
        if len(world.entries) > 40:
            world.evict()
    assert all(entry.facts.key in world.entries for entry in kept)


def test_lfu_lets_go_of_what_was_popular_once() -> None:
    world = Chains("lfu")
    (once,) = world.add("popular once", 1, now=1.0)
    for second in range(2, 12):
        world.use(once, now=float(second))
    victims = []
    for number in range(30):
        world.add(f"new{number}", 1, now=20.0 + number)
        if number:
            victims.append(world.evict())
        if number:
            (again,) = world.add(f"twice{number}", 1, now=20.5 + number)
            world.use(again, now=20.7 + number)
            victims.append(world.evict())
    assert once in victims


def test_arc_gives_room_to_what_came_back_too_late() -> None:
    """Blocks that come back after they went, from the recent side, keep that side from being taken."""
    world = Chains("arc", capacity_blocks=10)
    for number in range(10):
        (entry,) = world.add(f"a{number}", 1, now=float(number))
    for entry in list(world.entries.values())[:5]:
        world.use(entry, now=20.0)
    gone = [world.evict() for _ in range(5)]
    assert all(entry.uses == 0 for entry in gone)
    for number in range(5, 10):
        world.add(f"a{number}", 1, now=30.0 + number)  # from the first directory: to the second queue
    world.evict()
    (fresh,) = world.add("fresh", 1, now=50.0)
    assert world.evict() is not fresh  # its side was given room


def test_s3fifo_admits_what_comes_back_to_the_main_queue() -> None:
    world = Chains("s3fifo", capacity_blocks=10)
    for number in range(10):
        world.add(f"a{number}", 1, now=float(number))
    first = world.evict()
    (again,) = world.add("a0", 1, now=20.0)
    assert again.facts.key == first.facts.key
    assert again not in [world.evict() for _ in range(8)]


def test_gdsf_keeps_what_is_dear_for_its_bytes() -> None:
    world = Chains("gdsf")
    (large,) = world.add("large", 1, now=2.0, nbytes=4 * SIZE)
    (small,) = world.add("small", 1, now=1.0)
    assert world.evict() is large
    deep = world.add("deep", 300, now=1.0)
    tokens = deep[0].node.namespace.layout.block_tokens
    ratio = recompute_cost_per_byte(deep[256]) / recompute_cost_per_byte(deep[0])
    assert ratio == pytest.approx(1 + 256 * tokens / 32768)
    assert recompute_cost_per_byte(small) == 4 * recompute_cost_per_byte(large)


def test_ttl_frees_what_expires_first() -> None:
    world = Chains("ttl")
    (long,) = world.add("long", 1, now=1.0, ttl_seconds=600.0)
    (short,) = world.add("short", 1, now=5.0, ttl_seconds=10.0)
    assert world.evict() is short
    assert world.evict() is long


def test_ttl_learns_how_long_a_class_takes_to_come_back() -> None:
    world = Chains("ttl")
    (session,) = world.add("session", 1, now=0.0)
    for turn in range(1, 51):
        now = turn * 100.0
        world.use(session, now)
        (branch,) = world.add(f"branch {turn}", 1, now=now, object_class=ObjectClass.SCRATCH)
        world.use(branch, now + 1.0)
        world.use(branch, now + 2.0)
    (fresh,) = world.add("fresh branch", 1, now=now + 20.0, object_class=ObjectClass.SCRATCH)
    victims = [world.evict() for _ in world.entries.copy()]
    assert victims.index(fresh) < victims.index(session)  # though it is younger


def test_tlru_gives_up_ends_and_keeps_long_prompts_long() -> None:
    """Ends that cost no more than a quick request go first, however fresh; then it is last use again."""
    world = Chains("tlru")
    for number in range(40):
        world.add(f"short{number}", 4, now=float(number))  # what most requests compute: four blocks
    long = world.add("long", 40, now=100.0)
    victims = [world.evict() for _ in range(40 * 4 + 4)]
    assert [entry for entry in victims if entry in long] == long[:-5:-1]  # what a quick prefill makes up for, no more
    assert world.evict() is long[-5]


def test_hazard_learns_what_comes_back() -> None:
    """One-block chains never come back here, sessions do: a fresh one-block chain goes before a waiting session."""
    world = Chains("hazard", capacity_blocks=50)
    now = 0.0
    for number in range(60):
        now += 10.0
        world.add(f"once{number}", 1, now=now)
        (begin,) = world.add(f"session{number}", 1, now=now)
        begin.turn = 0
        tip = begin
        for turn in range(3):
            now += 10.0
            world.use(tip, now)
            (tip,) = world.add(f"session{number}/{turn}", 1, now=now, on=tip)
        while len(world.entries) > 40:
            world.evict()
    (waiting,) = (entry for entry in world.entries.values() if entry is tip)
    (fresh,) = world.add("another", 1, now=now + 1.0)
    while (victim := world.evict()) is not fresh:
        assert victim is not waiting
