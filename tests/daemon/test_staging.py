"""Staging: memory that one worker writes and the daemon copies from, believing nothing of it."""

from __future__ import annotations

import fcntl
import mmap
import os
import random
import threading

import grpc
import pytest
from daemon_peer import LAYOUT, WORKER, Peer, until
from lane_peer import (
    LanePeer,
    Refusal,
    commit_request,
    lookup_request,
    objects_of,
    open_lane,
    put_over,
    staged_put,
)

from kvstore.config import load_config
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES, Chain
from kvstore.core.lineage import ROOT_LINEAGE, child_lineage
from kvstore.daemon.calls import Refused
from kvstore.daemon.opening import open_daemon
from kvstore.daemon.staging import MAX_WORKER_BYTES, StagingRoom
from kvstore.daemon.workers import Workers
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import LaneRequest, send_request
from kvstore.rpc.status import error_of

ROW = LAYOUT.rows.nbytes


def refused(call, *arguments) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.reason


@pytest.fixture
def lane(real_peer):
    return open_lane(real_peer)


# -- the region ---------------------------------------------------------------------------------
def test_it_keeps_its_size_whatever_the_worker_does(real_peer, lane):
    answer, fd = lane.call_fd("Staging", pb.StagingRequest(nbytes=10_000))
    assert answer.nbytes == 3 * PAGE_BYTES == os.fstat(fd).st_size
    assert real_peer.status().staging_bytes == 3 * PAGE_BYTES
    for attempt in (
        lambda: os.ftruncate(fd, 0),
        lambda: os.ftruncate(fd, 1 << 20),
        lambda: os.posix_fallocate(fd, 1 << 20, 4096),
        lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
    ):
        with pytest.raises(PermissionError):
            attempt()
    with mmap.mmap(fd, answer.nbytes) as staging:
        staging[:5] = b"mine!"
    assert os.pread(fd, 5, 0) == b"mine!"
    os.close(fd)


def test_asked_again_it_is_the_same_and_a_larger_one_replaces_it(real_peer, lane):
    first = lane.stage(8 * PAGE_BYTES)
    first[:4] = b"same"
    assert lane.stage(PAGE_BYTES)[:4] == b"same"
    assert len(lane.stage(8 * PAGE_BYTES)) == 8 * PAGE_BYTES
    larger = lane.stage(9 * PAGE_BYTES)
    assert (larger[:4], len(larger)) == (bytes(4), 9 * PAGE_BYTES)
    assert real_peer.status().staging_bytes == 9 * PAGE_BYTES


def test_each_worker_has_its_own(real_peer, lane):
    mine = lane.stage(PAGE_BYTES)
    other = open_lane(real_peer, b"x" * 16)
    theirs = other.stage(PAGE_BYTES)
    mine[:4], theirs[:4] = b"mine", b"your"
    assert (lane.stage(1)[:4], other.stage(1)[:4]) == (b"mine", b"your")
    assert real_peer.status().staging_bytes == 2 * PAGE_BYTES


def test_a_wish_for_nothing_is_refused_and_one_for_too_much_is_cut():
    room = StagingRoom(MAX_WORKER_BYTES + PAGE_BYTES)
    with pytest.raises(InvalidInput):
        room.open(0)
    staging = room.open(1 << 60)
    assert staging.nbytes == MAX_WORKER_BYTES == room.used_bytes
    with pytest.raises(Refused, match="come back"):
        room.open(2 * PAGE_BYTES)
    room.end(staging)
    assert room.used_bytes == 0


def test_all_regions_together_are_bounded_and_the_refused_worker_keeps_what_it_has(store):
    workers = Workers(store, StagingRoom(10 * PAGE_BYTES))
    first, second = workers.join(b"a" * 16, 1), workers.join(b"b" * 16, 1)
    kept = workers.stage(first, 4 * PAGE_BYTES)
    with pytest.raises(Refused) as caught:
        workers.stage(second, 7 * PAGE_BYTES)
    assert caught.value.reason.value == "SHED"
    with pytest.raises(Refused):
        workers.stage(first, 7 * PAGE_BYTES)
    assert workers.stage(first, 1) is kept
    workers.leave(first)
    assert workers.stage(second, 7 * PAGE_BYTES).nbytes == 7 * PAGE_BYTES
    workers.leave(second)
    assert (workers.staging_bytes, workers.count) == (0, 0)


def test_memory_that_a_copy_reads_stays_until_the_copy_ends(store):
    workers = Workers(store, StagingRoom(10 * PAGE_BYTES))
    worker = workers.join(b"a" * 16, 1)
    staging = workers.stage(worker, PAGE_BYTES)
    with staging.used() as view:
        with pytest.raises(Refused, match="in use"):
            workers.stage(worker, 2 * PAGE_BYTES)
        workers.leave(worker)
        assert bytes(view[:8]) == bytes(8)
        assert workers.staging_bytes == PAGE_BYTES
    assert workers.staging_bytes == 0
    with pytest.raises(InvalidInput, match="is gone"), staging.used():
        pass
    assert store.log == [("released", b"a" * 16)]


