"""Lanes: what a client does with an attach socket that answers, refuses, breaks, hangs or is not there."""

from __future__ import annotations

import os
import threading
import time

import pytest
from client_tools import sample, until
from fake_attach import FakeAttach, error

from kvstore.client import attaching
from kvstore.client.counters import Counters
from kvstore.client.lanes import MAX_LANES, LaneRefused, Lanes, NoLane
from kvstore.client.settings import Timeouts
from kvstore.core.errors import InvalidInput, LayoutMismatch, OtherBootEpoch, StoreUnavailable
from kvstore.core.match import PlanKind, SessionEvent
from kvstore.rpc import lane as lane_framing
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import OK, REGION, LaneAnswer, receive_answer

WORKER = bytes(16)


@pytest.fixture
def attach(tmp_path):
    daemon = FakeAttach(f"{tmp_path}/kv.sock.attach")
    daemon.handlers["Session"] = lambda body: pb.SessionResponse()
    yield daemon
    daemon.close()


def soon(seconds: float = 20.0) -> float:
    return time.monotonic() + seconds


def open_lanes(attach) -> Lanes:
    return Lanes(attach.path, WORKER, attach.epoch, soon())


def session_call(lanes: Lanes, deadline: float | None = None) -> pb.SessionResponse:
    return lanes.call("Session", pb.SessionRequest(session="a"), pb.SessionResponse, deadline or soon())


def test_calls_use_one_lane_again_and_open_more_only_when_they_overlap(attach):
    lanes = open_lanes(attach)
    for _ in range(20):
        session_call(lanes)
    assert attach.seen == {"Attach": 1, "Session": 20}
    gate = threading.Barrier(MAX_LANES + 1)

    def hold(body):
        gate.wait(20)
        return pb.SessionResponse()

    attach.handlers["Session"] = hold
    threads = [threading.Thread(target=session_call, args=(lanes,)) for _ in range(MAX_LANES)]
    for thread in threads:
        thread.start()
    until(lambda: attach.seen["Session"] == 20 + MAX_LANES)
    with pytest.raises(NoLane, match="in use"):
        session_call(lanes)
    gate.wait(20)
    for thread in threads:
        thread.join()
    assert attach.seen["Attach"] == MAX_LANES
    lanes.close()


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("OTHER_BOOT_EPOCH", OtherBootEpoch),
        ("LAYOUT_MISMATCH", LayoutMismatch),
        ("INVALID_INPUT", InvalidInput),
        ("SHED", StoreUnavailable),
        ("what is this", StoreUnavailable),
    ],
)
def test_a_refusal_means_what_it_means_over_grpc_and_keeps_the_lane(attach, reason, expected):
    lanes = open_lanes(attach)
    attach.handlers["Session"] = lambda body: error(reason, "because")
    with pytest.raises(LaneRefused) as refused:
        session_call(lanes)
    assert type(refused.value.error) is expected and refused.value.reason == reason
    attach.handlers["Session"] = lambda body: pb.SessionResponse()
    session_call(lanes)
    assert attach.seen["Attach"] == 1
    lanes.close()


def test_a_late_answer_closes_its_lane_and_never_answers_another_call(attach):
    lanes = open_lanes(attach)
    keep, _ = lanes._open(soon())  # a second lane, so that the attachment lives on
    lanes._idle.append(keep)
    attach.silent_on.add("Session")
    with pytest.raises(TimeoutError):
        session_call(lanes, soon(0.05))
    attach.silent_on.clear()
    attach.handlers["Session"] = lambda body: pb.SessionResponse()
    session_call(lanes)
    assert lanes.is_alive and len(lanes._all) == 1
    lanes.close()
    assert not lanes.is_alive


