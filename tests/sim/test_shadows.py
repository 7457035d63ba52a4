"""Ghost stores: one that runs as the store does finds what the store finds; the better one is told, and taken."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from kvstore.core.errors import ConfigError
from kvstore.core.keys import HASH_BYTES, Chain, Tier
from kvstore.core.match import Hints, InferenceMode
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.popular import Popular
from kvstore.core.settings import Settings
from kvstore.core.shadows import (
    CLASS_SHARE,
    HALF_LIFE_REQUESTS,
    MAX_WAITING,
    VARIANTS,
    Ghost,
    Shadows,
    Variant,
    variants_for,
)
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import NAMESPACE, NO_SPEEDS, ROOT, SimSettings, Simulation, chain_of, simulate
from kvstore.sim.trace import Trace, TraceRequest
from kvstore.sim.workloads import trace_of, workload_named

MIB = 1 << 20
JUNCTIONS = Placement.parse("ends+junctions")  # adaptive placement looks at free room, which outputs fill a step later
LRU, ARC, KEEP = Variant("lru"), Variant("arc"), Variant("lru", 120.0)


def followed(trace: Trace, host_bytes: int, shadows: Shadows, **more: object) -> Simulation:
    """A live store with shadows that work after each request; nobody takes over."""
    layout = sim_layout("v4-flash", trace.block_tokens)
    run = Simulation(
        trace.block_tokens, SimSettings(layout, host_bytes, is_ideal_space=True, placement=JUNCTIONS, **more)
    )  # type: ignore[arg-type]
    run.planner.watch(shadows)
    for request in trace.requests:
        run.step(request)
        shadows.work()
    return run


def resumed_tokens(shadows: Shadows, variant: Variant) -> int:
    return shadows.ghost(variant).rehearsal.planner.counts.hit_tokens


def without_outputs(trace: Trace) -> Trace:
    requests = [replace(request, output_ids=(), output_tokens=0) for request in trace.requests]
    return Trace(trace.name, trace.block_tokens, requests)


@pytest.mark.parametrize("name", ["chat", "code-agent", "think-high"])
@pytest.mark.parametrize("charge", [LRU, ARC, KEEP])
def test_the_ghost_of_what_is_in_charge_finds_what_the_store_finds(name: str, charge: Variant) -> None:
    """With breakpoints, branches and evictions: so a ghost of another variant can be believed."""
    trace = without_outputs(trace_of(workload_named(name), 3, 150))
    shadows = Shadows(
        Settings(host_bytes=256 * MIB, ideal_space=True, placement=JUNCTIONS), (LRU,), charge, sample_blocks=1 << 30
    )
    run = followed(trace, 256 * MIB, shadows, policy=charge.policy, keep_seconds=charge.keep_seconds)
    assert run.planner.counts.evicted, "memory is short"
    found = run.planner.counts.hit_tokens
    assert found and abs(resumed_tokens(shadows, charge) - found) <= 0.005 * found
    if charge is not ARC:  # it minds the order in which a state of the prompt's very end comes
        assert resumed_tokens(shadows, charge) == found


@pytest.mark.parametrize("name", ["chat", "code-agent"])
def test_ghosts_keep_what_is_put_behind_a_prompt(name: str) -> None:
    """Nearly to the token: it makes room for a prompt when that is asked for, and for the output when that is put."""
    trace = trace_of(workload_named(name), 3, 150)
    shadows = Shadows(
        Settings(host_bytes=8192 * MIB, ideal_space=True, placement=JUNCTIONS), (LRU,), LRU, sample_blocks=1 << 30
    )
    run = followed(trace, 8192 * MIB, shadows)
    assert not run.planner.counts.evicted[Tier.HOST], "all of it fits"
    assert resumed_tokens(shadows, LRU) == run.planner.counts.hit_tokens > 0
    assert shadows.ghost(LRU).rehearsal.planner.snapshot() == run.planner.snapshot()
    short = Shadows(
        Settings(host_bytes=256 * MIB, ideal_space=True, placement=JUNCTIONS), (LRU,), LRU, sample_blocks=1 << 30
    )
    found = followed(trace, 256 * MIB, short).planner.counts.hit_tokens
    assert abs(resumed_tokens(short, LRU) - found) <= 0.02 * found


def looping(rounds: int, documents: int, blocks: int, kind: str = "") -> Iterator[TraceRequest]:
    """Documents in turn, more than fit: LRU finds none again, and what refuses the new ones finds some each round."""
    for number in range(rounds * documents):
        which = number % documents
        ids = tuple(range(which * 1000, which * 1000 + blocks))
        yield TraceRequest(float(number), blocks * 128 + 1, 0, ids, session=f"s{which}", kind=kind)


def plain_shadows(host_bytes: int, variants: tuple[Variant, ...], charge: Variant) -> Shadows:
    return Shadows(
        Settings(host_bytes=host_bytes, ideal_space=True, placement=JUNCTIONS), variants, charge, sample_blocks=1 << 30
    )


def asked(shadows: Shadows, requests: Iterator[TraceRequest]) -> None:
    for request in requests:
        hints = Hints(session=request.session, kind=request.kind)
        asked = Request(chain_of(request.ids), request.input_tokens, hints, False, NO_SPEEDS)
        shadows.looked_up(NAMESPACE, asked, request.at)
        shadows.work()


def test_what_is_surely_better_takes_over_and_says_why() -> None:
    layout = sim_layout("plain:1", 128)
    shadows = plain_shadows(40 * 128, (LRU, KEEP), LRU)
    shadows.open(NAMESPACE, ROOT, layout)
    asked(shadows, looping(1, 8, 10))
    assert shadows.judge() is None, "too little was seen"
    asked(shadows, looping(40, 8, 10))
    verdict = shadows.judge()
    assert verdict is not None and verdict.variant == KEEP
    assert "lru, keep 120 s resumes" in verdict.why and "points more than lru" in verdict.why
    shadows.take_over(KEEP)
    assert shadows.judge() is None, "it is in charge and the best"


def test_the_plain_variant_comes_back_where_the_other_falls_below_it() -> None:
    layout = sim_layout("plain:1", 128)
    shadows = plain_shadows(40 * 128, (LRU, KEEP), KEEP)
    shadows.open(NAMESPACE, ROOT, layout)
    rng, now = random.Random(1), 0.0
    for _ in range(400):  # each document is asked for twice in a row: who refuses the new finds nothing
        now += 1.0
        start = rng.randrange(1 << 30) * 100
        ids = tuple(range(start, start + 10))
        asked(shadows, iter([TraceRequest(now, 1281, 0, ids), TraceRequest(now + 0.5, 1281, 0, ids)]))
    verdict = shadows.judge()
    assert verdict is not None and verdict.variant == LRU and "below" in verdict.why


def test_no_kind_of_request_pays_for_the_others() -> None:
    """The loop gains by a variant that takes a chat's share away: it stays out of charge."""
    shadows = plain_shadows(40 * 128, (LRU, KEEP), LRU)
    shadows.open(NAMESPACE, ROOT, sim_layout("plain:1", 128))
    requests = list(looping(40, 8, 10, kind="batch"))
    rng = random.Random(2)
    mixed: list[TraceRequest] = []
    for request in requests:
        mixed.append(request)
        start = 10_000_000 + rng.randrange(1 << 30) * 100
        ids = tuple(range(start, start + 2))
        mixed += [TraceRequest(request.at + part, 257, 0, ids, kind="chat") for part in (0.1, 0.2)]
    asked(shadows, iter(mixed))
    gain, chat = shadows.ghost(KEEP).gain, shadows.ghost(KEEP).classes["chat"]
    assert gain > 0 and chat < shadows.ghost(LRU).classes["chat"], "the case that the guard is for"
    assert shadows.judge() is None
    assert 0 < CLASS_SHARE < 1


