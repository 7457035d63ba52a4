"""A policy changed while objects are there: nothing is lost, nothing offered wrongly, and the new order comes."""

from __future__ import annotations

import pytest
from planner_world import NO_SPEEDS, Document, World

from kvstore.core import presets
from kvstore.core.changing import Changing
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import Hints
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.planner import MOVES_A_TICK
from kvstore.core.policies import POLICIES, policy_named
from kvstore.core.policies.lru import LRU
from kvstore.core.settings import Settings

MIB = 1 << 20
SETTINGS = {
    "small host": Settings(host_bytes=256 << 10, disk_bytes=64 * MIB, lease_seconds=5.0, segment_bytes=MIB),
    "small disk": Settings(host_bytes=1 * MIB, disk_bytes=512 << 10, lease_seconds=5.0, segment_bytes=64 << 10),
    "no disk": Settings(host_bytes=512 << 10, lease_seconds=5.0),
}


def orders(world: World) -> list[object]:
    return [order for _, order in world.planner.room.orders()]


def put(world: World, blocks: int) -> tuple[bytes, list[bytes]]:
    """One document of so many blocks, whole on the host."""
    name, document = world.names[0], max((found for _, found in world.documents), key=lambda found: len(found.hashes))
    name = next(owner for owner, found in world.documents if found is document)
    blocks = min(blocks, len(document.hashes))
    world.put_blocks(name, document, 0, blocks, with_states=False)
    world.quiesce()
    return name, document.hashes[:blocks]


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("new", POLICIES)
@pytest.mark.parametrize("seed", range(2))
def test_every_invariant_holds_at_every_step_of_random_changeovers(seed: int, new: str, settings: str) -> None:
    layouts = [presets.v4_tiny(), presets.full_tiny(), presets.v4_demo()]
    world = World(seed, layouts, SETTINGS[settings])
    changes = moved = 0
    for step in range(250):
        try:
            world.step()
            if world.rng.random() < 0.04:  # every second to the policy under test, and often while another change runs
                name = new if changes % 2 == 0 else world.rng.choice(list(POLICIES))
                world.planner.set_policy(policy_named(name))
                assert world.planner.policy == name
                changes += 1
                world.check()
            if world.rng.random() < 0.4:
                left = world.planner.left_to_move
                assert world.planner.change_some(world.rng.randrange(1, 6)) <= left
                moved += left - world.planner.left_to_move
                world.check()
        except Exception:
            print("seed", seed, "step", step)
            raise
    assert changes > 3 and moved > 10
    assert world.planner.change_some(1 << 20) == 0
    assert not any(isinstance(order, Changing) for order in orders(world))
    world.check()
    world.quiesce()
    for lease in world.leases:
        world.planner.release(lease)
    world.planner.check()


