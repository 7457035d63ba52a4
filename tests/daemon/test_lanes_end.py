"""How lanes end: killed workers, stalled ones, garbage, limits, the daemon's own end. Nothing is left behind."""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import pytest
from daemon_peer import LAYOUT, WORKER, Peer, config_at, until
from lane_peer import (
    LanePeer,
    Mapped,
    Refusal,
    commit_request,
    lookup_request,
    open_lane,
    put_over,
    records,
    staged_put,
)
from memory_store import MemoryStore

from kvstore.core.keys import PAGE_BYTES
from kvstore.daemon import attach
from kvstore.daemon.opening import open_daemon
from kvstore.daemon.server import Daemon
from kvstore.rpc import convert
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH, REGION, STAGING
from kvstore.rpc.limits import MAX_MESSAGE_BYTES


@pytest.fixture
def opened(tmp_path):
    """Opens a daemon around the real store with limits of the test's."""
    tmp_path.chmod(0o700)
    running = []

    def opening(**limits) -> Peer:
        daemon = open_daemon(config_at(tmp_path, **limits))
        running.append(daemon)
        peer = Peer(daemon.address.target)
        peer.say_hello()
        return peer

    yield opening
    for daemon in running:
        daemon.stop(0.0)


def attached(peer: Peer) -> tuple[int, int, int]:
    """What workers hold: how many there are, their leases, their staging."""
    status = peer.status()
    return status.attached_workers, status.leases, status.staging_bytes


# -- workers that end ---------------------------------------------------------------------------
def test_a_killed_worker_leaves_no_lease_staging_or_descriptor(real_peer, worker_process):
    lane = open_lane(real_peer, b"p" * 16)
    chain = real_peer.chain(3)
    put_over(real_peer, lane, chain)
    lane.close()
    lookup = lookup_request(real_peer, chain, worker_id=b"k" * 16).SerializeToString()
    descriptors = []
    for round_ in range(20):
        child = worker_process(real_peer, b"k" * 16, 16 * PAGE_BYTES, lookup)
        ready, lease = child.stdout.readline().split()
        assert ready == "ready" and int(lease) > 0
        until(lambda: attached(real_peer) == (1, 1, 16 * PAGE_BYTES))
        child.kill()
        until(lambda: attached(real_peer) == (0, 0, 0))
        child.wait(30)
        child.stdout.close()
        if round_ > 2:
            until(lambda: open_lanes(real_peer.hello.attach_path) == 0)
            descriptors.append(len(os.listdir("/proc/self/fd")))
    assert max(descriptors) <= descriptors[0], descriptors


def open_lanes(path: str) -> int:
    """Connections of a daemon to workers: accepted sockets carry the path they came by, in state 03."""
    with open("/proc/net/unix") as lines:
        return sum(line.split()[-1] == path and line.split()[5] == "03" for line in lines)


class SlowStore(MemoryStore):
    """A store whose Locate takes as long as a test wants."""

    region_pages = region_count = 1

    def __post_init__(self):
        super().__post_init__()
        self.entered, self.leave = threading.Event(), threading.Event()

    def locate(self, lease, first_block, min_blocks, seen_layers, deadline):
        self.entered.set()
        self.leave.wait(20)
        return Nothing


class Nothing:
    rows, states, is_loading, layers = None, (), False, 0


@pytest.fixture
def slow(tmp_path):
    """(daemon, store, peer, lane), the lane in the middle of a Locate."""
    tmp_path.chmod(0o700)
    store = SlowStore()
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    peer.say_hello()
    lane = open_lane(peer)
    lane.stage(PAGE_BYTES)
    request = pb.LocateRequest(
        namespace_id=peer.hello.namespace_id, boot_epoch=peer.hello.boot_epoch, lease=1, wait_seconds=5
    )
    body = request.SerializeToString()
    lane.socket.sendall(b"\x06\x00\x00\x00" + (9000).to_bytes(4, "little") + len(body).to_bytes(4, "little"))
    lane.socket.sendall(b"Locate" + body)
    assert store.entered.wait(10)
    yield daemon, store, peer, lane
    store.leave.set()
    daemon.stop(0.0)


