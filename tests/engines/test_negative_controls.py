"""Every part of what is stored matters: without it, the comparison of the other tests sees a difference."""

import numpy as np
import pytest
import torch
from engine_memory_store import MemoryStore

LENGTH, BOUNDARY = 660, 640


def sections(group, component):
    """(begin, end) of a component's sections in an object."""
    offsets = group.offsets()
    return [(offsets[i], offsets[i + 1]) for i, part in enumerate(group.sections) if part.component == component]


def zeroed(body, spans):
    changed = bytearray(body)
    for begin, end in spans:
        changed[begin:end] = bytes(end - begin)
    assert bytes(changed) != body
    return bytes(changed)


def differs(worker, cold, tokens, store):
    run = worker.run(tokens[:LENGTH], 1, store)
    assert run.resumed_tokens == BOUNDARY
    return not torch.equal(run.logits, cold(tokens[:LENGTH], 1).logits)


def test_the_untouched_store_makes_no_difference(worker, cold, tokens, prefilled):
    assert not differs(worker, cold, tokens, prefilled)


@pytest.mark.parametrize("component", ["window", "csa.overlap", "csa.indexer_overlap"])
def test_leaving_out_a_part_of_the_state_shows(worker, cold, tokens, prefilled, component):
    """The indexer's overlap makes one key, and a top-k of 512 takes every key of so short a prompt: its effect is
    in the next row that is put, not in the logits."""
    key = prefilled.key(tokens, BOUNDARY)
    group = worker.layout.state
    prefilled.states[key] = zeroed(prefilled.states[key], sections(group, component))
    if component != "csa.indexer_overlap":
        assert differs(worker, cold, tokens, prefilled)
    else:
        later = prefilled.key(tokens, BOUNDARY + 128)
        right = prefilled.rows.pop(later)
        worker.run(tokens[: BOUNDARY + 200], 1, prefilled)
        assert prefilled.rows[later] != right
        assert not prefilled.disagreements


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_zero_window_of_any_layer_shows(worker, cold, tokens, prefilled, layer):
    key = prefilled.key(tokens, BOUNDARY)
    span = sections(worker.layout.state, "window")[layer]
    prefilled.states[key] = zeroed(prefilled.states[key], [span])
    assert differs(worker, cold, tokens, prefilled)


@pytest.mark.parametrize("component", ["csa.main", "hca.main"])
@pytest.mark.parametrize("block", [0, 4])
def test_rows_of_another_run_show(worker, cold, tokens, suffix, prefilled, component, block):
    """Joining rows of two runs: one block's rows come from another prompt at the same place."""
    other = MemoryStore(worker.layout)
    stranger = np.concatenate([suffix, suffix])[:LENGTH]
    worker.run(stranger, 1, other)
    key = prefilled.key(tokens, (block + 1) * 128)
    theirs, ours = other.rows[other.key(stranger, (block + 1) * 128)], bytearray(prefilled.rows[key])
    for begin, end in sections(worker.layout.rows, component):
        ours[begin:end] = theirs[begin:end]
    prefilled.rows[key] = bytes(ours)
    assert differs(worker, cold, tokens, prefilled)


def test_one_flipped_scale_shows(worker, cold, tokens, prefilled):
    key = prefilled.key(tokens, BOUNDARY)
    changed = bytearray(prefilled.states[key])
    begin, end = sections(worker.layout.state, "window")[2]
    changed[end - 8] ^= 1  # the newest row's first scale
    prefilled.states[key] = bytes(changed)
    assert differs(worker, cold, tokens, prefilled) and begin < end