# -- puts ---------------------------------------------------------------------------------------
def fetched(peer: Peer, chain: Chain) -> bytes:
    match = peer.lookup(chain)
    frames = peer.fetch(chain, chain.blocks, lease=match.lease, states=[pb.ObjectName(block=chain.blocks - 1, group=1)])
    assert all(start.status == pb.FETCH_STATUS_OK for frame in frames for start in frame.objects)
    return b"".join(frame.data for frame in frames)


def test_what_is_staged_is_stored_and_seen_over_grpc(real_peer, lane):
    chain = real_peer.chain(5)
    bodies = put_over(real_peer, lane, chain)
    assert fetched(real_peer, chain) == b"".join(bodies[name] for name in objects_of(chain))
    counted = real_peer.status().counters
    assert counted["put_stored"] == 6
    assert counted["put_bytes"] == sum(map(len, bodies.values()))


def test_the_answer_names_what_was_stored_and_a_second_put_is_not_wanted(real_peer, lane):
    chain = real_peer.chain(2)
    staging = lane.stage(PAGE_BYTES)
    rows = [bytes([block + 1]) * ROW for block in range(2)]
    staging[: 2 * ROW] = b"".join(rows)
    request = commit_request(real_peer, staged_put(chain, range(2), [0, ROW]))
    answer = lane.call("Commit", request)
    assert answer.boot_epoch == real_peer.hello.boot_epoch
    [result] = answer.staged
    assert result.contents == b"".join(content_checksum([row]) for row in rows)
    assert list(result.statuses) == [pb.RESERVE_STATUS_WANTED] * 2
    assert list(result.outcomes) == [pb.PUT_STATUS_STORED] * 2
    [again] = lane.call("Commit", request).staged
    assert again.contents == result.contents
    assert list(again.statuses) == [pb.RESERVE_STATUS_EXISTS] * 2
    assert list(again.outcomes) == [pb.PUT_STATUS_UNSPECIFIED] * 2


def test_a_reservation_can_be_committed_afterwards(real_peer, lane):
    chain = real_peer.chain(1)
    lane.stage(PAGE_BYTES)
    [result] = lane.call("Commit", commit_request(real_peer, staged_put(chain, [0], [0]))).staged
    later = commit_request(real_peer, reservation=result.reservation, durable=True)
    assert list(lane.call("Commit", later).durabilities) == [pb.DURABILITY_MEMORY]  # this daemon has no disk
    assert not lane.call("Commit", later).durabilities


def test_staged_objects_are_durable_when_the_daemon_says_so(tmp_path):
    """Both ways: with the Commit that brings them, and with a later one of its reservation."""
    tmp_path.chmod(0o700)
    flags = {"listen": f"unix:{tmp_path}/kv.sock", "host.bytes": "8MiB", "disk.bytes": "16MiB"}
    config = load_config(None, flags | {"disk.folder": str(tmp_path / "segments")})
    daemon = open_daemon(config)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    lane = open_lane(peer)
    staging = lane.stage(2 * PAGE_BYTES)
    staging[: 2 * ROW] = b"\x01" * ROW + b"\x02" * ROW
    chains = [peer.chain(2, seed=seed) for seed in (1, 2)]
    puts = [staged_put(chain, range(2), [0, ROW]) for chain in chains]
    answer = lane.call("Commit", commit_request(peer, puts[0], durable=True))
    assert list(answer.durabilities) == [pb.DURABILITY_DISK] * 2
    [result] = lane.call("Commit", commit_request(peer, puts[1])).staged
    later = commit_request(peer, reservation=result.reservation, durable=True)
    assert list(lane.call("Commit", later).durabilities) == [pb.DURABILITY_DISK] * 2
    daemon.stop(5.0)

    daemon = open_daemon(config)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    for chain in chains:
        frames = peer.fetch(chain, 2, lease=peer.lookup(chain).lease)
        assert b"".join(frame.data for frame in frames) == b"\x01" * ROW + b"\x02" * ROW
    daemon.stop(0.0)


def test_durable_waits_at_once(real_peer, lane):
    chain = real_peer.chain(2)
    lane.stage(PAGE_BYTES)
    answer = lane.call("Commit", commit_request(real_peer, staged_put(chain, range(2), [0, 0]), durable=True))
    assert list(answer.durabilities) == [pb.DURABILITY_MEMORY] * 2


