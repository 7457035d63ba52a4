"""What the planner promises about matches, snapshots and lineage, one sentence a test."""

from __future__ import annotations

import pytest
from planner_bench import NAME, TINY, WORKER, Bench

from kvstore.core import presets
from kvstore.core.cost import CostModel
from kvstore.core.index import ObjectClass
from kvstore.core.keys import Tier
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import Hints, MissReason, PlanKind, Snapshots, Speeds
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.reserve import ObjectSpec, ReserveStatus


# -- match -------------------------------------------------------------------------------------
def test_a_resume_point_leaves_at_least_one_token_to_compute() -> None:
    bench = Bench()
    bench.put("a", 4, states=(1, 3))
    assert bench.lookup("a", 4, prompt=512).plan.tokens == 256
    assert bench.lookup("a", 4, prompt=513).plan.tokens == 512
    assert bench.lookup("a", 4, prompt=128).reason is MissReason.SHORT_PROMPT


def test_rows_without_a_state_say_so_and_offer_what_is_below() -> None:
    bench = Bench()
    bench.put("a", 6, states=(2,))
    match = bench.lookup("a", 6)
    assert (match.rows_tokens, match.plan.tokens, match.reason) == (768, 384, MissReason.STATE_MISSING)


def test_an_engine_that_pages_at_256_is_offered_multiples_of_256_only() -> None:
    bench = Bench(presets.v4_tiny(resume_alignment=256))
    bench.put("a", 6, states=(1, 2, 4))
    match = bench.lookup("a", 6)
    assert [point.tokens for point in match.resume_points] == [256]
    assert all(tokens % 256 == 0 for tokens in match.snapshots.at)


def test_ordinary_attention_resumes_at_every_boundary() -> None:
    bench = Bench(presets.full_tiny())
    bench.put("a", 5)
    match = bench.lookup("a", 5)
    assert [point.tokens for point in match.resume_points] == [80, 64, 48, 32, 16]
    assert match.snapshots == Snapshots() and match.replay is None


def test_replay_is_offered_where_it_computes_less_than_the_best_resume_point() -> None:
    bench = Bench()  # three layers with a window of 128: replay computes 384 tokens
    bench.put("a", 12, states=(1,))
    match = bench.lookup("a", 12, can_replay=True)
    assert match.plan.kind is PlanKind.REPLAY
    assert (match.plan.tokens, match.plan.compute_from) == (12 * 128, 9 * 128)
    assert match.plan.load_bytes == 12 * TINY.rows.nbytes
    assert bench.lookup("a", 12, can_replay=False).plan.tokens == 256
    bench.put("a", 12, states=(8,))
    match = bench.lookup("a", 12, can_replay=True)
    assert match.plan.kind is PlanKind.RESUME and match.replay is None  # 9 * 128 either way: no need to replay


def test_replay_is_never_offered_where_the_operator_switched_it_off() -> None:
    bench = Bench(placement=Placement.parse("ends", replay=False))
    bench.put("a", 12)
    match = bench.lookup("a", 12, can_replay=True)
    assert match.replay is None and match.plan.kind is PlanKind.COLD


def test_a_tail_is_matched_on_its_parent_and_an_unknown_parent_is_said() -> None:
    bench = Bench()
    bench.put("a", 6, states=(5,))
    request = Request(bench.chain("a", 6, first=4), 6 * 128 + 1, Hints(), False, Speeds({}))
    match, _ = bench.planner.lookup(NAME, request, WORKER, bench.now)
    assert match.plan.tokens == 768 and match.rows_tokens == 768
    request = request._replace(chain=bench.chain("b", 6, first=4))
    match, _ = bench.planner.lookup(NAME, request, WORKER, bench.now)
    assert match.reason is MissReason.PARENT_UNKNOWN and match.lease is None


