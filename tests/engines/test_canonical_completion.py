"""Blocks that decoding finished are recomputed in whole chunks, and then equal a cold prefill of the transcript."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from engine_memory_store import MemoryStore, pack

from kvstore.core.match import Snapshots


def transcript(prompt, run):
    return np.append(prompt, np.array(run.output, np.int32))


@pytest.mark.parametrize(("length", "count"), [(300, 90), (300, 220), (256, 128), (100, 40), (127, 1), (385, 130)])
def test_rows_and_states_equal_a_cold_prefill_of_the_transcript(worker, tokens, length, count):
    lived = MemoryStore(worker.layout)
    run = worker.run(tokens[:length], count, lived)
    whole = transcript(tokens[:length], run)
    reference = MemoryStore(worker.layout, snapshots=Snapshots(every=128))
    worker.run(whole, 1, reference)
    end = len(whole) // 128
    assert len(reference.rows) >= end and len(lived.rows) == end and len(lived.states) == end
    assert all(reference.rows[key] == body for key, body in lived.rows.items())
    assert all(reference.states[key] == body for key, body in lived.states.items())


def test_the_next_turn_resumes_inside_the_output(worker, same, tokens, suffix):
    store = MemoryStore(worker.layout, snapshots=Snapshots(at_output_end=True))
    run = worker.run(tokens[:300], 220, store)
    next_turn = np.concatenate([transcript(tokens[:300], run), suffix[:50]])
    resumed = worker.run(next_turn, 4, store)
    assert resumed.resumed_tokens == 512
    same(resumed, worker.run(next_turn, 4))
    assert not store.disagreements


def test_the_same_answer_completed_from_a_hit_is_the_same_bytes(worker, tokens, prefilled):
    fresh = MemoryStore(worker.layout)
    one = worker.run(tokens[:700], 150, fresh)
    other = worker.run(tokens[:700], 150, prefilled)
    assert other.resumed_tokens == 640 and one.output == other.output
    assert all(prefilled.rows[key] == body for key, body in fresh.rows.items())
    assert all(prefilled.states[key] == body for key, body in fresh.states.items())


def test_decoded_rows_are_not_canonical(worker, tokens):
    """Why completion is needed: the decoder's own rows of the same tokens differ from a prefill's."""
    store = MemoryStore(worker.layout)
    run = worker.run(tokens[:300], 220, store)
    whole = transcript(tokens[:300], run)
    with torch.inference_mode():
        cache = worker._form.new_cache()
        for edge in (128, 256):
            worker._forward(cache, whole[edge - 128 : edge])
        worker._forward(cache, whole[256:300])
        for token in whole[300:512]:
            worker._forward(cache, np.array([token]))
        decoded = pack(worker.layout.rows, worker._form.export_rows(worker._form.snapshot(cache, 512), 0, 4))
    kept = [store.rows[store.key(whole, edge)] for edge in (128, 256, 384, 512)]
    assert decoded[:2] == kept[:2]
    assert decoded[2] != kept[2] and decoded[3] != kept[3]


def test_one_bit_is_a_difference(worker, tokens):
    run = worker.run(tokens[:5], 1)
    zeros, negative = torch.zeros_like(run.logits), -torch.zeros_like(run.logits)
    assert replace(run, logits=zeros).is_same_as(replace(run, logits=zeros.clone()))
    assert not replace(run, logits=zeros).is_same_as(replace(run, logits=negative))
    assert not run.is_same_as(replace(run, output=(*run.output, 2)))
