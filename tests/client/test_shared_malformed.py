"""Descriptors and regions that no daemon would send: a counted miss, never a fault, never other bytes."""

from __future__ import annotations

import fcntl
import os
from types import SimpleNamespace

import numpy as np
import pytest
from client_tools import assert_rows, sample
from fake_attach import REGION_PAGES, FakeAttach

from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.descriptor import pack_record, whole_word
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.match import PlanKind
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.tiers.host import stamp_offset

LAYOUT = presets.v4_tiny()
BLOCKS = 4
NOT_ABORTED = SimpleNamespace()  # a context for the fake's Lookup, which only refuses through it


@pytest.fixture
def attach(tmp_path, fake):
    daemon = FakeAttach(f"{tmp_path}/kv.sock.attach")
    for fd in daemon.region_fds:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 2 | 4)  # against shrinking and growing
    fake.attach_path = daemon.path
    yield daemon
    daemon.close()


def descriptors(group: int, bodies: list[bytes], attach, first_page: int) -> pb.Descriptors:
    """Objects written into region 0, a page each, with stamps; and where they are."""
    records = b""
    for index, body in enumerate(bodies):
        page, stamp = first_page + index, 10 + first_page + index
        os.pwrite(attach.region_fds[0], body, page * PAGE_BYTES)
        os.pwrite(attach.region_fds[0], whole_word(stamp).to_bytes(8, "little"), stamp_offset(REGION_PAGES) + 8 * page)
        records += pack_record((page,), stamp, content_checksum([body]))
    first_block = BLOCKS - 1 if group else 0
    length, count = len(bodies[0]), len(bodies)
    return pb.Descriptors(group=group, first_block=first_block, length=length, records=records, objects=count)


@pytest.fixture
def ask(fake, attach, connect):
    """Puts a sample, then serves its lookups over the lane with descriptors that `spoil(answer)` may change."""
    client = connect(LAYOUT)
    tokens, rows, states = sample(LAYOUT, BLOCKS)
    writer = connect(LAYOUT, share_memory=False)
    assert writer.put(tokens, first_block=0, rows=rows, states=states) and writer.flush(20)

    def ask(spoil):
        def lookup(body):
            request = pb.LookupRequest.FromString(body)
            assert request.want_descriptors
            answer = fake.Lookup(request, NOT_ABORTED)
            keys = [request.chain.hashes[32 * block : 32 * block + 32] for block in range(BLOCKS)]
            bodies = [[fake.objects[key, 0] for key in keys], [fake.objects[keys[-1], 1]]]
            answer.rows.CopyFrom(descriptors(0, bodies[0], attach, 0))
            answer.states.append(descriptors(1, bodies[1], attach, 100))
            spoil(answer)
            return answer

        attach.handlers["Lookup"] = lookup
        return client, client.lookup(tokens), rows

    return ask


def test_the_sample_itself_is_read(ask):
    client, match, rows = ask(lambda answer: None)
    blocks = client.fetch(match)
    assert_rows(blocks, rows, BLOCKS)
    assert (
        blocks.state is not None and client.counters["fetched_shared_bytes"] and "fetched_bytes" not in client.counters
    )


def with_record(answer, *, page=0, stamp=10, index=0):
    record = pack_record((page,), stamp, bytes(16))
    records = answer.rows.records
    answer.rows.records = records[: 28 * index] + record + records[28 * (index + 1) :]


def longer(answer):
    answer.rows.length += 1


def ragged(answer):
    answer.rows.records += b"x"


SPOILS = {
    "page behind its region": lambda answer: with_record(answer, page=REGION_PAGES * 2),
    "page of no region": lambda answer: with_record(answer, page=(1 << 32) - 1),
    "stamp of nothing": lambda answer: with_record(answer, stamp=0),
    "stamp too large": lambda answer: with_record(answer, stamp=(1 << 63) + 5, index=3),
    "length of no object": longer,
    "half a record": ragged,
    "rows of another group": lambda answer: setattr(answer.rows, "group", 1),
    "group that is none": lambda answer: setattr(answer.rows, "group", 9),
    "rows from the middle": lambda answer: setattr(answer.rows, "first_block", 1),
    "rows for a state": lambda answer: answer.states[0].CopyFrom(answer.rows),
    "two states": lambda answer: setattr(answer.states[0], "records", 2 * answer.states[0].records),
}


@pytest.mark.parametrize("spoil", SPOILS)
def test_descriptors_that_cannot_be_are_a_miss(ask, spoil):
    client, match, _ = ask(SPOILS[spoil])
    assert match.plan.kind is PlanKind.COLD
    assert client.counters["lookups_failed"] == 1
    assert client.counters.get("failed_malformed", 0) + client.counters.get("failed_rejected", 0) == 1
    assert client.is_connected


@pytest.mark.parametrize("what", ["short", "unsealed"])
def test_a_region_that_could_end_is_not_mapped(ask, attach, what):
    fd = os.memfd_create("bad", os.MFD_ALLOW_SEALING)
    os.truncate(fd, os.fstat(attach.region_fds[0]).st_size - (PAGE_BYTES if what == "short" else 0))
    if what == "short":
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, 2)
    good, attach.region_fds[0] = attach.region_fds[0], fd
    try:
        client, match, _ = ask(lambda answer: None)
        assert match.plan.kind is PlanKind.COLD and client.counters["failed_malformed"] == 1
    finally:
        os.close(good)


def test_more_rows_than_the_plan_and_foreign_states_do_no_harm(ask, attach):
    attach.handlers["Locate"] = lambda body: pb.LocateResponse()

    def more(answer):
        answer.rows.records += pack_record((50,), 60, bytes(16))
        answer.rows.objects += 1
        answer.states[0].first_block = 1

    client, match, rows = ask(more)
    blocks = client.fetch(match)
    assert_rows(blocks, rows, BLOCKS)
    assert blocks.plan.tokens == BLOCKS * LAYOUT.block_tokens and blocks.state is not None


def test_bytes_under_a_wrong_stamp_are_streamed_on_the_second_try(ask, attach):
    client, match, rows = ask(lambda answer: None)
    os.pwrite(attach.region_fds[0], bytes(8), stamp_offset(REGION_PAGES) + 8 * 2)
    with_views = client.fetch(match, views=True)
    assert client.counters["fetch_stamp_mismatch"] >= 1
    assert_rows(with_views, rows, BLOCKS)
    np.testing.assert_array_equal(with_views.rows["hca.main"][2], rows["hca.main"][2])
