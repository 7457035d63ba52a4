"""A worker whose load was given up goes on from a deeper point when it has come in: the same bits, less computed."""

from __future__ import annotations

import numpy as np
import pytest
from engine_memory_store import MemoryStore

from kvstore.core.cost import CostModel
from kvstore.core.match import COLD_PLAN, Plan, PlanKind
from kvstore.engines.transformers.speed import PrefillSpeed

PROMPT = np.random.default_rng(5).integers(2, 2048, 9 * 128 + 40, dtype=np.int32)


def resume(tokens: int) -> Plan:
    return Plan(PlanKind.RESUME, tokens, tokens, 0, None, None, None)


def replay(tokens: int, start: int) -> Plan:
    return Plan(PlanKind.REPLAY, tokens, start, 0, None, None, None)


@pytest.fixture(scope="module")
def filled(worker):
    store = MemoryStore(worker.layout)
    return store, worker.run(PROMPT, 3, store)


@pytest.mark.parametrize(
    ("first", "later"),
    [
        (COLD_PLAN, {256: resume(768)}),
        (COLD_PLAN, {256: resume(512), 640: resume(1152)}),
        (resume(128), {384: resume(1024)}),
        (COLD_PLAN, {384: replay(1152, 768)}),
        (replay(512, 128), {256: resume(896)}),
    ],
)
def test_a_run_that_jumps_is_the_cold_run(worker, filled, first, later):
    store, cold = filled
    store.cut_to, store.caught_up, store.puts = first, later, []
    run = worker.run(PROMPT, 3, store)
    assert run.is_same_as(cold) and run.is_same_as(worker.run(PROMPT, 3))
    last = list(later.values())[-1]
    assert (run.plan, run.resumed_tokens) == (last.kind, last.tokens)
    assert run.recomputed_tokens == len(PROMPT) - last.compute_from
    assert all(begin >= last.tokens for begin, _ in store.puts), "what is stored is not put again"
    assert not store.disagreements


@pytest.mark.parametrize("first", [COLD_PLAN, resume(128), replay(512, 128)])
def test_nothing_to_jump_to_is_no_jump(worker, filled, first):
    store, cold = filled
    store.cut_to, store.caught_up = first, {640: COLD_PLAN}
    assert worker.run(PROMPT, 3, store).is_same_as(cold)


def test_a_worker_says_how_fast_it_prefills_only_where_it_was_asked_to(worker, filled):
    store, _ = filled
    store.cut_to, store.caught_up = None, {}
    worker.run(PROMPT, 1, store)
    assert store.worker_flops is None and worker.speed.flops_per_second is not None
    worker._declares_speed = True
    try:
        worker.run(PROMPT, 1, store)
        assert store.worker_flops is not None and store.worker_flops > 0
    finally:
        worker._declares_speed = False


def test_a_prefill_speed_is_work_over_time_whatever_the_depth(worker):
    cost = CostModel.of(worker.layout)
    speed = PrefillSpeed(cost)
    assert speed.flops_per_second is None
    for start in range(0, 4096, 128):
        speed.note(start, start + 128, cost.prefill_flops(start, start + 128) / 2e9)
    assert speed.flops_per_second == pytest.approx(2e9)
    for start in range(0, 8192, 128):
        speed.note(start, start + 128, cost.prefill_flops(start, start + 128) / 1e9)
    assert speed.flops_per_second == pytest.approx(1e9, rel=0.01)
    without = PrefillSpeed(None)
    for _ in range(5):
        without.note(0, 128, 1.0)
    assert without.flops_per_second is None
