"""Prices of plans: the chosen one is the least of all, whatever is hot, queued or unknown."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planner_bench import MIB, NAME, WORKER, Bench

from kvstore.core import presets
from kvstore.core.actions import Action, Copy
from kvstore.core.cost import CostModel, load_seconds
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import Hints, Match, MissReason, PlanKind, Speeds
from kvstore.core.matching import Request

DEMO = presets.v4_demo()
BLOCKS = 40
LAYOUTS = {
    "demo": DEMO,
    "states at every second boundary": replace(DEMO, resume_alignment=256),
    "full attention": presets.full_tiny(),
}
COST = CostModel.of(DEMO)
assert COST is not None


def cool(bench: Bench, rows_kept: int, states_kept: set[int] = frozenset()) -> None:
    """Take off the host, leaf first, what a fuller one would have let go: rows from a block on, and states."""
    for block in range(BLOCKS, -1, -1):
        for group in (1, 0):
            entry = bench.planner.entry(bench.key("a", block, group))
            keeps = block < rows_kept if group == 0 else block in states_kept and block < rows_kept
            if entry is not None and not keeps and entry.is_ready(Tier.HOST) and entry.is_ready(Tier.DISK):
                bench.do(list(bench.planner._room.lose(entry, Tier.HOST)))
    bench.planner.check()


def asked(bench: Bench, speeds: Speeds, prompt: int = BLOCKS * 128 + 70, **more: bool) -> tuple[Match, list[Action]]:
    request = Request(bench.chain("a", BLOCKS), prompt, Hints(), more.pop("can_replay", True), speeds, **more)
    return bench.planner.lookup(NAME, request, WORKER, bench.now)


def least(bench: Bench, speeds: Speeds, prompt: int, can_replay: bool) -> tuple[float, int]:
    """Least seconds of all plans at all boundaries, and the tokens that the best of them computes from."""
    layout, cost = bench.layout, CostModel.of(bench.layout)
    assert cost is not None and speeds.worker_flops is not None
    block = layout.block_tokens
    hot = depth = 0
    for index in range(BLOCKS):
        entry = bench.planner.entry(bench.key("a", index))
        if entry is None:
            break
        depth = index + 1
        hot += hot == index and entry.is_ready(Tier.HOST)
    plans = [(cost.prefill_flops(0, prompt) / speeds.worker_flops, 0)]
    for end in range(1, depth + 1):
        tokens = end * block
        if tokens % layout.resume_alignment or tokens > prompt - 1:
            continue
        rows = layout.rows.nbytes
        bytes_by_tier = {Tier.HOST: min(end, hot) * rows, Tier.DISK: max(end - hot, 0) * rows}
        starts = [tokens - layout.replay_tokens] if can_replay and layout.replay_tokens else []
        if layout.state_group is None:
            starts = [tokens]
        for start in starts:
            seconds = load_seconds(bytes_by_tier, speeds)
            if start > 0 and seconds is not None:
                plans.append((seconds + cost.prefill_flops(start, prompt) / speeds.worker_flops, start))
        state = bench.planner.entry(BlockKey(bench.key("a", end - 1).prefix, 1)) if layout.state_group else None
        if state is not None:
            tier = Tier.HOST if state.is_ready(Tier.HOST) else Tier.DISK
            bytes_by_tier[tier] += state.facts.raw_bytes
            seconds = load_seconds(bytes_by_tier, speeds)
            assert seconds is not None
            plans.append((seconds + cost.prefill_flops(tokens, prompt) / speeds.worker_flops, tokens))
    return min(plans)


@pytest.mark.parametrize("seed", range(40))
def test_no_plan_is_predicted_to_be_quicker_than_the_chosen_one(seed: int) -> None:
    rng = random.Random(seed)
    layout = replace(DEMO, resume_alignment=rng.choice([128, 256]))
    bench = Bench(layout, pages=1 << 13, disk=64 * MIB)
    bench.put("a", BLOCKS, states=tuple(block for block in range(BLOCKS) if rng.random() < rng.choice([0.0, 0.1, 0.4])))
    cool(bench, rng.randrange(BLOCKS + 1), {block for block in range(BLOCKS) if rng.random() < 0.5})
    for _ in range(12):
        prompt = rng.randrange(200, BLOCKS * 128 + 300)
        flops = COST.prefill_flops(0, prompt) / 10 ** rng.uniform(-2, 0)
        speed = {Tier.HOST: 10 ** rng.uniform(6, 9.5), Tier.DISK: 10 ** rng.uniform(5.5, 9)}
        queued = {Tier.DISK: tuple(rng.randrange(2_000_000) for _ in range(rng.randrange(4)))}
        speeds, can_replay = Speeds(speed, flops, queued), rng.random() < 0.5
        before = bench.planner.snapshot()
        match, actions = asked(bench, speeds, prompt, can_replay=can_replay)
        seconds, _ = least(bench, speeds, prompt, can_replay)
        plan = match.plan
        assert plan.load_seconds is not None and plan.recompute_seconds is not None
        assert plan.load_seconds + plan.recompute_seconds == pytest.approx(seconds)
        assert match.cold_seconds == pytest.approx(COST.prefill_flops(0, prompt) / flops)
        deepest = max(
            [point.tokens for point in match.resume_points] + ([match.replay.tokens] if match.replay else []), default=0
        )
        assert (match.reason is MissReason.SLOWER_THAN_RECOMPUTE) == (plan.tokens < deepest) or prompt <= 128
        bench.planner.release(match.lease or 0)
        for action in actions:  # nothing moves: the next one asks the same store
            assert isinstance(action, Copy)
            bench.do(bench.planner.failed(action.facts.key, action.facts.generation, Tier.HOST, bench.now))
        assert bench.planner.snapshot() == before


def test_rows_that_are_hot_are_replayed_where_the_rest_is_too_slow() -> None:
    bench = Bench(DEMO, pages=1 << 13, disk=64 * MIB)
    bench.put("a", BLOCKS)
    cool(bench, 20)
    flops = COST.prefill_flops(0, BLOCKS * 128 + 70) / 0.1
    match, actions = asked(bench, Speeds({Tier.HOST: 1e9, Tier.DISK: 1e5}, flops))
    assert match.plan.kind is PlanKind.REPLAY and match.plan.tokens == 20 * 128 and not actions
    assert match.replay is not None and match.replay.tokens == BLOCKS * 128
    assert match.reason is MissReason.SLOWER_THAN_RECOMPUTE


def test_a_plan_waits_for_its_turns_behind_others_and_not_for_all_of_them() -> None:
    speed = {Tier.DISK: 1e6}
    assert load_seconds({Tier.DISK: 1_000_000}, Speeds(speed)) == 1.0
    # a flow of 10 MB takes turns with this one of 1 MB, and one of 0.2 MB is over before
    assert load_seconds({Tier.DISK: 1_000_000}, Speeds(speed, None, {Tier.DISK: (10_000_000, 200_000)})) == 2.2
    assert load_seconds({Tier.HOST: 0}, Speeds(speed, None, {Tier.DISK: (10_000_000,)})) == 0.0
    # what is being read for this very plan is read once
    assert load_seconds({Tier.DISK: 900}, Speeds({Tier.DISK: 1e3}, None, {Tier.DISK: (900,)}), {Tier.DISK: 900}) == 0.9


def test_what_is_being_promoted_is_queued_until_it_is_there_or_has_failed() -> None:
    bench = Bench(DEMO, pages=1 << 13, disk=64 * MIB)
    bench.put("a", BLOCKS, states=(BLOCKS - 1,))
    cool(bench, 10)
    copies = bench.planner
    assert copies.promoting_bytes == ()
    _, first = asked(bench, Speeds({}))
    cold = (BLOCKS - 10) * DEMO.rows.nbytes + DEMO.groups[1].nbytes
    assert copies.promoting_bytes == (cold,)
    match, second = asked(bench, Speeds({Tier.HOST: 1e12, Tier.DISK: 1e6}, 1e9, {Tier.DISK: copies.promoting_bytes}))
    assert not second, "one read serves both"
    deepest = match.resume_points[0]
    assert deepest.load_seconds == pytest.approx(cold / 1e6, rel=1e-3), "what is on its way is not waited for twice"
    for index, action in enumerate(first):
        assert isinstance(action, Copy)
        end = bench.planner.arrived if index % 2 else bench.planner.failed
        if index < len(first) - 1:
            bench.do(end(action.facts.key, action.facts.generation, Tier.HOST, bench.now))
    assert 0 < sum(copies.promoting_bytes) < cold
    for action in first:
        if isinstance(action, Copy):
            bench.do(bench.planner.failed(action.facts.key, action.facts.generation, Tier.HOST, bench.now))
    assert copies.promoting_bytes == ()


def test_a_price_is_unknown_where_a_speed_is_and_then_the_deepest_plan_is_taken() -> None:
    bench = Bench(DEMO, pages=1 << 13, disk=64 * MIB)
    bench.put("a", BLOCKS, states=(BLOCKS - 1,))
    cool(bench, 10)
    match, _ = asked(bench, Speeds({Tier.HOST: 1e9}, 1e18))  # the disk has never been read: any load may be worth it
    assert match.plan.tokens == BLOCKS * 128 and match.plan.load_seconds is None
    assert match.plan.recompute_seconds is not None and match.cold_seconds is not None
    match, _ = asked(bench, Speeds({Tier.HOST: 1e9, Tier.DISK: 1e9}))
    assert match.plan.tokens == BLOCKS * 128 and match.plan.recompute_seconds is None and match.cold_seconds is None


def test_states_of_shallower_points_come_along_right_after_their_rows() -> None:
    bench = Bench(DEMO, pages=1 << 14, disk=256 * MIB)
    blocks, states = 400, tuple(range(19, 400, 20))
    bench.put("a", blocks, states=states)
    for block in range(blocks - 1, -1, -1):
        for group in (1, 0):
            entry = bench.planner.entry(bench.key("a", block, group))
            if entry is not None:
                bench.do(list(bench.planner._room.lose(entry, Tier.HOST)))
    request = Request(bench.chain("a", blocks), blocks * 128 + 1, Hints(), False, Speeds({Tier.DISK: 1e9}, 1e9))
    match, actions = bench.planner.lookup(NAME, request, WORKER, bench.now)
    order = [(copy.facts.block, copy.facts.key.group) for copy in actions if isinstance(copy, Copy)]
    assert [block for block, group in order if group == 0] == list(range(blocks))
    steps = [block for block, group in order[:-1] if group == 1]
    assert 2 <= len(steps) <= 7 and set(steps) <= set(states)
    assert all(order[order.index((block, 1)) - 1] == (block, 0) for block in steps)
    assert {point.tokens // 128 - 1 for point in match.resume_points if point.comes_along} == set(steps)
    step_bytes = len(steps) * DEMO.groups[1].nbytes
    assert step_bytes <= blocks * DEMO.rows.nbytes / 8

    bench.planner.release(match.lease or 0)
    unpriced = Request(bench.chain("a", blocks), blocks * 128 + 1, Hints(), False, Speeds({}))
    for action in actions:
        if isinstance(action, Copy):
            bench.planner.failed(action.facts.key, action.facts.generation, Tier.HOST, bench.now)
    match, actions = bench.planner.lookup(NAME, unpriced, WORKER, bench.now)
    assert len(actions) == blocks + 1, "a load that nobody can abandon takes no steps along"


def test_a_lookup_of_what_is_hot_starts_nothing() -> None:
    bench = Bench(DEMO, pages=1 << 13, disk=64 * MIB)
    bench.put("a", BLOCKS, states=(9, 19, BLOCKS - 1))
    cool(bench, 25, {9})
    match, actions = asked(bench, Speeds({}), can_replay=False, hot_only=True)
    assert (match.plan.kind, match.plan.tokens, match.rows_tokens) == (PlanKind.RESUME, 10 * 128, 25 * 128)
    assert not actions and all(point.tier is Tier.HOST for point in match.resume_points)
    match, actions = asked(bench, Speeds({}), can_replay=True, hot_only=True)
    assert match.plan.kind is PlanKind.REPLAY and match.plan.tokens == 25 * 128 and not actions
    cool(bench, 0)
    match, actions = asked(bench, Speeds({}), hot_only=True)
    assert match.plan.kind is PlanKind.COLD and not actions and match.lease is None
