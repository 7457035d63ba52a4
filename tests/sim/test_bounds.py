"""The bounds: against textbook Belady, against every choice there is on tiny traces, and the published figures."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.sim.bounds import References, infinite, minimum
from kvstore.sim.reading import load_trace
from kvstore.sim.trace import Trace, TraceRequest

BLOCK = 4  # tokens


def request(ids: Sequence[int], tokens: int | None = None, outputs: Sequence[int] = ()) -> TraceRequest:
    prompt = tuple(ids)
    length = len(prompt) * BLOCK + 1 if tokens is None else tokens
    return TraceRequest(at=0.0, input_tokens=length, output_tokens=0, ids=prompt, output_ids=tuple(outputs))


def trace(*requests: TraceRequest) -> Trace:
    return Trace("made up", BLOCK, requests)


def test_a_cache_without_end_finds_what_was_there_before():
    found = infinite(trace(request([1, 2, 3]), request([1, 2, 4]), request([5]), request([1, 2, 4, 6])))
    assert (found.blocks, found.hit_blocks, found.hit_tokens, found.resumed_tokens) == (11, 5, 20, 20)
    assert found.input_tokens == 13 + 13 + 5 + 17
    assert found.capacity_blocks is None


def test_the_optimum_keeps_what_is_used_again_soonest():
    both = trace(request([1]), request([2]), request([2]), request([1]), request([2]))
    assert [minimum(both, blocks).hit_blocks for blocks in (0, 1, 2, 3)] == [0, 2, 3, 3]


def test_a_block_that_is_not_used_again_takes_no_room():
    once = trace(request([1]), *(request([name]) for name in range(2, 50)), request([1]))
    assert minimum(once, 1).hit_blocks == 1


def test_a_prompt_is_never_resumed_at_its_end():
    twice = trace(request([1, 2], tokens=2 * BLOCK), request([1, 2], tokens=2 * BLOCK))
    for bound in (infinite(twice), minimum(twice, 2)):
        assert (bound.hit_tokens, bound.resumed_tokens) == (8, 4)


def test_what_cannot_be_resumed_takes_no_room_from_what_can():
    """One block of room: block 2 is found sooner, but only block 1's hit saves work."""
    requests = trace(request([1]), request([2], tokens=BLOCK), request([2], tokens=BLOCK), request([1]))
    bound = minimum(requests, 1)
    assert (bound.hit_blocks, bound.resumed_tokens) == (1, 4)


def test_an_output_can_be_found_but_finds_nothing():
    turns = trace(request([1], outputs=[2, 3]), request([1, 2, 3]), request([4], outputs=[1, 2]))
    bound = infinite(turns)
    assert (bound.blocks, bound.hit_blocks) == (5, 3)
    assert minimum(turns, 3).hit_blocks == 3 and minimum(turns, 1).hit_blocks == 1


def test_a_partial_block_counts_only_where_asked():
    twice = trace(request([1, 2], tokens=BLOCK + 1), request([1, 2], tokens=BLOCK + 1))
    assert (infinite(twice).blocks, infinite(twice).hit_blocks) == (2, 1)
    counted = infinite(twice, count_partial=True)
    assert (counted.blocks, counted.hit_blocks, counted.hit_tokens, counted.resumed_tokens) == (4, 2, 5, 5)


def test_resume_points_are_where_the_engine_can_resume():
    twice = trace(request([1, 2, 3]), request([1, 2, 3]))
    assert infinite(twice, resume_alignment=2 * BLOCK).resumed_tokens == 2 * BLOCK
    assert infinite(twice, resume_alignment=4 * BLOCK).resumed_tokens == 0
    assert minimum(twice, 9, resume_alignment=2 * BLOCK).resumed_tokens == 2 * BLOCK


def test_an_empty_trace_has_no_rates():
    for nothing in (trace(), trace(request([], tokens=0)), trace(request([], tokens=3))):
        assert infinite(nothing).block_hit_rate == minimum(nothing, 5).resumed_token_rate == 0.0


@st.composite
def chained_traces(draw: st.DrawFn, most_requests: int = 6, depth: int = 3, outputs: bool = True) -> Trace:
    """Random walks down a small tree; ids name the whole walk. Some end at a block's end, some have outputs."""
    names: dict[tuple[int, ...], int] = {}
    walks = st.lists(st.integers(0, 1), min_size=1, max_size=depth)
    requests = []
    for walk in draw(st.lists(walks, min_size=1, max_size=most_requests)):
        ids = [names.setdefault(tuple(walk[: end + 1]), len(names)) for end in range(len(walk))]
        prompt = draw(st.integers(1, len(ids))) if outputs else len(ids)
        ends_on_a_block = draw(st.booleans())
        requests.append(request(ids[:prompt], prompt * BLOCK + (not ends_on_a_block), ids[prompt:]))
    return trace(*requests)


@settings(max_examples=100, deadline=None)
@given(chained_traces(), st.integers(0, 4))
def test_no_choice_of_blocks_does_better_and_one_does_as_well(requests: Trace, capacity: int):
    bound = minimum(requests, capacity)
    assert bound.hit_blocks == best_of_all(requests, capacity, to_resume=False)
    assert bound.resumed_tokens == BLOCK * best_of_all(requests, capacity, to_resume=True)
    assert bound.hit_blocks <= infinite(requests).hit_blocks == minimum(requests, 99).hit_blocks
    assert infinite(requests).resumed_tokens == minimum(requests, 99).resumed_tokens


