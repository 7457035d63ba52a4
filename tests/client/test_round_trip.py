"""Put, look up, fetch over the real wire: what comes back is what went in."""

from __future__ import annotations

import dataclasses

import grpc
import numpy as np
import pytest
from client_tools import assert_rows, assert_state, sample, until
from fake_store import FakeStore, serve

import kvstore
from kvstore.core import presets
from kvstore.core.match import MissReason, PlanKind, SessionEvent
from kvstore.core.prefix import Extra
from kvstore.rpc.status import Reason, status

LAYOUTS = {"tiny": presets.v4_tiny(), "demo": presets.v4_demo(), "full": presets.full_tiny()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_put_is_found_and_fetched(fake, connect, name):
    layout = LAYOUTS[name]
    client, reader = connect(layout), connect(layout)
    tokens, rows, states = sample(layout, 5)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20, durable=True)
    with reader.lookup(tokens) as match:
        assert match.plan.kind is PlanKind.RESUME and match.plan.tokens == 5 * layout.block_tokens
        with reader.fetch(match) as blocks:
            assert blocks.plan.tokens == match.plan.tokens
            assert_rows(blocks, rows, 5)
            if layout.state is None:
                assert blocks.state is None
            else:
                assert_state(blocks, states[5 * layout.block_tokens])
    assert reader.counters["fetched_blocks"] == 5
    until(lambda: not fake.leases)


def test_a_session_goes_on_where_it_left(fake, connect):
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, states = sample(layout, 6)
    bt = layout.block_tokens
    first = {name: array[:2] for name, array in rows.items()}
    rest = {name: array[2:] for name, array in rows.items()}
    assert client.put(tokens, first_block=0, rows=first, states={2 * bt: states[2 * bt]})
    assert client.put(tokens, first_block=2, rows=rest, states={6 * bt: states[6 * bt]})
    assert client.flush(20)
    match = client.lookup(tokens)
    assert [point.tokens for point in match.resume_points] == [6 * bt, 2 * bt]
    shallow = client.fetch(match.with_plan(match.resume_points[1]))
    assert_rows(shallow, rows, 2)
    assert_state(shallow, states[2 * bt])
    assert client.counters["hashed_blocks"] == 6, "the memo hashes no block twice"


def test_rows_go_into_the_callers_arrays(fake, connect):
    layout = presets.v4_demo()
    client = connect(layout)
    tokens, rows, states = sample(layout, 3)
    client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20)
    into = {name: np.zeros((4, *array.shape[1:]), np.uint8) for name, array in rows.items()}
    blocks = client.fetch(client.lookup(tokens), into=into)
    assert_rows(blocks, rows, 3)
    assert all(np.shares_memory(blocks.rows[name], into[name]) for name in into)


def test_optional_groups_travel_and_never_shorten(fake, connect):
    layout = presets.v4("mtp-model", "r", LAYOUTS["tiny"].layers and [layer.kind for layer in LAYOUTS["tiny"].layers],
                        mtp_layers=1)  # fmt: skip
    client = connect(layout)
    tokens, rows, states = sample(layout, 2)
    from client_tools import arrays_of

    mtp = {256: arrays_of(layout.groups[2], np.random.default_rng(5), None)}
    assert client.put(tokens, first_block=0, rows=rows, states=states, optional={"mtp": mtp})
    assert client.flush(20)
    blocks = client.fetch(client.lookup(tokens))
    np.testing.assert_array_equal(blocks.optional["mtp"]["window"], mtp[256]["window"])
    shorter = client.fetch(client.lookup(tokens[:200]))
    assert shorter.plan.tokens == 128 and not shorter.optional


def test_extras_change_the_name_of_a_block(fake, connect):
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, states = sample(layout, 2)
    adapter = {0: [Extra("adapter", b"lora-1")]}
    client.put(tokens, first_block=0, rows=rows, states=states, extras=adapter)
    assert client.flush(20)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert client.lookup(tokens, extras=adapter).plan.tokens == 256
    assert client.lookup(tokens, extras={1: [Extra("adapter", b"lora-1")]}).plan.kind is PlanKind.COLD