def test_later_puts_of_a_message_stand_on_earlier_ones(real_peer, lane):
    """No lineage is sent: not for the root, and not for what the first put left at the second one's parent."""
    whole = real_peer.chain(4)
    first = Chain(0, whole.parent, whole.hashes[:64])
    rest = Chain(2, whole.hash_at(1), whole.hashes[64:])
    staging = lane.stage(PAGE_BYTES)
    rows = [bytes([block + 1]) * ROW for block in range(4)]
    staging[: 4 * ROW] = b"".join(rows)
    puts = [
        staged_put(first, range(2), [0, ROW], lineage=b""),
        staged_put(rest, range(2), [2 * ROW, 3 * ROW], lineage=b""),
    ]
    results = lane.call("Commit", commit_request(real_peer, *puts)).staged
    assert [list(result.outcomes) for result in results] == [[pb.PUT_STATUS_STORED] * 2] * 2
    lineage = ROOT_LINEAGE
    for row in rows:
        lineage = child_lineage(lineage, content_checksum([row]))
    assert real_peer.lookup(whole).rows_tokens == 4 * LAYOUT.block_tokens
    # what the store made of it is what a worker that knows every checksum says: a child with that lineage is wanted
    child = Chain(4, whole.hash_at(3), real_peer.chain(5).hashes[-32:])
    for said, wanted in ((bytes(16), pb.RESERVE_STATUS_OTHER_LINEAGE), (lineage, pb.RESERVE_STATUS_WANTED)):
        [result] = lane.call("Commit", commit_request(real_peer, staged_put(child, [0], [0], lineage=said))).staged
        assert list(result.statuses) == [wanted]


def test_a_put_without_lineage_that_stands_on_nothing_is_refused_before_anything_is_stored(real_peer, lane):
    whole = real_peer.chain(4)
    lane.stage(PAGE_BYTES)
    first = Chain(0, whole.parent, whole.hashes[:96])
    rest = Chain(3, whole.hash_at(2), whole.hashes[96:])
    gap = staged_put(first, [0, 2], [0, 0])  # block 1 is missing: nobody knows the lineage at block 2
    request = commit_request(real_peer, gap, staged_put(rest, [0], [0], lineage=b""))
    assert refused(lane.call, "Commit", request) == "INVALID_INPUT"
    assert real_peer.lookup(whole).rows_tokens == 0
    assert real_peer.status().counters.get("put_stored", 0) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"offsets": [PAGE_BYTES - ROW + 1]},
        {"offsets": [1 << 63]},
        {"blocks": [1]},
        {"groups": [2]},
        {"offsets": []},
        {"blocks": []},
        {"lineage": b"short"},
    ],
)
def test_a_put_that_reaches_outside_is_refused(real_peer, lane, changes):
    lane.stage(PAGE_BYTES)
    values = {"blocks": [0], "groups": [0], "offsets": [0]} | changes
    put = staged_put(real_peer.chain(1), **values)
    assert refused(lane.call, "Commit", commit_request(real_peer, put)) == "INVALID_INPUT"


def test_staged_objects_need_a_region_an_epoch_and_a_lane(real_peer, lane):
    request = commit_request(real_peer, staged_put(real_peer.chain(1), [0], [0]))
    assert refused(lane.call, "Commit", request) == "INVALID_INPUT"
    lane.stage(PAGE_BYTES)
    late = commit_request(real_peer, staged_put(real_peer.chain(1), [0], [0]), boot_epoch=7)
    assert refused(lane.call, "Commit", late) == "OTHER_BOOT_EPOCH"
    both = commit_request(real_peer, staged_put(real_peer.chain(1), [0], [0]), reservation=1)
    assert refused(lane.call, "Commit", both) == "INVALID_INPUT"
    with pytest.raises(grpc.RpcError) as failed:
        real_peer.call("Commit", request)
    error = error_of(failed.value)
    assert isinstance(error, InvalidInput) and "attach socket" in str(error)


def test_a_worker_cannot_commit_from_anothers_region(real_peer, lane):
    lane.stage(PAGE_BYTES)
    other = open_lane(real_peer, b"x" * 16)
    request = commit_request(real_peer, staged_put(real_peer.chain(1), [0], [0]))
    assert refused(other.call, "Commit", request) == "INVALID_INPUT"


