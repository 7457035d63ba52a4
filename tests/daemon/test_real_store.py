"""The daemon around the real store: one PUT and one GET over the socket, and what is left after a restart."""

from __future__ import annotations

import threading

import grpc
import pytest
from daemon_peer import LAYOUT, WORKER, Peer

from kvstore.config import load_config
from kvstore.core.checksum import content_checksum, seal
from kvstore.core.keys import BlockKey, Chain
from kvstore.core.reserve import ObjectSpec
from kvstore.daemon.opening import open_daemon
from kvstore.rpc import convert, wire
from kvstore.rpc.generated import kvstore_pb2 as pb

BLOCKS = 4


@pytest.fixture
def opened(tmp_path):
    """Opens daemons one after another on the same folder."""
    tmp_path.chmod(0o700)
    flags = {
        "listen": f"unix:{tmp_path}/kv.sock",
        "host.bytes": "16MiB",
        "disk.folder": str(tmp_path / "segments"),
        "disk.bytes": "32MiB",
    }
    running = []

    def opening() -> tuple[Peer, object]:
        daemon = open_daemon(load_config(None, flags))
        running.append(daemon)
        peer = Peer(daemon.address.target)
        peer.say_hello()
        return peer, daemon

    yield opening
    for daemon in running:
        daemon.stop(0.0)


def objects(chain: Chain) -> list[tuple[ObjectSpec, bytes]]:
    """Rows of every block and the state at the last one, bytes made from their place."""
    made = []
    for block in range(chain.blocks):
        for group in (0, 1) if block == chain.blocks - 1 else (0,):
            body = bytes((block * 16 + group + index) % 256 for index in range(LAYOUT.groups[group].nbytes))
            made.append((ObjectSpec(block, group, len(body), content_checksum([body])), body))
    return made


def put_all(peer: Peer, chain: Chain) -> tuple[list[int], list[int], list[int]]:
    """Statuses of Reserve and Put, durabilities of a durable Commit."""
    announced = objects(chain)
    reserved = peer.call(
        "Reserve",
        pb.ReserveRequest(
            namespace_id=peer.hello.namespace_id,
            worker_id=WORKER,
            chain=convert.chain_to_wire(chain),
            lineage=bytes(16),
            objects=convert.specs_to_wire(spec for spec, _ in announced),
        ),
    )
    wanted = [index for index, status in enumerate(reserved.statuses) if status == pb.RESERVE_STATUS_WANTED]
    stored: list[int] = []
    if wanted:
        header = peer.header(reserved.reservation, wanted)
        frame = wire.frame_put(header, [announced[index][1] for index in wanted])
        stored = list(peer.put_raw(iter([frame])).statuses)
    commit = pb.CommitRequest(
        namespace_id=peer.hello.namespace_id,
        boot_epoch=peer.hello.boot_epoch,
        reservation=reserved.reservation,
        durable=True,
    )
    return list(reserved.statuses), stored, list(peer.call("Commit", commit).durabilities)


def fetch_all(peer: Peer, chain: Chain) -> tuple[pb.LookupResponse, list[pb.ObjectStart], bytes]:
    match = peer.lookup(chain)
    state = pb.ObjectName(block=chain.blocks - 1, group=1)
    frames = peer.fetch(chain, chain.blocks, lease=match.lease, states=[state])
    return match, [start for frame in frames for start in frame.objects], b"".join(frame.data for frame in frames)


def test_what_was_put_durably_is_found_after_a_restart(opened):
    peer, daemon = opened()
    chain = peer.chain(BLOCKS)
    assert peer.lookup(chain).reason == pb.MISS_REASON_NEVER_SEEN
    reserved, stored, durabilities = put_all(peer, chain)
    assert set(reserved) == {pb.RESERVE_STATUS_WANTED}
    assert set(stored) == {pb.PUT_STATUS_STORED}
    assert set(durabilities) == {pb.DURABILITY_DISK}
    before = fetch_all(peer, chain)
    daemon.stop(5.0)

    peer, _ = opened()
    match, starts, data = fetch_all(peer, chain)
    assert match.plan.kind == pb.PLAN_KIND_RESUME
    assert match.plan.tokens == BLOCKS * LAYOUT.block_tokens
    assert data == before[2] == b"".join(body for _, body in objects(chain))
    for (spec, _), start in zip(objects(chain), starts, strict=True):
        assert start.status == pb.FETCH_STATUS_OK
        key = BlockKey(chain.hash_at(spec.block), spec.group)
        assert start.seal == seal(key, start.generation, spec.length, spec.content, start.lineage)