def test_a_second_writer_of_the_same_bytes_sends_none(fake, connect):
    layout = presets.v4_tiny()
    first, second = connect(layout), connect(layout)
    tokens, rows, states = sample(layout, 3)
    for client in (first, second):
        assert client.put(tokens, first_block=0, rows=rows, states=states)
        assert client.flush(20, durable=True)
    assert first.counters["objects_stored"] == 6
    assert second.counters["objects_exists"] == 6 and "put_bytes" not in second.counters


def test_rows_of_another_run_are_refused_and_counted(fake, connect):
    layout = presets.v4_tiny()
    first, second = connect(layout), connect(layout)
    tokens, rows, states = sample(layout, 3)
    first.put(tokens, first_block=0, rows=rows, states=states)
    assert first.flush(20)
    other = {name: array ^ 1 for name, array in rows.items()}
    second.put(tokens, first_block=0, rows=other, states=states)
    assert second.flush(20)
    assert second.counters["objects_other_lineage"] == 6
    assert_rows(second.fetch(second.lookup(tokens)), rows, 3)


def test_a_put_on_an_unknown_parent_is_not_published(fake, connect):
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, _ = sample(layout, 3)
    tail = {name: array[2:] for name, array in rows.items()}
    assert not client.put(tokens, first_block=2, rows=tail)
    assert client.counters["puts_unknown_parent"] == 1


def test_what_a_lookup_said_is_no_parent_for_rows_that_depend_on_the_run(fake, connect):
    """Only loaded rows and own ones were computed on; in a canonical namespace all runs have the same."""
    canonical = presets.v4_tiny()
    as_run = dataclasses.replace(canonical, canonical=False, numerics="as-run/test")
    for layout, is_taken in ((canonical, True), (as_run, False)):
        tokens, rows, states = sample(layout, 4)
        first, second = connect(layout), connect(layout)
        head = {name: array[:3] for name, array in rows.items()}
        assert first.put(tokens, first_block=0, rows=head, states={384: states[384]}) and first.flush(20)
        assert second.lookup(tokens).plan.tokens == 384
        tail = {name: array[3:] for name, array in rows.items()}
        assert second.put(tokens, first_block=3, rows=tail) is is_taken


def test_a_put_goes_on_from_what_was_fetched(fake, connect):
    layout = presets.v4_tiny()
    tokens, rows, states = sample(layout, 4)
    head = {name: array[:3] for name, array in rows.items()}
    tail = {name: array[3:] for name, array in rows.items()}
    writer, other = connect(layout), connect(layout)
    writer.put(tokens, first_block=0, rows=head, states={384: states[384]})
    assert writer.flush(20)
    with other.lookup(tokens) as match, other.fetch(match) as blocks:
        assert other.put(tokens, first_block=3, rows=tail, states={512: states[512]}, onto=blocks)
    assert other.flush(20)
    assert writer.lookup(tokens).plan.tokens == 512


def test_two_runs_seen_at_one_position_need_a_name(fake, connect):
    """The client computed rows itself and loaded another run's: it cannot say what a later put was computed on."""
    layout = presets.v4_tiny()
    tokens, rows, states = sample(layout, 3)
    head = {name: array[:2] for name, array in rows.items()}
    tail = {name: array[2:] for name, array in rows.items()}
    first, second = connect(layout), connect(layout)
    first.put(tokens, first_block=0, rows=head, states={256: states[256]})
    assert first.flush(20)
    second.put(tokens, first_block=0, rows={name: array ^ 1 for name, array in head.items()})
    blocks = second.fetch(second.lookup(tokens))
    assert not second.put(tokens, first_block=2, rows=tail)
    assert second.put(tokens, first_block=2, rows=tail, onto=blocks)


