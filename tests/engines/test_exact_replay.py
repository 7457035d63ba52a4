"""A missing state is rebuilt exactly by computing window * layers tokens over stored rows, and not by less."""

import numpy as np
import pytest
import torch
from engine_memory_store import MemoryStore

from kvstore.core.keys import Tier
from kvstore.core.match import Plan, PlanKind, Snapshots
from kvstore.engines.transformers import Worker, build_demo_model, demo_layout

NO_STATES = Snapshots()


@pytest.fixture(scope="module", params=[torch.float32, torch.float64], ids=["fp32", "fp64"])
def precise(request, worker):
    """A worker in one precision."""
    if request.param is torch.float32:
        return worker
    return Worker(build_demo_model(dtype=torch.float64), demo_layout(dtype=torch.float64))


@pytest.fixture(scope="module")
def rows_only(precise, tokens):
    store = MemoryStore(precise.layout, snapshots=NO_STATES)
    precise.run(tokens[:1000], 1, store)
    assert len(store.rows) == 7 and not store.states
    return store


def test_the_demo_replays_three_windows(worker):
    assert worker.layout.replay_tokens == 3 * 128


@pytest.mark.parametrize("length", [770, 900, 1000])
def test_replay_equals_the_cold_run(precise, rows_only, same, tokens, length):
    boundary = length // 128 * 128
    run = precise.run(tokens[:length], 4, rows_only)
    assert run.plan is PlanKind.REPLAY
    assert run.resumed_tokens == boundary
    assert run.recomputed_tokens == length - boundary + 384
    same(run, precise.run(tokens[:length], 4))
    assert not rows_only.disagreements


def test_replay_one_block_shorter_does_not(precise, rows_only, tokens):
    short = MemoryStore(precise.layout, snapshots=NO_STATES, replay_tokens=256, rows=rows_only.rows)
    run = precise.run(tokens[:770], 4, short)
    assert run.plan is PlanKind.REPLAY and run.recomputed_tokens == 2 + 256
    assert not torch.equal(run.logits, precise.run(tokens[:770], 4).logits)


@pytest.mark.parametrize(("boundary", "compute_from"), [(384, 0), (256, 0), (512, 128), (896, 512)])
def test_replay_to_any_boundary_is_exact(precise, rows_only, same, tokens, boundary, compute_from):
    cut = Plan(PlanKind.REPLAY, boundary, compute_from, 0, Tier.DISK, None, None)
    store = MemoryStore(precise.layout, snapshots=NO_STATES, rows=dict(rows_only.rows), cut_to=cut)
    run = precise.run(tokens[:1000], 2, store)
    assert (run.resumed_tokens, run.recomputed_tokens) == (boundary, 1000 - compute_from)
    same(run, precise.run(tokens[:1000], 2))
    assert not store.disagreements


def test_rebuilt_states_are_the_cold_ones_and_rows_go_on_from_them(precise, rows_only, tokens, suffix):
    """The states taken beyond a replay, and the rows put there, are byte for byte those of a cold run."""
    prompt = np.concatenate([tokens[:1000], suffix[:200]])
    wanted = Snapshots(every=128)
    replayed = MemoryStore(precise.layout, snapshots=wanted, rows=dict(rows_only.rows))
    computed = MemoryStore(precise.layout, snapshots=wanted)
    assert precise.run(prompt, 1, replayed).plan is PlanKind.REPLAY
    assert precise.run(prompt, 1, computed).plan is PlanKind.COLD
    assert sorted(len(key) // 4 for key in replayed.states) == [1024, 1152]
    assert replayed.rows == computed.rows
    assert all(body == computed.states[key] for key, body in replayed.states.items())


def test_a_state_beyond_the_replays_start_is_preferred(worker, tokens, prefilled):
    prefilled.deepest = 896
    kept = {key: body for key, body in prefilled.states.items() if len(key) // 4 == 640}
    prefilled.states.clear()
    prefilled.states.update(kept)
    run = worker.run(tokens[:1000], 1, prefilled)
    assert (run.plan, run.resumed_tokens) == (PlanKind.RESUME, 640)
