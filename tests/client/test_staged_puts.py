"""Puts by way of the staging region, against the daemon as it is: the same objects as over the stream."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import threading
from contextlib import contextmanager

import numpy as np
import pytest
from client_tools import arrays_of, assert_rows, assert_state, sample, stop, until
from daemon_peer import Peer
from fake_attach import FakeAttach, error

from kvstore.client import commits, uploads
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core import presets
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.match import PlanKind
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import OK, LaneAnswer

LAYOUT = presets.v4_demo()
BLOCK = LAYOUT.block_tokens


@pytest.fixture
def over_grpc(address, tmp_path):
    """Where a client that connects cannot attach: the socket is not where the daemon says."""

    @contextmanager
    def hidden():
        path, other = tmp_path / "kv.sock.attach", tmp_path / "elsewhere"
        path.rename(other)
        yield
        other.rename(path)

    return hidden


def staging_client(connect, layout=LAYOUT, **options):
    client = connect(layout, **options)
    until(lambda: client.has_staging)
    return client


def assert_all_free(client):
    staging = client._writer._commits.staging
    assert staging.free_bytes == staging.nbytes, "every extent came back"


def grown(layout, tokens, count, seed):
    """Tokens that go on from these, and rows of `count` blocks for them."""
    rng = np.random.default_rng(seed)
    more = rng.integers(0, 1000, count * layout.block_tokens, dtype=np.int32)
    return np.concatenate([tokens[: len(tokens) // layout.block_tokens * layout.block_tokens], more, [1]]), arrays_of(
        layout.rows, rng, count
    )


def joined(*rows):
    return {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}


def assert_stored(reader, tokens, rows, blocks, state=None):
    with reader.lookup(tokens) as match, reader.fetch(match) as fetched:
        assert match.rows_tokens == blocks * BLOCK
        assert_rows(fetched, rows, fetched.plan.tokens // BLOCK)
        if state is not None:
            assert fetched.plan.tokens == blocks * BLOCK
            assert_state(fetched, state)


def test_the_same_puts_give_the_same_objects_either_way(start, connect, over_grpc):
    start()
    staged = staging_client(connect)
    with over_grpc():
        streamed, reader = connect(LAYOUT), connect(LAYOUT)
    assert not streamed.is_attached and not streamed.has_staging and not reader.is_attached
    for seed in range(4):
        tokens, rows, states = sample(LAYOUT, 5, seed=seed, states=(2 * BLOCK, 5 * BLOCK))
        first, second = (staged, streamed) if seed % 2 else (streamed, staged)
        assert first.put(tokens, first_block=0, rows=rows, states=states) and first.flush(30)
        assert_stored(reader, tokens, rows, 5, states[5 * BLOCK])
        # the other way names the very same objects and lineages: all of them exist
        assert second.put(tokens, first_block=0, rows=rows, states=states) and second.flush(30, durable=True)
    for client in (staged, streamed):
        counters = client.counters
        assert (counters["puts"], counters["objects_stored"], counters["objects_exists"]) == (4, 14, 14)
        assert counters["put_bytes"] == 2 * (5 * LAYOUT.rows.nbytes + 2 * LAYOUT.state.nbytes)
    assert staged.counters["puts_staged"] == 4 and "staged_commits" not in streamed.counters


@pytest.mark.parametrize("layout", [presets.v4_tiny(), presets.full_tiny(), presets.v4_flash(mtp=True)])
def test_objects_of_any_size_find_their_place(start, connect, layout):
    start()
    client, reader = staging_client(connect, layout), connect(layout)
    bt = layout.block_tokens
    tokens, rows, states = sample(layout, 6, states=(bt, 6 * bt))
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(30, durable=True)
    with reader.lookup(tokens) as match, reader.fetch(match) as blocks:
        assert blocks.plan.tokens == 6 * bt
        assert_rows(blocks, rows, 6)
        if layout.state is not None:
            assert_state(blocks, states[6 * bt])
    assert client.counters["puts_staged"] == 1


def test_puts_that_wait_go_in_one_commit_and_stand_on_each_other(daemon_process, connect):
    daemon = daemon_process()
    client, reader = staging_client(connect), connect(LAYOUT)
    tokens, first, _ = sample(LAYOUT, 2, states=())
    turns, rows = [(tokens, 0, first)], [first]
    for turn in range(4):
        tokens, more = grown(LAYOUT, tokens, 2, seed=turn + 1)
        turns.append((tokens, 2 + 2 * turn, more))
        rows.append(more)
    stop(daemon)
    for number, (tokens, first_block, more) in enumerate(turns):
        assert client.put(tokens, first_block=first_block, rows=more)
        if number == 0:
            until(lambda: client.counters.get("staged_commits") == 1)
    daemon.send_signal(signal.SIGCONT)
    assert client.flush(30, durable=True)
    assert client.counters["staged_commits"] == 2 and client.counters["puts_staged"] == 5
    assert_stored(reader, turns[-1][0], joined(*rows), 10)
    # and their lineages are known: the next turn is taken at once
    tokens, more = grown(LAYOUT, turns[-1][0], 1, seed=9)
    assert client.put(tokens, first_block=10, rows=more) and client.flush(30)
    assert reader.lookup(tokens).rows_tokens == 11 * BLOCK


def test_a_put_on_top_of_two_runs_is_given_up_when_that_comes_out(daemon_process, connect):
    daemon = daemon_process()
    client, reader = staging_client(connect), connect(LAYOUT)
    tokens, rows, _ = sample(LAYOUT, 2, states=())
    other = {name: array ^ 1 for name, array in rows.items()}
    longer, more = grown(LAYOUT, tokens, 1, seed=5)
    stop(daemon)
    assert client.put(tokens, first_block=0, rows=rows)
    assert client.put(tokens, first_block=0, rows=other)
    assert client.put(longer, first_block=2, rows=more), "what it stands on is queued"
    daemon.send_signal(signal.SIGCONT)
    assert not client.flush(30), "one put was not answered"
    assert client.counters["puts_unknown_parent"] == 1 and client.counters["objects_other_lineage"] == 2
    assert not client.put(longer, first_block=2, rows=more), "and now it is known at once"
    assert client.counters["puts_unknown_parent"] == 2
    assert_stored(reader, tokens, rows, 2)
    assert reader.lookup(longer).rows_tokens == 2 * BLOCK
    assert_all_free(client)


def test_what_stands_on_nothing_known_is_refused_at_once(start, connect):
    start()
    client = staging_client(connect)
    tokens, rows, _ = sample(LAYOUT, 3, states=())
    assert not client.put(tokens, first_block=1, rows={name: array[1:] for name, array in rows.items()})
    assert client.counters["puts_unknown_parent"] == 1 and client.flush(10)


@pytest.mark.parametrize("pages", [1, 40])
def test_a_put_larger_than_the_region_gets_there_too(start, connect, pages):
    """In parts by way of the region; where not even a block has room there, over the stream."""
    start()
    client, reader = staging_client(connect, bounds=Bounds(staging_bytes=pages * PAGE_BYTES)), connect(LAYOUT)
    tokens, rows, states = sample(LAYOUT, 12, states=(6 * BLOCK, 12 * BLOCK))
    assert 12 * LAYOUT.rows.nbytes > pages * PAGE_BYTES
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(30, durable=True)
    assert_stored(reader, tokens, rows, 12, states[12 * BLOCK])
    longer, more = grown(LAYOUT, tokens, 1, seed=3)
    assert client.put(longer, first_block=12, rows=more) and client.flush(30), "the lineage of its end is known"
    assert reader.lookup(longer).rows_tokens == 13 * BLOCK and client.counters["puts"] == 2


def test_a_put_that_was_packed_elsewhere_goes_through_the_region_in_parts(start, connect, monkeypatch):
    monkeypatch.setattr(uploads, "PART_BYTES", 3 * LAYOUT.rows.nbytes + LAYOUT.rows.nbytes // 2)
    start()
    room = 4 * LAYOUT.rows.nbytes // PAGE_BYTES * PAGE_BYTES
    client, reader = staging_client(connect, bounds=Bounds(staging_bytes=room)), connect(LAYOUT)
    tokens, rows, _ = sample(LAYOUT, 9, states=())
    assert client.put(tokens, first_block=0, rows=rows) and client.flush(30, durable=True)
    assert client.counters["staged_commits"] == 3 and client.counters["puts"] == client.counters["puts_staged"] == 1
    assert_all_free(client)
    assert_stored(reader, tokens, rows, 9)


def test_full_region_then_full_queue_and_then_puts_are_shed(daemon_process, connect):
    daemon = daemon_process()
    job_bytes = 2 * LAYOUT.rows.nbytes
    bounds = Bounds(queue_bytes=3 * job_bytes, staging_bytes=-(-job_bytes // PAGE_BYTES) * PAGE_BYTES)
    client, reader = staging_client(connect, bounds=bounds), connect(LAYOUT)
    samples = [sample(LAYOUT, 2, seed=seed, states=()) for seed in range(5)]
    stop(daemon)
    taken = [client.put(tokens, first_block=0, rows=rows) for tokens, rows, _ in samples]
    assert taken == [True, True, True, False, False]
    assert client.counters["puts_shed"] == 2
    daemon.send_signal(signal.SIGCONT)
    assert client.flush(30) and client.counters["puts"] == 3
    for tokens, rows, _ in samples[:3]:
        assert_stored(reader, tokens, rows, 2)
    assert client.put(samples[3][0], first_block=0, rows=samples[3][1]) and client.flush(30)
    assert_all_free(client)


def test_two_threads_put_at_once(start, connect):
    start()
    client, reader = staging_client(connect), connect(LAYOUT)
    chains = {}

    def work(number: int) -> None:
        tokens, rows, _ = sample(LAYOUT, 2, seed=100 + number, states=())
        parts, done = [rows], [client.put(tokens, first_block=0, rows=rows)]
        for turn in range(8):
            tokens, more = grown(LAYOUT, tokens, 2, seed=1000 * number + turn)
            done.append(client.put(tokens, first_block=2 + 2 * turn, rows=more))
            parts.append(more)
        chains[number] = tokens, joined(*parts), done

    threads = [threading.Thread(target=work, args=(number,)) for number in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert client.flush(60)
    for tokens, rows, done in chains.values():
        assert all(done)
        assert_stored(reader, tokens, rows, 18)
    assert client.counters["puts"] == 18 and "client_thread_errors" not in client.counters
    assert_all_free(client)


def test_a_daemon_that_restarts_gives_a_new_region(start, connect):
    start()
    client = staging_client(connect)
    tokens, rows, _ = sample(LAYOUT, 4, states=())
    head = {name: array[:2] for name, array in rows.items()}
    assert client.put(tokens, first_block=0, rows=head) and client.flush(30, durable=True)
    start()
    until(lambda: client.lookup(tokens).rows_tokens == 2 * BLOCK)
    until(lambda: client.put(tokens, first_block=2, rows={name: array[2:] for name, array in rows.items()}))
    assert client.flush(30)
    until(lambda: client.has_staging)
    assert client.counters["staging_regions"] == 2
    assert_stored(connect(LAYOUT), tokens, rows, 4)


def test_puts_go_on_while_the_daemon_is_killed_and_comes_back(daemon_process, connect):
    """Nothing raises or hangs; what is there afterwards is whole; what is put then is stored."""
    daemon = daemon_process()
    client = staging_client(connect, timeouts=Timeouts(put_seconds=5.0))
    samples = [sample(LAYOUT, 3, seed=seed, states=(3 * BLOCK,)) for seed in range(40)]
    for number, (tokens, rows, states) in enumerate(samples):
        client.put(tokens, first_block=0, rows=rows, states=states)
        if number == 20:
            daemon.kill()
            daemon.wait()
            daemon = daemon_process()
    client.flush(30)
    until(lambda: client.is_connected)
    reader = connect(LAYOUT)
    tokens, rows, states = sample(LAYOUT, 3, seed=99, states=(3 * BLOCK,))
    until(lambda: client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(30))
    assert_stored(reader, tokens, rows, 3, states[3 * BLOCK])
    for tokens, rows, _ in samples:
        with reader.lookup(tokens) as match, reader.fetch(match) as blocks:
            if blocks.plan.kind is not PlanKind.COLD:
                assert_rows(blocks, rows, blocks.plan.tokens // BLOCK)
    assert "client_thread_errors" not in client.counters and "fetch_corrupt" not in reader.counters


def test_a_commit_without_an_answer_is_sent_again_from_the_same_bytes(daemon_process, connect):
    """The region may still be read: nothing is written there any more, and another one takes its place."""
    daemon = daemon_process()
    client, reader = staging_client(connect), connect(LAYOUT)
    tokens, rows, states = sample(LAYOUT, 4, states=(4 * BLOCK,))
    region = client._writer._commits.staging
    stop(daemon)
    assert client.put(tokens, first_block=0, rows=rows, states=states)
    until(lambda: client.counters.get("staged_commits") == 1)
    client._link.attaching.lanes.close()  # what a broken lane looks like
    daemon.send_signal(signal.SIGCONT)
    until(lambda: client.counters.get("staged_unanswered") == 1)
    assert region.is_retired
    assert client.flush(30, durable=True)
    assert_stored(reader, tokens, rows, 4, states[4 * BLOCK])
    client.lookup(tokens).release()  # the next call attaches anew
    tokens, rows, _ = sample(LAYOUT, 1, seed=7, states=())
    assert client.put(tokens, first_block=0, rows=rows) and client.flush(30)
    until(lambda: client.has_staging)
    assert client.counters["staging_regions"] == 2 and client._writer._commits.staging.identity != region.identity


@pytest.mark.parametrize("reason", ["INVALID_INPUT", "SHED"])
def test_a_refused_commit_is_streamed_and_memory_once_given_up_is_not_used_again(
    fake, tmp_path, connect, monkeypatch, reason
):
    monkeypatch.setattr(commits, "ASK_AGAIN_SECONDS", 0.0)
    attach = FakeAttach(f"{tmp_path}/kv.sock.attach")
    memory = os.memfd_create("staging", os.MFD_ALLOW_SEALING)
    os.truncate(memory, 64 * PAGE_BYTES)
    fcntl.fcntl(memory, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
    staging = pb.StagingResponse(nbytes=64 * PAGE_BYTES).SerializeToString()
    attach.handlers["Staging"] = lambda body: LaneAnswer(OK, staging, memory)
    attach.handlers["Commit"] = lambda body: (
        error(reason, "no")
        if pb.CommitRequest.FromString(body).staged
        else fake.Commit(pb.CommitRequest.FromString(body), None)
    )
    attach.handlers["Reserve"] = lambda body: fake.Reserve(pb.ReserveRequest.FromString(body), None)
    fake.attach_path = attach.path
    try:
        client = staging_client(connect)
        for seed in range(2):
            tokens, rows, _ = sample(LAYOUT, 2, seed=seed, states=())
            assert client.put(tokens, first_block=0, rows=rows) and client.flush(30)
        assert client.counters["objects_stored"] == 4 and client.counters["puts"] == 2
        if reason == "SHED":  # the daemon was busy, and said so
            assert client.has_staging and client.counters["staged_refused"] == 2
        else:
            assert client.counters["staged_refused"] == 1
            until(
                lambda: client.put(tokens, first_block=0, rows=rows) and client.counters.get("staging_refused", 0) > 0
            )
            assert not client.has_staging and client.counters["staging_regions"] == 1
        client.close()
    finally:
        attach.close()
        os.close(memory)


PUTTING = """
import sys, numpy as np, kvstore
from client_tools import sample
from kvstore.core import presets
layout = presets.v4_demo()
client = kvstore.connect(sys.argv[1], layout=layout)
while not client.has_staging:
    pass
