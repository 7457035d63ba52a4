"""Reading through shared memory: the same bytes as the stream gives, by every way of asking; a miss where they went."""

from __future__ import annotations

import time

import numpy as np
import pytest
from client_tools import arrays_of, assert_rows, assert_state, sample, until

import kvstore
from kvstore.core import presets
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import Tier
from kvstore.core.match import PlanKind

LAYOUTS = {
    "tiny": presets.v4_tiny(),
    "demo": presets.v4_demo(),
    "full": presets.full_tiny(),
    "flash": presets.v4_flash(mtp=True),
    "pro": presets.v4_pro(),
}
BLOCKS = 7


@pytest.fixture
def start(start):
    """As in conftest; ready when all host memory is there, since what gets no room would be streamed."""

    def start_whole(host_bytes="64MiB"):
        daemon = start(host_bytes)
        host = daemon._store._kept.host
        until(lambda: host.populated == host.region_count)
        return daemon

    return start_whole


def put(client, blocks=BLOCKS, seed=0):
    """Puts a sample with states at the end and in the middle, and optional ones at the end; durable."""
    layout = client.layout
    bt = layout.block_tokens
    tokens, rows, states = sample(layout, blocks, seed, states=(blocks // 2 * bt, blocks * bt))
    rng = np.random.default_rng(seed + 1)
    optional = {group.name: {blocks * bt: arrays_of(group, rng, None)} for group in layout.groups if group.optional}
    assert client.put(tokens, first_block=0, rows=rows, states=states, optional=optional)
    assert client.flush(30, durable=True)
    return tokens, rows, states, optional


def into_components(layout, rows):
    return {
        name: np.full_like(array, 0xEE)
        for name, array in arrays_of(layout.rows, np.random.default_rng(0), rows).items()
    }


def wishes(layout):
    """Each way of asking, by name, made anew: they name arrays."""
    strided = {
        name: np.zeros((*array.shape[:2], 2 * array.shape[2]), np.uint8)[:, :, ::2]
        for name, array in into_components(layout, BLOCKS).items()
    }
    return {
        "pooled": {},
        "components": {"into": into_components(layout, BLOCKS)},
        "strided": {"into": strided, "verify": True},
        "packed": {"into": np.zeros((BLOCKS + 2, layout.rows.nbytes), np.uint8)},
        "spaced": {"into": np.zeros((BLOCKS, layout.rows.nbytes + 96), np.uint8)[:, : layout.rows.nbytes]},
        "verified": {"verify": True},
        "verified components": {"into": into_components(layout, BLOCKS), "verify": True},
        "views": {"views": True},
        "first share": {"share": (0, 3)},
        "middle share": {"share": (1, 3), "into": into_components(layout, 3)},
        "last share": {"share": (2, 3), "verify": True},
        "viewed share": {"share": (2, 3), "views": True},
    }


def everything(blocks) -> dict:
    """What the caller sees, as plain arrays."""
    seen = {"plan": blocks.plan.tokens, "lineage": blocks.lineage, "first": blocks.first_block}
    seen["rows"] = {name: np.array(list(arrays)) for name, arrays in blocks.rows.items()}
    seen["state"] = None if blocks.state is None else {name: np.array(array) for name, array in blocks.state.items()}
    seen["optional"] = {
        name: {part: np.array(array) for part, array in arrays.items()} for name, arrays in blocks.optional.items()
    }
    return seen


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("point", ["deepest", "shallower"])
def test_both_ways_give_the_same_bytes(start, connect, name, point):
    start()
    layout = LAYOUTS[name]
    tokens, rows, states, optional = put(connect(layout))
    attached, streaming = connect(layout), connect(layout, share_memory=False)
    assert attached.is_attached and not streaming.is_attached
    for wish in wishes(layout):
        results = []
        for client in (attached, streaming):
            with client.lookup(tokens) as match:
                if point == "shallower":
                    match = match.with_plan(match.resume_points[-1])
                with client.fetch(match, **wishes(layout)[wish]) as blocks:
                    assert blocks.is_valid
                    results.append(everything(blocks))
        np.testing.assert_equal(results[0], results[1], err_msg=wish)
        if point == "deepest" and "share" not in wish:
            np.testing.assert_equal(results[0]["rows"], rows, err_msg=wish)
            if layout.state is not None:
                np.testing.assert_equal(results[0]["state"], states[BLOCKS * layout.block_tokens])
            np.testing.assert_equal(
                results[0]["optional"], {group: dict(*given.values()) for group, given in optional.items()}
            )
    if point == "deepest":
        assert "fetched_bytes" not in attached.counters, "nothing was streamed"
        assert attached.counters["fetched_shared_bytes"] > 0 and "fetch_second_tries" not in attached.counters
    assert "fetched_shared_bytes" not in streaming.counters and streaming.counters["fetched_bytes"] > 0


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_copy_the_prefix_once(start, connect, ranks):
    start()
    layout = LAYOUTS["demo"]
    tokens, rows, *_ = put(connect(layout))
    clients = [connect(layout) for _ in range(ranks)]
    parts = []
    for rank, client in enumerate(clients):
        with client.lookup(tokens) as match, client.fetch(match, share=(rank, ranks)) as blocks:
            assert blocks.first_block == sum(len(part["hca.main"]) for part in parts)
            parts.append({name: np.array(array) for name, array in blocks.rows.items()})
            assert (blocks.state is not None) == (rank == ranks - 1)
    for name, array in rows.items():
        np.testing.assert_array_equal(np.concatenate([part[name] for part in parts]), array)
    copied = sum(client.counters.get("fetched_shared_bytes", 0) for client in clients)
    assert copied == BLOCKS * layout.rows.nbytes + layout.state.nbytes


def test_views_are_read_only_lazy_and_know_when_they_are_over(start, connect):
    start()
    layout = LAYOUTS["demo"]
    tokens, rows, _, _ = put(connect(layout))
    client = connect(layout)
    with client.lookup(tokens) as match, client.fetch(match, views=True) as blocks:
        assert len(blocks.rows["hca.main"]) == BLOCKS and "fetched_shared_bytes" not in client.counters
        view = blocks.rows["hca.main"][-1]
        assert not view.flags.writeable and not view.flags.owndata
        with pytest.raises(IndexError):
            blocks.rows["hca.main"][BLOCKS]
        seen = {name: [] for name in rows}
        for first_block, arrays in blocks.runs():
            assert first_block == len(seen["hca.main"])
            for name, array in arrays.items():
                assert not array.flags.writeable
                seen[name].extend(array)
        np.testing.assert_equal({name: np.array(array) for name, array in seen.items()}, rows)
        assert blocks.is_valid
        assert client.report(match, block=3, group=0, reason="a test says so")
        assert not blocks.is_valid
    assert not blocks.rows and blocks.state is None


def test_views_end_with_the_attachment_and_with_the_lease(start, connect):
    start()
    tokens, *_ = put(connect(LAYOUTS["tiny"]))
    client = connect(LAYOUTS["tiny"])
    match = client.lookup(tokens)
    blocks = client.fetch(match, views=True)
    assert blocks.is_valid
    match.located.valid_until = time.monotonic()
    assert client.fetch(match, views=True).plan.tokens == BLOCKS * 128, "asked again, and copied"
    assert client.counters["fetch_lease_over"] == 1
    start()
    assert not blocks.is_valid


def test_what_went_between_lookup_and_fetch_is_a_shorter_plan(start, connect):
    start()
    layout = LAYOUTS["demo"]
    tokens, rows, states, _ = put(connect(layout))
    client = connect(layout)
    middle = BLOCKS // 2
    with client.lookup(tokens) as match:
        assert connect(layout).report(match, block=middle + 1, group=0, reason="a test says so")
        into = into_components(layout, BLOCKS)
        blocks = client.fetch(match, into)
    assert blocks.plan.tokens == middle * layout.block_tokens
    assert_rows(blocks, rows, middle)
    assert_state(blocks, states[middle * layout.block_tokens])
    assert client.counters["fetch_stamp_mismatch"] == 1 and "fetched_bytes" not in client.counters


def test_a_slot_that_is_filled_again_is_a_miss_and_never_other_bytes(start, connect, monkeypatch):
    daemon = start()
    layout = LAYOUTS["demo"]
    tokens, rows, _, _ = put(connect(layout))
    client = connect(layout)
    host = daemon._store._kept.host
    with client.lookup(tokens) as match:
        slot = match.located.rows.pages[2].tolist()
        word = int(match.located.rows.words[2])
        host.mark(slot, 0)  # the planner dropped it while this worker was stopped ...
        for piece in host.pieces(slot, [layout.rows.nbytes]):
            piece[:] = bytes(len(piece))
        host.mark(slot, word + 2)  # ... and another object is whole there now
        blocks = client.fetch(match)
    assert client.counters["fetch_stamp_mismatch"] == 2, "the second try's descriptors name the same slot"
    assert blocks.plan.kind is PlanKind.COLD or blocks.plan.tokens <= 2 * layout.block_tokens
    assert_rows(blocks, rows, blocks.plan.tokens // layout.block_tokens)


@pytest.mark.parametrize("into", [False, True])
def test_wrong_bytes_are_found_by_their_checksum_reported_and_a_miss(start, connect, into):
    daemon = start()
    layout = LAYOUTS["demo"]
    tokens, rows, _, _ = put(connect(layout))
    client = connect(layout)
    with client.lookup(tokens) as match:
        page = match.located.rows.pages[5].tolist()
        daemon._store._kept.host.pieces(page, [layout.rows.nbytes])[0][100] ^= 1
        blocks = client.fetch(match, into_components(layout, BLOCKS) if into else None, verify=True)
    middle = BLOCKS // 2
    assert client.counters["fetch_corrupt"] == 1 and blocks.plan.tokens == middle * layout.block_tokens
    assert_rows(blocks, rows, middle)
    with client.lookup(tokens) as match:
        assert match.rows_tokens == 5 * layout.block_tokens, "the store dropped it"


def test_rows_of_another_run_are_not_believed(start, connect):
    start()
    layout = LAYOUTS["tiny"]
    tokens, *_ = put(connect(layout))
    client = connect(layout)
    with client.lookup(tokens) as match:
        records = match.located.rows
        records.contents = records.contents[16:32] + records.contents[16:]
        assert client.fetch(match).plan.kind is PlanKind.COLD
        assert client.fetch(match, views=True).plan.kind is PlanKind.COLD
    assert client.counters["fetch_lineage_mismatch"] >= 2


def test_cold_rows_come_as_they_are_promoted(start, connect):
    start()
    layout = LAYOUTS["demo"]
    tokens, rows, states, _ = put(connect(layout), blocks=300)
    start()
    client = connect(layout)
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert blocks.plan.tokens == 300 * layout.block_tokens and blocks.tier is Tier.DISK
        assert_rows(blocks, rows, 300)
        assert_state(blocks, states[300 * layout.block_tokens])
    assert client.counters["fetched_shared_bytes"] == 300 * layout.rows.nbytes + layout.state.nbytes
    assert client.counters["locates"] >= 1 and "fetched_bytes" not in client.counters
    with client.lookup(tokens) as match, client.fetch(match, views=True) as blocks:
        assert len(blocks.rows["hca.main"]) == 300


def test_a_host_too_small_for_the_plan_is_helped_out_by_the_stream(start, connect):
    start(host_bytes="8MiB")
    layout = LAYOUTS["demo"]
    blocks = 600  # 13 MB of rows
    tokens, rows, states = sample(layout, blocks, states=(blocks * layout.block_tokens,))
    writer = connect(layout)
    assert writer.put(tokens, first_block=0, rows=rows, states=states) and writer.flush(60, durable=True)
    client = connect(layout)
    with client.lookup(tokens) as match, client.fetch(match) as fetched:
        assert fetched.plan.tokens == blocks * layout.block_tokens
        assert_rows(fetched, rows, blocks)
        assert_state(fetched, states[blocks * layout.block_tokens])
    assert client.counters["fetched_bytes"] > 0


def test_after_a_restart_it_attaches_again_by_itself(start, connect):
    start()
    layout = LAYOUTS["tiny"]
    tokens, rows, *_ = put(connect(layout))
    client = connect(layout)
    stale = client.lookup(tokens)
    start()
    until(lambda: client.lookup(tokens).plan.tokens == BLOCKS * 128)
    assert client.is_attached and client.counters["attaches"] == 2
    before = client.counters.get("fetched_shared_bytes", 0)
    with client.lookup(tokens) as match, client.fetch(match) as blocks:
        assert_rows(blocks, rows, BLOCKS)
    assert client.counters["fetched_shared_bytes"] > before
    assert_rows(client.fetch(stale), rows, BLOCKS)


@pytest.mark.parametrize(
    "wrong",
    [
        {"share": (3, 3)},
        {"share": (0, 0)},
        {"share": 2},
        {"share": (0.5, 2)},
        {"views": True, "into": np.zeros((BLOCKS, presets.v4_tiny().rows.nbytes), np.uint8)},
        {"into": np.zeros((BLOCKS - 1, presets.v4_tiny().rows.nbytes), np.uint8)},
        {"into": np.zeros((presets.v4_tiny().rows.nbytes, BLOCKS), np.uint8).T},  # no object in one piece
        {"into": np.zeros((BLOCKS, 2 * presets.v4_tiny().rows.nbytes), np.uint8)[:, ::2]},
        {"into": np.zeros((BLOCKS, 7), np.uint8)},
    ],
)
@pytest.mark.parametrize("share_memory", [True, False])
def test_a_wish_that_cannot_be_is_refused(start, connect, wrong, share_memory):
    start()
    tokens, *_ = put(connect(LAYOUTS["tiny"]))
    client = connect(LAYOUTS["tiny"], share_memory=share_memory)
    with client.lookup(tokens) as match, pytest.raises(InvalidInput):
        client.fetch(match, **wrong)


def test_nothing_is_promised_of_a_store_that_is_away(connect):
    client = connect()
    match = client.lookup(np.arange(1000, dtype=np.int32))
    for wish in ({}, {"views": True}, {"share": (1, 2)}, {"verify": True}):
        blocks = client.fetch(match, **wish)
        assert blocks.plan.kind is PlanKind.COLD and blocks.is_valid and not list(blocks.runs())


def test_is_attached_is_public():
    assert isinstance(kvstore.Client.is_attached, property)