def test_a_long_chain_is_asked_for_in_parts(fake, connect):
    fake.batch_blocks = 4
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, states = sample(layout, 10, states=(10 * 128, 3 * 128))
    for first in range(0, 10, 2):
        part = {name: array[first : first + 2] for name, array in rows.items()}
        inside = {at: state for at, state in states.items() if first < at // 128 <= first + 2}
        assert client.put(tokens, first_block=first, rows=part, states=inside)
    assert client.flush(20)
    with client.lookup(tokens) as match:
        assert match.plan.tokens == 1280
        blocks = client.fetch(match)
        assert_rows(blocks, rows, 10)
        assert_state(blocks, states[1280])
    assert client.counters["lookup_parts"] == 2 and fake.seen["Fetch"] == 4


def test_a_part_that_is_not_answered_leaves_the_match_of_those_before(address):
    class Failing(FakeStore):
        def Lookup(self, request, context):
            if request.chain.first_block >= 4:
                context.abort_with_status(status(grpc.StatusCode.RESOURCE_EXHAUSTED, Reason.SHED, "busy"))
            return super().Lookup(request, context)

    store = Failing(batch_blocks=2)
    server = serve(store, address)
    with kvstore.connect(address, layout=presets.v4_tiny()) as client:
        tokens, rows, states = sample(client.layout, 8)
        for block in range(0, 8, 2):
            part = {name: array[block : block + 2] for name, array in rows.items()}
            end = (block + 2) * 128
            assert client.put(tokens, first_block=block, rows=part, states={end: states[end]})
        assert client.flush(20)
        with client.lookup(tokens) as match:
            assert match.plan.tokens == 512
        until(lambda: not store.leases)
    server.stop(None).wait()


def test_a_known_sequence_sends_only_its_tail(fake, connect):
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, states = sample(layout, 100, states=(100 * 128,))
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20)
    assert client.lookup(tokens).plan.tokens == 12800
    longer = np.concatenate([tokens, np.arange(300, dtype=np.int32)])
    assert client.lookup(longer).plan.tokens == 12800
    assert [chain.first_block for chain in fake.lookup_chains] == [0, 99]
    assert fake.lookup_chains[1].blocks == 3
    # all but the first half is dropped: the tail is of no use, the whole chain is asked for
    kept = set(list(fake.objects)[:0])
    fake.objects = {key: body for key, body in fake.objects.items() if key in kept}
    assert client.lookup(longer).plan.kind is PlanKind.COLD
    assert client.counters["lookup_tails_refused"] == 1
    assert [chain.first_block for chain in fake.lookup_chains] == [0, 99, 99, 0]


def test_an_empty_prompt_asks_nobody(fake, connect):
    client = connect()
    match = client.lookup([])
    assert match.plan.kind is PlanKind.COLD and match.reason is MissReason.SHORT_PROMPT
    assert not fake.seen["Lookup"]
    assert client.fetch(match).rows["csa.main"].shape[0] == 0


def test_a_short_prompt_still_learns_where_to_snapshot(fake, connect):
    match = connect().lookup(list(range(100)))
    assert match.plan.kind is PlanKind.COLD and match.snapshots.at == (128,)


def test_the_small_calls(fake, connect):
    client = connect()
    tokens = list(range(300))
    pin = client.pin(tokens, ttl_seconds=60)
    assert pin is not None and pin.tokens == 128 and client.unpin(pin)
    assert client.session("a7", SessionEvent.OPENED, 12.0)
    assert client.prefetch(tokens) == 5
    assert client.report(client.lookup(tokens), block=0, group=0, reason="test") is False


def test_durability_is_asked_for_also_after_the_commit(fake, connect):
    client = connect()
    tokens, rows, states = sample(client.layout, 2)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20)  # commits without waiting for the disk
    assert fake.seen["Commit"] == 1
    assert client.flush(20, durable=True)
    assert fake.seen["Commit"] == 2 and fake.seen["Put"] == 1


def test_what_is_only_in_memory_is_not_durable(fake, connect):
    from kvstore.core.reserve import Durability

    fake.durability = Durability.MEMORY
    client = connect()
    tokens, rows, states = sample(client.layout, 2)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert not client.flush(20, durable=True)