print("ready", flush=True)
for seed in range(int(sys.argv[2]), 10**6):
    tokens, rows, states = sample(layout, 6, seed=seed, states=(768,))
    client.put(tokens, first_block=0, rows=rows, states=states)
"""


def test_a_worker_killed_while_it_puts_leaves_nothing_half(start, connect, address, python_process):
    daemon = start(host_bytes="32MiB")
    reader = connect(LAYOUT)
    seen = 0
    for round_ in range(6):
        base = 1000 * round_
        worker = python_process(PUTTING, address, str(base))
        stored = daemon.store.status().counters.get("put_stored", 0)
        goal = stored + random.Random(round_).randrange(1, 30)
        until(lambda goal=goal: daemon.store.status().counters.get("put_stored", 0) >= goal)
        worker.kill()
        worker.wait()
        for seed in range(base, base + 60):
            tokens, rows, _ = sample(LAYOUT, 6, seed=seed, states=(6 * BLOCK,))
            with reader.lookup(tokens) as match, reader.fetch(match) as blocks:
                if match.plan.kind is not PlanKind.COLD:
                    assert_rows(blocks, rows, blocks.plan.tokens // BLOCK)
                    seen += 1
    assert seen and "fetch_corrupt" not in reader.counters and daemon.store.quiesce(30)
    reader.close()
    peer = Peer(daemon.address.target)
    until(lambda: (peer.status().attached_workers, peer.status().leases, peer.status().staging_bytes) == (0, 0, 0))
    assert peer.status().counters.get("put_corrupt", 0) == 0