def test_a_large_store_is_followed_by_whole_sessions() -> None:
    """Of 400 sessions about the sampled share is followed, each with all its turns."""
    layout = sim_layout("plain:1", 128)
    shadows = Shadows(
        Settings(host_bytes=4096 * 128, ideal_space=True, placement=JUNCTIONS), (LRU,), LRU, sample_blocks=1024
    )
    shadows.open(NAMESPACE, ROOT, layout)
    shadows.work()
    assert shadows.rate == 0.25
    seen: dict[str, int] = {}
    for turn in range(3):
        for session in range(400):
            ids = tuple(range(session * 1000, session * 1000 + 4 * (turn + 1)))
            before = shadows.requests
            asked(shadows, iter([TraceRequest(float(turn), len(ids) * 128, 0, ids, session=f"s{session}")]))
            seen[f"s{session}"] = seen.get(f"s{session}", 0) + shadows.requests - before
    assert set(seen.values()) == {0, 3}
    assert 60 < sum(count == 3 for count in seen.values()) < 140


def test_without_session_names_a_conversation_is_told_by_what_not_everybody_shares() -> None:
    popular = Popular()
    first = [chain_of((1, 2, 3, 1000 + number, 5000 + number)) for number in range(200)]
    depths = [popular.shared(chain) for chain in first]
    assert depths[0] == 0 and set(depths[10:]) == {3}, "three blocks are everybody's"
    assert popular.blocks == 3
    for number in range(20_000):  # bounded, whatever comes
        popular.shared(chain_of((1, 2, 3, 10_000 + number)))
    assert len(popular) <= 4096 + 1 and popular.blocks == 3