def test_a_changeover_moves_no_more_than_it_was_told_to() -> None:
    world = World(0, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
    put(world, 6)
    count = len(world.planner)
    assert count > 3
    world.planner.set_policy(policy_named("arc"))
    assert [world.planner.left_to_move, world.planner.change_some(2)] == [count, count - 2]
    assert all(isinstance(order, Changing) for order in orders(world))
    assert world.planner.change_some(count) == 0
    (order,) = {type(getattr(order, "order", None)) for order in orders(world)}
    assert order is type(policy_named("arc").order(MIB))


def test_the_policy_that_is_in_charge_already_changes_nothing() -> None:
    world = World(0, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
    put(world, 6)
    before = orders(world)
    world.planner.set_policy(LRU())
    assert orders(world) == before and world.planner.left_to_move == 0


def test_ticks_end_a_changeover_that_nobody_else_drives() -> None:
    world = World(0, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
    for _ in range(60):
        world.step()
    world.planner.set_policy(policy_named("s3fifo"))
    for _ in range(len(world.planner) // MOVES_A_TICK + 1):
        world.do(world.planner.tick(world.now))
        world.check()
    assert world.planner.left_to_move == 0 and not any(isinstance(order, Changing) for order in orders(world))


def test_orders_made_during_a_changeover_are_of_the_new_policy() -> None:
    world = World(0, [presets.full_tiny(), presets.v4_tiny()], SETTINGS["no disk"], failures=0.0)
    for name, document in world.documents:
        if name == world.names[0]:
            world.put_blocks(name, document, 0, 1, with_states=False)
            break
    world.quiesce()
    world.planner.set_policy(policy_named("slru"))
    for name, document in world.documents:
        if name == world.names[1]:
            world.put_blocks(name, document, 0, 1, with_states=False)
            break
    world.check()
    first, second = orders(world)
    assert isinstance(first, Changing) and type(second.order) is type(policy_named("slru").order(MIB))


class _Listed:
    """An order by hand: candidates in the order that they were offered in."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.offered: dict[BlockKey, float] = {}

    def admitted(self, entry: object) -> None:
        self.told.append(("admitted", entry))

    def used(self, entry: object) -> None:
        self.told.append(("used", entry))

    def offer(self, entry: object, last_used: float) -> None:
        self.offered[entry.facts.key] = last_used  # type: ignore[attr-defined]

    def withdraw(self, key: BlockKey) -> None:
        self.offered.pop(key, None)

    def removed(self, entry: object, nbytes: int) -> None:
        self.told.append(("removed", entry))
        self.offered.pop(entry.facts.key, None)  # type: ignore[attr-defined]

    def first(self) -> BlockKey | None:
        return next(iter(self.offered), None)

    def pop(self) -> BlockKey | None:
        key = self.first()
        if key is not None:
            del self.offered[key]
        return key

    def __contains__(self, key: BlockKey) -> bool:
        return key in self.offered

    def __len__(self) -> int:
        return len(self.offered)


def test_victims_come_from_the_order_whose_first_was_used_longest_ago() -> None:
    world = World(0, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
    _, hashes = put(world, 6)
    entries = [world.planner.entry(BlockKey(prefix, 0)) for prefix in hashes[:5]]
    assert all(entry is not None for entry in entries)
    ages = {entry.facts.key: age for entry, age in zip(entries, (5.0, 1.0, 4.0, 2.0, 9.0), strict=True) if entry}
    old, new = _Listed(), _Listed()
    changing = Changing(old, new, ages.__getitem__)
    for entry in entries[:2]:
        assert entry is not None
        old.offer(entry, 0.0)
    for entry in entries[2:]:
        assert entry is not None
        changing.admitted(entry)
        changing.offer(entry, 0.0)
    popped = []
    while changing.first() is not None:
        first = changing.first()
        popped.append(changing.pop())
        assert popped[-1] == first
    # each order says itself who is its first: 5, 1 of the old one and 4, 2, 9 of the new one
    assert [ages[key] for key in popped if key is not None] == [4.0, 2.0, 5.0, 1.0, 9.0]
    assert changing.pop() is None and len(changing) == 0


def test_an_object_that_is_moved_has_left_the_old_order_and_brings_its_uses() -> None:
    world = World(0, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
    _, hashes = put(world, 3)
    entry = world.planner.entry(BlockKey(hashes[0], 0))
    assert entry is not None
    entry.uses = 2
    old, new = _Listed(), _Listed()
    changing = Changing(old, new, lambda key: 0.0)
    old.offer(entry, 0.0)
    changing.move(entry, 10)
    changing.move(entry, 10)  # the second time it is there
    assert entry.facts.key not in changing
    assert old.told == [("removed", entry)]
    assert new.told == [("admitted", entry), ("used", entry), ("used", entry)]
    changing.offer(entry, 0.0)
    assert entry.facts.key in new and entry.facts.key not in old
    changing.removed(entry, 10)
    assert new.told[-1] == ("removed", entry) and entry.facts.key not in changing


@pytest.mark.parametrize("name", POLICIES)
def test_a_store_that_changed_to_a_policy_evicts_as_one_that_always_had_it(name: str) -> None:
    """What was used once and never again, in the order of its coming: all policies agree, so a changed one must."""
    victims = []
    for is_changed in (False, True):
        world = World(5, [presets.full_tiny()], SETTINGS["no disk"], failures=0.0)
        if not is_changed:
            world.planner.set_policy(policy_named(name))
        owner = world.names[0]
        for number in range(8):
            world.now += 1.0
            document = Document(world.planner.namespaces[owner].root.prefix, 50 + number, 0, 0, 1)
            world.put_blocks(owner, document, 0, 1, with_states=False)
            world.quiesce()
        if is_changed:
            world.planner.set_policy(policy_named(name))
            while world.planner.change_some(1):
                world.check()
        found = []
        while (victim := world.planner.room.next_victim(Tier.HOST, owner)) is not None:
            found.append(victim.facts.key)
            world.do(list(world.planner.room.drop(victim, Tier.HOST)))
        victims.append(found)
    assert len(victims[0]) == 8 and victims[0] == victims[1]


def test_keep_seconds_and_placement_change_while_it_runs() -> None:
    world = World(2, [presets.full_tiny()], Settings(host_bytes=64 << 10, lease_seconds=1.0), failures=0.0)
    for owner, document in world.documents:  # until the host is full
        world.now += 1.0
        world.put_blocks(owner, document, 0, len(document.hashes), with_states=False)
        world.quiesce()
    world.planner.set_keep_seconds(1e6)
    assert world.planner.settings.keep_seconds == 1e6
    refused = [world.put(run=0) for _ in range(20)]
    assert any(status.value == "no room" for statuses in refused for status in statuses)
    assert not any(status.value == "wanted" for statuses in refused for status in statuses)
    world.planner.set_keep_seconds(0.0)
    admitted = [world.put(run=0) for _ in range(20)]
    assert any(status.value == "wanted" for statuses in admitted for status in statuses)


def test_another_placement_is_asked_of_the_next_lookup() -> None:
    world = World(0, [presets.v4_tiny()], SETTINGS["no disk"], failures=0.0)
    name, document = world.documents[0]
    request = Request(document.chain(), len(document.hashes) * 128 + 1, Hints(), False, NO_SPEEDS)
    before, _ = world.planner.lookup(name, request, b"w" * 16, 0.0)
    world.planner.set_placement(Placement.parse("none", False))
    after, _ = world.planner.lookup(name, request, b"w" * 16, 0.0)
    assert before.snapshots.at and not after.snapshots.at