def test_a_worker_that_dies_while_a_call_waits_is_released_at_once(slow):
    _, store, peer, lane = slow
    assert peer.status().attached_workers == 1
    lane.close()
    until(lambda: ("released", WORKER) in store.log)
    assert (peer.status().attached_workers, peer.status().staging_bytes) == (0, 0)
    assert not store.leave.is_set()
    store.leave.set()
    until(lambda: store.log.count(("released", WORKER)) == 2)  # what the call leased after the worker's end


def test_waiting_calls_leave_room_for_others(slow, monkeypatch):
    """A Locate waits in its own thread: it takes no place of those that answer at once."""
    daemon, _, peer, _ = slow
    with daemon._calls._lock:
        room = {gate.value: free for gate, free in daemon._calls._room.items()}
    assert room["calls"] == config_at(daemon.address.path.parent).limits.calls
    assert room["waits"] == config_at(daemon.address.path.parent).limits.lanes - 1
    assert not open_lane(peer).call("Unpin", pb.UnpinRequest(pin=1)).unpinned


def test_a_drain_waits_for_calls_and_then_ends_lanes(slow):
    daemon, store, peer, lane = slow
    idle = open_lane(peer)
    stopping = threading.Thread(target=daemon.stop, args=(20.0,))
    stopping.start()
    until(lambda: daemon._calls.is_draining)
    with pytest.raises(Refusal) as refused:
        idle.call("Unpin", pb.UnpinRequest(pin=1))
    assert refused.value.reason == "DRAINING"
    assert store.closed_with is None
    store.leave.set()
    answer = lane.socket.recv(100)
    assert answer[:1] == b"\x00", "the call in flight was answered"
    stopping.join(20)
    assert not stopping.is_alive() and store.closed_with > 0
    assert lane.socket.recv(1) == idle.socket.recv(1) == b""
    assert not (daemon.address.path.parent / "kv.sock.attach").exists()
    assert not [thread.name for thread in threading.enumerate() if thread.name == "kvstore-attach"]


def test_a_second_signal_does_not_wait_for_them(slow):
    daemon, store, _, _ = slow
    stopping = threading.Thread(target=daemon.stop, args=(600.0,))
    stopping.start()
    until(lambda: daemon._calls.is_draining)
    daemon.hasten()
    stopping.join(60)
    assert not stopping.is_alive() and store.closed_with == 0.0


def is_populated(peer: Peer) -> bool:
    return all(tier.ready_bytes == tier.capacity_bytes for tier in peer.status().tiers)


def test_a_killed_daemon_leaves_a_worker_its_mapping_and_the_next_one_turns_it_away(tmp_path):
    tmp_path.chmod(0o700)
    command = [sys.executable, "-m", "kvstore.cli.main", "serve", "--json", "--host-bytes", "8MiB"]
    command += ["--listen", f"unix:{tmp_path}/kv.sock"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    epochs = []
    for _ in range(2):
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True)
        try:
            epochs.append(json.loads(child.stdout.readline())["boot_epoch"])
            peer = Peer(f"unix:{tmp_path}/kv.sock")
            peer.say_hello()
            if len(epochs) == 2:
                with pytest.raises(Refusal) as refused:
                    LanePeer(peer.hello.attach_path, epochs[0])
                assert refused.value.reason == "OTHER_BOOT_EPOCH"
                continue
            until(partial(is_populated, peer))
            lane = open_lane(peer)
            chain = peer.chain(1)
            bodies = put_over(peer, lane, chain)
            match = lane.call("Lookup", lookup_request(peer, chain))
            [([page], _, _)] = records(match.rows, 1)
            memory = Mapped(lane, peer.hello.namespace_id)
        finally:
            child.kill()
            child.wait(30)
            child.stdout.close()
        assert lane.socket.recv(1) == b""
        assert memory.bytes_at(page, LAYOUT.rows.nbytes) == bodies[0, 0]
        assert {entry.name for entry in tmp_path.iterdir()} >= {"kv.sock", "kv.sock.attach"}
    assert epochs[0] != epochs[1]


# -- workers that stall -------------------------------------------------------------------------
def test_a_worker_that_does_not_read_its_answers_loses_its_lane(real_peer, monkeypatch):
    monkeypatch.setattr(attach, "SEND_SECONDS", 0.2)
    lane = open_lane(real_peer)
    lane.stage(PAGE_BYTES)
    lane.socket.settimeout(20)
    frame = b"\x05\x00\x00\x00\xff\x00\x00\x00\x00\x00\x00\x00Unpin"
    with pytest.raises(OSError) as ended:
        for _ in range(1_000_000):
            lane.socket.sendall(frame)
    assert not isinstance(ended.value, TimeoutError)
    until(lambda: attached(real_peer) == (0, 0, 0))
    assert real_peer.status().counters["lanes_stalled"] == 1