def test_a_second_put_of_the_same_bytes_is_not_wanted(opened):
    peer, _ = opened()
    chain = peer.chain(BLOCKS)
    put_all(peer, chain)
    reserved, stored, durabilities = put_all(peer, chain)
    assert set(reserved) == {pb.RESERVE_STATUS_EXISTS}
    assert stored == []
    assert set(durabilities) == {pb.DURABILITY_DISK}


def test_a_reported_object_is_gone(opened):
    peer, _ = opened()
    chain = peer.chain(BLOCKS)
    put_all(peer, chain)
    report = pb.ReportRequest(namespace_id=peer.hello.namespace_id, prefix=chain.hash_at(1), reason="bytes differ")
    assert peer.call("Report", report).dropped
    assert peer.lookup(chain).rows_tokens == LAYOUT.block_tokens


def test_a_pinned_chain_is_counted_and_let_go(opened):
    peer, _ = opened()
    chain = peer.chain(BLOCKS)
    put_all(peer, chain)
    request = pb.PinRequest(namespace_id=peer.hello.namespace_id, chain=convert.chain_to_wire(chain), ttl_seconds=60)
    pin = peer.call("Pin", request)
    assert (pin.pinned_tokens, peer.status().pins) == (BLOCKS * LAYOUT.block_tokens, 1)
    assert peer.call("Unpin", pb.UnpinRequest(pin=pin.pin)).unpinned
    assert peer.status().pins == 0


def test_status_counts_what_lies_where(opened):
    peer, _ = opened()
    put_all(peer, peer.chain(BLOCKS))
    status = peer.status()
    assert {tier.tier: tier.objects for tier in status.tiers} == {pb.TIER_HOST: BLOCKS + 1, pb.TIER_DISK: BLOCKS + 1}
    assert [(space.rows, space.states) for space in status.namespaces] == [(BLOCKS, 1)]


def test_status_says_what_host_memory_of_other_sizes_would_have_answered(opened):
    peer, _ = opened()
    assert not peer.status().namespaces[0].curve, "nothing was asked yet"
    chain = peer.chain(BLOCKS)
    put_all(peer, chain)
    for _ in range(40):
        peer.lookup(chain)
    points = peer.status().namespaces[0].curve
    sizes, hits = [point.host_bytes for point in points], [point.token_hits for point in points]
    assert sizes == sorted(sizes) and hits == sorted(hits)
    assert 0.7 < hits[-1] < 1.0, "exact from the ninth on, when the chain is one of the hottest; sampled before"


def test_a_stop_in_the_middle_of_an_upload_loses_only_that_upload(opened):
    peer, daemon = opened()
    first, second = peer.chain(BLOCKS), peer.chain(BLOCKS, seed=1)
    put_all(peer, first)
    reserved = peer.reserve(second, [bytes(LAYOUT.rows.nbytes)] * 2)
    sent, never = threading.Event(), threading.Event()

    def stalling():
        yield wire.frame_put(peer.header(reserved.reservation, [0, 1]), [b"abc"])
        sent.set()
        never.wait(20)

    failures = []

    def upload() -> None:
        try:
            peer.put_raw(stalling(), timeout=60)
        except grpc.RpcError as error:
            failures.append(error)

    uploading = threading.Thread(target=upload)
    uploading.start()
    assert sent.wait(10)
    daemon.stop(0.2)
    never.set()
    uploading.join(10)
    assert len(failures) == 1

    peer, _ = opened()
    assert peer.lookup(first).rows_tokens == BLOCKS * LAYOUT.block_tokens
    assert peer.lookup(second).rows_tokens == 0