def test_a_hit_predicted_slower_than_recomputing_is_cut_back_to_what_pays() -> None:
    layout = presets.v4_demo()
    bench = Bench(layout, pages=1 << 14)
    bench.put("a", 40, states=(3, 39))
    cost = CostModel.of(layout)
    assert cost is not None
    tokens = 40 * 128 + 1
    bytes_deep = 40 * layout.rows.nbytes + layout.state.nbytes  # type: ignore[union-attr]
    cold_seconds = 1.0
    flops = cost.prefill_flops(0, tokens) / cold_seconds
    for load_seconds, expected in ((0.001, 5120), (50.0, 0)):
        speeds = Speeds({Tier.HOST: bytes_deep / load_seconds}, flops)
        match = bench.lookup("a", 40, speeds=speeds)
        assert match.plan.tokens == expected
        assert (match.reason is MissReason.SLOWER_THAN_RECOMPUTE) == (expected == 0)
        predicted = [(point.load_seconds or 0) + (point.recompute_seconds or 0) for point in match.resume_points]
        assert (match.plan.load_seconds or 0) + (match.plan.recompute_seconds or 0) <= min([*predicted, cold_seconds])


def test_an_unknown_speed_is_no_verdict() -> None:
    bench = Bench(presets.v4_demo(), pages=1 << 14)
    bench.put("a", 8, states=(7,))
    match = bench.lookup("a", 8, speeds=Speeds({}, 1e12))
    assert match.plan.tokens == 1024 and match.plan.load_seconds is None


# -- snapshots ---------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("placement", "expected"),
    [
        ("every", Snapshots(every=128, at_output_end=True)),
        ("interval:300", Snapshots(every=384)),
        ("ends", Snapshots(at=(512, 896), at_output_end=True)),
        ("none", Snapshots()),
    ],
)
def test_placements_name_their_boundaries_before_the_worker_computes(placement: str, expected: Snapshots) -> None:
    bench = Bench(placement=Placement.parse(placement))
    assert bench.lookup("a", 7, prompt=1000, breakpoints=(600, 512, 5000)).snapshots == expected


def test_snapshots_below_the_resume_point_are_not_asked_for() -> None:
    bench = Bench(placement=Placement.parse("ends+junctions"))
    bench.put("a", 4, states=(3,))
    assert bench.lookup("a", 7, prompt=1000, breakpoints=(512,)).snapshots.at == (896,)


# -- lineage -----------------------------------------------------------------------------------
def test_objects_of_another_run_are_never_joined_to_stored_ones() -> None:
    bench = Bench()
    bench.put("a", 3, states=(2,))
    chain = bench.chain("a", 4, first=3)
    spec = ObjectSpec(0, 0, TINY.rows.nbytes, bytes(16))
    statuses, _, _ = bench.planner.reserve(NAME, chain, [spec], b"x" * 16, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE]
    other = [ObjectSpec(block, 0, TINY.rows.nbytes, bytes([block]) * 16) for block in range(3)]
    statuses, _, _ = bench.planner.reserve(NAME, bench.chain("a", 3), other, ROOT_LINEAGE, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE] * 3
    assert bench.planner.counts.other_lineage == 4


def test_rows_whose_parent_was_not_shown_are_another_run_s() -> None:
    bench = Bench()
    bench.put("a", 3)
    chain = bench.chain("a", 6)
    skips = [ObjectSpec(block, 0, TINY.rows.nbytes, bytes(16)) for block in (3, 4)]  # blocks 0 to 2 are not announced
    statuses, _, _ = bench.planner.reserve(NAME, chain, skips, ROOT_LINEAGE, WORKER, Hints(), 9.0, 0.0)
    assert statuses == [ReserveStatus.OTHER_LINEAGE] * 2
    assert bench.lookup("a", 6).rows_tokens == 3 * 128


def test_rows_without_their_parent_are_refused() -> None:
    bench = Bench()
    assert bench.put("a", 6, first=3) == [ReserveStatus.NO_PARENT] * 3
    assert bench.planner.snapshot() == {}


def test_classes_follow_breakpoints() -> None:
    bench = Bench()
    bench.put("a", 4, breakpoints=(256,))
    classes = [bench.planner.entry(bench.key("a", block)).facts.object_class for block in range(4)]  # type: ignore[union-attr]
    assert classes == [ObjectClass.SHARED] * 2 + [ObjectClass.SESSION] * 2
