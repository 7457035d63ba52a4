"""Whatever the store does, the worker sees at worst a shorter match, and a counter says why.

No test here passes or fails by how long something took: that is measured in bench/. Deadlines are set short so that a
run is quick; where a call must not be sent at all, the fake store's own count of calls says so.
"""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path
from threading import Event, Thread

import numpy as np
import pytest
from client_tools import assert_rows, assert_state, sample, stop, until
from fake_store import FakeStore, serve

import kvstore
from kvstore.client import buffers
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core import presets
from kvstore.core.errors import LayoutMismatch
from kvstore.core.keys import BlockKey
from kvstore.core.match import PlanKind
from kvstore.rpc.status import status_of

SHORT = Timeouts(connect_seconds=0.5, lookup_seconds=0.5, fetch_seconds=2.0, put_seconds=2.0, close_seconds=0.5)


def filled(connect, layout=None, blocks=4, timeouts=None, **options):
    """A client whose store holds `blocks` blocks of a sample."""
    client = connect(layout, timeouts=timeouts, **options)
    tokens, rows, states = sample(client.layout, blocks)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20)
    return client, tokens, rows, states


def keys_of(match, blocks, group):
    return [BlockKey(match.hashed.position(block + 1), group) for block in blocks]


@pytest.fixture
def server_process(address):
    """Starts the fake store as a process of its own; kills it at the end."""
    running = []

    def start(*arguments: str) -> subprocess.Popen:
        script = Path(__file__).parent / "fake_store.py"
        environment = os.environ | {"PYTHONPATH": str(Path(kvstore.__file__).parents[1])}
        process = subprocess.Popen(
            [sys.executable, str(script), address, *arguments], stdout=subprocess.PIPE, env=environment
        )
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        running.append(process)
        return process

    yield start
    for process in running:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.wait()
        process.stdout.close()


def test_without_a_server_every_call_answers_with_nothing(connect):
    client = connect()
    tokens, rows, states = sample(client.layout, 2)
    assert not client.is_connected
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert match.plan.kind is PlanKind.COLD and blocks.plan.kind is PlanKind.COLD
        assert blocks.state is None and len(blocks.rows["csa.main"]) == 0
    assert not client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.pin(tokens, 10) is None and client.prefetch(tokens) == 0
    counters = client.counters
    assert counters["lookups_failed"] == 1 and counters["puts_unconnected"] == 1
    assert counters["breaker_opened"] == 1 and counters["control_calls_failed"] == 2


def test_a_server_that_comes_up_later_is_found(connect, address):
    client = connect()
    tokens, rows, states = sample(client.layout, 2)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    store = FakeStore()
    server = serve(store, address)
    until(lambda: client.is_connected)
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(20)
    assert client.lookup(tokens).plan.tokens == 256
    server.stop(None).wait()


def test_a_dead_store_is_asked_by_nobody_but_the_clients_own_thread(fake, connect):
    client, tokens, _, _ = filled(connect)
    fake.draining = True
    assert client.lookup(tokens).plan.kind is PlanKind.COLD  # the one call that learns of it
    before = fake.seen["Lookup"]
    for _ in range(100):
        assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert fake.seen["Lookup"] == before
    assert client.counters["refused_by_breaker"] >= 100
    until(lambda: fake.seen["Hello"] >= 3)  # it goes on probing
    fake.draining = False
    until(lambda: client.is_connected)
    assert client.lookup(tokens).plan.tokens == 512


def test_a_killed_server_costs_a_miss_and_its_successor_is_found(server_process, connect):
    process = server_process()
    client, tokens, _, _ = filled(connect, timeouts=SHORT)
    match = client.lookup(tokens)
    assert match.plan.tokens == 512
    process.kill()
    process.wait()
    assert client.fetch(match).plan.kind is PlanKind.COLD
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    server_process()
    until(lambda: client.is_connected)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD  # it has forgotten everything, and says so
    assert client.counters["failed_unavailable"] >= 1 and client.counters["connects"] >= 2


def test_a_server_killed_in_the_middle_of_a_fetch_leaves_what_is_here(server_process, connect):
    """Ordinary attention needs no state: the rows that came are a resume point."""
    layout = presets.full_tiny()
    process = server_process("3", str(layout.rows.nbytes))
    client, tokens, rows, _ = filled(connect, layout, blocks=8)
    match = client.lookup(tokens)
    done = []

    def fetch():
        done.append(client.fetch(match))

    thread = Thread(target=fetch)
    thread.start()
    until(lambda: client.counters.get("fetched_bytes", 0) >= 3 * layout.rows.nbytes)
    process.kill()
    thread.join(20)
    blocks = done[0]
    assert blocks.plan.kind is PlanKind.RESUME and blocks.plan.tokens == 3 * layout.block_tokens
    assert_rows(blocks, rows, 3)
    assert client.counters["fetch_cut_off"] == 1