def test_what_does_not_fit_is_not_followed_and_counted() -> None:
    shadows = plain_shadows(40 * 128, (LRU,), LRU)
    shadows.open(NAMESPACE, ROOT, sim_layout("plain:1", 128))
    shadows.work()
    for number in range(MAX_WAITING + 7):
        request = Request(chain_of((number,)), 129, Hints(mode=InferenceMode.NON_THINK), False, NO_SPEEDS)
        shadows.looked_up(NAMESPACE, request, float(number))
    assert shadows.missed == 7
    assert shadows.work(10) == MAX_WAITING - 10
    assert shadows.work() == 0 and shadows.requests == MAX_WAITING


def test_scores_fade() -> None:
    ghost = Ghost(LRU, Settings(host_bytes=1 << 20, ideal_space=True, placement=JUNCTIONS))
    ghost.resumed, ghost.squares = 100.0, 100.0
    for _ in range(HALF_LIFE_REQUESTS):
        ghost.fade(0.5 ** (1 / HALF_LIFE_REQUESTS))
    assert ghost.resumed == pytest.approx(50.0) and ghost.squares == pytest.approx(25.0)


def test_a_put_that_nobody_asked_for_is_not_followed() -> None:
    shadows = plain_shadows(40 * 128, (LRU,), LRU)
    shadows.open(NAMESPACE, ROOT, sim_layout("plain:1", 128))
    shadows.written(NAMESPACE, Chain(0, ROOT, bytes(range(HASH_BYTES))), [], Hints(), 0.0)
    assert shadows.work() == 0 and len(shadows.ghost(LRU).rehearsal.planner) == 0


def test_an_adaptive_store_finds_at_least_what_the_plain_one_does() -> None:
    """A loop larger than memory: a variant that refuses what is new takes over, and a line says why."""
    trace = Trace("loop", 128, list(looping(60, 8, 10)))
    layout = sim_layout("plain:1", 128)
    plain = simulate(trace, SimSettings(layout, 40 * 128, is_ideal_space=True, placement=JUNCTIONS))
    adaptive = simulate(
        trace, SimSettings(layout, 40 * 128, policy="adaptive", is_ideal_space=True, placement=JUNCTIONS)
    )
    assert plain.resumed_tokens == 0, "each document went before it came again"
    assert adaptive.resumed_rate > 0.2
    assert len(adaptive.switches) == 1 and "points more than lru" in adaptive.switches[0]


