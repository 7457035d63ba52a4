"""What workers and operators ask of the daemon, over a real socket."""

from __future__ import annotations

import grpc
import pytest
from daemon_peer import LAYOUT, WORKER, Peer, body

from kvstore.core import presets
from kvstore.core.checksum import content_checksum, seal
from kvstore.core.errors import InvalidInput, InvalidLayout, LayoutMismatch, OtherBootEpoch, UnknownNamespace
from kvstore.core.keys import BlockKey, Chain
from kvstore.core.match import InferenceMode, SessionEvent
from kvstore.core.reserve import ObjectSpec
from kvstore.daemon import streams
from kvstore.rpc import convert, wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.layouts import layout_to_wire
from kvstore.rpc.limits import MAX_BATCH_BLOCKS, MAX_CHUNK_BYTES, MAX_MESSAGE_BYTES
from kvstore.rpc.status import error_of


def refusal(call, *arguments, **named) -> Exception:
    with pytest.raises(grpc.RpcError) as failed:
        result = call(*arguments, **named)
        list(result)  # a stream fails when it is read
    return error_of(failed.value)


def test_hello_opens_a_namespace_and_names_its_limits(peer):
    hello = peer.hello
    assert (len(hello.namespace_id), len(hello.root), hello.boot_epoch, hello.created) == (32, 32, 41, True)
    assert (hello.max_chunk_bytes, hello.max_batch_blocks) == (MAX_CHUNK_BYTES, MAX_BATCH_BLOCKS)
    assert not peer.say_hello().created
    assert "revision" in peer.say_hello(presets.v4_tiny("other")).differing_fields


def test_a_near_miss_is_refused_where_only_known_layouts_are_wanted(peer):
    error = refusal(peer.say_hello, presets.v4_tiny("other"), existing_only=True)
    assert isinstance(error, LayoutMismatch) and "revision" in str(error)


def test_new_namespaces_are_bounded_and_known_ones_stay_open(peer, monkeypatch):
    monkeypatch.setattr("kvstore.daemon.service.MAX_NEW_NAMESPACES", 2)
    peer.say_hello(presets.v4_tiny("second"))
    error = refusal(peer.say_hello, presets.v4_tiny("third"))
    assert isinstance(error, InvalidInput) and "its limit" in str(error)
    assert not peer.say_hello().created


def test_a_fingerprint_that_is_not_the_layouts_is_refused(peer):
    request = pb.HelloRequest(layout=layout_to_wire(LAYOUT), fingerprint=bytes(32), worker_id=WORKER)
    assert isinstance(refusal(peer.call, "Hello", request), LayoutMismatch)


def test_a_broken_layout_is_refused_and_the_daemon_goes_on(peer):
    broken = layout_to_wire(LAYOUT)
    broken.block_tokens = 100
    request = pb.HelloRequest(layout=broken, fingerprint=bytes(32), worker_id=WORKER)
    assert isinstance(refusal(peer.call, "Hello", request), InvalidLayout)
    assert peer.say_hello().namespace_id


def test_what_is_put_is_found_and_fetched_whole(peer):
    chain, bodies = peer.chain(3), [body(0), body(1), body(2)]
    assert peer.lookup(chain).reason == pb.MISS_REASON_NEVER_SEEN
    assert peer.put(chain, bodies) == [pb.PUT_STATUS_STORED] * 3
    assert peer.lookup(chain).rows_tokens == 3 * LAYOUT.block_tokens
    frames = peer.fetch(chain, 3)
    assert b"".join(frame.data for frame in frames) == b"".join(bodies)
    starts = [start for frame in frames for start in frame.objects]
    assert [(start.name.block, start.name.group, start.status) for start in starts] == [
        (block, 0, pb.FETCH_STATUS_OK) for block in range(3)
    ]
    key = BlockKey(chain.hash_at(1), 0)
    assert starts[1].seal == seal(key, starts[1].generation, len(bodies[1]), content_checksum([bodies[1]]))


@pytest.mark.parametrize("chunk", [1, 7, LAYOUT.rows.nbytes, LAYOUT.rows.nbytes + 1, 1 << 20])
def test_the_bytes_may_be_cut_anywhere(peer, chunk):
    chain, bodies = peer.chain(3), [body(0), body(1), body(2)]
    assert peer.put(chain, bodies, chunk) == [pb.PUT_STATUS_STORED] * 3
    assert b"".join(frame.data for frame in peer.fetch(chain, 3)) == b"".join(bodies)


