"""Real workers over the real daemon: exact wherever a request goes on, and never on rows of another run."""

import subprocess
import sys
import time

import numpy as np
import pytest

pytest.importorskip("transformers")
import torch

import kvstore
from kvstore.client.match import ClientMatch
from kvstore.core.keys import Tier
from kvstore.core.match import PlanKind
from kvstore.core.presets import with_changes
from kvstore.engines.transformers import Worker, build_demo_model, demo_layout

PROMPT = np.random.default_rng(21).integers(2, 2048, 900).astype(np.int32)
SUFFIX = np.random.default_rng(22).integers(2, 2048, 90).astype(np.int32)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def worker():
    return Worker(build_demo_model(), demo_layout())


class Daemons:
    """Daemons of one test, one a folder."""

    def __init__(self):
        self.running = {}

    def start(self, folder, placement="every"):
        """Stops the one that had the folder before; the address of the new one."""
        if folder in self.running:
            self.running[folder].terminate()
            self.running[folder].wait(30)
        config = folder / "kvstore.toml"
        config.write_text(
            f'listen = "unix:{folder}/s"\n[host]\nbytes = "64MiB"\n'
            f'[disk]\nfolder = "{folder}/disk"\nbytes = "128MiB"\n[match]\nplacement = "{placement}"\n'
        )
        command = [sys.executable, "-m", "kvstore.cli.main", "serve", "--config", str(config)]
        self.running[folder] = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        return f"unix:{folder}/s"

    def kill(self):
        for process in self.running.values():
            process.kill()
            process.wait()


@pytest.fixture
def daemons():
    started = Daemons()
    yield started
    started.kill()


def connected(address, layout):
    client = kvstore.connect(address, layout=layout)
    deadline = time.monotonic() + 30
    while not client.is_connected and time.monotonic() < deadline:
        time.sleep(0.02)
    assert client.is_connected
    return client


def same(one, other):
    assert one.is_same_as(other)


class Choosing:
    """A client that carries out another plan than the store's own."""

    def __init__(self, client, choose):
        self.client, self.choose = client, choose
        self.is_connected = client.is_connected
        self.fetch, self.catch_up, self.put = client.fetch, client.catch_up, client.put

    def lookup(self, tokens, *, hints):
        match = self.client.lookup(tokens, hints=hints)
        assert isinstance(match, ClientMatch)
        return match.with_plan(self.choose(match))


def test_every_resume_point_is_exact(worker, daemons, tmp_path):
    cold = worker.run(PROMPT, 3)
    with connected(daemons.start(tmp_path), worker.layout) as client:
        same(worker.run(PROMPT, 3, client), cold)
        assert client.flush(20)
        with client.lookup(PROMPT) as match:
            points = match.resume_points
        assert [point.tokens for point in points] == list(range(896, 0, -128))
        for point in points:
            run = worker.run(PROMPT, 3, Choosing(client, lambda match, at=point.tokens: at_tokens(match, at)))
            assert run.resumed_tokens == point.tokens
            same(run, cold)


def at_tokens(match, tokens):
    return next(point for point in match.resume_points if point.tokens == tokens)


def test_a_missing_state_is_replayed_exactly(worker, daemons, tmp_path):
    longer = np.append(PROMPT, SUFFIX)
    with connected(daemons.start(tmp_path, "none"), worker.layout) as client:
        worker.run(PROMPT, 1, client)
        assert client.flush(20)
        run = worker.run(longer, 3, client)
        assert (run.plan, run.resumed_tokens, run.recomputed_tokens) == (PlanKind.REPLAY, 896, len(longer) - 512)
        same(run, worker.run(longer, 3))


def test_a_layout_that_differs_in_one_field_shares_nothing(worker, daemons, tmp_path):
    address = daemons.start(tmp_path)
    with connected(address, worker.layout) as client:
        worker.run(PROMPT, 1, client)
        assert client.flush(20)
    other = Worker(build_demo_model(), with_changes(worker.layout, revision="seed-0b"))
    with connected(address, other.layout) as client:
        assert other.run(PROMPT, 1, client).plan is PlanKind.COLD


