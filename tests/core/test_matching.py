"""Matches against a brute-force reading of the same index: any tail, prompt, alignment, and optional groups."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from planner_bench import MIB, NAME, WORKER, Bench

from kvstore.core import presets
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, PlanKind, Speeds
from kvstore.core.matching import Request

LAYOUTS = {
    "tiny": presets.v4_tiny(),
    "states at every second boundary": replace(presets.v4_tiny(), resume_alignment=256),
    "optional mtp": presets.v4_flash(mtp=True),
}
BLOCKS = 13


def stored(bench: Bench, rng: random.Random) -> None:
    """A chain that was put in parts, some of its states, and perhaps a loss in its middle."""
    groups = len(bench.layout.groups)
    for _ in range(3):
        end = rng.randrange(1, BLOCKS + 1)
        bench.put("a", end, states=tuple(block for block in range(end) if rng.random() < 0.3))
    for group in range(groups):
        if rng.random() < 0.4:
            bench.do(bench.planner.report(bench.key("a", rng.randrange(BLOCKS), group)))
    bench.planner.check()


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("seed", range(12))
def test_a_match_is_what_a_walk_over_all_blocks_finds(name: str, seed: int) -> None:
    layout: ModelLayout = LAYOUTS[name]
    rng = random.Random(f"{name}/{seed}")
    bench = Bench(layout, pages=1 << 15, disk=rng.choice([0, 64 * MIB]))
    stored(bench, rng)
    names = [BlockKey(bench.chain("a", BLOCKS).hash_at(block), 0) for block in range(BLOCKS)]
    depth = next((block for block, key in enumerate(names) if bench.planner.entry(key) is None), BLOCKS)
    ends = [(b + 1) * 128 for b in range(depth) if bench.planner.entry(BlockKey(names[b].prefix, 1)) is not None]
    for _ in range(20):
        first = rng.randrange(depth + 1)
        last = rng.randrange(first, BLOCKS + 1)  # also beyond what is stored, and an empty tail
        prompt = rng.randrange(1, BLOCKS * 128 + 300)  # shorter and longer than the chain that is sent
        points = tuple(rng.randrange(3 * BLOCKS * 128) for _ in range(rng.randrange(3)))
        can_replay = rng.random() < 0.5
        speeds = Speeds(rng.choice([{}, {Tier.HOST: 1e9}]))  # no price is whole: the deepest plan is chosen
        request = Request(bench.chain("a", last, first), prompt, Hints(breakpoints=points), can_replay, speeds)
        match, actions = bench.planner.lookup(NAME, request, WORKER, bench.now)
        bench.do(actions)
        bench.planner.check()

        rows = min(depth, last)
        limit = min(rows * 128, prompt - 1) // layout.resume_alignment * layout.resume_alignment
        wanted = [end for end in reversed(ends) if end <= limit and end % layout.resume_alignment == 0]
        deepest = wanted[0] if wanted else 0
        assert match.rows_tokens == rows * 128
        assert [point.tokens for point in match.resume_points] == wanted
        window = layout.replay_tokens or 0
        is_worth = can_replay and limit - window > deepest
        assert (match.replay is not None) == is_worth
        if match.replay is not None:
            assert (match.replay.tokens, match.replay.compute_from) == (limit, limit - window)
        assert match.plan.kind is (
            PlanKind.REPLAY if is_worth else PlanKind.RESUME if wanted else PlanKind.COLD
        ) and match.plan.tokens == (limit if is_worth else deepest)
        assert all(match.plan.tokens < at <= prompt and at % layout.resume_alignment == 0 for at in match.snapshots.at)
        bench.planner.release(match.lease or 0)