@settings(max_examples=100, deadline=None)
@given(chained_traces(most_requests=30, depth=6, outputs=False), st.integers(0, 20))
def test_what_textbook_belady_keeps_is_closed_under_prefix(requests: Trace, capacity: int):
    """So the rule of prefixes takes nothing from it: its hits are those of the bound."""
    assert minimum(requests, capacity).hit_blocks == textbook_belady(requests, capacity, is_closed=True)


@settings(max_examples=100, deadline=None)
@given(chained_traces(most_requests=30, depth=6), st.integers(0, 20))
def test_where_outputs_are_made_again_all_hits_are_parts_of_prefixes_still(requests: Trace, capacity: int):
    """A parent need not be kept until an output makes it anew, so what is kept need not be closed meanwhile."""
    assert minimum(requests, capacity).hit_blocks == textbook_belady(requests, capacity, is_closed=False)


def test_many_sizes_come_from_one_reading():
    requests = trace(*(request([name % 7, 10 + name % 7]) for name in range(40)))
    references = References(requests)
    assert [references.minimum(size) for size in range(9)] == [minimum(requests, size) for size in range(9)]
    assert references.unique_blocks == 14


def best_of_all(requests: Trace, capacity: int, *, to_resume: bool) -> int:
    """Try every set of blocks that could be kept between any two requests."""
    best = {frozenset[int](): 0}  # hits so far, by what is kept
    for one in requests.requests:
        limit = (one.input_tokens - 1) // BLOCK if to_resume else len(one.ids)
        after: dict[frozenset[int], int] = {}
        for kept, hits in best.items():
            missed = next((depth for depth, name in enumerate(one.ids) if name not in kept), len(one.ids))
            now = hits + min(missed, limit)
            at_hand = kept | set(one.ids) | set(one.output_ids)
            for size in range(min(capacity, len(at_hand)) + 1):
                for chosen in combinations(sorted(at_hand), size):
                    chosen_set = frozenset(chosen)
                    after[chosen_set] = max(after.get(chosen_set, 0), now)
        best = after
    return max(best.values())


def textbook_belady(requests: Trace, capacity: int, *, is_closed: bool) -> int:
    """Hits of Belady's rule with bypass, step by step, prefixes not looked at; checks that what it keeps is closed."""
    uses: list[tuple[int, bool]] = []  # (block, whether finding it is a hit)
    parents: dict[int, int] = {}
    ends = set()
    for one in requests.requests:
        uses += [(name, True) for name in one.ids] + [(name, False) for name in one.output_ids]
        ends.add(len(uses) - 1)
        whole = [*one.ids, *one.output_ids]
        parents |= dict(zip(whole[1:], whole, strict=False))
    kept: dict[int, int] = {}  # block -> when it is used next
    hits = 0
    for now, (name, is_prompt) in enumerate(uses):
        hits += name in kept and is_prompt
        kept.pop(name, None)
        after = next((then for then in range(now + 1, len(uses)) if uses[then][0] == name), None)
        if after is not None and uses[after][1]:
            kept[name] = after
            if len(kept) > capacity:
                del kept[max(kept, key=kept.__getitem__)]
        if is_closed and now in ends:
            assert all(parents[child] in kept for child in kept if child in parents)
    return hits


CONVERSATION, SYNTHETIC = "mooncake_conversation", "mooncake_synthetic"
FLASH_BLOCK_BYTES = 4 * 449_824  # 512 tokens of V4-Flash rows


@pytest.mark.parametrize(
    ("name", "shares", "optimum", "without_end"),
    [
        (CONVERSATION, (1, 5, 10), (24.6, 36.6, 36.6), 36.6),
        (SYNTHETIC, (5, 10, 20), (39.6, 50.6, 60.8), 64.0),
    ],
)
def test_block_hits_are_those_of_two_other_simulators(name, shares, optimum, without_end):
    references = References(shared_trace(name), count_partial=True)
    sizes = [references.unique_blocks * share // 100 for share in shares]
    found = [100 * references.minimum(size).block_hit_rate for size in sizes]
    assert found == pytest.approx(list(optimum), abs=0.06)
    assert 100 * references.infinite().block_hit_rate == pytest.approx(without_end, abs=0.06)


@pytest.mark.parametrize(
    ("name", "optimum"),
    [(CONVERSATION, (27.8, 34.5, 37.3, 37.3, 37.3)), (SYNTHETIC, (41.8, 52.8, 62.5, 65.0, 65.0))],
)
def test_resumed_tokens_of_v4_flash_rows_are_those_of_another_simulation(name, optimum):
    references = References(shared_trace(name))
    sizes = [(gib << 30) // FLASH_BLOCK_BYTES for gib in (4, 8, 16, 32, 64)]
    found = [100 * references.minimum(size).resumed_token_rate for size in sizes]
    assert found == pytest.approx(list(optimum), abs=0.06)
    assert 100 * references.infinite().resumed_token_rate == pytest.approx(optimum[-1], abs=0.06)


def shared_trace(name: str) -> Trace:
    path = Path(__file__).parents[3] / "shared" / "traces" / f"{name}.jsonl.zst"
    if not path.exists():
        pytest.skip(f"{name} is not beside the repository, in ../shared/traces")
    return load_trace(path)