def test_what_may_be_in_charge_follows_from_what_the_operator_fixed() -> None:
    assert variants_for("adaptive", None) == variants_for("adaptive", 0.0) == VARIANTS
    assert variants_for("adaptive", 5.0) == (Variant("lru", 5.0), Variant("arc", 5.0))
    assert {variant.policy for variant in variants_for("lru", None)} == {"lru"} and len(variants_for("lru", None)) > 1
    assert variants_for("gdsf", None) == (Variant("gdsf"),) and variants_for("lru", 7.0) == (Variant("lru", 7.0),)
    with pytest.raises(ConfigError, match="adaptiv"):
        variants_for("adaptiv", None)


def test_ghosts_of_a_store_with_slots_pay_for_them() -> None:
    """A row of 128 bytes takes a page there: a ghost that took 128 bytes would hold 32 times as much."""
    layout = sim_layout("plain:1", 128)
    shadows = Shadows(Settings(host_bytes=1 << 20), (LRU,), LRU, sample_blocks=1 << 30)
    run = Simulation(128, SimSettings(layout, 1 << 20))
    run.planner.watch(shadows)
    for request in looping(2, 100, 10):
        run.step(request)
        shadows.work()
    ghost = shadows.ghost(LRU).rehearsal.planner
    assert run.planner.counts.evicted[Tier.HOST] and len(ghost) == len(run.planner) == 256


def test_a_long_common_start_costs_no_walk_over_all_of_it() -> None:
    popular, chain = Popular(), chain_of(range(8192))
    for _ in range(1000):
        depth = popular.shared(chain)
    assert depth == 256 == len(popular)


def test_who_is_in_charge_changes_only_where_the_ghosts_are_followed() -> None:
    """The store's threads ask for scores meanwhile, and two threads must not move one ghost."""
    shadows = plain_shadows(40 * 128, (LRU, KEEP), LRU)
    shadows.open(NAMESPACE, ROOT, sim_layout("plain:1", 128))
    asked(shadows, looping(2, 8, 10))
    gdsf = Variant("gdsf")
    shadows.open(b"later", b"later root", sim_layout("plain:1", 128))
    shadows.chosen(gdsf)
    assert shadows.charge == LRU and gdsf not in shadows.scores()
    shadows.work()
    assert shadows.charge == gdsf and gdsf in shadows.scores()
    names = set(shadows.ghost(LRU).rehearsal.planner.namespaces)
    assert set(shadows.ghost(gdsf).rehearsal.planner.namespaces) == names == {NAMESPACE, b"later"}
    asked(shadows, looping(3, 3, 10))
    assert shadows.scores()[gdsf] > 0, "it is followed from then on"


def test_a_change_of_traffic_is_seen_in_what_was_asked_last() -> None:
    """The one in charge won for long: what it gained then does not hide that it loses now."""
    shadows = plain_shadows(40 * 128, (LRU, KEEP), KEEP)
    shadows.open(NAMESPACE, ROOT, sim_layout("plain:1", 128))
    asked(shadows, looping(120, 8, 10))
    assert shadows.ghost(LRU).gain < 0 and shadows.judge() is None
    now = 1000.0
    for number in range(300):  # each new document twice in a row
        now += 0.2
        ids = tuple(range((number + 1) * 100_000, (number + 1) * 100_000 + 10))
        asked(shadows, iter([TraceRequest(now, 1281, 0, ids), TraceRequest(now + 0.1, 1281, 0, ids)]))
        if shadows.judge() is not None:
            break
    verdict = shadows.judge()
    assert verdict is not None and verdict.variant == LRU and verdict.why.endswith("below lru lately")
    assert shadows.ghost(LRU).gain < 0, "over the long run it is still ahead"
    shadows.take_over(LRU)
    assert shadows.judge() is None or shadows.judge() != verdict
