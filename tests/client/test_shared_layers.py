"""Rows layer by layer: the same bytes as all at once, from whole copies or from copies that are being filled."""

from __future__ import annotations

import fcntl
import os

import numpy as np
import pytest
from client_tools import assert_state, sample, until
from fake_attach import REGION_PAGES, FakeAttach

from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.descriptor import filling_word, pack_record, whole_word
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.match import PlanKind
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.tiers.host import stamp_offset

DEMO = presets.v4_demo()
FLASH = presets.v4_flash()
BLOCKS = 24


@pytest.fixture
def start(start):
    """As in conftest; ready when all host memory is there, since what gets no room would be streamed."""

    def start_whole(host_bytes="64MiB"):
        daemon = start(host_bytes)
        host = daemon._store._kept.host
        until(lambda: host.populated == host.region_count)
        return daemon

    return start_whole


def put(client, blocks=BLOCKS):
    end = blocks * client.layout.block_tokens
    tokens, rows, states = sample(client.layout, blocks, states=(end,))
    assert client.put(tokens, first_block=0, rows=rows, states=states) and client.flush(30, durable=True)
    return tokens, rows, states[end]


def expected(layout, rows, layer):
    """The layer's part of component arrays."""
    parts = {}
    for name, array in rows.items():
        having = [section.layer for section in layout.rows.sections if section.component == name]
        if layer in having:
            parts[name] = array[:, having.index(layer)]
    return parts


def assert_layers(blocks, layout, rows, timeout=20.0):
    for layer in range(len(layout.layers)):
        np.testing.assert_equal(blocks.layer(layer, timeout), expected(layout, rows, layer))


@pytest.mark.parametrize("layout", [DEMO, FLASH], ids=["demo", "flash"])
@pytest.mark.parametrize("is_cold", [False, True])
@pytest.mark.parametrize("can_abandon", [False, True])
@pytest.mark.parametrize("share_memory", [True, False])
def test_layers_are_the_rows(start, connect, layout, is_cold, can_abandon, share_memory):
    start()
    tokens, rows, state = put(connect(layout))
    if is_cold:
        start()
    client = connect(layout, share_memory=share_memory)
    with client.lookup(tokens, order="layers") as match:
        assert (match.plan.tier is Tier.DISK) == is_cold
        with client.fetch(match, order="layers", can_abandon=can_abandon) as blocks:
            assert blocks.plan == match.plan
            assert_layers(blocks, layout, rows)
            assert blocks.finish(20.0)
            assert_state(blocks, state)
            np.testing.assert_equal({name: np.array(array) for name, array in blocks.rows.items()}, rows)
    assert ("fetched_bytes" in client.counters) != share_memory


@pytest.mark.parametrize("can_abandon", [False, True])
def test_what_goes_before_the_end_is_said_at_the_end(start, connect, can_abandon):
    start()
    tokens, rows, _ = put(connect(DEMO))
    client = connect(DEMO)
    with (
        client.lookup(tokens, order="layers") as match,
        client.fetch(match, order="layers", can_abandon=can_abandon) as blocks,
    ):
        np.testing.assert_equal(blocks.layer(0, 1.0), expected(DEMO, rows, 0))
        assert connect(DEMO).report(match, block=BLOCKS - 1, group=0, reason="a test says so")
        assert blocks.layer(1, 1.0) is None
        assert not blocks.finish(1.0)


def test_a_lease_that_is_over_ends_the_layers(start, connect):
    start()
    tokens, *_ = put(connect(DEMO))
    client = connect(DEMO)
    with client.lookup(tokens) as match:
        blocks = client.fetch(match, order="layers")
        blocks._source._valid_until = 0.0
        assert blocks.layer(0, 1.0) is None and not blocks.finish(1.0)


