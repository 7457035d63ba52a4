"""Classes of objects: what a request says, what is seen, and what follows from it."""

from __future__ import annotations

import random

import pytest
from planner_bench import MIB, NAME, TINY, Bench

from kvstore.core.classes import Lives, announced_class, output_is_stripped
from kvstore.core.explain import explained
from kvstore.core.index import ObjectClass
from kvstore.core.keys import Tier
from kvstore.core.match import Hints, InferenceMode, Speeds
from kvstore.core.matching import Request
from kvstore.core.reserve import ReserveStatus

BLOCK = TINY.block_tokens
HIGH, MAX, NON = InferenceMode.THINK_HIGH, InferenceMode.THINK_MAX, InferenceMode.NON_THINK
SHARED, SESSION, SCRATCH = ObjectClass.SHARED, ObjectClass.SESSION, ObjectClass.SCRATCH


def classes(bench: Bench, name: str, blocks: int, group: int = 0) -> str:
    """A letter a block: s(H)ared, (s)ession, s(c)ratch, - where nothing is."""
    letters = {SHARED: "H", SESSION: "s", SCRATCH: "c"}
    entries = [bench.planner.entry(bench.key(name, block, group)) for block in range(blocks)]
    return "".join("-" if entry is None else letters[entry.facts.object_class] for entry in entries)


@pytest.mark.parametrize(
    ("hints", "strips"),
    [
        (Hints(mode=HIGH), True),
        (Hints(mode=MAX), True),
        (Hints(mode=HIGH, has_tools=True), False),
        (Hints(mode=NON), False),
        (Hints(), False),
        (Hints(mode=NON, kind="quick"), True),
        (Hints(mode=HIGH, has_tools=True, kind="quick"), True),
    ],
)
def test_what_the_next_turn_strips_is_known_by_mode_tools_and_kind(hints: Hints, strips: bool) -> None:
    assert output_is_stripped(hints) is strips


def test_reasoning_without_tools_is_scratch_from_the_block_with_the_prompts_last_token_on() -> None:
    hints = Hints(mode=HIGH, breakpoints=(BLOCK,), prompt_tokens=3 * BLOCK)
    kinds = [announced_class(block * BLOCK, hints) for block in range(1, 5)]
    assert kinds == [SHARED, SESSION, SCRATCH, SCRATCH]
    assert announced_class(9 * BLOCK, Hints(mode=HIGH)) is SESSION, "where the prompt ended was not said"


def test_tools_and_non_thinking_keep_the_output_and_its_state() -> None:
    for hints in ({"mode": HIGH, "has_tools": True}, {"mode": NON}):
        bench = Bench()
        assert bench.lookup("a", 4, turn=2, **hints).snapshots.at_output_end
        bench.put("a", 6, states=(5,), prompt_tokens=4 * BLOCK, **hints)
        assert classes(bench, "a", 6) == "ssssss" and classes(bench, "a", 6, 1) == "-----s"


def test_no_state_is_taken_at_the_end_of_an_output_that_nobody_goes_on_from() -> None:
    bench = Bench()
    assert not bench.lookup("a", 4, turn=2, mode=HIGH).snapshots.at_output_end
    assert not bench.lookup("a", 4, turn=2, mode=NON, kind="quick").snapshots.at_output_end
    assert bench.lookup("a", 4, turn=1, mode=HIGH).snapshots.at_output_end, "the title comes behind it"


def test_a_second_session_makes_shared_what_it_reaches_and_no_more() -> None:
    bench = Bench()
    bench.put("a/x", 8, states=(3, 7), session="one")
    assert classes(bench, "a/x", 8) == "ssssssss"
    bench.lookup("a/x", 8, session="one")
    assert classes(bench, "a/x", 8) == "ssssssss", "the same session"
    bench.lookup("a/y", 8, session="two")  # names share their first four blocks
    assert classes(bench, "a/x", 8) == "HHHHssss"
    assert classes(bench, "a/x", 8, 1) == "---H---s"
    bench.put("a/y", 8, first=4, states=(3,), session="two")
    assert classes(bench, "a/y", 8) == "HHHHssss"
    assert bench.planner.classes.changes[SHARED] == 5


def test_who_names_no_session_shares_nothing() -> None:
    bench = Bench()
    bench.put("a", 4, session="one")
    bench.lookup("a", 4)
    assert classes(bench, "a", 4) == "ssss"
    bench.put("b", 4)
    bench.lookup("b", 4, session="one")
    assert classes(bench, "b", 4) == "ssss", "the first that names itself owns it"
    bench.lookup("b", 4, session="two")
    assert classes(bench, "b", 4) == "HHHH"


def test_a_breakpoint_of_a_lookup_shares_what_was_put_without_one() -> None:
    bench = Bench()
    bench.put("a", 6, session="one")
    bench.lookup("a", 6, session="one", breakpoints=(2 * BLOCK, 5 * BLOCK + 7))
    assert classes(bench, "a", 6) == "HHHHHs"


def test_a_put_of_what_another_session_has_makes_it_shared() -> None:
    bench = Bench()
    bench.put("a", 4, session="one")
    assert bench.put("a", 6, session="two")[:4] == [ReserveStatus.EXISTS] * 4
    assert classes(bench, "a", 6) == "HHHHss"


