"""Handoffs of a client over the real daemon: every byte or nothing, one reader, and never an exception."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from client_tools import until

import kvstore
from kvstore.client.handoff import HandoffCalls
from kvstore.config import load_config
from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput
from kvstore.core.prefix import Extra
from kvstore.daemon.opening import open_daemon
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.wire import TakeHandoffFrame

MIB = 1 << 20
TOKENS = np.random.default_rng(3).integers(0, 1000, 300).astype(np.int32)


@pytest.fixture
def start(tmp_path):
    """A daemon in this process; call again for a restart."""
    tmp_path.chmod(0o700)
    running = []

    def start(**host):
        while running:
            running.pop().stop(5.0)
        flags = {"listen": f"unix:{tmp_path}/kv.sock", "host.bytes": "8MiB"}
        running.append(open_daemon(load_config(None, flags | {f"host.{key}": value for key, value in host.items()})))
        return running[0]

    yield start
    while running:
        running.pop().stop(5.0)


def payload(nbytes, seed=0):
    return np.random.default_rng(seed).integers(0, 256, nbytes, dtype=np.uint8).tobytes()


@pytest.mark.parametrize("nbytes", [1, 4095, MIB - 1, MIB, MIB + 1, 5 * MIB + 17])
@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_what_was_left_is_taken_whole_and_once(start, connect, length, nbytes):
    daemon = start()
    left, taker = connect(), connect()
    body = payload(nbytes)
    cut = nbytes // 3
    assert left.put_handoff(TOKENS[:length], [body[:cut], b"", bytearray(body[cut:])])
    assert daemon.store.status().handoffs == 1
    taken = taker.take_handoff(TOKENS[:length])
    assert taken == body and taken.readonly
    assert taker.take_handoff(TOKENS[:length]) is None and left.take_handoff(TOKENS[:length]) is None
    assert taker.counters["handoffs_taken"] == 1 and taker.counters["handoffs_missed"] == 1
    until(lambda: daemon.store.status().handoff_bytes == 0)


def test_other_tokens_and_other_extras_find_nothing(start, connect):
    start()
    client = connect()
    extras = {0: [Extra("adapter", b"a")], 1: [Extra("salt", b"s")], 2: [Extra("image", b"i")]}
    body = payload(100)
    assert client.put_handoff(TOKENS[:130], [body], extras=extras)
    changed = TOKENS[:130].copy()
    changed[129] += 1
    for tokens, others in (
        (changed, extras),
        (TOKENS[:129], extras),
        (TOKENS[:131], extras),
        (TOKENS[:130], None),
        (TOKENS[:130], extras | {0: [Extra("adapter", b"b")]}),
        (TOKENS[:130], extras | {1: [Extra("salt", b"t")]}),
        ([], extras),
    ):
        assert client.take_handoff(tokens, extras=others) is None
    # of a block that no token lies in nothing depends
    assert client.take_handoff(TOKENS[:130], extras={0: extras[0], 1: extras[1]}) == body


def test_an_extra_of_a_block_that_has_not_begun_does_not_count(start, connect):
    start()
    client = connect()
    assert client.put_handoff(TOKENS[:128], [b"x"], extras={1: [Extra("salt", b"s")]})
    assert client.take_handoff(TOKENS[:128]) == b"x"


def test_another_layout_finds_nothing(start, connect):
    start()
    client, other = connect(), connect(presets.with_changes(presets.v4_tiny(), revision="other"))
    assert client.put_handoff(TOKENS, [b"x"])
    assert other.take_handoff(TOKENS) is None and client.take_handoff(TOKENS) == b"x"


def test_of_two_takers_at_once_exactly_one_gets_it(start, connect):
    start()
    clients = [connect() for _ in range(3)]
    body, got = payload(2 * MIB), []
    barrier = threading.Barrier(3)

    def take(client):
        barrier.wait()
        got.append(client.take_handoff(TOKENS))

    for _ in range(10):
        got.clear()
        assert clients[2].put_handoff(TOKENS, [body])
        threads = [threading.Thread(target=take, args=(client,)) for client in clients[:2]]
        for thread in threads:
            thread.start()
        barrier.wait()
        for thread in threads:
            thread.join()
        assert sorted(got, key=lambda taken: taken is None) == [body, None]


def test_it_is_gone_after_its_life(start, connect):
    daemon = start()
    client = connect()
    assert client.put_handoff(TOKENS, [b"x"], ttl_seconds=0.05)
    until(lambda: daemon.store.status().handoffs == 0)
    assert client.take_handoff(TOKENS) is None
    assert daemon.store.status().counters["handoffs_expired"] == 1


def test_without_room_it_is_refused_and_what_is_there_stays(start, connect):
    daemon = start(handoff_bytes="2MiB")
    client = connect()
    body = payload(3 * MIB // 2)
    assert client.put_handoff(TOKENS, [body])
    assert not client.put_handoff(TOKENS[:50], [payload(8 * MIB)]), "the daemon answers before all of it is sent"
    assert not client.put_handoff(TOKENS[:60], [payload(MIB)])
    assert client.counters["handoffs_refused"] == 2 and daemon.store.status().counters["handoffs_no_room"] == 2
    assert client.take_handoff(TOKENS) == body
    assert client.put_handoff(TOKENS[:60], [payload(MIB)])
    assert client.is_connected


def test_a_bound_of_nothing_takes_nothing(start, connect):
    start(handoff_bytes=0)
    client = connect()
    assert not client.put_handoff(TOKENS, [b"x"])
    assert client.take_handoff(TOKENS) is None


def test_bytes_that_changed_in_the_daemons_memory_are_a_miss(start, connect):
    daemon = start()
    client = connect()
    assert client.put_handoff(TOKENS, [payload(2 * MIB)])
    (held,) = daemon.store.handoffs._held.values()
    held.pieces[1][1000] ^= 1
    assert client.take_handoff(TOKENS) is None
    assert client.counters["handoffs_corrupt"] == 1 and client.is_connected


def test_a_restart_in_between_is_a_miss_and_the_next_one_works(start, connect):
    start()
    client = connect()
    assert client.put_handoff(TOKENS, [b"x"])
    start()
    until(lambda: client.is_connected)
    assert client.take_handoff(TOKENS) is None
    until(lambda: client.put_handoff(TOKENS, [b"y"]))
    assert client.take_handoff(TOKENS) == b"y"


SERVE = """
import sys, threading
from kvstore.config import load_config
from kvstore.daemon.opening import open_daemon
daemon = open_daemon(load_config(None, {"listen": f"unix:{sys.argv[1]}/kv.sock", "host.bytes": "8MiB"}))
print("ready", flush=True)
threading.Event().wait()
"""


def test_a_daemon_killed_in_between_is_a_miss(tmp_path, connect):
    tmp_path.chmod(0o700)
    environment = os.environ | {"PYTHONPATH": str(Path(kvstore.__file__).parents[1])}
    daemon = subprocess.Popen([sys.executable, "-c", SERVE, str(tmp_path)], stdout=subprocess.PIPE, env=environment)
    try:
        assert daemon.stdout.readline() == b"ready\n"
        client = connect()
        assert client.put_handoff(TOKENS, [b"x"])
        daemon.send_signal(signal.SIGKILL)
        daemon.wait()
        assert client.take_handoff(TOKENS) is None
        assert not client.put_handoff(TOKENS, [b"x"])
        assert client.counters["handoffs_failed"] == 2
    finally:
        daemon.kill()
        daemon.communicate()


def test_a_store_that_was_never_there_is_a_miss(connect):
    client = connect()
    assert not client.put_handoff(TOKENS, [b"x"]) and client.take_handoff(TOKENS) is None


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"tokens": []}, "a handoff of no tokens"),
        ({"tokens": [0.5]}, "int32"),
        ({"payload": []}, "payload has 0 bytes"),
        ({"payload": [b""]}, "payload has 0 bytes"),
        ({"payload": b"bytes"}, "payload is a bytes: pass a list of buffers"),
        ({"payload": [5]}, "no contiguous buffer"),
        ({"payload": [memoryview(bytes(10))[::2]]}, "no contiguous buffer"),
        ({"ttl_seconds": 0}, "ttl_seconds=0 is out of range"),
        ({"ttl_seconds": float("nan")}, "ttl_seconds=nan is out of range"),
        ({"ttl_seconds": 601.0}, "at most 600"),
    ],
)
def test_only_the_callers_own_mistakes_raise(connect, wrong, says):
    with pytest.raises(InvalidInput, match=says):
        connect().put_handoff(**({"tokens": TOKENS, "payload": [b"x"]} | wrong))


def frames(*data, nbytes=None, content=None, header=True):
    body = b"".join(data)
    told = pb.TakeHandoffHeader(
        nbytes=len(body) if nbytes is None else nbytes, content=content_checksum([body]) if content is None else content
    )
    for index, part in enumerate(data):
        yield TakeHandoffFrame(told if header and not index else None, memoryview(part))


@pytest.mark.parametrize(
    ("stream", "says"),
    [
        (frames(), "no header"),
        (frames(b"abc", header=False), "no header"),
        (frames(b"abc", nbytes=4), "ended inside"),
        (frames(b"abc", b"d", nbytes=3), "more bytes"),
        (frames(b"abc", nbytes=1 << 60), "which cannot be"),
        (frames(b"abc", content=b"short"), "which cannot be"),
    ],
)
def test_a_stream_that_no_daemon_would_send_is_refused(connect, stream, says):
    client = connect()
    calls = client._handoffs
    assert isinstance(calls, HandoffCalls)
    with pytest.raises(InvalidInput, match=says):
        calls._received(stream)
    assert calls._received(frames(b"ab", b"", b"c")) == b"abc"