def test_what_a_worker_scribbles_is_never_served_under_a_wrong_checksum(real_peer, lane):
    """It writes there all the time: each object is stored as it was copied, or it is corrupt, and both happen."""
    blocks = 64
    staging = lane.stage(blocks * ROW)
    over = threading.Event()

    def scribble() -> None:
        chance = random.Random(5)
        while not over.is_set():
            start = chance.randrange(blocks * ROW - 64)
            staging[start : start + 64] = chance.randbytes(64)

    scribbling = threading.Thread(target=scribble)
    scribbling.start()
    outcomes: dict[int, int] = {}
    checked = 0
    try:
        for seed in range(30):
            chain = real_peer.chain(blocks, seed=seed + 1)
            put = staged_put(chain, range(blocks), range(0, blocks * ROW, ROW))
            [result] = lane.call("Commit", commit_request(real_peer, put)).staged
            for outcome in result.outcomes:
                outcomes[outcome] = outcomes.get(outcome, 0) + 1
            readable = real_peer.lookup(chain).rows_tokens // LAYOUT.block_tokens
            if not readable:
                continue
            frames = real_peer.fetch(Chain(0, chain.parent, chain.hashes[: 32 * readable]), readable)
            data = b"".join(frame.data for frame in frames)
            for block in range(readable):
                stored = data[block * ROW : (block + 1) * ROW]
                assert content_checksum([stored]) == result.contents[16 * block : 16 * block + 16]
                checked += 1
    finally:
        over.set()
        scribbling.join()
    assert checked and outcomes[pb.PUT_STATUS_STORED]
    staging[:ROW] = bytes(ROW)
    chain = real_peer.chain(1)
    lane.call("Commit", commit_request(real_peer, staged_put(chain, [0], [0])))
    staging[:ROW] = b"\xee" * ROW
    [frame] = real_peer.fetch(chain, 1)
    assert bytes(frame.data) == bytes(ROW), "what is written after the commit changes nothing"


def test_bytes_that_change_between_checksum_and_copy_are_corrupt(real, real_peer, lane, monkeypatch):
    """The copy is made of other bytes than were announced: nothing is published."""
    staging = lane.stage(PAGE_BYTES)
    uploads = real.store._staged._uploads
    reserve = uploads.reserve

    def reserving(*arguments):
        answer = reserve(*arguments)
        staging[3:4] = b"!"
        return answer

    monkeypatch.setattr(uploads, "reserve", reserving)
    chain = real_peer.chain(1)
    [result] = lane.call("Commit", commit_request(real_peer, staged_put(chain, [0], [0]))).staged
    assert list(result.outcomes) == [pb.PUT_STATUS_CORRUPT]
    assert real_peer.lookup(chain).rows_tokens == 0


def test_a_region_of_holes_reads_as_zeros(real_peer, lane):
    """A worker may give its memory back: the daemon reads zeros there, and lives."""
    answer, fd = lane.call_fd("Staging", pb.StagingRequest(nbytes=PAGE_BYTES))
    with mmap.mmap(fd, answer.nbytes) as staging:
        staging[:] = b"\xff" * PAGE_BYTES
        staging.madvise(mmap.MADV_REMOVE)
    os.close(fd)
    chain = real_peer.chain(1)
    [result] = lane.call("Commit", commit_request(real_peer, staged_put(chain, [0], [0]))).staged
    assert result.contents == content_checksum([bytes(ROW)])


def test_a_worker_that_ends_in_the_middle_of_a_copy_takes_nothing_with_it(real, real_peer, lane, monkeypatch):
    """The copy goes on from the daemon's own mapping; the region is given back when it has ended."""
    staging = lane.stage(PAGE_BYTES)
    staging[:ROW] = b"\x07" * ROW
    entered, leave = threading.Event(), threading.Event()
    uploads = real.store._staged._uploads
    begin = uploads.begin_object

    def beginning(*arguments):
        entered.set()
        assert leave.wait(20)
        return begin(*arguments)

    monkeypatch.setattr(uploads, "begin_object", beginning)
    chain = real_peer.chain(1)
    request = commit_request(real_peer, staged_put(chain, [0], [0]))
    send_request(lane.socket, LaneRequest("Commit", 20.0, request.SerializeToString()))
    assert entered.wait(10)
    staging.close()
    lane.close()
    until(lambda: real_peer.status().attached_workers == 0)
    assert real_peer.status().staging_bytes == PAGE_BYTES
    leave.set()
    until(lambda: real_peer.status().staging_bytes == 0)
    [frame] = real_peer.fetch(chain, 1)
    assert bytes(frame.data) == b"\x07" * ROW


def test_the_lane_of_a_worker_that_is_gone_leaves_nothing(real_peer, lane):
    chain = real_peer.chain(3)
    put_over(real_peer, lane, chain)
    second = open_lane(real_peer)
    assert lane.call("Lookup", lookup_request(real_peer, chain)).lease
    assert real_peer.status().leases == 1
    lane.close()
    assert second.call("Lookup", lookup_request(real_peer, chain)).lease, "the worker goes on with its other lane"
    assert real_peer.status().staging_bytes > 0
    second.close()
    until(lambda: (real_peer.status().leases, real_peer.status().staging_bytes) == (0, 0))
    assert real_peer.status().attached_workers == 0
    assert isinstance(LanePeer(real_peer.hello.attach_path, real_peer.hello.boot_epoch, WORKER), LanePeer)