def test_large_objects_stream_in_chunks_of_a_mebibyte(peer, store):
    chain = peer.chain(3)
    bodies = [body(block, MAX_CHUNK_BYTES + 12_345) for block in range(3)]
    store.objects = {BlockKey(chain.hash_at(block), 0): bytearray(bodies[block]) for block in range(3)}
    frames = peer.fetch(chain, 3)
    assert b"".join(frame.data for frame in frames) == b"".join(bodies)
    assert [frame.data.nbytes for frame in frames[:-1]] == [MAX_CHUNK_BYTES] * 3
    assert store.open_now == 0


def test_rows_behind_a_missing_one_are_named_and_not_read(peer, store):
    chain = peer.chain(4)
    peer.put(chain, [body(block) for block in range(4)])
    del store.objects[BlockKey(chain.hash_at(1), 0)]
    store.objects[BlockKey(chain.hash_at(3), 1)] = bytearray(b"state")
    frames = peer.fetch(chain, 4, states=[pb.ObjectName(block=3, group=1)])
    starts = [start for frame in frames for start in frame.objects]
    ok, missing = pb.FETCH_STATUS_OK, pb.FETCH_STATUS_MISSING
    assert [start.status for start in starts] == [ok, missing, missing, missing, ok]
    assert b"".join(frame.data for frame in frames) == body(0) + b"state"
    assert store.open_now == 0


def test_thousands_of_missing_objects_are_named_in_bounded_messages(peer):
    chain = peer.chain(3000)
    frames = peer.fetch(chain, 3000)
    assert sum(len(frame.objects) for frame in frames) == 3000
    assert max(len(frame.objects) for frame in frames) <= 1024


def test_a_reader_that_leaves_leaves_nothing_open(peer, store):
    from daemon_peer import until

    chain = peer.chain(2)
    store.objects = {BlockKey(chain.hash_at(block), 0): bytearray(8 << 20) for block in range(2)}
    stream = peer.fetch_raw(peer.fetch_request(chain, 2))
    next(stream)
    assert store.open_now > 0
    stream.cancel()
    until(lambda: store.open_now == 0)
    assert store.open_now == 0


def test_bytes_that_do_not_match_their_checksum_are_not_stored(peer):
    chain = peer.chain(2)
    reserved = peer.reserve(chain, [body(0), body(1)])
    frame = wire.frame_put(peer.header(reserved.reservation, [0, 1]), [body(0), body(9)])
    assert list(peer.put_raw(iter([frame])).statuses) == [pb.PUT_STATUS_STORED, pb.PUT_STATUS_CORRUPT]
    assert peer.lookup(chain).rows_tokens == LAYOUT.block_tokens


def test_an_object_dropped_meanwhile_is_skipped_and_the_next_is_stored(peer, store):
    store.dropped = {0}
    chain = peer.chain(2)
    reserved = peer.reserve(chain, [body(0), body(1)])
    frame = wire.frame_put(peer.header(reserved.reservation, [0, 1]), [body(0), body(1)])
    assert list(peer.put_raw(iter([frame])).statuses) == [pb.PUT_STATUS_DROPPED, pb.PUT_STATUS_STORED]


def test_an_upload_after_its_commit_is_dropped(peer):
    chain = peer.chain(1)
    reserved = peer.reserve(chain, [body(0)])
    commit = pb.CommitRequest(
        namespace_id=peer.hello.namespace_id, boot_epoch=41, reservation=reserved.reservation, durable=True
    )
    assert list(peer.call("Commit", commit).durabilities) == [pb.DURABILITY_NONE]
    frame = wire.frame_put(peer.header(reserved.reservation, [0]), [body(0)])
    assert list(peer.put_raw(iter([frame])).statuses) == [pb.PUT_STATUS_DROPPED]


