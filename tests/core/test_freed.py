"""Whatever leaves the index is freed at once, without the garbage collector: the daemon hides the index from it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterator

import pytest
from planner_bench import MIB, Bench
from planner_world import World

from kvstore.core import presets
from kvstore.core.index import Entry, Facts, Held, Node, Span
from kvstore.core.keys import Tier
from kvstore.core.planner import Planner
from kvstore.core.settings import Settings

KINDS = (Node, Span, Entry, Facts, Held)


@pytest.fixture(autouse=True)
def without_collector() -> Iterator[None]:
    gc.collect()  # what other tests left
    gc.disable()
    yield
    gc.enable()


def alive() -> Counter[type]:
    return Counter(type(found) for found in gc.get_objects() if type(found) in KINDS)


def in_use(planner: Planner) -> Counter[type]:
    """What a planner holds on to for a reason."""
    nodes = [node for space in planner.namespaces.values() for node in (space.root, *space.nodes.values())]
    entries = list(planner.entries())
    held = [held for entry in entries for _, held in entry.copies()]
    return Counter(
        {
            Node: len(nodes),
            Span: len({id(node.span) for node in nodes}),
            Entry: len(entries),
            Facts: len(entries),
            Held: len(held) + len(planner._room.doomed),
        }
    )


@pytest.mark.parametrize("seed", range(6))
def test_puts_evictions_faults_and_expiry_leave_nothing_behind(seed: int) -> None:
    before = alive()
    layouts = [presets.v4_tiny(), presets.full_tiny(), presets.v4_demo()]
    world = World(
        seed, layouts, Settings(host_bytes=MIB // 4, disk_bytes=MIB, lease_seconds=5.0, segment_bytes=MIB // 8)
    )
    for _ in range(500):
        world.step()
    world.quiesce()
    for lease in world.leases:
        world.planner.release(lease)
    world.log.clear()
    assert sum(world.planner.counts.evicted.values()) > 0
    assert alive() - before == +in_use(world.planner)


def test_a_forgotten_tree_is_freed() -> None:
    before = alive()
    bench = Bench(disk=16 * MIB)
    for branch in range(4):
        bench.put(f"a/{branch}", 200, states=(63, 64, 199))
    assert alive() - before == +in_use(bench.planner)
    bench.do(bench.planner.report(bench.key("a/0", 0)))
    bench.dropped.clear()
    assert len(bench.planner) == 0 and bench.tiers("a/0", 0) == set[Tier]()
    assert alive() - before == +in_use(bench.planner) == Counter({Node: 1, Span: 1})
