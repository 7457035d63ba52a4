"""A load that does not pay is given up for what is here, and taken up when the rest has come in. A real daemon whose
disk gives as many objects as the test lets it: nothing here depends on how long something takes."""

from __future__ import annotations

import threading

import pytest
from client_tools import assert_rows, assert_state, sample, until

from kvstore.client.settings import Timeouts
from kvstore.config import load_config
from kvstore.core import presets
from kvstore.core.cost import CostModel
from kvstore.core.keys import Tier
from kvstore.core.match import PlanKind, SessionEvent
from kvstore.daemon.opening import open_daemon
from kvstore.tiers.disk import DiskTier

LAYOUT = presets.v4_demo()
BLOCKS = 200
PROMPT = BLOCKS * 128 + 1
COST = CostModel.of(LAYOUT)
assert COST is not None
QUICK_FLOPS = COST.prefill_flops(0, PROMPT) / 0.2  # a cold run of 0.2 s: no load is waited for much longer
SLOW_FLOPS = COST.prefill_flops(0, PROMPT) / 3600.0


class Gate:
    """Lets so many reads of the disk through."""

    def __init__(self, monkeypatch) -> None:
        self.reads = threading.Semaphore(0)
        self.waiting = 0
        self._is_shut, read_into = False, DiskTier.read_into

        def gated(tier, page, skip, pieces, needed):
            if self._is_shut:
                self.waiting += 1
                self.reads.acquire()
            read_into(tier, page, skip, pieces, needed)

        monkeypatch.setattr(DiskTier, "read_into", gated)

    def shut(self, reads: int) -> None:
        self._is_shut = True
        self.reads.release(reads) if reads else None

    def open(self) -> None:
        self._is_shut = False
        self.reads.release(10_000)


@pytest.fixture
def gate(monkeypatch):
    gate = Gate(monkeypatch)
    yield gate
    gate.open()


@pytest.fixture
def cold(tmp_path, connect, gate):
    """A daemon that was restarted: rows of 200 blocks and states at every 25th, all on disk only."""
    tmp_path.chmod(0o700)
    flags = {"listen": f"unix:{tmp_path}/kv.sock", "host.bytes": "32MiB"}
    flags |= {"disk.folder": str(tmp_path / "disk"), "disk.bytes": "128MiB"}
    daemon = open_daemon(load_config(None, flags))
    stored = sample(LAYOUT, BLOCKS, states=tuple(range(25 * 128, PROMPT, 25 * 128)))
    with_states = connect(LAYOUT)
    assert with_states.put(stored[0], first_block=0, rows=stored[1], states=stored[2])
    assert with_states.flush(60, durable=True)
    with_states.close()
    daemon.stop(5.0)
    daemon = open_daemon(load_config(None, flags))
    assert daemon.store.quiesce(60)  # all of its memory is there
    yield daemon, stored
    gate.open()
    daemon.stop(5.0)


def promoted(daemon) -> int:
    return daemon.store.status().counters.get("copies_host", 0)