@pytest.mark.parametrize(
    ("frames", "says"),
    [
        (lambda peer, id: [], "no header"),
        (lambda peer, id: [wire.frame_put(None, [b"abc"])], "no header"),
        (lambda peer, id: [b"\xff\xff"], "no protobuf"),
        (lambda peer, id: [wire.frame_put(peer.header(id, []), [b""])], "names 0 objects"),
        (lambda peer, id: [wire.frame_put(peer.header(id, [0, 0]), [b""])], "each once"),
        (lambda peer, id: [wire.frame_put(peer.header(id, [2]), [b""])], "index 2 is beyond the reservation's 2"),
        (lambda peer, id: [wire.frame_put(peer.header(id, [0]), [b"abc"])], "ended inside an object"),
        (lambda peer, id: [wire.frame_put(peer.header(id, [0]), [body(0), b"more"])], "more bytes than its objects"),
        (
            lambda peer, id: [wire.frame_put(peer.header(id, [0]), [body(0)]), wire.frame_put(None, [b"x"])],
            "more bytes than its objects",
        ),
    ],
)
def test_an_upload_that_cannot_be_is_refused(peer, frames, says):
    reserved = peer.reserve(peer.chain(2), [body(0), body(1)])
    error = refusal(peer.put_raw, iter(frames(peer, reserved.reservation)))
    assert isinstance(error, InvalidInput) and says in str(error)


def test_reservations_that_nobody_ends_are_forgotten_by_their_objects(monkeypatch):
    monkeypatch.setattr(streams, "MAX_RESERVED_OBJECTS", 10)
    lengths = streams.ReservedLengths()
    specs = [ObjectSpec(block, 0, 7, bytes(16)) for block in range(4)]
    for reservation in range(1, 5):
        lengths.remember(reservation, specs)
    assert [lengths.of(reservation) is None for reservation in range(1, 5)] == [True, True, False, False]
    lengths.forget(3)
    lengths.forget(3)
    lengths.remember(5, specs)
    assert lengths.of(4) is not None and list(lengths.of(5)) == [7] * 4


def test_an_upload_that_breaks_off_gives_its_room_back(peer, store):
    reserved = peer.reserve(peer.chain(2), [body(0), body(1)])
    frame = wire.frame_put(peer.header(reserved.reservation, [0, 1]), [body(0), b"abc"])
    refusal(peer.put_raw, iter([frame]))
    assert store.log[-1] == ("abandoned", 1)


def test_an_unknown_namespace_asks_for_hello(peer):
    stranger = bytes(32)
    chain = peer.chain(1)
    assert isinstance(refusal(peer.lookup, chain, namespace_id=stranger), UnknownNamespace)
    assert isinstance(refusal(peer.fetch, chain, 1, namespace_id=stranger), UnknownNamespace)
    header = peer.header(1, [0])
    header.namespace_id = stranger
    assert isinstance(refusal(peer.put_raw, iter([wire.frame_put(header, [b"x"])])), UnknownNamespace)


def test_another_boot_epoch_asks_for_hello(peer, store):
    chain = peer.chain(1)
    reserved = peer.reserve(chain, [body(0)])
    store.boot_epoch = 42
    assert isinstance(refusal(peer.fetch, chain, 1), OtherBootEpoch)
    frame = wire.frame_put(peer.header(reserved.reservation, [0]), [body(0)])
    assert isinstance(refusal(peer.put_raw, iter([frame])), OtherBootEpoch)
    commit = pb.CommitRequest(namespace_id=peer.hello.namespace_id, boot_epoch=41, reservation=1)
    assert isinstance(refusal(peer.call, "Commit", commit), OtherBootEpoch)
    assert isinstance(refusal(peer.call, "Release", pb.ReleaseRequest(boot_epoch=41, leases=[1])), OtherBootEpoch)


def test_a_batch_over_the_limit_is_refused_by_its_limit(peer):
    chain = Chain(0, peer.hello.root, bytes(32 * (MAX_BATCH_BLOCKS + 1)))
    error = refusal(peer.lookup, chain, prompt_tokens=(1 << 31) - 1)
    assert isinstance(error, InvalidInput) and f"at most {MAX_BATCH_BLOCKS}" in str(error)


def test_a_message_over_the_limit_is_refused_and_the_daemon_goes_on(peer):
    with pytest.raises(grpc.RpcError) as failed:
        peer.call("Lookup", bytes(MAX_MESSAGE_BYTES + 1))
    assert failed.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_MESSAGE_BYTES) in failed.value.details()
    assert peer.say_hello().namespace_id