@pytest.mark.parametrize("sent", [1, 11, 12, 15, 30])
def test_half_a_request_is_not_waited_for_for_ever(real_peer, monkeypatch, sent):
    monkeypatch.setattr(attach, "REQUEST_SECONDS", 0.1)
    lane = open_lane(real_peer)
    body = pb.UnpinRequest(pin=5).SerializeToString() * 20
    lane.socket.sendall(
        (b"\x05\x00\x00\x00\xff\x00\x00\x00" + len(body).to_bytes(4, "little") + b"Unpin" + body)[:sent]
    )
    assert lane.socket.recv(1) == b""
    until(lambda: attached(real_peer) == (0, 0, 0))


def test_who_never_attaches_is_not_waited_for_and_an_idle_worker_is(real_peer, monkeypatch):
    idle = open_lane(real_peer, b"i" * 16)
    monkeypatch.setattr(attach, "ATTACH_SECONDS", 0.1)
    silent = LanePeer(real_peer.hello.attach_path, real_peer.hello.boot_epoch, attach=False)
    assert silent.socket.recv(1) == b""
    assert not idle.call("Unpin", pb.UnpinRequest(pin=5)).unpinned


# -- limits -------------------------------------------------------------------------------------
def test_lanes_are_limited_and_the_one_too_many_is_told(opened):
    peer = opened(lanes=2)
    lanes = [open_lane(peer), open_lane(peer, b"x" * 16)]
    with pytest.raises(Refusal) as refused:
        open_lane(peer)
    assert refused.value.reason == "SHED" and "the limit" in str(refused.value)
    assert peer.status().counters["lanes_refused"] == 1
    lanes[0].close()
    until(lambda: peer.status().attached_workers == 1)
    until(lambda: _attaches(peer))


def _attaches(peer: Peer) -> bool:
    try:
        open_lane(peer)
    except Refusal:
        return False
    return True


def test_far_too_many_are_just_closed_and_the_daemon_goes_on(opened):
    peer = opened(lanes=1)
    path, epoch = peer.hello.attach_path, peer.hello.boot_epoch
    silent = [LanePeer(path, epoch, attach=False) for _ in range(30)]
    until(lambda: peer.status().counters.get("lanes_refused", 0) >= 30 - 1 - attach.SPARE_LANES)
    for lane in silent:
        lane.close()
    until(lambda: _attaches(peer))


def test_staging_is_limited_over_all_workers(opened):
    peer = opened(staging_bytes=10 * PAGE_BYTES)
    first, second = open_lane(peer), open_lane(peer, b"x" * 16)
    first.stage(6 * PAGE_BYTES)
    with pytest.raises(Refusal) as refused:
        second.stage(5 * PAGE_BYTES)
    assert refused.value.reason == "SHED"
    second.stage(4 * PAGE_BYTES)
    first.close()
    until(lambda: peer.status().staging_bytes == 4 * PAGE_BYTES)
    second.stage(6 * PAGE_BYTES - 1)  # what it has counts until it is replaced
    assert peer.status().staging_bytes == 6 * PAGE_BYTES


def test_more_puts_at_once_than_are_allowed_are_shed(opened):
    """With no place for puts a staged Commit is shed, and lookups go on."""
    peer = opened(puts=1)
    lane = open_lane(peer)
    lane.stage(PAGE_BYTES)
    reserved = peer.reserve(peer.chain(1), [bytes(LAYOUT.rows.nbytes)])
    entered, leave = threading.Event(), threading.Event()

    def stalling():
        yield pb.PutRequest(header=peer.header(reserved.reservation, [0]), data=b"abc").SerializeToString()
        entered.set()
        leave.wait(20)

    uploading = threading.Thread(target=lambda: _ignoring(peer.put_raw, stalling()))
    uploading.start()
    assert entered.wait(10)
    until(lambda: _is_shed(lane, peer))
    assert lane.call("Lookup", lookup_request(peer, peer.chain(1))).rows_tokens == 0
    leave.set()
    uploading.join(20)
    until(lambda: not _is_shed(lane, peer))


def _ignoring(call, *arguments) -> None:
    try:
        call(*arguments)
    except Exception as error:
        assert "INVALID_ARGUMENT" in str(error)