def test_a_black_holed_server_opens_the_breaker(server_process, connect):
    process = server_process()
    client, tokens, _, _ = filled(connect, timeouts=SHORT)
    match = client.lookup(tokens)
    stop(process)  # accepts, never answers
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert not client.is_connected
    assert client.fetch(match).plan.kind is PlanKind.COLD
    refused = client.counters["refused_by_breaker"]
    for _ in range(1000):
        client.lookup(tokens)
    assert client.counters["refused_by_breaker"] >= refused + 1000, "no call waits for its deadline again"
    process.send_signal(signal.SIGCONT)
    until(lambda: client.is_connected)
    assert client.lookup(tokens).plan.tokens == 512


def test_connecting_to_a_black_hole_gives_a_working_client(server_process, connect):
    stop(server_process())
    client = connect(timeouts=SHORT)
    assert client.lookup([1] * 300).plan.kind is PlanKind.COLD


def test_a_slow_fetch_is_cut_at_its_deadline(fake, connect):
    layout = presets.full_tiny()
    client, tokens, rows, _ = filled(connect, layout, blocks=8, timeouts=SHORT)
    match = client.lookup(tokens)
    fake.hang_fetch_after, fake.chunk_bytes = 5, layout.rows.nbytes
    blocks = client.fetch(match)
    assert blocks.plan.tokens == 5 * layout.block_tokens
    assert_rows(blocks, rows, 5)
    assert client.is_connected, "a slow stream is no dead store"
    assert client.counters["failed_deadline_exceeded"] == 1