def test_scratch_that_a_later_turn_uses_was_none() -> None:
    bench = Bench(disk=64 * MIB)
    bench.put("a", 6, states=(5,), session="one", mode=HIGH, turn=1, prompt_tokens=3 * BLOCK)
    assert classes(bench, "a", 6) == "sscccc"
    assert bench.tiers("a", 1) == {Tier.HOST, Tier.DISK}
    assert bench.tiers("a", 5) == bench.tiers("a", 5, 1) == {Tier.HOST}, "scratch is not written"
    bench.lookup("a", 6, session="one", kind="quick")
    assert classes(bench, "a", 6) == "sscccc", "a title is no later turn"
    bench.lookup("a", 6, session="one", turn=2)
    assert classes(bench, "a", 6) == "ssssss"
    entry = bench.planner.entry(bench.key("a", 5))
    assert entry is not None and entry.facts.ttl_seconds is None
    bench.do(bench.planner.tick(bench.now + 1))
    assert bench.tiers("a", 5) == bench.tiers("a", 5, 1) == {Tier.HOST, Tier.DISK}


def test_a_branch_of_a_quick_instruction_is_scratch_and_its_prompt_is_not() -> None:
    bench = Bench()
    bench.put("a", 4, states=(3,), session="one")
    for branch in ("a/action", "a/query"):
        match = bench.lookup(branch, 5, session="one", kind="quick")
        assert match.plan.tokens == 4 * BLOCK
        bench.put(branch, 6, first=4, session="one", kind="quick", prompt_tokens=5 * BLOCK)
        assert classes(bench, branch, 6) == "sssscc"
    assert bench.planner.leases.lease_count == 2, "the state that they branch from is held meanwhile"


def test_scratch_goes_after_its_life_and_a_ttl_that_was_given_wins() -> None:
    bench = Bench(lives=Lives(scratch=60.0))
    bench.put("a", 6, states=(5,), mode=HIGH, turn=1, prompt_tokens=3 * BLOCK)
    bench.put("b", 6, mode=HIGH, turn=1, prompt_tokens=3 * BLOCK, ttl_seconds=500.0)
    bench.do(bench.planner.tick(bench.now + 61))
    assert classes(bench, "a", 6) == "ss----" and classes(bench, "b", 6) == "sscccc"
    bench.planner.check()
    bench.do(bench.planner.tick(bench.now + 501))
    assert classes(bench, "b", 6) == "------", "it was given for all of the put"


def test_lives_of_other_classes_follow_what_an_object_becomes() -> None:
    bench = Bench(lives=Lives(session=100.0, shared=1000.0))
    bench.put("a", 4, session="one")
    bench.put("b", 4, session="one")
    bench.lookup("a", 4, session="two")
    bench.do(bench.planner.tick(bench.now + 200))
    bench.do(bench.planner.tick(bench.now + 202))
    assert classes(bench, "a", 4) == "HHHH" and classes(bench, "b", 4) == "----"


def test_stripped_reasoning_pushes_nothing_out() -> None:
    bench = Bench(pages=64)
    bench.put("a", 48)
    statuses = bench.put("b", 48, mode=HIGH, turn=3, prompt_tokens=2 * BLOCK)
    assert statuses[0] is ReserveStatus.WANTED and statuses[-1] is ReserveStatus.NO_ROOM
    assert not bench.dropped and classes(bench, "a", 48) == "s" * 48
    statuses = bench.put("c", 48, mode=HIGH, turn=1, prompt_tokens=2 * BLOCK)
    assert set(statuses) == {ReserveStatus.WANTED}, "a title may come"


def test_hit_tokens_are_counted_by_class() -> None:
    bench = Bench()
    bench.put("a", 6, states=(5,), session="one", breakpoints=(2 * BLOCK,))
    bench.lookup("a", 6, session="one")
    assert bench.planner.counts.class_hit_tokens == {SHARED: 2 * BLOCK, SESSION: 4 * BLOCK}
    bench.lookup("a", 6, session="two")  # counted as it was found
    assert bench.planner.counts.class_hit_tokens == {SHARED: 4 * BLOCK, SESSION: 8 * BLOCK}
    bench.lookup("a", 6, session="two")
    assert bench.planner.counts.class_hit_tokens == {SHARED: 10 * BLOCK, SESSION: 8 * BLOCK}


def test_explain_tells_the_class_that_an_object_has_now() -> None:
    bench = Bench()
    bench.put("a", 4, session="one")
    bench.lookup("a", 4, session="two")
    planner = bench.planner
    last = planner.asked(NAME, Request(bench.chain("a", 4), 4 * BLOCK, Hints(), False, Speeds({})), bench.now)
    told = explained(last, planner.namespaces, planner.room, planner.misses.ghosts, 10, bench.now)
    assert told.classes == {SHARED: 4}


@pytest.mark.parametrize("seed", range(20))
def test_shared_stays_closed_under_prefix_whatever_comes(seed: int) -> None:
    rng = random.Random(seed)
    bench = Bench(pages=96, disk=2 * MIB, lives=Lives(scratch=5.0))
    for _ in range(120):
        name, blocks = f"{rng.choice('ab')}/{rng.randrange(4)}", rng.randrange(1, 12)
        said = {
            "session": rng.choice(["", "one", "two", "three"]),
            "mode": rng.choice([None, HIGH, NON]),
            "turn": rng.randrange(4),
            "kind": rng.choice(["", "", "quick"]),
            "breakpoints": rng.choice([(), (2 * BLOCK,)]),
        }
        if rng.random() < 0.5:
            match = bench.lookup(name, blocks, **said)
            if match.lease is not None:
                bench.planner.release(match.lease)
        else:
            prompt = rng.choice([None, rng.randrange(1, 12 * BLOCK)])
            bench.put(name, blocks, states=(blocks - 1,), prompt_tokens=prompt, **said)
        if rng.random() < 0.2:
            bench.do(bench.planner.tick(bench.now))
            bench.planner.check()