def test_an_answer_that_comes_byte_by_byte_has_no_longer_than_any_other(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(lane_framing.time, "monotonic", lambda: now[0])

    class Dribbling:
        def settimeout(self, seconds):
            assert seconds > 0

        def recvmsg(self, *_):
            return self.recv(1), [], 0, None

        def recv(self, _):
            now[0] += 0.4
            return bytes(1)

    with pytest.raises(TimeoutError):
        receive_answer(Dribbling(), 1.0)
    assert now[0] < 1.3


def test_a_call_does_not_wait_for_another_calls_long_try_to_attach(attach, monkeypatch):
    monkeypatch.setattr(attaching, "LONGEST_SECONDS", 20.0)
    one = attaching.Attaching(WORKER, Counters())
    one.said_hello(attach.path, attach.epoch, 20.0)
    assert one.is_attached
    attach.silent_on.add("Attach")
    attach.hang_up()
    until(lambda: not one.is_attached)
    seen = attach.seen["Attach"]
    trying = threading.Thread(target=one.usable, args=(20.0,))
    trying.start()
    until(lambda: attach.seen["Attach"] > seen)
    assert one.usable(0.05) is None and trying.is_alive()
    attach.hang_up()  # ends the try
    trying.join(20)
    one.close()


def test_a_lane_that_broke_unseen_is_not_used(attach):
    lanes = open_lanes(attach)
    attach.hang_up()
    until(lambda: not lanes.is_alive)
    with pytest.raises(NoLane):
        session_call(lanes)
    assert attach.seen["Session"] == 0


@pytest.mark.parametrize("nonsense", [b"\xff\xff\xff", b"\x0a\x7f"])
def test_an_answer_that_is_none_closes_the_lane(attach, nonsense):
    lanes = open_lanes(attach)
    attach.handlers["Lookup"] = lambda body: LaneAnswer(OK, nonsense)
    with pytest.raises(InvalidInput):
        lanes.call("Lookup", pb.LookupRequest(), pb.LookupResponse, soon())
    lanes.close()


def test_descriptors_come_across_and_unasked_ones_are_closed(attach):
    lanes = open_lanes(attach)
    answer, fd = lanes.fetch_fd(REGION, pb.RegionRequest(region=1), pb.RegionResponse, soon())
    assert os.fstat(fd).st_ino == os.fstat(attach.region_fds[1]).st_ino and answer.nbytes == os.fstat(fd).st_size
    os.close(fd)
    before = len(os.listdir("/proc/self/fd"))
    unasked = LaneAnswer(OK, pb.SessionResponse().SerializeToString(), attach.region_fds[0])
    attach.handlers["Session"] = lambda body: unasked
    session_call(lanes)
    attach.handlers[REGION] = lambda body: pb.RegionResponse(nbytes=1)
    with pytest.raises(InvalidInput, match="without a descriptor"):
        lanes.fetch_fd(REGION, pb.RegionRequest(region=1), pb.RegionResponse, soon())
    assert len(os.listdir("/proc/self/fd")) == before
    lanes.close()


def test_a_closed_attachment_ends_calls_in_flight(attach):
    lanes = open_lanes(attach)
    attach.silent_on.add("Session")
    ended = []

    def call():
        with pytest.raises(NoLane):
            session_call(lanes)
        ended.append(True)

    thread = threading.Thread(target=call)
    thread.start()
    until(lambda: attach.seen["Session"] == 1)
    lanes.close()
    thread.join(20)
    assert ended


def test_a_closed_attachment_ends_a_lane_that_is_being_opened(attach):
    """Otherwise its call would go on, and be answered, on an attachment that was given up."""
    lanes = open_lanes(attach)
    attach.silent_on |= {"Attach", "Session"}
    ended = []

    def call():
        with pytest.raises(NoLane):
            session_call(lanes)
        ended.append(True)

    threads = [threading.Thread(target=call) for _ in range(2)]
    threads[0].start()
    until(lambda: attach.seen["Session"] == 1)
    threads[1].start()
    until(lambda: attach.seen["Attach"] == 2)
    lanes.close()
    for thread in threads:
        thread.join(20)
    assert len(ended) == 2 and attach.seen["Session"] == 1 and not lanes.is_alive


# -- through the client


def test_calls_go_over_the_lane_once_attached(fake, attach, connect):
    fake.attach_path = attach.path
    client = connect()
    assert client.is_attached and client.counters["attaches"] == 1
    assert client.session("a7", SessionEvent.OPENED)
    assert attach.seen["Session"] == 1 and fake.seen["Session"] == 0


@pytest.mark.parametrize("path", ["", "/nowhere/kv.sock.attach", "/" + 200 * "x"])
def test_without_a_socket_everything_goes_over_grpc(fake, connect, path):
    fake.attach_path = path
    client = connect()
    assert not client.is_attached and client.counters.get("attach_failed", 0) == bool(path)
    assert client.session("a7", SessionEvent.OPENED) and client.session("a7", SessionEvent.CLOSED)
    assert fake.seen["Session"] == 2 and client.counters.get("attach_failed", 0) == bool(path)


def test_a_refused_attachment_is_tried_again_after_a_while(fake, attach, connect, monkeypatch):
    monkeypatch.setattr(attaching, "AGAIN_SECONDS", 0.0)
    fake.attach_path, attach.refuse_attach = attach.path, "UNAVAILABLE"
    client = connect()
    assert not client.is_attached
    attach.refuse_attach = None
    assert client.session("a7", SessionEvent.OPENED)
    assert client.is_attached and attach.seen["Session"] == 1 and client.counters["attach_failed"] == 1


def test_a_refused_attachment_is_tried_again_with_the_next_hello(fake, attach, connect):
    fake.attach_path, attach.refuse_attach = attach.path, "UNAVAILABLE"
    client = connect()
    assert not client.is_attached and client.counters["attach_failed"] == 1
    assert client.session("a7", SessionEvent.OPENED) and fake.seen["Session"] == 1
    attach.refuse_attach = None
    assert client.session("a7", SessionEvent.OPENED) and not client.is_attached
    fake.restart()
    attach.epoch = fake.epoch
    tokens, *_ = sample(client.layout, 2)
    assert client.lookup(tokens).plan.kind is PlanKind.COLD
    assert client.is_attached and client.counters["hello_again"] == 1


def test_a_lane_that_breaks_in_a_call_leaves_that_call_to_grpc(fake, attach, connect):
    fake.attach_path = attach.path
    client = connect()
    until(lambda: "staging_refused" in client.counters)  # the client's own thread is done with the one lane
    attach.hang_up_on.add("Session")
    assert client.session("a7", SessionEvent.OPENED)
    assert fake.seen["Session"] == 1 and client.counters["lane_fallbacks"] == 1 and client.is_connected
    attach.hang_up_on.clear()
    assert client.session("a7", SessionEvent.OPENED), "the same daemon: attached anew"
    assert fake.seen["Session"] == 1 and client.is_attached and client.counters["attaches"] == 2


def test_silence_on_a_lane_opens_the_breaker(fake, attach, connect):
    fake.attach_path = attach.path
    client = connect(timeouts=Timeouts(control_seconds=0.05))
    attach.silent_on.add("Session")
    assert not client.session("a7", SessionEvent.OPENED)
    assert client.counters["failed_deadline_exceeded"] == 1 and client.counters["breaker_opened"] == 1
    attach.silent_on.clear()
    until(lambda: client.is_connected and client.is_attached)
    assert client.session("a7", SessionEvent.OPENED)


def test_a_restart_is_noticed_by_its_epoch_and_attached_to(fake, attach, connect):
    fake.attach_path = attach.path
    client = connect()
    fake.restart()
    attach.epoch = fake.epoch
    attach.hang_up()
    assert client.session("a7", SessionEvent.OPENED)
    assert client.is_attached and client.counters["hello_again"] == 1 and client.counters["attaches"] == 2
    assert fake.seen["Session"] == 0 and fake.seen["Hello"] == 2
