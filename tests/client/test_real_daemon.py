"""The client against the daemon as it is: put, find, fetch, restart, kill."""

from __future__ import annotations

import numpy as np
import pytest
from client_tools import assert_rows, assert_state, sample, until

from kvstore.core import presets
from kvstore.core.keys import Tier
from kvstore.core.match import Hints, PlanKind

LAYOUTS = {
    "tiny": presets.v4_tiny(),
    "demo": presets.v4_demo(),
    "full": presets.full_tiny(),
    "flash": presets.v4_flash(mtp=True),
}


def test_a_worker_hears_in_which_field_its_layout_differs(start, connect, caplog):
    start()
    connect(presets.v4_tiny())
    assert "differs" not in caplog.text
    connect(presets.with_changes(presets.v4_tiny(), revision="other"))
    assert "differs from a known one of this model in revision" in caplog.text


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_was_put_is_found_and_fetched(start, connect, name):
    start()
    layout = LAYOUTS[name]
    writer, reader = connect(layout), connect(layout)
    bt = layout.block_tokens
    tokens, rows, states = sample(layout, 6, states=(4 * bt, 6 * bt))
    assert writer.put(tokens, first_block=0, rows=rows, states=states)
    assert writer.flush(30, durable=True)
    with reader.lookup(tokens) as match, reader.fetch(match) as blocks:
        assert blocks.plan.tokens == 6 * bt and blocks.tier is Tier.HOST
        assert_rows(blocks, rows, 6)
        if layout.state is not None:
            assert_state(blocks, states[6 * bt])
            for point in match.resume_points:
                other = reader.fetch(match.with_plan(point))
                assert_rows(other, rows, point.tokens // bt)
                assert_state(other, states[point.tokens])
    assert "fetch_second_tries" not in reader.counters


def test_a_turn_goes_on_from_the_last(start, connect):
    start()
    layout = presets.v4_tiny()
    first, second = connect(layout), connect(layout)
    tokens, rows, states = sample(layout, 80, states=(70 * 128, 80 * 128))
    head = {name: array[:70] for name, array in rows.items()}
    tail = {name: array[70:] for name, array in rows.items()}
    hints = Hints(session="a7", breakpoints=(70 * 128,))
    assert first.put(tokens, first_block=0, rows=head, states={70 * 128: states[70 * 128]}, hints=hints)
    assert first.flush(30)
    with second.lookup(tokens, hints=hints) as match, second.fetch(match) as blocks:
        assert blocks.plan.tokens == 70 * 128
        assert second.put(tokens, first_block=70, rows=tail, states={80 * 128: states[80 * 128]}, onto=blocks)
    assert second.flush(30, durable=True)
    longer = np.concatenate([tokens, tokens])
    with second.lookup(longer) as match, second.fetch(match) as blocks:
        assert match.plan.tokens == 80 * 128
        assert_rows(blocks, rows, 80)
        assert_state(blocks, states[80 * 128])
    assert second.counters["lookup_tails"] == 1 and "lookup_tails_refused" not in second.counters


def test_rows_without_a_state_are_replayed(start, connect):
    start()
    layout = presets.v4_tiny()
    client = connect(layout)
    tokens, rows, _ = sample(layout, 10)
    assert client.put(tokens, first_block=0, rows=rows)
    assert client.flush(30)
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert blocks.plan.kind is PlanKind.REPLAY and blocks.state is None
        assert blocks.plan.compute_from == blocks.plan.tokens - layout.replay_tokens
        assert_rows(blocks, rows, blocks.plan.tokens // 128)
    assert connect(layout, can_replay=False).lookup(tokens).plan.kind is PlanKind.COLD


def test_rows_of_another_run_are_refused(start, connect):
    start()
    layout = presets.v4_tiny()
    first, second = connect(layout), connect(layout)
    tokens, rows, states = sample(layout, 3)
    assert first.put(tokens, first_block=0, rows=rows, states=states) and first.flush(30)
    changed = {name: array.copy() for name, array in rows.items()}
    changed["hca.main"][1] ^= 1
    assert second.put(tokens, first_block=0, rows=changed, states=states) and second.flush(30)
    assert second.counters["objects_other_lineage"] >= 3
    assert_rows(second.fetch(second.lookup(tokens)), rows, 3)


def test_a_restart_is_survived_by_bytes_and_client(start, connect):
    start()
    layout = presets.v4_demo()
    client = connect(layout)
    tokens, rows, states = sample(layout, 4)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(30, durable=True)
    stale = client.lookup(tokens)
    start()
    until(lambda: client.lookup(tokens).plan.tokens == 512)
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert_rows(blocks, rows, 4)
        assert_state(blocks, states[512])
    assert client.fetch(stale).plan.tokens == 512, "a lease of the last run is void; asking again finds the bytes"


def test_pins_sessions_and_prefetch_are_understood(start, connect):
    from kvstore.core.match import SessionEvent

    start()
    client = connect()
    tokens, rows, states = sample(client.layout, 3)
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(30)
    pin = client.pin(tokens, ttl_seconds=60)
    assert pin is not None and pin.tokens == 384 and client.unpin(pin) and not client.unpin(pin)
    assert client.session("a7", SessionEvent.OPENED)
    assert client.prefetch(tokens) >= 0 and "control_calls_failed" not in client.counters
    assert client.report(client.lookup(tokens), block=2, group=1, reason="a test says so")
    assert client.lookup(tokens).plan.tokens == 256


def test_a_killed_daemon_costs_a_miss_and_durable_bytes_come_back(daemon_process, connect):
    daemon = daemon_process()
    client = connect()
    tokens, rows, states = sample(client.layout, 4)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(30, durable=True)
    match = client.lookup(tokens)
    daemon.kill()
    daemon.wait()
    assert client.fetch(match).plan.kind in (PlanKind.COLD, PlanKind.RESUME)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    daemon_process()
    until(lambda: client.is_connected)
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert blocks.plan.tokens == 512 and blocks.tier is Tier.DISK
        assert_rows(blocks, rows, 4)
        assert_state(blocks, states[512])


@pytest.mark.parametrize("share_memory", [True, False])
def test_one_put_larger_than_the_host_goes_through_it_to_disk(start, connect, share_memory):
    start(host_bytes="8MiB")
    layout = presets.v4_demo()
    writer, reader = connect(layout, share_memory=share_memory), connect(layout)
    blocks = 600  # 13 MB of rows
    tokens, rows, states = sample(layout, blocks, states=(blocks * layout.block_tokens,))
    assert writer.put(tokens, first_block=0, rows=rows, states=states)
    assert writer.flush(60.0, durable=True)
    assert share_memory or writer.counters["puts_continued"] > 0  # of staged objects the daemon takes the rest itself
    with reader.lookup(np.append(tokens, 7)) as match, reader.fetch(match) as blocks_read:
        assert blocks_read.plan.tokens == blocks * layout.block_tokens and blocks_read.tier is Tier.DISK
        assert_rows(blocks_read, rows, blocks)
