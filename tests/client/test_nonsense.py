"""Nonsense from the store, flipped bits on the wire, many threads: nothing raises and nothing wrong comes out."""

from __future__ import annotations

import random
import socket
import threading

import pytest
from client_tools import assert_rows, assert_state, sample
from fake_store import FakeStore, serve

import kvstore
from kvstore.client.settings import Timeouts
from kvstore.core import presets
from kvstore.core.match import PlanKind
from kvstore.rpc.generated import kvstore_pb2 as pb

QUICK = Timeouts(connect_seconds=0.5, lookup_seconds=0.5, fetch_seconds=1.0, put_seconds=1.0, close_seconds=0.3)


class Babbling(FakeStore):
    """Answers like the fake store, with `spoil` applied to what one method says."""

    def __init__(self, method: str, spoil) -> None:
        super().__init__()
        self.is_babbling = False
        right = getattr(self, method)

        def unary(request, context):
            answer = right(request, context)
            return spoil(answer) if self.is_babbling else answer

        def stream(request, context):
            frames = right(request, context)
            yield from spoil(frames) if self.is_babbling else frames

        setattr(self, method, stream if method == "Fetch" else unary)


def changed(**fields):
    """The same answer with other fields."""

    def spoil(answer):
        for name, value in fields.items():
            answer.ClearField(name)
            if isinstance(value, list):
                getattr(answer, name).extend(value)
            elif isinstance(value, dict):
                for inner, number in value.items():
                    setattr(getattr(answer, name), inner, number)
            else:
                setattr(answer, name, value)
        return answer

    return spoil


def reordered(frames):
    yield from reversed(list(frames))


def other_names(frames):
    for frame in frames:
        message = pb.FetchResponse.FromString(frame)
        for start in message.objects:
            start.name.block += 7
        yield message.SerializeToString()


def huge_lengths(frames):
    for frame in frames:
        message = pb.FetchResponse.FromString(frame)
        for start in message.objects:
            start.length = 1 << 31
        yield message.SerializeToString()


NONSENSE = {
    "hello without a root": ("Hello", changed(root=b"")),
    "hello of zeros": ("Hello", lambda answer: pb.HelloResponse()),
    "lookup of zeros": ("Lookup", lambda answer: pb.LookupResponse(boot_epoch=answer.boot_epoch)),
    "a plan beyond the prompt": ("Lookup", changed(plan={"kind": 2, "tokens": 128000}, rows_tokens=128000)),
    "a plan inside a block": ("Lookup", changed(plan={"kind": 2, "tokens": 100})),
    "an unknown plan": ("Lookup", changed(plan={"kind": 77, "tokens": 128})),
    "a short lineage": ("Lookup", changed(lineage=b"x")),
    "an epoch of its own each time": ("Lookup", changed(boot_epoch=99)),
    "frames that are no protobuf": ("Fetch", lambda frames: iter([b"\xff" * 100])),
    "no frames": ("Fetch", lambda frames: iter(())),
    "bytes of no object": ("Fetch", lambda frames: iter([pb.FetchResponse(data=b"abc").SerializeToString()])),
    "frames in another order": ("Fetch", reordered),
    "names of other blocks": ("Fetch", other_names),
    "lengths of another layout": ("Fetch", huge_lengths),
    "half of the frames": ("Fetch", lambda frames: iter(list(frames)[:1])),
    "too few reserve statuses": ("Reserve", changed(statuses=[1])),
    "unknown reserve statuses": ("Reserve", changed(statuses=[77] * 8)),
    "too many put statuses": ("Put", changed(statuses=[1] * 100)),
    "no durabilities": ("Commit", changed(durabilities=[])),
}


