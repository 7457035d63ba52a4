"""Only the caller's own bad arguments raise, with one sentence that names the fact and the remedy."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from client_tools import sample

import kvstore
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core import presets
from kvstore.core.errors import InvalidInput
from kvstore.core.match import COLD_PLAN, Hints, SessionEvent

LAYOUT = presets.v4_tiny()


@pytest.mark.parametrize(
    "address", ["", "nowhere", "unix:", "host:0", "host:70000", "http://host:1", "a b:1", f"unix:/{'x' * 107}", 7]
)
def test_wrong_addresses(address):
    with pytest.raises(InvalidInput, match=r"address|socket path"):
        kvstore.connect(address, layout=LAYOUT)


@pytest.mark.parametrize(
    "address", ["unix:/nowhere/kv.sock", "unix:relative.sock", "127.0.0.1:1", "[::1]:1", "localhost:1"]
)
def test_right_addresses_of_nobody(address):
    with kvstore.connect(address, layout=LAYOUT, timeouts=Timeouts(connect_seconds=0.2)) as client:
        assert not client.is_connected


def test_wrong_options():
    with pytest.raises(InvalidInput, match="layout is a str"):
        kvstore.connect("unix:/x", layout="v4")
    with pytest.raises(InvalidInput, match="worker_flops"):
        kvstore.connect("unix:/x", layout=LAYOUT, worker_flops=0.0)
    with pytest.raises(InvalidInput, match="worker_flops"):
        kvstore.connect("unix:/x", layout=LAYOUT, worker_flops="fast")
    with pytest.raises(InvalidInput, match="lookup_seconds=0"):
        Timeouts(lookup_seconds=0)
    with pytest.raises(InvalidInput, match="queue_bytes"):
        Bounds(queue_bytes=-1)


@pytest.mark.parametrize(
    "hints",
    [
        Hints(session="x" * 201),
        Hints(breakpoints=(0,)),
        Hints(breakpoints=(-1,)),
        Hints(turn=-1),
        Hints(ttl_seconds=float("nan")),
        Hints(expected_gap_seconds=-1.0),
        Hints(session=7),
        Hints(session="\ud800"),
        None,
    ],
)
def test_wrong_hints(connect, hints):
    with pytest.raises(InvalidInput):
        connect().lookup([1] * 200, hints=hints)


def put(client, **changes):
    tokens, rows, states = sample(LAYOUT, 2)
    arguments = {"tokens": tokens, "first_block": 0, "rows": rows, "states": states} | changes
    return client.put(arguments.pop("tokens"), **arguments)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"first_block": -1}, "first_block=-1"),
        ({"first_block": 1}, "1 to 3, but 257 tokens make 2 whole blocks"),
        ({"tokens": [1] * 200}, "200 tokens make 1 whole blocks"),
        ({"tokens": [1 << 40] * 300}, "int32"),
        ({"rows": {}}, "rows need arrays"),
        ({"states": {100: {}}}, "states at 100 tokens"),
        ({"states": {384: {}}}, "states at 384 tokens"),
        ({"states": {0: {}}}, "states at 0 tokens"),
        ({"states": {128: {}}}, "lack component 'window'"),
        ({"states": {128: {"window": np.zeros((3, 1), np.uint8)}}}, "expected"),
        ({"states": {"128": {}}}, "states at '128' tokens"),
        ({"rows": None}, "rows need arrays"),
        ({"optional": {"mtp": {}}}, "no optional group 'mtp'"),
        ({"extras": [1]}, "extras are a list"),
        ({"extras": {0: 5}}, "extras of block 0 are 5"),
        ({"extras": {0: [("\ud800", b"x")]}}, "no valid Unicode"),
    ],
)
def test_wrong_puts(connect, changes, message):
    with pytest.raises(InvalidInput, match=message):
        put(connect(), **changes)


def test_states_for_a_layout_without():
    layout = presets.full_tiny()
    tokens, rows, _ = sample(layout, 2)
    with kvstore.connect("unix:/nowhere/kv", layout=layout) as client, pytest.raises(InvalidInput, match="no states"):
        client.put(tokens, first_block=0, rows=rows, states={16: {}})


def test_wrong_into(fake, connect):
    client = connect()
    tokens, rows, states = sample(LAYOUT, 2)
    client.put(tokens, first_block=0, rows=rows, states=states)
    assert client.flush(20)
    match = client.lookup(tokens)
    with pytest.raises(InvalidInput, match="lacks component"):
        client.fetch(match, into={})
    short = {name: np.zeros((1, *array.shape[1:]), np.uint8) for name, array in rows.items()}
    with pytest.raises(InvalidInput, match=r"expected \(2,"):
        client.fetch(match, into=short)
    for array in rows.values():
        array.flags.writeable = False
    with pytest.raises(InvalidInput, match="read-only"):
        client.fetch(match, into=rows)


def test_wrong_plans_pins_and_sessions(fake, connect):
    client = connect()
    match = client.lookup([1] * 300)
    with pytest.raises(InvalidInput, match="no plan of this match"):
        match.with_plan(COLD_PLAN._replace(tokens=128))
    with pytest.raises(InvalidInput, match="ttl_seconds"):
        client.pin([1] * 300, ttl_seconds=0)
    with pytest.raises(InvalidInput, match="session"):
        client.session("x" * 201, SessionEvent.OPENED)
    with pytest.raises(InvalidInput, match="no valid Unicode"):
        client.session("\ud800", SessionEvent.OPENED)
    with pytest.raises(InvalidInput, match="no SessionEvent"):
        client.session("a7", "opened")
    with pytest.raises(InvalidInput, match="pass what `pin` gave"):
        client.unpin(7)
    with pytest.raises(InvalidInput, match="block 2"):
        client.report(match, block=2, group=0, reason="test")
    with pytest.raises(InvalidInput, match=r"block 1\.0"):
        client.report(match, block=1.0, group=0, reason="test")
    with pytest.raises(InvalidInput, match="no valid Unicode"):
        client.report(match, block=1, group=0, reason="\ud800")


@pytest.mark.parametrize("timeout", [-1.0, float("inf"), float("nan"), "1"])
def test_wrong_flush_timeouts(connect, timeout):
    with pytest.raises(InvalidInput, match="timeout"):
        connect().flush(timeout)


def test_what_users_import_is_there_without_torch():
    code = (
        "import sys, kvstore; print(kvstore.layouts.v4_flash().model, *({'torch', 'transformers'} & set(sys.modules)))"
    )
    folder = Path(kvstore.__file__).parents[1]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    assert answer.stdout.split() == ["deepseek-v4-flash"]
    assert all(hasattr(kvstore, name) for name in kvstore.__all__)