@pytest.mark.parametrize("chunk_bytes", [100, 5000, 1 << 20])
@pytest.mark.parametrize("group", [0, 1])
def test_corrupt_bytes_on_the_wire_are_reported_and_never_handed_out(fake, connect, group, chunk_bytes):
    fake.chunk_bytes = chunk_bytes
    client, tokens, rows, states = filled(connect)
    match = client.lookup(tokens)
    block = 2 if group == 0 else 3
    fake.corrupt.update(keys_of(match, [block], group))
    blocks = client.fetch(match)
    expected = 256 if group == 0 else 384  # the store dropped its copy; what is left reaches so far
    assert blocks.plan.tokens == expected
    assert_rows(blocks, rows, expected // 128)
    assert_state(blocks, states[expected])
    assert fake.reports == keys_of(match, [block], group)
    assert client.counters["fetch_corrupt"] == 1 and client.counters["fetch_second_tries"] == 1
    assert client.fetch(client.lookup(tokens)).plan.tokens == expected


@pytest.mark.parametrize(("group", "block", "expected"), [(0, 0, 0), (0, 3, 384), (1, 3, 384)])
def test_an_object_gone_since_the_lookup_gives_a_shorter_plan(fake, connect, group, block, expected):
    client, tokens, rows, states = filled(connect)
    match = client.lookup(tokens)
    fake.vanish.update(keys_of(match, [block], group))
    blocks = client.fetch(match)
    assert blocks.plan.tokens == expected
    assert_rows(blocks, rows, expected // 128)
    if expected:
        assert_state(blocks, states[expected])
    assert client.counters["fetch_missing"] == 1


@pytest.mark.parametrize("chunk_bytes", [100, 1 << 20])
def test_rows_already_here_are_not_fetched_again(fake, connect, chunk_bytes):
    fake.chunk_bytes = chunk_bytes
    client, tokens, _, _ = filled(connect, blocks=8)
    match = client.lookup(tokens)
    fake.vanish.update(keys_of(match, [6], 0))
    assert client.fetch(match).plan.tokens == 6 * 128
    first, second = fake.fetches
    assert first == (range(0, 8), [7])
    assert not second[0] and second[1] == [5], "the second try brings the state alone"


def test_rows_of_two_runs_are_never_joined(fake, connect):
    """The store claims a lineage that the bytes do not have: something below was replaced by another run's."""
    client, tokens, _, _ = filled(connect)
    match = client.lookup(tokens)
    end = match.hashed.position(4)
    fake.lineages[end] = bytes(16)
    blocks = client.fetch(client.lookup(tokens))
    assert blocks.plan.kind is PlanKind.COLD
    assert client.counters["fetch_lineage_mismatch"] > 0


def test_a_put_whose_base_was_dropped_does_not_stand_on_what_another_run_has_there(fake, connect):
    """Three queued puts of one run; the second loses its base, and another run's rows lie where it would have been."""
    layout = presets.v4_tiny()
    tokens, theirs, states = sample(layout, 6, seed=1)
    own, step = sample(layout, 6, seed=2)[1], layout.block_tokens
    other, client = connect(layout), connect(layout)
    first = {name: array[:4] for name, array in theirs.items()}
    assert other.put(tokens, first_block=0, rows=first, states={4 * step: states[4 * step], 2 * step: states[2 * step]})
    assert other.flush(20) and len(fake.lineages) == 4
    go, layout_of = Event(), fake._layout

    def held(request, context):
        assert not hasattr(request, "objects") or go.wait(20)  # a Reserve
        return layout_of(request, context)

    fake._layout = held
    for block in (0, 2, 4):
        part = {name: array[block : block + 2] for name, array in own.items()}
        assert client.put(tokens, first_block=block, rows=part)
    for blocks in (2, 4):
        with client.lookup(tokens[: blocks * step + 1]) as match, client.fetch(match) as fetched:
            assert fetched.plan.tokens == blocks * step
    go.set()
    assert not client.flush(20) and client.counters["puts_unknown_parent"] == 2
    assert len(fake.lineages) == 4, "nothing was stored on rows that it was not computed on"


def test_a_share_that_grows_as_the_plan_shrinks_is_a_miss(fake, connect):
    """Of 8 blocks the third of five ranks has one, of 7 it has two: more than the caller's arrays take."""
    client, tokens, rows, _ = filled(connect, blocks=9)
    with client.lookup(tokens) as match:
        point = next(point for point in match.resume_points if point.tokens == 8 * client.layout.block_tokens)
        agreed = match.with_plan(point)  # with the other ranks
        fake.vanish.update(keys_of(match, [7, 8], 1))
        for key in fake.vanish:
            fake.objects.pop(key)
        into = {name: np.empty_like(array[:1]) for name, array in rows.items()}
        blocks = client.fetch(agreed, into, share=(2, 5))
        assert blocks.plan.kind is PlanKind.COLD and client.counters["fetch_second_tries"] == 1
        blocks = client.fetch(agreed, share=(2, 5))
        assert blocks.plan.tokens == 7 * client.layout.block_tokens and blocks.first_block == 2
        np.testing.assert_equal(dict(blocks.rows), {name: array[2:4] for name, array in rows.items()})


def test_a_state_of_another_run_is_not_joined_to_the_rows(fake, connect):
    client, tokens, _, _ = filled(connect)
    with client.lookup(tokens) as match:
        assert match.plan.kind is PlanKind.RESUME
        (key,) = keys_of(match, [match.plan.tokens // client.layout.block_tokens - 1], 1)
        fake.foreign_states[key.prefix] = b"o" * 16  # whole, sealed, and computed on other rows
        with client.fetch(match) as blocks:
            assert blocks.plan.kind is PlanKind.COLD and blocks.state is None
    assert not client.counters.get("fetch_corrupt") and key in fake.objects, "nothing is wrong with the state itself"


def test_replay_is_what_remains_when_only_rows_came(server_process, connect):
    layout = presets.v4_tiny()  # three windows of 128: a replay recomputes 384 tokens
    process = server_process("12", str(layout.rows.nbytes))
    client, tokens, rows, _ = filled(connect, layout, blocks=20)
    match = client.lookup(tokens)
    done = []
    thread = Thread(target=lambda: done.append(client.fetch(match)))
    thread.start()
    until(lambda: client.counters.get("fetched_bytes", 0) >= 12 * layout.rows.nbytes)
    process.kill()
    thread.join(20)
    plan = done[0].plan
    assert (plan.kind, plan.tokens, plan.compute_from) == (PlanKind.REPLAY, 12 * 128, 12 * 128 - 384)
    assert_rows(done[0], rows, 12)


def test_a_restart_is_noticed_by_its_epoch(fake, connect):
    client, tokens, _, _ = filled(connect)
    stale = client.lookup(tokens)
    fake.restart()
    assert client.fetch(stale).plan.tokens == 512, "the lease is void, the second try finds the same bytes"
    assert client.lookup(tokens).plan.tokens == 512
    assert client.counters["hello_again"] == 1
    fake.restart(secret=b"t" * 32)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD, "another root names other blocks"
    assert fake.lookup_chains[-1].parent != fake.lookup_chains[-2].parent


def test_a_put_after_a_restart_is_said_hello_for(fake, connect):
    client, tokens, rows, states = filled(connect)
    fake.restart(keep_objects=False)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20, durable=True)
    assert client.lookup(tokens).plan.tokens == 512


def test_a_store_that_sheds_is_not_dead(fake, connect):
    client, tokens, _, _ = filled(connect)
    fake.shed.add("Lookup")
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    fake.shed.clear()
    assert client.lookup(tokens).plan.tokens == 512
    assert client.counters["failed_resource_exhausted"] == 1


def test_a_full_queue_sheds_and_says_so(server_process, connect):
    process = server_process()
    layout = presets.v4_tiny()
    tokens, rows, _ = sample(layout, 4)
    job_bytes = 4 * layout.rows.nbytes
    client = connect(layout, bounds=Bounds(queue_bytes=2 * job_bytes), timeouts=SHORT)
    stop(process)
    taken = [client.put(tokens, first_block=0, rows=rows) for _ in range(4)]
    assert taken == [True, True, False, False]
    assert client.counters["puts_shed"] == 2
    assert not client.flush(20), "puts that got no answer are no success"


@pytest.fixture
def memory_for(monkeypatch):
    """From now on so many buffers can still be mapped."""

    def limit(count):
        left = iter(range(count))

        def fresh(nbytes, real=buffers._fresh):
            if next(left, None) is None:
                raise OSError(errno.ENOMEM, "Cannot allocate memory")
            return real(nbytes)

        monkeypatch.setattr(buffers, "_fresh", fresh)

    return limit


@pytest.mark.parametrize("count", [0, 1])
def test_a_fetch_without_memory_is_a_miss(fake, connect, memory_for, count):
    client, tokens, _, _ = filled(connect, bounds=Bounds(pool_bytes=1))  # no buffer is kept for the next call
    match = client.lookup(tokens)
    memory_for(count)
    assert client.fetch(match).plan.kind is not PlanKind.RESUME
    assert client.counters["fetch_no_memory"] >= 1


def test_a_put_without_memory_is_shed(fake, connect, memory_for):
    client = connect()
    tokens, rows, _ = sample(client.layout, 2)
    memory_for(0)
    assert not client.put(tokens, first_block=0, rows=rows)
    assert client.counters["puts_no_memory"] == 1


def test_a_shed_upload_gives_its_room_back(fake, connect):
    client = connect()
    tokens, rows, _ = sample(client.layout, 2)
    fake.shed.add("Put")
    assert client.put(tokens, first_block=0, rows=rows)
    assert not client.flush(20)
    assert not fake.reservations, "the store would keep room for it until the reservation ends"


def test_a_failed_flush_does_not_taint_the_next(fake, connect):
    client, *_ = filled(connect)
    other, other_rows, _ = sample(client.layout, 2, seed=9)
    fake.shed.add("Reserve")
    assert client.put(other, first_block=0, rows=other_rows)
    assert not client.flush(20)
    fake.shed.clear()
    assert client.put(other, first_block=0, rows=other_rows)
    assert client.flush(20, durable=True)


def test_closing_twice_and_calling_after_it_is_harmless(fake, connect):
    client, tokens, rows, _ = filled(connect)
    client.close()
    client.close()
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert not client.put(tokens, first_block=0, rows=rows)
    assert not client.flush(1)


def test_closing_uploads_what_is_queued(fake, connect):
    client = connect()
    tokens, rows, states = sample(client.layout, 3)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    client.close()
    assert connect().lookup(tokens).plan.tokens == 384


def test_bytes_changed_by_the_caller_after_a_put_are_not_what_is_stored(fake, connect):
    client = connect()
    tokens, rows, states = sample(client.layout, 3)
    before = {name: array.copy() for name, array in rows.items()}
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    for array in rows.values():
        array[...] = 0
    assert client.flush(20)
    assert_rows(client.fetch(client.lookup(tokens)), before, 3)


def test_existing_only_raises_for_a_near_miss(address):
    class Refusing(FakeStore):
        def Hello(self, request, context):
            context.abort_with_status(status_of(LayoutMismatch("layout mismatch: differs in revision")))

    server = serve(Refusing(), address)
    with pytest.raises(LayoutMismatch, match="revision"):
        kvstore.connect(address, layout=presets.v4_tiny(), existing_only=True)
    # a daemon of another version refuses every layout: that is no reason to stop a worker
    with kvstore.connect(address, layout=presets.v4_tiny()) as client:
        assert not client.is_connected and client.lookup([1] * 300).plan.kind is PlanKind.COLD
    server.stop(None).wait()


def test_closing_ends_a_flush_that_waits(server_process, connect):
    process = server_process()
    client = connect(timeouts=SHORT)
    tokens, rows, _ = sample(client.layout, 2)
    stop(process)
    assert client.put(tokens, first_block=0, rows=rows)
    answers = []
    waiting = Thread(target=lambda: answers.append(client.flush(3600)))
    waiting.start()
    client.close()
    waiting.join(20)
    assert answers == [False]