def test_a_host_too_small_gives_all_rows_first(start, connect):
    start(host_bytes="8MiB")
    tokens, rows, _ = put(connect(DEMO), blocks=600)
    client = connect(DEMO)
    with (
        client.lookup(tokens, order="layers") as match,
        client.fetch(match, order="layers", can_abandon=True) as blocks,
    ):
        assert blocks.plan.tokens == 600 * DEMO.block_tokens
        assert_layers(blocks, DEMO, rows)
        assert blocks.finish(1.0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"order": "rows"},
        {"can_abandon": True},
        {"order": "layers", "views": True},
        {"order": "layers", "share": (0, 2)},
        {"order": "layers", "into": np.zeros((1, 1), np.uint8)},
    ],
)
def test_what_cannot_be_asked_by_layers(start, connect, wrong):
    start()
    client = connect(DEMO)
    with client.lookup(np.arange(300, dtype=np.int32)) as match, pytest.raises(InvalidInput):
        client.fetch(match, **wrong)


def test_a_layer_that_does_not_exist_and_a_miss(start, connect):
    start()
    client = connect(DEMO)
    with client.lookup(np.arange(300, dtype=np.int32)) as match, client.fetch(match, order="layers") as blocks:
        assert blocks.plan.kind is PlanKind.COLD and blocks.finish(1.0)
        with pytest.raises(InvalidInput):
            blocks.layer(len(DEMO.layers), 1.0)


class Filling:
    """Serves one sample as copies that are being filled, a layer more with each Locate; `end_word` ends them."""

    def __init__(self, attach, fake, tokens_hashes, end_word=whole_word):
        self.attach, self.fake, self.end_word = attach, fake, end_word
        self.layers = 0
        bodies = [fake.objects[key, 0] for key in tokens_hashes]
        self.records = b""
        for index, body in enumerate(bodies):
            page = 8 * index
            os.pwrite(attach.region_fds[0], body, page * PAGE_BYTES)
            self.records += pack_record((page,), 100 + index, content_checksum([body]))
        self.pages = {8 * index: 100 + index for index in range(len(bodies))}
        self.mark(filling_word)
        attach.handlers["Lookup"] = self.lookup
        attach.handlers["Locate"] = self.locate

    def mark(self, word):
        for page, stamp in self.pages.items():
            place = stamp_offset(REGION_PAGES) + 8 * page
            os.pwrite(self.attach.region_fds[0], word(stamp).to_bytes(8, "little"), place)

    def lookup(self, body):
        request = pb.LookupRequest.FromString(body)
        assert request.order == pb.LOAD_ORDER_LAYERS
        return self.fake.Lookup(request, None)

    def locate(self, body):
        request = pb.LocateRequest.FromString(body)
        if not request.HasField("seen_layers"):
            return pb.LocateResponse()  # the state has to be streamed
        is_over = request.seen_layers >= len(DEMO.layers) - 1
        if is_over:
            self.mark(self.end_word)
        self.layers = min(request.seen_layers + 1, len(DEMO.layers))
        rows = pb.Descriptors(
            group=0, first_block=0, length=DEMO.rows.nbytes, records=self.records, objects=len(self.records) // 28
        )
        return pb.LocateResponse(rows=rows, is_loading=not is_over, layers=self.layers)


@pytest.mark.parametrize(("end_word", "is_right"), [(whole_word, True), (lambda stamp: 0, False)])
def test_layers_of_copies_that_are_being_filled(tmp_path, fake, connect, end_word, is_right):
    attach = FakeAttach(f"{tmp_path}/kv.sock.attach")
    try:
        fcntl.fcntl(attach.region_fds[0], fcntl.F_ADD_SEALS, 2 | 4)
        fake.attach_path = attach.path
        writer = connect(DEMO, share_memory=False)
        tokens, rows, state = put(writer, blocks=4)
        keys = [key.prefix for key in fake.objects if key.group == 0]
        Filling(attach, fake, sorted(keys, key=list(fake.lineages).index), end_word)
        client = connect(DEMO)
        with (
            client.lookup(tokens, order="layers") as match,
            client.fetch(match, order="layers", can_abandon=True) as blocks,
        ):
            assert "fetched_shared_bytes" not in client.counters
            for layer in range(len(DEMO.layers) - 1):
                np.testing.assert_equal(blocks.layer(layer, 5.0), expected(DEMO, rows, layer))
            assert_state(blocks, state)
            assert blocks.finish(5.0) == is_right
    finally:
        attach.close()
