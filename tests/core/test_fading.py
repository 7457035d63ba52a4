"""What fades goes first: states that later ones made superfluous or that there was room for, closed sessions."""

from __future__ import annotations

import random

import pytest
from planner_bench import NAME, Bench

from kvstore.core.fading import FadingFirst
from kvstore.core.keys import Tier
from kvstore.core.match import SessionEvent
from kvstore.core.placement import Placement
from kvstore.core.policies import POLICIES, policy_named
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import NAMESPACE, SimSettings, Simulation
from kvstore.sim.trace import TraceRequest

GIB = 1 << 30
LAYOUT = sim_layout("v4-flash", 128)


def fade(bench: Bench, name: str, block: int, group: int = 0) -> None:
    entry = bench.planner.entry(bench.key(name, block, group))
    assert entry is not None
    bench.planner.room.fade(entry)
    bench.planner.check()


@pytest.mark.parametrize("policy", POLICIES)
def test_what_fades_goes_before_what_was_used_longest_ago(policy: str) -> None:
    bench = Bench(pages=64)
    bench.planner.set_policy(policy_named(policy))
    for name in "abcd":
        bench.put(name, 16)
    fade(bench, "d", 15)
    bench.put("e", 1)
    assert not bench.tiers("d", 15) and all(bench.tiers("a", block) for block in range(16))
    assert [drop.key for drop in bench.dropped] == [bench.key("d", 15)]


def test_a_use_ends_the_fading() -> None:
    bench = Bench(pages=64)
    for name in "abcd":
        bench.put(name, 16)
    fade(bench, "d", 15)
    bench.planner.release(bench.lookup("d", 16).lease or 0)
    bench.put("e", 1)
    assert bench.tiers("d", 15) and not bench.tiers("a", 15)


def test_what_is_leased_does_not_go_however_it_fades() -> None:
    bench = Bench(pages=64)
    for name in "abc":
        bench.put(name, 16)
    bench.put("d", 15, states=(14,))
    match = bench.lookup("d", 15)
    assert match.lease is not None
    fade(bench, "d", 14, 1)
    bench.put("e", 1)
    assert bench.tiers("d", 14, 1) and not bench.tiers("a", 15)
    assert bench.planner.release(match.lease)
    bench.put("e", 2)
    assert not bench.tiers("d", 14, 1) and bench.tiers("d", 14)


def test_fading_survives_a_change_of_policy() -> None:
    bench = Bench(pages=64)
    for name in "abcd":
        bench.put(name, 16)
    fade(bench, "d", 15)
    bench.planner.set_policy(policy_named("arc"))
    while bench.planner.change_some(7):
        bench.planner.check()
    bench.put("e", 1)
    assert not bench.tiers("d", 15)


def test_a_closed_session_makes_room_from_its_end_to_what_others_share() -> None:
    bench = Bench(pages=64)
    bench.put("s/one", 12, session="one")
    bench.put("s/two", 12, session="two")
    bench.put("other", 44 - 4, session="three")
    bench.lookup("s/one", 12, session="one")
    for lease in list(bench.planner.leases.owned(b"w" * 16)):
        bench.planner.release(lease)
    bench.planner.session(NAME, "one", SessionEvent.CLOSED, bench.now)
    bench.planner.check()
    bench.put("new", 8, session="four")
    assert [len(bench.tiers("s/one", block)) for block in range(12)] == [1] * 8 + [0] * 4
    assert all(bench.tiers("s/two", block) for block in range(12)) and bench.tiers("other", 39)
    bench.put("newer", 4, session="five")
    assert [len(bench.tiers("s/one", block)) for block in range(12)] == [1] * 4 + [0] * 8
    assert all(bench.tiers("s/two", block) for block in range(12)), "used long before, and by somebody who is there"


def turns(count: int) -> list[TraceRequest]:
    """An append-only session: each turn adds 20 blocks, the last two of which are its output."""
    requests = []
    for turn in range(1, count + 1):
        ids = tuple(range(20 * turn - 2))
        outputs = tuple(range(20 * turn - 2, 20 * turn))
        requests.append(
            TraceRequest(60.0 * turn, 128 * len(ids), 256, ids, outputs, session="s", turn=turn, has_tools=True)
        )
    return requests


def states(run: Simulation) -> dict[int, bool]:
    """Blocks with states, and whether these fade."""
    nodes = run.planner.namespaces[NAMESPACE].nodes.values()
    return {node.block: node.states[0].is_fading for node in nodes if node.states}


def test_end_states_fade_one_request_late() -> None:
    run = Simulation(128, SimSettings(LAYOUT, GIB, placement=Placement.parse("adaptive"), is_ideal_space=True))
    run.planner.spaces[Tier.HOST].region_pages = 64 << 20  # nothing is free to be taken at a venture, nor has to go
    for request in turns(4):
        run.step(request)
        run.planner.check()
    found = states(run)
    ends = [block for block, fades in sorted(found.items()) if not fades]
    assert ends[-1] == 79 and 59 in ends, "the last request's end, and the one that it began at"
    assert found.get(39, True) and found.get(19, True), "older ones are of no use while these are there"
    plain = Simulation(128, SimSettings(LAYOUT, GIB, placement=Placement.parse("ends+junctions")))
    for request in turns(4):
        plain.step(request)
    assert not any(states(plain).values()), "an operator who says where states are gets just these"


def test_states_are_taken_at_a_venture_only_where_room_is_free() -> None:
    """A path that is left between two states: resumed near there in a large store; a small one keeps what it needs."""
    first = TraceRequest(0.0, 128 * 200 + 1, 0, tuple(range(200)))
    other = TraceRequest(9.0, 128 * 200 + 1, 0, (*range(100), *range(1000, 1100)))
    resumed, written = {}, {}
    for placement in ("ends+junctions", "adaptive"):
        for size in (GIB, 120 << 20):
            rule = Placement.parse(placement, replay=False)
            run = Simulation(128, SimSettings(LAYOUT, size, placement=rule, is_ideal_space=True))
            run.step(first)
            resumed[placement, size] = run.step(other).plan.tokens
            written[placement, size] = run.result.states_written
            run.planner.check()
    assert resumed["ends+junctions", GIB] == 0
    assert 100 * 128 * 3 // 4 < resumed["adaptive", GIB] <= 100 * 128
    assert written["adaptive", 120 << 20] == written["ends+junctions", 120 << 20]


def test_states_at_a_venture_go_before_anything_else() -> None:
    run = Simulation(128, SimSettings(LAYOUT, GIB, placement=Placement.parse("adaptive"), is_ideal_space=True))
    run.step(TraceRequest(0.0, 128 * 200 + 1, 0, tuple(range(200))))
    fading = sum(states(run).values())
    assert fading > 4
    rng, now = random.Random(3), 1.0
    while any(states(run).values()):
        now += 1.0
        start = rng.randrange(1 << 40)
        run.step(TraceRequest(now, 128 * 100 + 1, 0, tuple(range(start, start + 100))))
        kept = run.planner.namespaces[NAMESPACE].nodes
        assert len(kept) >= 200 or not any(states(run).values()), "rows went before"
        assert now < 60, "they never went"


def test_an_order_of_two_says_how_many_go_before() -> None:
    bench = Bench(pages=64)
    for name in "abcd":
        bench.put(name, 4)
    fade(bench, "d", 3)
    ((_, order),) = [each for each in bench.planner.room.orders() if each[0][0] is Tier.HOST]
    assert isinstance(order, FadingFirst)
    places = [order.ahead_of(bench.key(name, 3)) for name in "dabc"]
    assert places == [0, 1, 2, 3] and len(order) == 4