def test_garbage_is_refused_by_every_call_and_nothing_is_an_internal_error(peer):
    for name, method in peer.methods.items():
        if name not in ("Fetch", "Put"):
            error = refusal(peer.channel.unary_unary(method.path), b"\xff\xff\xff", timeout=10)
            assert isinstance(error, InvalidInput), name
    assert "rpc_internal_errors" not in peer.status().counters


def test_hints_and_speeds_reach_the_store(peer, store):
    hints = pb.Hints(session="a7", mode=pb.INFERENCE_MODE_THINK_MAX, breakpoints=[128])
    peer.lookup(peer.chain(1), hints=hints, can_replay=True, worker_flops=1e12)
    _, seen, owner, can_replay, flops = store.log[-1]
    assert (seen.session, seen.mode, seen.breakpoints) == ("a7", InferenceMode.THINK_MAX, (128,))
    assert (owner, can_replay, flops) == (WORKER, True, 1e12)
    assert isinstance(refusal(peer.lookup, peer.chain(1), worker_flops=-1.0), InvalidInput)
    assert isinstance(refusal(peer.lookup, peer.chain(1), host_bytes_per_second=0.0), InvalidInput)
    assert isinstance(refusal(peer.lookup, peer.chain(1), worker_id=b"short"), InvalidInput)


def test_the_small_calls_answer(peer, store):
    chain = peer.chain(2)
    peer.put(chain, [body(0), body(1)])
    space = peer.hello.namespace_id
    wire_chain = convert.chain_to_wire(chain)
    assert peer.call("Release", pb.ReleaseRequest(boot_epoch=41, leases=[1, 2])).released == 2
    report = pb.ReportRequest(namespace_id=space, prefix=chain.hash_at(1), reason="wrong")
    assert peer.call("Report", report).dropped
    assert not peer.call("Report", report).dropped
    peer.call("Session", pb.SessionRequest(namespace_id=space, session="s", event=pb.SESSION_EVENT_TOOL_CALL))
    assert store.log[-1] == ("session", "s", SessionEvent.TOOL_CALL, None)
    prefetch = pb.PrefetchRequest(namespace_id=space, worker_id=WORKER, chain=wire_chain, prompt_tokens=256)
    assert peer.call("Prefetch", prefetch).bytes == 99
    assert peer.call("Pin", pb.PinRequest(namespace_id=space, chain=wire_chain, ttl_seconds=5)).pinned_tokens == 256
    assert peer.call("Unpin", pb.UnpinRequest(pin=5)).unpinned
    assert not peer.call("Unpin", pb.UnpinRequest(pin=6)).unpinned


@pytest.mark.parametrize("ttl", [0.0, -1.0, float("nan"), 1e9])
def test_a_pin_has_a_bounded_life(peer, ttl):
    request = pb.PinRequest(
        namespace_id=peer.hello.namespace_id, chain=convert.chain_to_wire(peer.chain(1)), ttl_seconds=ttl
    )
    assert isinstance(refusal(peer.call, "Pin", request), InvalidInput)


def test_status_shows_tiers_namespaces_and_counters(peer):
    peer.put(peer.chain(1), [body(0)])
    status = peer.status()
    assert [(tier.tier, tier.objects, tier.ready_bytes) for tier in status.tiers] == [(pb.TIER_HOST, 1, 500)]
    assert [space.model for space in status.namespaces] == ["v4-tiny"]
    assert (status.leases, status.pins, status.queued_copies, status.is_draining) == (1, 2, 3, False)
    assert (status.handoffs, status.handoff_bytes) == (5, 6)
    assert (status.lock_held_seconds, status.lock_waited_seconds, status.lock_longest_seconds) == (7.0, 8.0, 9.0)
    assert status.counters["hits"] == 4
    assert status.counters["rpc_put"] == 1


def test_an_unexpected_error_fails_one_request_and_is_counted(peer: Peer, store):
    store.namespaces[peer.hello.namespace_id].layout = None
    with pytest.raises(grpc.RpcError) as failed:
        peer.lookup(peer.chain(1))
    assert failed.value.code() == grpc.StatusCode.INTERNAL
    assert peer.call("Unpin", pb.UnpinRequest(pin=5)).unpinned
    store.namespaces.clear()
    assert peer.status().counters["rpc_internal_errors"] == 1
