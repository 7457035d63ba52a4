"""Handoff streams that a peer sends wrongly, breaks off or mutates: refused, given up, and no room is lost."""

from __future__ import annotations

import random
import time

import grpc
import pytest
from daemon_peer import Peer, config_at, until

from kvstore.core.checksum import content_checksum
from kvstore.core.errors import KVStoreError
from kvstore.daemon.calls import parsed
from kvstore.daemon.opening import open_daemon
from kvstore.daemon.service import KVStoreService
from kvstore.rpc import wire
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.store.handoffs import PIECE_BYTES

MIB = 1 << 20
KEY = b"k" * 32
BODY = random.Random(1).randbytes(2 * MIB + 5)


@pytest.fixture
def daemon(tmp_path):
    tmp_path.chmod(0o700)
    daemon = open_daemon(config_at(tmp_path))
    yield daemon
    daemon.stop(0.0)


@pytest.fixture
def peer(daemon):
    peer = Peer(daemon.address.target)
    peer.say_hello()
    yield peer
    peer.channel.close()


def header(peer, **changes):
    values = {
        "namespace_id": peer.hello.namespace_id,
        "boot_epoch": peer.hello.boot_epoch,
        "key": KEY,
        "nbytes": len(BODY),
        "content": content_checksum([BODY]),
        "ttl_seconds": 60.0,
    }
    return pb.PutHandoffHeader(**(values | changes))


def put(peer, messages):
    raw = peer.channel.stream_unary(peer.methods["PutHandoff"].path)(iter(messages), timeout=10.0)
    return pb.PutHandoffResponse.FromString(raw)


def take(peer, **changes):
    values = {"namespace_id": peer.hello.namespace_id, "boot_epoch": peer.hello.boot_epoch, "key": KEY}
    request = pb.TakeHandoffRequest(**(values | changes)).SerializeToString()
    return peer.channel.unary_stream(peer.methods["TakeHandoff"].path)(request, timeout=10.0)


def whole(peer, **changes):
    return [
        wire.frame_put_handoff(header(peer, **changes), [BODY[:MIB]]),
        wire.frame_put_handoff(None, [BODY[MIB : 2 * MIB]]),
        wire.frame_put_handoff(None, [BODY[2 * MIB :]]),
    ]


def test_what_is_put_comes_back_in_chunks_of_a_mebibyte(peer):
    assert put(peer, whole(peer)).kept
    frames = [wire.parse_take_handoff(raw) for raw in take(peer)]
    assert [frame.data.nbytes for frame in frames] == [MIB, MIB, 5]
    assert [frame.header is not None for frame in frames] == [True, False, False]
    assert b"".join(frame.data for frame in frames) == BODY
    (nothing,) = [wire.parse_take_handoff(raw) for raw in take(peer)]
    assert (nothing.header.nbytes, nothing.data.nbytes) == (0, 0)


def test_any_grpc_client_can_speak_it(peer):
    """Protobuf's own messages, as another language would send them."""
    messages = [pb.PutHandoffRequest(header=header(peer)), pb.PutHandoffRequest(data=BODY)]
    assert put(peer, [message.SerializeToString() for message in messages]).kept
    answers = [pb.TakeHandoffResponse.FromString(raw) for raw in take(peer)]
    assert b"".join(answer.data for answer in answers) == BODY


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda peer: [], "has no header"),
        (lambda peer: [wire.frame_put_handoff(None, [b"abc"])], "has no header"),
        (lambda peer: [b"\xff\xff\xff"], "no protobuf"),
        (lambda peer: whole(peer, key=b"short"), "key has 5 bytes: send 32"),
        (lambda peer: whole(peer, content=b""), "content has 0 bytes: send 16"),
        (lambda peer: whole(peer, nbytes=0), "a handoff of 0 bytes"),
        (lambda peer: whole(peer, nbytes=1 << 40), "a handoff of 1099511627776 bytes"),
        (lambda peer: whole(peer, ttl_seconds=0.0), "ttl_seconds=0: a handoff lives for up to 600 s"),
        (lambda peer: whole(peer, ttl_seconds=601.0), "ttl_seconds=601"),
        (lambda peer: whole(peer, ttl_seconds=float("nan")), "ttl_seconds=nan is not a finite number"),
        (lambda peer: whole(peer)[:2], "ended inside an object"),
        (lambda peer: [*whole(peer), wire.frame_put_handoff(None, [b"more"])], "more bytes than its objects"),
        (lambda peer: whole(peer, namespace_id=bytes(32)), "not open in the daemon"),
        (lambda peer: whole(peer, boot_epoch=1), "before the daemon's restart"),
    ],
)
def test_an_upload_that_cannot_be_is_refused_and_takes_no_room(daemon, peer, make, says):
    with pytest.raises(grpc.RpcError, match=says):
        put(peer, make(peer))
    assert daemon.store.status().handoff_bytes == 0
    assert wire.parse_take_handoff(next(take(peer))).header.nbytes == 0


