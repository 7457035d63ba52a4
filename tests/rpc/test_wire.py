"""The hand-written framing is plain protobuf, both ways."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvstore.core.errors import InvalidInput
from kvstore.rpc import wire
from kvstore.rpc.generated import kvstore_pb2 as pb

DATA = st.binary(max_size=400)
PIECES = st.lists(DATA, max_size=5)
STARTS = st.lists(
    st.builds(
        pb.ObjectStart,
        name=st.builds(pb.ObjectName, block=st.integers(0, 1 << 20), group=st.integers(0, 254)),
        status=st.sampled_from([pb.FETCH_STATUS_OK, pb.FETCH_STATUS_MISSING]),
        length=st.integers(0, (1 << 32) - 1),
        generation=st.integers(0, (1 << 64) - 1),
        seal=st.binary(max_size=16),
        tier=st.sampled_from([pb.TIER_HOST, pb.TIER_DISK]),
    ),
    max_size=40,
)
HEADERS = st.none() | st.builds(
    pb.PutHeader,
    namespace_id=st.binary(max_size=32),
    boot_epoch=st.integers(0, (1 << 64) - 1),
    reservation=st.integers(0, (1 << 64) - 1),
    objects=st.lists(st.integers(0, 1 << 16), max_size=50),
)


@given(STARTS, PIECES)
def test_protobuf_reads_our_fetch_frames(starts, pieces):
    message = pb.FetchResponse.FromString(wire.frame_fetch(starts, [memoryview(piece) for piece in pieces]))
    assert list(message.objects) == starts
    assert message.data == b"".join(pieces)


@given(STARTS, DATA)
def test_we_read_protobufs_fetch_frames(starts, data):
    frame = wire.parse_fetch(pb.FetchResponse(objects=starts, data=data).SerializeToString())
    assert list(frame.objects) == starts
    assert frame.data == data


@given(HEADERS, PIECES)
def test_protobuf_reads_our_put_frames(header, pieces):
    message = pb.PutRequest.FromString(wire.frame_put(header, pieces))
    assert (message.header if message.HasField("header") else None) == header
    assert message.data == b"".join(pieces)


@given(HEADERS, DATA)
def test_we_read_protobufs_put_frames(header, data):
    message = pb.PutRequest(data=data)
    if header is not None:
        message.header.CopyFrom(header)
    frame = wire.parse_put(message.SerializeToString())
    assert frame.header == header
    assert frame.data == data


PUT_HANDOFFS = st.none() | st.builds(
    pb.PutHandoffHeader,
    namespace_id=st.binary(max_size=32),
    boot_epoch=st.integers(0, (1 << 64) - 1),
    key=st.binary(max_size=32),
    nbytes=st.integers(0, (1 << 64) - 1),
    content=st.binary(max_size=16),
    ttl_seconds=st.floats(0, 600),
)
TAKE_HANDOFFS = st.none() | st.builds(
    pb.TakeHandoffHeader, nbytes=st.integers(0, (1 << 64) - 1), content=st.binary(max_size=16)
)


@given(PUT_HANDOFFS, PIECES)
def test_handoffs_that_are_put_read_alike_in_protobuf_and_here(header, pieces):
    raw = wire.frame_put_handoff(header, [memoryview(piece) for piece in pieces])
    message = pb.PutHandoffRequest(header=header, data=b"".join(pieces))
    assert pb.PutHandoffRequest.FromString(raw) == message
    for each in (raw, message.SerializeToString()):
        frame = wire.parse_put_handoff(each)
        assert (frame.header, bytes(frame.data)) == (header, message.data)


@given(TAKE_HANDOFFS, PIECES)
def test_handoffs_that_are_taken_read_alike_in_protobuf_and_here(header, pieces):
    raw = wire.frame_take_handoff(header, [memoryview(piece) for piece in pieces])
    message = pb.TakeHandoffResponse(header=header, data=b"".join(pieces))
    assert pb.TakeHandoffResponse.FromString(raw) == message
    for each in (raw, message.SerializeToString()):
        frame = wire.parse_take_handoff(each)
        assert (frame.header, bytes(frame.data)) == (header, message.data)


@given(st.lists(st.binary(max_size=40), max_size=8), st.integers(1, 50))
def test_chunks_are_the_pieces_cut_to_one_length(pieces, chunk_bytes):
    made = [b"".join(chunk) for chunk in wire.chunks([memoryview(piece) for piece in pieces], chunk_bytes)]
    assert b"".join(made) == b"".join(pieces)
    assert all(len(chunk) == chunk_bytes for chunk in made[:-1]) and all(
        0 < len(chunk) <= chunk_bytes for chunk in made
    )


@given(st.binary(max_size=80))
def test_any_bytes_read_as_protobuf_reads_them_or_are_refused(message):
    try:
        expected = pb.FetchResponse.FromString(message)
    except Exception:
        with pytest.raises(InvalidInput):
            wire.parse_fetch(message)
        return
    frame = wire.parse_fetch(message)
    assert list(frame.objects) == list(expected.objects)
    assert frame.data == expected.data


def test_the_data_is_a_view_of_the_message_and_not_a_copy():
    message = wire.frame_fetch([pb.ObjectStart(length=3)], [b"abc" * 1000])
    assert wire.parse_fetch(message).data.obj is message


@pytest.mark.parametrize("length", [0, 1, 127, 128, 16383, 16384, 1 << 20, (1 << 21) + 5])
def test_every_length_of_length_is_read_back(length):
    data = bytes(length)
    assert wire.parse_put(wire.frame_put(None, [data])).data == data
    assert pb.PutRequest.FromString(wire.frame_put(None, [data])).data == data


def test_fields_in_another_order_are_left_to_protobuf():
    swapped = pb.PutRequest(data=b"xyz").SerializeToString() + pb.PutRequest(header=HEADER).SerializeToString()
    frame = wire.parse_put(swapped)
    assert (frame.header, bytes(frame.data)) == (HEADER, b"xyz")


def test_a_cut_off_message_is_refused():
    message = wire.frame_put(HEADER, [b"abc"])
    for end in range(1, len(message)):
        try:
            pb.PutRequest.FromString(message[:end])
        except Exception:
            with pytest.raises(InvalidInput, match="no protobuf"):
                wire.parse_put(message[:end])


HEADER = pb.PutHeader(namespace_id=bytes(32), boot_epoch=7, reservation=8, objects=[0, 1, 2])