@pytest.mark.parametrize("can_replay", [True, False])
def test_a_stalled_load_is_given_up_for_what_is_here_and_taken_up_later(cold, connect, gate, can_replay):
    daemon, (tokens, rows, states) = cold
    client = connect(LAYOUT, worker_flops=QUICK_FLOPS, can_replay=can_replay)
    gate.shut(140)
    with client.lookup(tokens) as match:
        assert match.plan.tokens == BLOCKS * 128 and match.plan.tier is Tier.DISK
        along = [point.tokens for point in match.resume_points if point.comes_along]
        assert along, "states of shallower points come along"
        until(lambda: promoted(daemon) == 140)
        blocks = client.fetch(match)
        assert client.counters["fetch_abandoned"] == 1
        if blocks.plan.kind is PlanKind.RESUME:
            assert blocks.plan.tokens in along
            assert_state(blocks, states[blocks.plan.tokens])
        else:
            assert can_replay and blocks.plan.kind is PlanKind.REPLAY
        assert 0 < blocks.plan.tokens <= 140 * 128 and blocks.plan.compute_from >= min(along)
        assert_rows(blocks, rows, blocks.plan.tokens // 128)

        gate.open()
        until(lambda: daemon.store.status().queued_copies == 0)
        until(lambda: client.catch_up(match, PROMPT) is None)
        match.look_at = 0.0
        deeper = client.catch_up(match, blocks.plan.compute_from)
        assert deeper is not None and deeper.plan.tokens == BLOCKS * 128 and client.counters["fetch_caught_up"] == 1
        assert_rows(deeper, rows, BLOCKS)
        assert_state(deeper, states[BLOCKS * 128])
        assert_rows(blocks, rows, blocks.plan.tokens // 128)
        match.look_at = 0.0
        assert client.catch_up(match, BLOCKS * 128) is None, "nothing is deeper than what is computed"


def test_a_load_that_the_host_has_no_room_for_is_given_up_too(tmp_path, connect, gate):
    """Its rows come straight from disk, in a stream that says nothing while the disk is silent."""
    tmp_path.chmod(0o700)
    flags = {"listen": f"unix:{tmp_path}/kv.sock", "host.bytes": "8MiB"}
    flags |= {"disk.folder": str(tmp_path / "disk"), "disk.bytes": "128MiB"}
    daemon = open_daemon(load_config(None, flags))
    try:
        tokens, rows, states = sample(LAYOUT, 600, states=(600 * 128,))
        client = connect(LAYOUT, can_replay=False)
        assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(60, durable=True)
        client.worker_flops = QUICK_FLOPS
        gate.shut(20)
        with client.lookup(tokens) as match:
            assert match.plan.tokens == 600 * 128
            blocks = client.fetch(match)
        assert blocks.plan.kind is PlanKind.COLD and client.counters["fetch_abandoned"] == 1
        assert client.is_connected and "breaker_opened" not in client.counters
    finally:
        gate.open()
        client.close()
        daemon.stop(5.0)


def test_a_load_of_which_nothing_came_is_a_cold_run_until_something_comes(cold, connect, gate):
    daemon, (tokens, rows, _) = cold
    client = connect(LAYOUT, worker_flops=QUICK_FLOPS)
    gate.shut(0)
    with client.lookup(tokens) as match:
        blocks = client.fetch(match)
        assert blocks.plan.kind is PlanKind.COLD and client.counters["fetch_abandoned"] == 1
        match.look_at = 0.0
        assert client.catch_up(match, 0) is None
        gate.open()
        until(lambda: daemon.store.status().queued_copies == 0)
        match.look_at = 0.0
        deeper = client.catch_up(match, 128)
        assert deeper is not None and deeper.plan.tokens == BLOCKS * 128
        assert_rows(deeper, rows, BLOCKS)


@pytest.mark.parametrize("flops", [None, SLOW_FLOPS])
def test_a_load_is_waited_for_where_computing_takes_longer_or_nobody_said_how_long(cold, connect, gate, flops):
    _, (tokens, rows, states) = cold
    client = connect(LAYOUT, worker_flops=flops)
    gate.shut(20)
    got = []
    with client.lookup(tokens) as match:
        fetching = threading.Thread(target=lambda: got.append(client.fetch(match)))
        fetching.start()
        until(lambda: gate.waiting > 20)  # the disk holds it up
        gate.open()
        fetching.join(60)
    assert got[0].plan.tokens == BLOCKS * 128 and "fetch_abandoned" not in client.counters
    assert_rows(got[0], rows, BLOCKS)
    assert_state(got[0], states[BLOCKS * 128])


def test_a_load_that_is_worth_waiting_for_is_waited_for_until_its_deadline(cold, connect, gate):
    """A worker that computes for an hour would wait for minutes."""
    _, (tokens, _, _) = cold
    client = connect(LAYOUT, worker_flops=SLOW_FLOPS, timeouts=Timeouts(fetch_seconds=0.5))
    gate.shut(20)
    with client.lookup(tokens) as match:
        fetching = threading.Thread(target=client.fetch, args=(match,), daemon=True)
        fetching.start()
        fetching.join(60)
        assert not fetching.is_alive(), "the gate is still shut"
    assert "fetch_abandoned" not in client.counters and client.is_connected


def test_what_another_run_has_brought_in_is_not_caught_up_with(cold, connect, gate):
    """What was here when the load was given up has been dropped since, and put by somebody else."""
    daemon, (tokens, rows, _) = cold
    client, other = connect(LAYOUT, worker_flops=QUICK_FLOPS), connect(LAYOUT)
    gate.shut(140)
    with client.lookup(tokens) as match:
        until(lambda: promoted(daemon) == 140)
        blocks = client.fetch(match)
        assert client.counters["fetch_abandoned"] == 1 and blocks.plan.tokens
        gate.open()
        until(lambda: daemon.store.status().queued_copies == 0)
        assert other.report(match, block=0, group=0, reason="wrong")
        _, theirs, states = sample(LAYOUT, BLOCKS, seed=1, states=(BLOCKS * 128,))
        assert other.put(tokens, first_block=0, rows=theirs, states=states) and other.flush(60)
        for _ in range(2):
            match.look_at = 0.0
            assert client.catch_up(match, blocks.plan.compute_from) is None
        assert client.counters["fetch_lineage_mismatch"] == 1 and "fetch_caught_up" not in client.counters
        assert_rows(blocks, rows, blocks.plan.tokens // 128)


def test_a_worker_may_say_how_fast_it_is_at_any_time(cold, connect):
    _, (tokens, _, _) = cold
    client = connect(LAYOUT)
    assert client.lookup(tokens).found.cold_seconds is None
    client.worker_flops = QUICK_FLOPS
    assert client.lookup(tokens).found.cold_seconds == pytest.approx(0.2, rel=1e-3)
    client.worker_flops = None
    assert client.lookup(tokens).found.cold_seconds is None
    for wrong in (0.0, -1.0, float("nan"), float("inf"), "fast"):
        with pytest.raises(Exception, match="worker_flops"):
            client.worker_flops = wrong


def test_a_prefetched_prompt_is_hot_when_it_is_asked_for(cold, connect):
    daemon, (tokens, rows, _) = cold
    client = connect(LAYOUT)
    part = tokens[: 100 * 128 + 1]
    assert client.prefetch(part) == 100 * LAYOUT.rows.nbytes + LAYOUT.groups[1].nbytes
    until(lambda: daemon.store.status().queued_copies == 0)
    with client.lookup(part) as match:
        assert match.plan.tokens == 100 * 128 and match.plan.tier is Tier.HOST
        assert_rows(client.fetch(match), rows, 100)
    assert client.prefetch(part) == 0


@pytest.mark.parametrize(("event", "gap"), [(SessionEvent.OPENED, None), (SessionEvent.TOOL_CALL, 1.5)])
def test_a_session_that_will_ask_soon_finds_its_chain_hot(tmp_path, connect, event, gap):
    """The chain has left the host for others since the session's last turn."""
    tmp_path.chmod(0o700)
    flags = {"listen": f"unix:{tmp_path}/kv.sock", "host.bytes": "8MiB"}
    flags |= {"disk.folder": str(tmp_path / "disk"), "disk.bytes": "128MiB"}
    daemon = open_daemon(load_config(None, flags))
    try:
        from kvstore.core.match import Hints

        client = connect(LAYOUT)
        tokens, rows, states = sample(LAYOUT, 60, states=(60 * 128,))
        assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(60, durable=True)
        client.lookup(tokens, hints=Hints(session="a7")).release()
        for seed in range(1, 6):  # others, more than the host holds
            other = sample(LAYOUT, 90, seed=seed, states=(90 * 128,))
            assert client.put(other[0], first_block=0, rows=other[1], states=other[2])
            assert client.flush(60, durable=True)
        until(lambda: daemon.store.status().leases == 0)
        with client.lookup(tokens[:-1], hints=Hints()) as match:
            assert match.found.resume_points == () or match.plan.tier is not Tier.HOST
        moved = promoted(daemon)
        assert client.session("a7", event, gap)
        until(lambda: daemon.store.status().queued_copies == 0)
        assert promoted(daemon) > moved
        with client.lookup(tokens) as match:
            assert match.plan.tokens == 60 * 128 and match.plan.tier is Tier.HOST
    finally:
        client.close()
        daemon.stop(5.0)
