"""A resumed run equals the cold run bit for bit: at every length around a block's end, from every point, everywhere."""

import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_memory_store import MemoryStore

from kvstore.core.errors import InvalidInput, InvalidLayout
from kvstore.core.keys import Tier
from kvstore.core.match import COLD_PLAN, Plan, PlanKind, Snapshots
from kvstore.core.presets import v4_demo, v4_flash, with_changes
from kvstore.engines.transformers import Worker, build_demo_model

LENGTHS = [1, 127, 128, 129, 130, 255, 256, 257, 383, 384, 385, 511, 512, 513, 1000]


def joined(*parts):
    return np.concatenate(parts)


@pytest.mark.parametrize("length", LENGTHS)
def test_prompt_resumes_exactly_and_so_does_a_longer_one(worker, cold, same, tokens, suffix, length):
    store = MemoryStore(worker.layout)
    prompt, longer = tokens[:length], joined(tokens[:length], suffix[:70])
    first = worker.run(prompt, 3, store)
    same(first, cold(prompt, 3))
    assert first.resumed_tokens == 0 and first.recomputed_tokens == length

    again = worker.run(prompt, 3, store)
    same(again, cold(prompt, 3))
    assert again.resumed_tokens == (length - 1) // 128 * 128

    # a prompt of whole blocks was stored whole: all of it is resumed once a token follows
    after = worker.run(longer, 3, store)
    same(after, cold(longer, 3))
    assert after.resumed_tokens == length // 128 * 128
    assert after.recomputed_tokens == len(longer) - after.resumed_tokens
    assert (after.plan is PlanKind.COLD) == (length < 128)
    assert not store.disagreements


def test_every_resume_point_of_a_chain_is_exact(worker, cold, same, tokens):
    store = MemoryStore(worker.layout)
    prompt = tokens[:1000]
    worker.run(prompt, 2, store)
    for point in range(0, 1000, 128):
        store.deepest = point
        run = worker.run(prompt, 2, store)
        assert run.resumed_tokens == point
        same(run, cold(prompt, 2))
    assert not store.disagreements


@pytest.mark.parametrize("count", [1, 64, 127, 128, 200, 400])
def test_another_suffix_under_the_same_prefix_is_exact(worker, cold, same, tokens, suffix, prefilled, count):
    prompt = joined(tokens[:512], suffix[:count])
    run = worker.run(prompt, 3, prefilled)
    assert run.resumed_tokens == 512
    assert run.tier is Tier.HOST
    same(run, cold(prompt, 3))


@pytest.mark.parametrize("shared", [130, 256, 300, 900])
def test_rows_cut_out_of_a_longer_run_are_exact(worker, cold, same, tokens, suffix, prefilled, shared):
    prompt = joined(tokens[:shared], suffix[200:280])
    run = worker.run(prompt, 3, prefilled)
    assert run.resumed_tokens == shared // 128 * 128
    same(run, cold(prompt, 3))
    assert not prefilled.disagreements


def test_two_torch_threads_change_nothing(worker, cold, same, tokens, suffix):
    prompt = joined(tokens[:256], suffix[:150])
    store = MemoryStore(worker.layout)
    torch.set_num_threads(2)
    try:
        same(worker.run(prompt, 3), cold(prompt, 3))
        worker.run(tokens[:300], 1, store)
        run = worker.run(prompt, 3, store)
        assert run.resumed_tokens == 256
        same(run, cold(prompt, 3))
    finally:
        torch.set_num_threads(1)
    run = worker.run(prompt, 3, store)
    assert run.resumed_tokens == 384
    same(run, cold(prompt, 3))


FRESH = """
import pickle, sys, torch
torch.set_num_threads(1)
from kvstore.engines.transformers import Worker, build_demo_model, demo_layout
store, prompt = pickle.load(sys.stdin.buffer)  # noqa: S301 - our own, from the test
run = Worker(build_demo_model(), demo_layout()).run(prompt, 3, store)
pickle.dump((run.resumed_tokens, run.output, run.logits.numpy().tobytes(), store.disagreements), sys.stdout.buffer)
"""


def test_a_fresh_process_resumes_exactly(worker, cold, tokens, suffix, prefilled, request):
    prompt = joined(tokens[:700], suffix[:100])
    told = subprocess.run(
        [sys.executable, "-c", FRESH],
        input=pickle.dumps((prefilled, prompt)),
        capture_output=True,
        check=True,
        timeout=120,
        env={"PYTHONPATH": f"{request.path.parent}:{request.config.rootpath}", "PATH": ""},
    )
    resumed, output, logits, disagreements = pickle.loads(told.stdout)  # noqa: S301 - our own child
    assert resumed == 640 and not disagreements
    assert output == cold(prompt, 3).output
    assert logits == cold(prompt, 3).logits.numpy().tobytes()


def test_only_the_states_asked_for_are_put(worker, tokens):
    store = MemoryStore(worker.layout, snapshots=Snapshots(at=(256,), at_output_end=True))
    worker.run(tokens[:300], 90, store)
    assert sorted(len(key) // 4 for key in store.states) == [256, 384]
    assert sorted(len(key) // 4 for key in store.rows) == [128, 256, 384]
    assert store.puts == [(0, 256), (256, 384)]


def test_states_respect_the_alignment(worker, tokens):
    aligned = Worker(build_demo_model(), with_changes(worker.layout, resume_alignment=256))
    store = MemoryStore(aligned.layout, snapshots=Snapshots(at=(128, 256), every=128, at_output_end=True))
    aligned.run(tokens[:500], 20, store)
    assert sorted(len(key) // 4 for key in store.states) == [256, 512]


def test_a_store_without_a_connection_changes_nothing(worker, cold, same, tokens):
    dead = MemoryStore(worker.layout, is_connected=False)
    same(worker.run(tokens[:300], 3, dead), cold(tokens[:300], 3))
    assert not dead.rows and not dead.puts


@pytest.mark.parametrize("left", [0, 128, 512])
def test_a_fetch_that_lost_objects_is_followed(worker, cold, same, tokens, left):
    store = MemoryStore(worker.layout)
    worker.run(tokens[:1000], 1, store)
    store.cut_to = Plan(PlanKind.RESUME, left, left, 0, Tier.DISK, None, None) if left else COLD_PLAN
    run = worker.run(tokens[:1000], 2, store)
    assert run.resumed_tokens == left and run.recomputed_tokens == 1000 - left
    same(run, cold(tokens[:1000], 2))
    assert not store.disagreements


def test_bytes_survive_loading_and_exporting(worker, tokens, prefilled):
    """A worker that resumed puts the same bytes as one that computed: else their lineages would part."""
    form = worker._form
    with prefilled.lookup(tokens[:700], hints=None) as match, prefilled.fetch(match) as blocks:
        loaded = form.load(640, blocks.rows, blocks.state)
        rows, state = form.export_rows(loaded, 0, 5), form.export_state(loaded)
        assert all(np.array_equal(rows[name], blocks.rows[name]) for name in blocks.rows)
        assert all(np.array_equal(state[name], blocks.state[name]) for name in blocks.state)


def test_wrong_prompts_are_refused_in_one_sentence(worker):
    for prompt, count in (([], 1), ([2048], 1), ([-1], 1), ([1.5], 1), ([5], 0)):
        with pytest.raises(InvalidInput):
            worker.run(prompt, count)


def test_a_layout_of_another_model_is_refused(worker):
    with pytest.raises(InvalidLayout, match="other layers"):
        Worker(worker._model, v4_flash())
    with pytest.raises(InvalidLayout, match="window_rows=128"):
        Worker(worker._model, replace(v4_demo(), window_rows=128))