class Late:
    """A client whose lookups came too early to find anything: two workers that computed the same prompt at once."""

    def __init__(self, client):
        self.is_connected = True
        self.client, self.catch_up, self.put = client, client.catch_up, client.put

    def lookup(self, tokens, *, hints):
        return self.client.lookup(tokens[:1], hints=hints)

    def fetch(self, match):
        return self.client.fetch(match)


def test_rows_of_other_weights_are_never_joined_to_the_stored_ones(worker, daemons, tmp_path):
    """A writer with other weights under the same name is told OTHER_LINEAGE; readers get the first run's rows only."""
    address = daemons.start(tmp_path)
    liar = Worker(build_demo_model(seed=1), worker.layout)
    longer = np.append(PROMPT, SUFFIX)
    with connected(address, worker.layout) as honest, connected(address, worker.layout) as other:
        worker.run(PROMPT[:600], 1, honest)
        assert honest.flush(20)
        liar.run(longer, 1, Late(other))
        other.flush(20)
        assert other.counters["objects_other_lineage"] > 0
        assert other.counters.get("objects_stored", 0) == 0
        run = worker.run(longer, 3, honest)
        assert run.resumed_tokens == 512
        same(run, worker.run(longer, 3))


def test_two_workers_that_computed_the_same_agree(worker, daemons, tmp_path):
    """Canonical runs have one lineage: the second writer's objects exist already, bit for bit."""
    address = daemons.start(tmp_path)
    with connected(address, worker.layout) as first, connected(address, worker.layout) as second:
        worker.run(PROMPT, 150, first)
        assert first.flush(20)
        worker.run(PROMPT, 150, Late(second))
        second.flush(20)
        assert second.counters["objects_exists"] > 0
        assert "objects_other_lineage" not in second.counters


def test_a_restart_in_between_is_exact(worker, daemons, tmp_path):
    with connected(daemons.start(tmp_path, "ends"), worker.layout) as client:
        first = worker.run(PROMPT[:700], 150, client)
        assert client.flush(20, durable=True)
    transcript = np.concatenate([PROMPT[:700], np.array(first.output, np.int32), SUFFIX])
    with connected(daemons.start(tmp_path, "ends"), worker.layout) as client:
        run = worker.run(transcript, 3, client)
        assert (run.resumed_tokens, run.tier) == (768, Tier.DISK)
        same(run, worker.run(transcript, 3))


class Deadly:
    """A client whose daemon is killed at a moment of the request."""

    def __init__(self, client, daemons, moment):
        self.client, self.daemons, self.moment = client, daemons, moment
        self.is_connected = True

    def lookup(self, tokens, *, hints):
        return self.at("lookup", self.client.lookup(tokens, hints=hints))

    def fetch(self, match):
        return self.at("fetch", self.client.fetch(match))

    def catch_up(self, match, computed_tokens):
        return self.client.catch_up(match, computed_tokens)

    def put(self, *args, **kwargs):
        return self.at("put", self.client.put(*args, **kwargs))

    def at(self, moment, answer):
        if moment == self.moment:
            self.daemons.kill()
        return answer


@pytest.mark.parametrize(("moment", "resumed"), [("lookup", 0), ("fetch", 512), ("put", 512)])
def test_a_daemon_killed_in_the_middle_of_a_request_changes_no_bit(worker, daemons, tmp_path, moment, resumed):
    with connected(daemons.start(tmp_path), worker.layout) as client:
        worker.run(PROMPT[:600], 1, client)
        assert client.flush(20)
        run = worker.run(PROMPT[:890], 20, Deadly(client, daemons, moment))  # completes the block that ends at 896
        assert run.resumed_tokens == resumed
        same(run, worker.run(PROMPT[:890], 20))
