"""Each workload has the structure that its file promises."""

import random
import statistics
from itertools import pairwise

import pytest

from kvstore.core.errors import InvalidInput
from kvstore.core.match import InferenceMode
from kvstore.sim.reading import at_block_size, load_trace
from kvstore.sim.trace import Trace, TraceRequest
from kvstore.sim.workloads import WORKLOADS, agentic_search, code_agent, office_text, office_zh, rag
from kvstore.sim.workloads import chance as chances
from kvstore.sim.workloads.mixed import FLASH, LAYOUTS, PRO, layout_of, only
from kvstore.sim.workloads.session import QUICK, Scribe
from kvstore.sim.workloads.workload import Place, trace_of, whole_sessions
from kvstore.sim.writing import trace_lines

BLOCK = 128
WINDOWS = {"chat": 8, "think-high": 128, "think-max": 384, "agentic-search": 512, "rag": 32, "code-agent": 512}
ALL = pytest.mark.parametrize("name", WORKLOADS)


def made(name: str, seed: int = 7, requests: int = 150, block_tokens: int = BLOCK) -> Trace:
    return trace_of(WORKLOADS[name], seed, requests, block_tokens)


def sessions(name: str, count: int, seed: int = 7) -> list[list[TraceRequest]]:
    """Whole sessions, without quick instructions."""
    found = whole_sessions(WORKLOADS[name], seed, count)
    return [[request for request in one if request.kind != QUICK] for one in found]


