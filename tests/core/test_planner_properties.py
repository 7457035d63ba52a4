"""The planner under random events, against invariants and a brute-force reading of its contents."""

from __future__ import annotations

import pytest
from planner_world import NO_SPEEDS, World

from kvstore.core import presets
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import MAX_RESUME_POINTS, Hints, PlanKind
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.settings import Settings

MIB = 1 << 20
LAYOUTS: dict[str, list[ModelLayout]] = {
    "v4": [presets.v4_tiny()],
    "v4 aligned at 256": [presets.v4_tiny(resume_alignment=256)],
    "full": [presets.full_tiny()],
    "v4 of many slots": [presets.v4_demo()],
    "three namespaces": [presets.v4_tiny(), presets.full_tiny(), presets.v4_demo()],
}
SETTINGS = {
    "roomy": Settings(host_bytes=64 * MIB, disk_bytes=64 * MIB, lease_seconds=20.0),
    "small host": Settings(host_bytes=256 << 10, disk_bytes=64 * MIB, lease_seconds=5.0, segment_bytes=MIB),
    "small disk": Settings(host_bytes=1 * MIB, disk_bytes=512 << 10, lease_seconds=5.0, segment_bytes=64 << 10),
    "no disk": Settings(host_bytes=512 << 10, lease_seconds=5.0),
    "second hit": Settings(
        host_bytes=1 * MIB, disk_bytes=64 * MIB, lease_seconds=5.0, segment_bytes=MIB,
        disk_admission=DiskAdmission.SECOND_HIT,
    ),
    "budget": Settings(
        host_bytes=512 << 10, disk_bytes=1 * MIB, lease_seconds=5.0, segment_bytes=64 << 10,
        disk_write_bytes_per_day=500 * MIB,
    ),
    "adaptive": Settings(
        host_bytes=1 * MIB, disk_bytes=4 * MIB, lease_seconds=5.0, segment_bytes=64 << 10,
        disk_admission=DiskAdmission.ADAPTIVE, disk_write_bytes_per_day=100 * MIB,
    ),
}  # fmt: skip


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("seed", range(3))
def test_every_invariant_holds_after_every_event(layouts: str, settings: str, seed: int) -> None:
    world = World(seed, LAYOUTS[layouts], SETTINGS[settings])
    for step in range(250):
        try:
            world.step()
        except Exception:
            print("seed", seed, "step", step)
            raise
    world.quiesce()
    for lease in world.leases:
        world.planner.release(lease)
    world.planner.check()


def test_the_same_seed_gives_the_same_actions() -> None:
    first, second = (World(7, LAYOUTS["three namespaces"], SETTINGS["small host"]) for _ in range(2))
    for world in (first, second):
        for _ in range(300):
            world.step()
    assert first.log == second.log


@pytest.mark.parametrize("layouts", LAYOUTS)
@pytest.mark.parametrize("seed", range(4))
def test_a_match_equals_a_brute_force_reading_of_the_contents(layouts: str, seed: int) -> None:
    world = World(seed, LAYOUTS[layouts], SETTINGS["small host"])
    for _ in range(150):
        world.step()
        name, document = world.rng.choice(world.documents)
        layout = world.planner.namespaces[name].layout
        prompt = max(1, len(document.hashes) * layout.block_tokens + world.rng.randrange(-2, 3))
        contents = {
            key: {tier for tier, status in copies if status == "ready"}
            for key, copies in world.planner.snapshot().items()
        }
        rows = 0
        while rows < len(document.hashes) and contents.get((document.hashes[rows], 0)):
            rows += 1
        expected = []
        for block in reversed(range(rows)):
            tokens = (block + 1) * layout.block_tokens
            if tokens > prompt - 1 or tokens % layout.resume_alignment:
                continue
            group = layout.state_group
            if group is not None:
                if not contents.get((document.hashes[block], group)):
                    continue
                state = world.planner.entry((document.hashes[block], group))  # type: ignore[arg-type]
                below = world.planner.entry((document.hashes[block], 0))  # type: ignore[arg-type]
                assert state is not None and below is not None
                if state.facts.lineage != below.facts.lineage:
                    continue
            expected.append(tokens)
        request = Request(document.chain(), prompt, Hints(), False, NO_SPEEDS)
        match, actions = world.planner.lookup(name, request, b"w" * 16, world.now)
        world.do(actions)
        assert match.rows_tokens == rows * layout.block_tokens
        assert [point.tokens for point in match.resume_points] == expected[:MAX_RESUME_POINTS]
        assert match.plan.tokens == (expected[0] if expected else 0)
        assert (match.lease is None) == (not expected)
        if match.lease is not None:
            world.planner.release(match.lease)
        world.check()


def test_what_a_lease_holds_stays_readable_under_full_pressure() -> None:
    world = World(3, LAYOUTS["v4 of many slots"], SETTINGS["small disk"], failures=0.0)
    leased = {}
    for _ in range(400):
        world.step()
        name, document = world.rng.choice(world.documents)
        layout = world.planner.namespaces[name].layout
        request = Request(document.chain(), 10**6, Hints(), True, NO_SPEEDS)
        match, actions = world.planner.lookup(name, request, b"w" * 16, world.now)
        world.do(actions)
        if match.lease is not None:
            count = match.plan.tokens // layout.block_tokens
            keys = [(prefix, 0) for prefix in document.hashes[:count]]
            keys += [(document.hashes[count - 1], 1)] if match.plan.kind is PlanKind.RESUME else []
            leased[match.lease] = keys
        for lease in list(leased):
            if world.planner.leases.find(lease) is None:
                del leased[lease]
                continue
            for key in leased[lease]:
                entry = world.planner.entry(key)  # type: ignore[arg-type]
                if entry is None:  # only a fault takes leased objects away
                    assert world.planner.counts.lost > 0
                    del leased[lease]
                    break
                assert entry.is_stored
    assert leased


def test_a_chain_larger_than_the_host_goes_through_to_disk() -> None:
    settings = Settings(host_bytes=128 << 10, disk_bytes=16 * MIB, placement=Placement())
    world = World(0, [presets.v4_tiny()], settings, failures=0.0)
    name, document = (
        world.names[0],
        type(world.documents[0][1])(world.planner.namespaces[world.names[0]].root.prefix, 9, 0, 0, 200),
    )
    for block in range(200):
        statuses = world.put_blocks(name, document, block, block + 1, with_states=block == 199)
        assert all(status.value == "wanted" for status in statuses), block
        world.quiesce()
    request = Request(document.chain(), 200 * 128 + 1, Hints(), False, NO_SPEEDS)
    match, actions = world.planner.lookup(name, request, b"w" * 16, world.now)
    world.do(actions)
    assert match.plan.tokens == 200 * 128 and match.plan.tier is Tier.DISK