@pytest.mark.parametrize("name", NONSENSE)
def test_nonsense_is_at_worst_a_miss(address, connect, name):
    method, spoil = NONSENSE[name]
    store = Babbling(method, spoil)
    store.chunk_bytes = 500
    server = serve(store, address)
    client = connect(timeouts=QUICK)
    tokens, rows, states = sample(client.layout, 4)
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(20)
    match = client.lookup(tokens)
    store.is_babbling = True
    if method == "Hello":
        store.restart()
    with client.fetch(match) as blocks:
        assert_rows(blocks, rows, blocks.plan.tokens // 128)
    again = client.lookup(tokens)
    with client.fetch(again) as blocks:
        assert_rows(blocks, rows, blocks.plan.tokens // 128)
        if blocks.plan.kind is PlanKind.RESUME:
            assert_state(blocks, states[blocks.plan.tokens])
    other, other_rows, _ = sample(client.layout, 4, seed=3)
    client.put(other, first_block=0, rows=other_rows, states=states)
    assert not client.flush(20, durable=True) or method in ("Lookup", "Fetch")
    assert "client_thread_errors" not in client.counters
    server.stop(None).wait()


@pytest.mark.parametrize(
    "answer",
    [
        {"plan": {"kind": pb.PLAN_KIND_REPLAY, "tokens": 512, "compute_from": 384}},  # right is 128: too short is wrong
        {"replay": {"kind": pb.PLAN_KIND_REPLAY, "tokens": 512, "compute_from": 129}},
        {"plan": {"kind": pb.PLAN_KIND_RESUME, "tokens": 512, "compute_from": 384}},
        {"plan": {"kind": pb.PLAN_KIND_REPLAY, "tokens": 512, "compute_from": 512}},
        {"canonical": False},
    ],
)
def test_a_plan_that_this_layout_cannot_have_is_no_plan(address, connect, answer):
    """A worker would follow it to a wrong answer: what is not under a checksum must be what it can only be."""
    store = Babbling("Lookup", changed(**answer))
    server = serve(store, address)
    client = connect()
    tokens, rows, states = sample(client.layout, 4)
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(20)
    assert client.lookup(tokens).plan.kind is PlanKind.RESUME
    store.is_babbling = True
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert client.counters["failed_malformed"] == 1
    server.stop(None).wait()


def test_a_flipped_bit_in_a_name_does_not_overwrite_what_was_verified(address, connect):
    """Block 3 comes under the name of block 2, whose bytes were there and verified; telling the store of it fails."""
    flips = iter([1])  # the first fetch only: the second try finds a sound store

    def renamed(frames):
        flip = next(flips, 0)
        for frame in frames:
            message = pb.FetchResponse.FromString(frame)
            for start in message.objects:
                start.name.block ^= flip if (start.name.block, start.name.group) == (3, 0) else 0
            yield message.SerializeToString()

    store = Babbling("Fetch", renamed)
    store.shed.add("Report")
    server = serve(store, address)
    client = connect()
    tokens, rows, states = sample(client.layout, 4)
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(20)
    store.is_babbling = True
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert_rows(blocks, rows, blocks.plan.tokens // 128)
    server.stop(None).wait()


class FlippingProxy:
    """Passes TCP through and flips one bit of every `every`-th byte that the server sends, once armed."""

    def __init__(self, target_port: int, every: int) -> None:
        self._every, self._target, self.armed = every, target_port, False
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self._target))
            threading.Thread(target=self._pump, args=(near, far, False), daemon=True).start()
            threading.Thread(target=self._pump, args=(far, near, True), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, from_server: bool) -> None:
        passed = 0
        try:
            while data := bytearray(source.recv(65536)):
                if from_server and self.armed:
                    for at in range(-passed % self._every, len(data), self._every):
                        data[at] ^= 1
                passed += len(data)
                sink.sendall(data)
        except OSError:
            pass
        for end in (source, sink):
            end.close()

    def close(self) -> None:
        self._listener.close()


@pytest.mark.parametrize("every", [9_973, 100_003, 700_001])
def test_flipped_bits_on_the_wire_never_come_out(every):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    store = FakeStore()
    server = serve(store, f"127.0.0.1:{port}")
    proxy = FlippingProxy(port, every)
    layout = presets.v4_demo()
    tokens, rows, states = sample(layout, 6)
    with kvstore.connect(f"127.0.0.1:{proxy.port}", layout=layout, timeouts=QUICK) as client:
        assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(20)
        proxy.armed = True
        for _ in range(12):
            with client.lookup(tokens) as match, client.fetch(match) as blocks:
                assert_rows(blocks, rows, blocks.plan.tokens // 128)
                if blocks.plan.kind is PlanKind.RESUME:
                    assert_state(blocks, states[blocks.plan.tokens])
        counters = client.counters
        assert any(name.startswith(("failed_", "fetch_corrupt")) for name in counters), counters
    proxy.close()
    server.stop(None).wait()


def test_many_threads_share_one_client(fake, connect):
    """Each goes on with its own conversation; buffers, memo and queue are shared."""
    layout = presets.v4_demo()
    client = connect(layout)
    faults = []

    def converse(seed: int) -> None:
        try:
            dice = random.Random(seed)
            tokens, rows, states = sample(layout, 6, seed=seed)
            put = 0
            while put < 6:
                count = dice.randint(1, 6 - put)
                part = {name: array[put : put + count] for name, array in rows.items()}
                at = (put + count) * 128
                assert client.put(tokens, first_block=put, rows=part, states={at: states[at]})
                put += count
                assert client.flush(30)
                with client.lookup(tokens) as match, client.fetch(match) as blocks:
                    assert blocks.plan.tokens == at
                    assert_rows(blocks, rows, put)
                    assert_state(blocks, states[at])
        except BaseException as fault:
            faults.append((seed, fault))
            raise

    threads = [threading.Thread(target=converse, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not faults