def test_bytes_that_do_not_match_their_checksum_are_not_kept(daemon, peer):
    answer = put(peer, whole(peer, content=bytes(16)))
    assert (answer.kept, answer.reason) == (False, "the bytes do not match their checksum")
    assert daemon.store.status().handoff_bytes == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"key": b"short"}, "key has 5 bytes: send 32"),
        ({"namespace_id": bytes(32)}, "not open in the daemon"),
        ({"boot_epoch": 1}, "before the daemon's restart"),
    ],
)
def test_a_request_that_cannot_be_takes_nothing(peer, changes, says):
    assert put(peer, whole(peer)).kept
    with pytest.raises(grpc.RpcError, match=says):
        list(take(peer, **changes))
    assert len(list(take(peer))) == 3


def test_a_stream_that_breaks_off_is_gone_and_its_room_comes_back(daemon, peer):
    body = bytes(20 * MIB)  # more than gRPC takes off the daemon's hands before the reader does
    messages = [wire.frame_put_handoff(header(peer, nbytes=len(body), content=content_checksum([body])), [body[:MIB]])]
    messages += [wire.frame_put_handoff(None, [body[:MIB]])] * 19
    assert put(peer, messages).kept
    stream = take(peer)
    assert wire.parse_take_handoff(next(stream)).header.nbytes == len(body)
    stream.cancel()
    until(lambda: daemon.store.status().handoff_bytes == 0)
    assert wire.parse_take_handoff(next(take(peer))).header.nbytes == 0


def test_an_upload_that_breaks_off_gives_its_room_back(daemon, peer):
    def messages():
        yield whole(peer)[0]
        until(lambda: daemon.store.status().handoff_bytes > 0)
        raise ConnectionAbortedError

    with pytest.raises(grpc.RpcError):
        put(peer, messages())
    until(lambda: daemon.store.status().handoff_bytes == 0)


def test_mutated_streams_are_kept_whole_or_not_at_all(daemon, peer):
    service = KVStoreService(daemon.store, 30.0, "test")
    body = BODY[:3000]
    good = header(peer, nbytes=len(body), content=content_checksum([body]), ttl_seconds=0.001)
    asked = pb.TakeHandoffRequest(namespace_id=good.namespace_id, boot_epoch=good.boot_epoch, key=KEY)
    kept = refused = 0
    for seed in range(1500):
        chance = random.Random(seed)
        frames = [wire.frame_put_handoff(good, [body[:1000]]), wire.frame_put_handoff(None, [body[1000:]])]
        frames[chance.randrange(2)] = _mutated(frames[chance.randrange(2)], chance)
        try:
            kept += service.put_handoff(iter(frames), time.monotonic() + 5).kept
        except KVStoreError:
            refused += 1
        except Exception as error:
            pytest.fail(f"seed {seed}: {error!r}")
        try:
            raw = _mutated(asked.SerializeToString(), chance) if chance.random() < 0.5 else asked.SerializeToString()
            request = parsed(pb.TakeHandoffRequest, raw)
            for frame in service.take_handoff(request, time.monotonic() + 5):
                data = wire.parse_take_handoff(frame).data
                assert not data.nbytes or data == body
        except KVStoreError:
            refused += 1
    assert kept and refused
    status = daemon.store.status()
    assert status.handoff_bytes == status.handoffs * PIECE_BYTES, "all room is that of handoffs that can be taken"


def _mutated(raw, chance):
    out = bytearray(raw)
    for _ in range(chance.randint(1, 3)):
        place = chance.randrange(len(out))
        kind = chance.randrange(3)
        if kind == 0:
            out[place] ^= 1 << chance.randrange(8)
        elif kind == 1:
            del out[place : place + chance.randint(1, 8)]
        else:
            out[place:place] = out[: chance.randint(0, 40)]
    return bytes(out)