def _is_shed(lane: LanePeer, peer: Peer) -> bool:
    try:
        lane.call("Commit", commit_request(peer, staged_put(peer.chain(1, seed=9), [0], [0])))
    except Refusal as refusal:
        assert refusal.reason == "SHED"
        return True
    return False


# -- garbage ------------------------------------------------------------------------------------
def frames(peer: Peer) -> list[bytes]:
    """Requests that are answered, as they go over the lane."""
    space, epoch = peer.hello.namespace_id, peer.hello.boot_epoch
    chain = peer.chain(3)
    requests = [
        (ATTACH, pb.AttachRequest(worker_id=WORKER, boot_epoch=epoch)),
        (REGION, pb.RegionRequest(namespace_id=space, region=1)),
        (STAGING, pb.StagingRequest(nbytes=3 * PAGE_BYTES)),
        ("Lookup", lookup_request(peer, chain)),
        ("Commit", commit_request(peer, staged_put(chain, range(3), [0, 700, 1400]))),
        ("Prefetch", pb.PrefetchRequest(
            namespace_id=space, worker_id=WORKER, chain=convert.chain_to_wire(chain), prompt_tokens=400
        )),
    ]  # fmt: skip
    framed = []
    for name, request in requests:
        body = request.SerializeToString()
        head = bytes([len(name), 0, 0, 0]) + (5000).to_bytes(4, "little") + len(body).to_bytes(4, "little")
        framed.append(head + name.encode() + body)
    return framed


def mutated(raw: bytes, chance: random.Random) -> bytes:
    out = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(out) + 1)
        kind = chance.randrange(4)
        if kind == 0 and place < len(out):
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1 and place < len(out):
            out[place] = chance.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del out[place : place + chance.randint(1, 8)]
        else:
            out[place:place] = out[: chance.randint(0, 40)]
    return bytes(out)


def test_mutated_frames_are_answered_or_refused_and_nothing_stays(real, real_peer):
    """One connection each: Attach, then two requests of which one is mutated; or Attach itself is."""
    good = frames(real_peer)
    before = len(os.listdir("/proc/self/fd"))
    answered = 0
    for seed in range(400):
        chance = random.Random(seed)
        sent = [good[0], chance.choice(good[1:]), chance.choice(good[1:])]
        place = chance.randrange(3)
        sent[place] = mutated(sent[place], chance)
        lane = LanePeer(real_peer.hello.attach_path, real_peer.hello.boot_epoch, attach=False)
        with lane.socket as connection:
            connection.settimeout(20)
            try:
                if chance.random() < 0.1:  # descriptors that nobody asked for
                    socket.send_fds(connection, [b"".join(sent)], [0, 1, 2])
                else:
                    connection.sendall(b"".join(sent))
                connection.shutdown(socket.SHUT_WR)
                while received := connection.recv(1 << 16):  # closes what comes in SCM_RIGHTS
                    answered += len(received)
            except (ConnectionResetError, BrokenPipeError):  # it was closed with garbage unread
                continue
    assert answered
    until(lambda: attached(real_peer)[::2] == (0, 0))
    until(lambda: len(os.listdir("/proc/self/fd")) <= before)
    counted = real_peer.status().counters
    assert counted.get("rpc_internal_errors", 0) == counted.get("attach_errors", 0) == 0
    assert counted["lanes_garbled"] > 0 and counted["rpc_refused_InvalidInput"] > 0
    real.store.contents()  # checks every invariant of the planner
    lane = open_lane(real_peer)
    put_over(real_peer, lane, real_peer.chain(2, seed=5))


@pytest.mark.parametrize(
    "head",
    [
        b"\x05\x00\x00\x00\x00\x00\x00\x00" + (MAX_MESSAGE_BYTES + 1).to_bytes(4, "little"),
        b"\x05\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00",
        b"\x05\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xfe\xfd\xfc\xfb",
        b"GET / HTTP/1",
    ],
)
def test_what_is_no_frame_is_said_to_be_none_and_ends_the_lane(real_peer, head):
    lane = open_lane(real_peer)
    lane.socket.sendall(head)
    answer = b""
    while received := lane.socket.recv(1000):
        answer += received
    assert answer[0] == 1 and b"INVALID_INPUT" in answer
    until(lambda: attached(real_peer) == (0, 0, 0))