def whole(request: TraceRequest) -> tuple[int, ...]:
    return request.ids[: request.input_tokens // BLOCK]


def in_common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    return next(
        (depth for depth, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


@ALL
def test_a_trace_is_of_its_seed_alone_and_a_longer_one_starts_with_it(name):
    trace = made(name)
    assert made(name) == trace
    assert made(name, seed=8).requests != trace.requests
    assert made(name, requests=60).requests == trace.requests[:60]
    assert (len(trace.requests), trace.block_tokens, trace.notes) == (150, BLOCK, {})


@ALL
def test_a_trace_is_in_order_of_time_and_its_ids_are_chained(name):
    trace = made(name)
    assert trace.requests[0].at == 0.0
    assert all(before.at <= after.at for before, after in pairwise(trace.requests))
    before_of = {}
    for request in trace.requests:
        blocks, rest = divmod(request.input_tokens, BLOCK)
        assert len(request.ids) == blocks + (rest > 0)
        assert len(request.output_ids) == (request.input_tokens + request.output_tokens) // BLOCK - blocks
        for before, after in pairwise((None, *whole(request), *request.output_ids)):
            assert before_of.setdefault(after, before) == before
        assert request.session and request.kind and request.mode and request.stop
        assert all(0 < one < request.input_tokens for one in request.breakpoints)


@ALL
def test_a_trace_is_read_back_as_it_was_made(name, tmp_path):
    trace = made(name)
    path = tmp_path / f"{trace.name}.jsonl"
    path.write_text("".join(f"{line}\n" for line in trace_lines(trace)))
    assert load_trace(path, BLOCK) == trace


@pytest.mark.parametrize("name", ["think-high", "code-agent", "office-zh"])
def test_larger_blocks_share_what_they_would_if_made_of_smaller_ones(name):
    grouped, native = at_block_size(made(name), 512), made(name, block_tokens=512)
    names = {}
    for one, other in zip(grouped.requests, native.requests, strict=True):
        assert len(one.ids) == other.input_tokens // 512
        mine, theirs = (*one.ids, *one.output_ids), (*other.ids[: len(one.ids)], *other.output_ids)
        assert len(mine) == len(theirs)
        for a, b in zip(mine, theirs, strict=True):
            assert names.setdefault(a, b) == b
    assert len(set(names.values())) == len(names) > 100


@pytest.mark.parametrize("name", WINDOWS)
def test_prompt_and_output_stay_in_the_window(name):
    trace = made(name, requests=400)
    assert max(request.input_tokens + request.output_tokens for request in trace.requests) <= WINDOWS[name] << 10


@pytest.mark.parametrize("name", ["chat", "agentic-search", "rag"])
def test_without_thinking_or_with_tools_the_history_is_append_only(name):
    turns = 0
    for session in sessions(name, 60):
        for before, after in pairwise(session):
            if before.input_tokens == after.input_tokens:
                assert after.ids == before.ids  # asked again
                continue
            told = (*whole(before), *before.output_ids)
            assert whole(after)[: len(whole(before))] == whole(before)
            if before.turn + 1 == after.turn:
                assert whole(after)[: len(told)] == told
            turns += 1
    assert turns > 20


@pytest.mark.parametrize("name", ["think-high", "think-max", "office-zh"])
def test_thinking_without_tools_the_next_prompt_parts_right_behind_the_assistant_mark(name):
    turns = 0
    for session in sessions(name, 40):
        outputs: set[int] = set()
        for before, after in pairwise(session):
            outputs.update(before.output_ids)
            assert not after.has_tools and not outputs & set(after.ids)
            if after.input_tokens != before.input_tokens:
                # the mark is the last but one of the prompt: <think> in this prompt, </think> in the next
                assert in_common(before.ids, after.ids) == (before.input_tokens - 1) // BLOCK
                turns += 1
    assert turns > 20


def test_the_three_modes_are_named_and_max_shares_nothing_with_high():
    scribe, prompts = Scribe(BLOCK), {}
    for name in ("chat", "think-high", "think-max"):
        known = len(scribe.requests)
        for index in range(40):
            place = Place(scribe, random.Random(index), f"{name} {index}", 0.0, "same world")
            WORKLOADS[name].session(place)
        prompts[name] = {one for request in scribe.requests[known:] for one in request.ids}
        modes = {request.mode for request in scribe.requests[known:]}
        assert modes == {
            {
                "chat": InferenceMode.NON_THINK,
                "think-high": InferenceMode.THINK_HIGH,
                "think-max": InferenceMode.THINK_MAX,
            }[name]
        }
    assert prompts["chat"] & prompts["think-high"]  # the same applications' system prompts
    assert not prompts["think-max"] & (prompts["chat"] | prompts["think-high"])


def test_think_max_fills_its_window():
    lengths = [request.input_tokens for request in made("think-max", requests=400).requests]
    assert max(lengths) > 256 << 10


def test_a_title_is_a_branch_behind_the_first_answer():
    for session in whole_sessions(WORKLOADS["chat"], 3, 30):
        first, title, *rest = session
        assert (title.kind, title.turn) == (QUICK, 1)
        assert title.input_tokens == first.input_tokens + first.output_tokens + 1
        assert not any(one.kind == QUICK for one in rest)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_agentic_search_calls_16_tools_a_query(seed):
    calls = queries = 0
    for session in sessions("agentic-search", 120, seed):
        assert all(request.has_tools and request.mode is InferenceMode.THINK_HIGH for request in session)
        calls += sum(request.stop == "tool_calls" for request in session)
        queries += sum(request.stop == "stop" for request in session)
    assert abs(calls / queries - 16.2) < 3 * 12.1 / queries**0.5  # standard deviation of one query's calls: 12.1


def test_the_mean_of_tool_calls_is_the_reports():
    place = Place(Scribe(BLOCK), random.Random(5), "", 0.0, "")
    assert abs(statistics.mean(agentic_search.calls(place) for _ in range(40_000)) - 16.2) < 0.2


def test_popular_queries_start_with_the_same_prompt():
    firsts = [session[0] for session in sessions("agentic-search", 60)]
    assert max(firsts.count(one) for one in firsts) == 1
    assert len({request.ids for request in firsts}) < len(firsts)


def test_rag_asks_three_quick_questions_at_once_then_has_documents_in_front():
    shared = 0
    seen: set[int] = set()
    for session in whole_sessions(WORKLOADS["rag"], 7, 60):
        for start in range(0, len(session), 4):
            *quick, answer = session[start : start + 4]
            assert [one.kind for one in quick] == [QUICK] * 3 and answer.kind == "rag"
            assert len({(one.at, one.input_tokens, one.turn) for one in quick}) == 1
            assert quick[0].at < answer.at and not answer.has_tools
            assert answer.stop != "tool_calls"
        first = session[3]
        shared += in_common(first.ids, tuple(one for one in first.ids if one in seen)) * BLOCK > rag.SYSTEM_TOKENS
        seen.update(first.ids)
    assert 5 < shared < 55  # some sessions find documents that another one had, in the same order


def test_the_same_documents_in_another_order_share_only_what_is_in_front():
    place = Place(Scribe(BLOCK), random.Random(5), "", 0.0, "w")
    found = [rag.retrieved(place, 3) for _ in range(200)]
    assert len(set(found)) > 3
    assert 0.4 < max(found.count(one) for one in set(found)) / 200 < 0.7


def test_code_agents_append_hand_over_and_compact():
    helped = compacted = appended = 0
    for session in sessions("code-agent", 25):
        agents: dict[str, list[TraceRequest]] = {}
        for request in session:
            agents.setdefault(request.session, []).append(request)
        (main, *helpers) = agents.values()
        helped += len(helpers)
        assert all(one.kind == "sub-agent" for helper in helpers for one in helper)
        assert len({request.ids[0] for helper in helpers for request in helper}) <= 1
        for requests in agents.values():
            assert len(requests) <= code_agent.MAX_STEPS + 1
            assert [request.turn for request in requests] == sorted({request.turn for request in requests})
            for before, after in pairwise(requests):
                assert before.at < after.at
                told = (*whole(before), *before.output_ids)
                if whole(after)[: len(told)] == told:
                    appended += 1
                else:
                    compacted += 1
                    assert before.input_tokens > code_agent.COMPACT_ABOVE > after.input_tokens
                    assert in_common(before.ids, after.ids) == before.breakpoints[-1] // BLOCK
        for helper in helpers:  # the parent waits
            assert not any(helper[0].at < request.at < helper[-1].at for request in main)
    assert helped > 10 and compacted > 3 and appended > 1000


def test_agents_wait_for_tools_as_long_as_measured():
    gaps = []
    for session in sessions("code-agent", 25):
        helped = [request.at for request in session if request.kind == "sub-agent"]
        main = [request for request in session if request.kind == "code-agent"]
        for before, after in pairwise(main):
            waited = after.at - before.at - before.output_tokens / 50
            if before.stop == "tool_calls" and not any(before.at < at < after.at for at in helped):
                gaps.append(waited)
    gaps.sort()
    assert len(gaps) > 300
    assert 13 < gaps[len(gaps) // 2] < 22 and 60 < gaps[len(gaps) * 9 // 10] < 140


def test_office_tasks_are_chinese_over_shared_templates():
    for title in office_text.TEMPLATES:
        text = office_text.template_text(title)
        assert text == office_text.template_text(title) and len(text) > 1000
        han = sum("\u4e00" <= character <= "\u9fff" for character in text)
        assert han / len(text) > 0.75 and not set("{}") & set(text)
        assert office_zh.template(title) == b"".join(ord(one).to_bytes(4, "little") for one in text)
    firsts = [session[0] for session in sessions("office-zh", 80)]
    for one in firsts:
        for other in firsts:
            shared = in_common(one.ids, other.ids)  # 8 tokens behind the template are the same too
            assert shared * BLOCK <= one.breakpoints[1] + 8 or one is other
    assert any(
        in_common(one.ids, other.ids) == one.breakpoints[1] // BLOCK
        for one in firsts
        for other in firsts
        if one is not other
    )


def test_mixed_is_all_others_and_its_layouts_share_nothing():
    trace = made("mixed", requests=1500)
    parts = {layout: only(trace, layout) for layout in LAYOUTS}
    assert sum(len(part.requests) for part in parts.values()) == len(trace.requests)
    ids = {layout: {one for request in part.requests for one in request.ids} for layout, part in parts.items()}
    assert ids[FLASH] and ids[PRO] and not ids[FLASH] & ids[PRO]
    assert all(part.requests[0].at == 0.0 for part in parts.values())
    kinds = {request.kind.partition("@")[0] for request in trace.requests}
    assert kinds >= set(WORKLOADS) - {"mixed"} | {QUICK}
    for request in trace.requests:
        assert request.mode is not InferenceMode.THINK_MAX or layout_of(request) == PRO
    assert layout_of(made("chat").requests[0]) == ""


def test_what_cannot_be_made_is_refused():
    with pytest.raises(InvalidInput, match="ask for at least one"):
        made("chat", requests=0)
    with pytest.raises(InvalidInput, match="at least one token"):
        made("chat", block_tokens=0)


def test_draws_follow_their_quantiles():
    chance = random.Random(3)
    quantiles = ((0.0, 1.0), (0.5, 17.0), (0.9, 93.0), (1.0, 3600.0))
    values = sorted(chances.drawn(chance, quantiles) for _ in range(20_001))
    assert abs(values[10_000] - 17) < 1 and abs(values[18_000] - 93) < 6
    ranks = [chances.popular(chance, 10) for _ in range(20_000)]
    assert 1.8 < ranks.count(0) / ranks.count(1) < 2.2 and max(ranks) == 9
    counts = [chances.poisson(chance, 7.0) for _ in range(20_000)]
    assert abs(statistics.mean(counts) - 7) < 0.1 and abs(statistics.variance(counts) - 7) < 0.4
