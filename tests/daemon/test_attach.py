"""The attach socket: who may come, and what they can and cannot do to the daemon's memory."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from daemon_peer import LAYOUT, WORKER, Peer, config_at
from lane_peer import (
    LanePeer,
    Mapped,
    Refusal,
    commit_request,
    fill,
    lookup_request,
    objects_of,
    open_lane,
    put_over,
    records,
)

from kvstore.core.checksum import content_checksum
from kvstore.core.descriptor import whole_word
from kvstore.core.errors import OperatorError, SocketInUse
from kvstore.daemon.server import Daemon
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import ATTACH


def refused(call, *arguments) -> str:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value.reason


# -- the socket ---------------------------------------------------------------------------------
def test_hello_names_the_socket_beside_grpcs(real_peer, real):
    assert real_peer.hello.attach_path == f"{real.address.path}.attach" == str(real.attach_path)


def test_only_the_user_may_open_it_and_it_is_gone_afterwards(tmp_path, store):
    tmp_path.chmod(0o700)
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    path = daemon.attach_path
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    daemon.stop(0.0)
    assert not path.exists()


def test_over_tcp_there_is_none(tmp_path, store):
    daemon = Daemon(replace(config_at(tmp_path), listen="127.0.0.1:0"))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    assert peer.say_hello().attach_path == ""
    daemon.stop(0.0)


def test_a_path_too_long_for_a_second_socket_leaves_grpc(tmp_path, store):
    folder = tmp_path / ("x" * max(1, 107 - len(os.fsencode(tmp_path)) - len("//kv.sock")))
    folder.mkdir(mode=0o700)
    daemon = Daemon(config_at(folder))
    daemon.start(store)
    peer = Peer(daemon.address.target)
    assert peer.say_hello().attach_path == ""
    daemon.stop(0.0)


def test_what_a_dead_daemon_left_is_taken_over_and_what_is_alive_is_not(tmp_path, store):
    tmp_path.chmod(0o700)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"{tmp_path}/kv.sock.attach")
        other.listen()
        with pytest.raises(SocketInUse):
            Daemon(config_at(tmp_path))
    daemon = Daemon(config_at(tmp_path))
    daemon.start(store)
    assert Peer(daemon.address.target).say_hello().attach_path
    daemon.stop(0.0)


def test_a_file_in_its_place_is_left_alone(tmp_path):
    tmp_path.chmod(0o700)
    (tmp_path / "kv.sock.attach").write_text("precious")
    with pytest.raises(OperatorError, match="is no socket"):
        Daemon(config_at(tmp_path))
    assert (tmp_path / "kv.sock.attach").read_text() == "precious"


STRANGER = """
import socket, sys
lane = socket.socket(socket.AF_UNIX)
lane.settimeout(20)
lane.connect(sys.argv[1])
lane.sendall(bytes.fromhex(sys.argv[2]))
print("closed" if lane.recv(1) == b"" else "answered")
"""


@pytest.mark.skipif(os.getuid() != 0, reason="needs root: connects as another user")
def test_another_user_is_turned_away_even_where_the_folder_lets_him_in(store):
    folder = Path(tempfile.mkdtemp(prefix="kvstore-attach-"))  # a folder that he can enter
    try:
        folder.chmod(0o755)
        daemon = Daemon(config_at(folder))
        daemon.start(store)
        os.chmod(daemon.attach_path, 0o666)
        request = pb.AttachRequest(worker_id=WORKER, boot_epoch=store.boot_epoch).SerializeToString()
        frame = bytes([len(ATTACH), 0, 0, 0, 255, 0, 0, 0]) + len(request).to_bytes(4, "little")
        command = ["/proc/self/fd/0", "-c", STRANGER, daemon.attach_path, (frame + ATTACH.encode() + request).hex()]
        said = {}
        for user in (0, 65534):
            with open(os.path.realpath(sys.executable), "rb") as python:
                try:
                    done = subprocess.run(
                        [f"/proc/self/fd/{python.fileno()}", *command[1:]],
                        pass_fds=[python.fileno()], user=user, cwd="/", capture_output=True, text=True, timeout=60,
                    )  # fmt: skip
                except OSError as error:
                    pytest.skip(f"another user cannot run this interpreter ({error})")
            said[user] = done.stdout.strip() or done.stderr
        assert said[0] == "answered"
        assert said[65534] == "closed" or "ConnectionResetError" in said[65534] or "BrokenPipeError" in said[65534]
        daemon.stop(0.0)
    finally:
        shutil.rmtree(folder)


# -- attaching ----------------------------------------------------------------------------------
def test_a_lane_answers_with_the_shape_of_memory(real_peer, real):
    lane = open_lane(real_peer)
    assert lane.facts.boot_epoch == real.store.boot_epoch
    assert (lane.facts.region_pages, lane.facts.regions) == (real.store.region_pages, real.store.region_count)
    assert real_peer.status().attached_workers == 1
    again = open_lane(real_peer)
    assert real_peer.status().attached_workers == 1, "two lanes of one worker are one worker"
    other = open_lane(real_peer, b"x" * 16)
    assert real_peer.status().attached_workers == 2
    again.close()
    other.close()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [({"boot_epoch": 7}, "OTHER_BOOT_EPOCH"), ({"worker_id": b"short"}, "INVALID_INPUT")],
)
def test_what_is_no_attachment_is_refused_and_the_lane_closed(real_peer, changes, reason):
    lane = LanePeer(real_peer.hello.attach_path, real_peer.hello.boot_epoch, attach=False)
    with pytest.raises(Refusal) as caught:
        lane.attach(**changes)
    assert caught.value.reason == reason
    assert lane.socket.recv(1) == b""
    assert real_peer.status().attached_workers == 0


def test_the_first_request_must_be_attach(real_peer):
    lane = LanePeer(real_peer.hello.attach_path, real_peer.hello.boot_epoch, attach=False)
    assert refused(lane.call, "Unpin", pb.UnpinRequest(pin=1)) == "INVALID_INPUT"
    assert lane.socket.recv(1) == b""


def test_a_worker_id_belongs_to_one_process(real_peer, worker_process):
    lane = open_lane(real_peer)
    lane.stage(4096)
    said = worker_process(real_peer, WORKER, 4096).stdout.readline()
    assert "INVALID_INPUT" in said and "another process" in said
    assert worker_process(real_peer, b"x" * 16, 4096).stdout.readline().startswith("ready")
    assert real_peer.status().staging_bytes == 8192


# -- calls --------------------------------------------------------------------------------------
def test_calls_over_a_lane_answer_as_over_grpc(real_peer):
    lane = open_lane(real_peer)
    chain = real_peer.chain(3)
    put_over(real_peer, lane, chain)
    request = lookup_request(real_peer, chain, want_descriptors=False)
    here, there = lane.call("Lookup", request), real_peer.call("Lookup", request)
    assert here.plan.tokens == there.plan.tokens == 3 * LAYOUT.block_tokens
    here.lease = there.lease = 0
    assert here == there
    counted = real_peer.status().counters
    assert counted["rpc_lookup"] == 2


@pytest.mark.parametrize(
    ("name", "request_", "reason"),
    [
        ("Lookup", b"\xff\xff", "INVALID_INPUT"),
        ("Lookup", pb.LookupRequest(namespace_id=bytes(32), worker_id=WORKER), "UNKNOWN_NAMESPACE"),
        ("Lookup", pb.LookupRequest(namespace_id=bytes(32), worker_id=b"x" * 16), "INVALID_INPUT"),
        ("Release", pb.ReleaseRequest(boot_epoch=7), "OTHER_BOOT_EPOCH"),
        ("Fetch", pb.FetchRequest(), "INVALID_INPUT"),
        ("Put", b"", "INVALID_INPUT"),
        ("Status", b"", "INVALID_INPUT"),
        ("__init__", b"", "INVALID_INPUT"),
        ("", b"", "INVALID_INPUT"),
        (ATTACH, pb.AttachRequest(), "INVALID_INPUT"),
    ],
)
def test_a_refusal_carries_the_reason_that_grpc_would_and_the_lane_goes_on(real_peer, name, request_, reason):
    lane = open_lane(real_peer)
    assert refused(lane.call, name, request_) == reason
    assert not lane.call("Unpin", pb.UnpinRequest(pin=1)).unpinned


def test_a_fault_of_ours_is_logged_counted_and_ends_one_request(daemon, store, peer, caplog):
    store.region_pages = store.region_count = 1
    lane = open_lane(peer)
    store.unpin = lambda id: 1 / 0
    assert refused(lane.call, "Unpin", pb.UnpinRequest(pin=1)) == "INTERNAL"
    assert "ZeroDivisionError" in caplog.text
    del store.unpin
    assert lane.call("Unpin", pb.UnpinRequest(pin=5)).unpinned
    assert peer.status().counters["rpc_internal_errors"] == 1


def test_a_call_gets_the_time_its_client_has(daemon, store, peer):
    store.region_pages = store.region_count = 1
    lane = open_lane(peer)
    for timeout, allowed in ((3.0, 3.0), (1000.0, 120.0)):
        reserved = peer.reserve(peer.chain(1), [bytes(LAYOUT.rows.nbytes)])
        request = commit_request(peer, reservation=reserved.reservation)
        lane.call("Commit", request, timeout)
        assert allowed - 2.0 < store.log[-1][2] <= allowed


# -- regions ------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"region": 1 << 31}, "INVALID_INPUT"),
        ({"region": 64}, "INVALID_INPUT"),
        ({"namespace_id": bytes(32)}, "UNKNOWN_NAMESPACE"),
        ({"namespace_id": b""}, "INVALID_INPUT"),
    ],
)
def test_a_region_of_nobody_is_refused(real_peer, values, reason):
    lane = open_lane(real_peer)
    request = pb.RegionRequest(**({"namespace_id": real_peer.hello.namespace_id} | values))
    assert refused(lane.call_fd, "Region", request) == reason


def test_a_regions_descriptor_lets_nobody_write_cut_or_grow_it(real_peer):
    """Each way in is tried; afterwards the daemon still writes there, and the region's length is what it was."""
    lane = open_lane(real_peer)
    fd, nbytes = lane.region(0, real_peer.hello.namespace_id)
    libc = ctypes.CDLL(None, use_errno=True)
    whole = mmap.mmap(fd, nbytes, prot=mmap.PROT_READ)
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    libc.mmap.restype = ctypes.c_void_p
    address = libc.mmap(None, ctypes.c_size_t(4096), mmap.PROT_READ, mmap.MAP_SHARED, fd, ctypes.c_long(0))
    assert address not in (None, ctypes.c_void_p(-1).value)
    attempts = {
        "map to write": lambda: mmap.mmap(fd, nbytes, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        "map anew to write": lambda: mmap.mmap(reopened, nbytes, prot=mmap.PROT_READ | mmap.PROT_WRITE),
        "write": lambda: os.pwrite(fd, b"x", 0),
        "write anew": lambda: os.pwrite(reopened, b"x", 0),
        "cut": lambda: os.ftruncate(fd, 0),
        "cut anew": lambda: os.ftruncate(reopened, 4096),
        "grow": lambda: os.ftruncate(fd, 2 * nbytes),
        "grow by room": lambda: os.posix_fallocate(fd, nbytes, 4096),
        "punch a hole": lambda: _checked(libc, libc.fallocate(fd, 3, ctypes.c_long(0), ctypes.c_long(4096))),
        "seal": lambda: fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
        "make a mapping writable": lambda: _checked(libc, libc.mprotect(ctypes.c_void_p(address), 4096, 3)),
    }
    for what, attempt in attempts.items():
        with pytest.raises(OSError) as caught:
            attempt()
        assert caught.value.errno in (errno.EPERM, errno.EACCES, errno.EBUSY), what
    libc.munmap(ctypes.c_void_p(address), 4096)
    before = bytes(whole)
    put_over(real_peer, lane, real_peer.chain(40))
    assert os.fstat(fd).st_size == nbytes
    memory = Mapped(lane, real_peer.hello.namespace_id)
    assert any(memory.word(page) for page in range(memory.pages))
    assert bytes(whole) != before, "the daemon writes on, and who has mapped it sees that"
    os.close(fd)
    os.close(reopened)


def _checked(libc, result: int) -> None:
    if result != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def test_descriptors_tell_the_truth_until_the_object_is_evicted(real_peer):
    lane = open_lane(real_peer)
    chain = real_peer.chain(3)
    bodies = put_over(real_peer, lane, chain)
    match = lane.call("Lookup", lookup_request(real_peer, chain))
    memory = Mapped(lane, real_peer.hello.namespace_id)
    told = {
        (located.group, located.first_block + index): record
        for located in (match.rows, *match.states)
        for index, record in enumerate(records(located, 1))
    }
    assert set(told) == {(group, block) for block, group in objects_of(chain)}
    for (group, block), ([page], stamp, content) in told.items():
        wanted = bodies[block, group]
        assert memory.bytes_at(page, len(wanted)) == wanted
        assert content == content_checksum([wanted])
        assert memory.word(page) == whole_word(stamp)
    fill(real_peer, lane)
    assert all(memory.word(page) == whole_word(stamp) for [page], stamp, _ in told.values()), "a lease holds it"
    lane.call("Release", pb.ReleaseRequest(boot_epoch=real_peer.hello.boot_epoch, leases=[match.lease]))
    fill(real_peer, lane, seed=1_000_000)
    assert real_peer.status().counters["evicted_host"] > 0
    for [page], stamp, _ in told.values():
        assert memory.word(page) != whole_word(stamp)


def test_a_lookup_without_a_wish_for_descriptors_has_none(real_peer):
    lane = open_lane(real_peer)
    chain = real_peer.chain(3)
    put_over(real_peer, lane, chain)
    match = lane.call("Lookup", lookup_request(real_peer, chain, want_descriptors=False))
    assert not match.rows.records and not match.states


def test_locate_answers_with_what_the_lookup_said(real_peer):
    lane = open_lane(real_peer)
    chain = real_peer.chain(3)
    put_over(real_peer, lane, chain)
    match = lane.call("Lookup", lookup_request(real_peer, chain))
    request = pb.LocateRequest(
        namespace_id=real_peer.hello.namespace_id, boot_epoch=real_peer.hello.boot_epoch, lease=match.lease,
        first_block=1, min_blocks=2, wait_seconds=5.0,
    )  # fmt: skip
    located = lane.call("Locate", request)
    assert not located.is_loading
    assert (located.rows.first_block, len(records(located.rows, 1))) == (1, 2)
    assert records(located.rows, 1) == records(match.rows, 1)[1:]
    assert located.states == match.states
