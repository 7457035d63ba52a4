"""The store's handoffs over real memory: whole, once, for seconds, within their bound."""

from __future__ import annotations

import random
import threading

import pytest
from store_helpers import config

from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.store.handoffs import PIECE_BYTES
from kvstore.store.store import Store

KEY, OTHER_KEY = b"k" * 32, b"o" * 32
LENGTHS = [1, 4095, PIECE_BYTES - 1, PIECE_BYTES, PIECE_BYTES + 1, 3 * PIECE_BYTES]


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    store = Store.open(config(None, handoff_bytes=8 * PIECE_BYTES), clock=clock)
    yield store
    store.close(0.0)


@pytest.fixture
def space(store):
    return store.hello("test", presets.v4_tiny()).id


def bytes_of(nbytes, seed=0):
    return random.Random(seed).randbytes(nbytes)


def begin(store, space, body, key=KEY, ttl=10.0):
    return store.handoffs.begin(space, key, len(body), content_checksum([body]), ttl)


def fill(held, body):
    at = 0
    for piece in held.pieces:
        piece[:] = body[at : at + len(piece)]
        at += len(piece)
    assert at == len(body)


def put(store, space, body, key=KEY, ttl=10.0):
    held = begin(store, space, body, key, ttl)
    assert held is not None
    fill(held, body)
    assert store.handoffs.finish(held)


@pytest.mark.parametrize("nbytes", LENGTHS)
def test_every_byte_comes_back_and_its_room_too(store, space, nbytes):
    body = bytes_of(nbytes)
    put(store, space, body)
    assert (store.status().handoffs, store.status().handoff_bytes) == (1, -(-nbytes // PIECE_BYTES) * PIECE_BYTES)
    with store.handoffs.take(space, KEY) as taken:
        assert b"".join(taken.pieces) == body and (taken.nbytes, taken.content) == (nbytes, content_checksum([body]))
        assert all(piece.readonly for piece in taken.pieces)
        assert store.status().handoffs == 0 and store.status().handoff_bytes > 0, "its room is his until he is done"
    assert store.status().handoff_bytes == 0
    assert store.handoffs.take(space, KEY) is None


def test_bytes_that_are_not_those_announced_are_never_given_out(store, space):
    body = bytes_of(5000)
    held = begin(store, space, body)
    fill(held, body)
    held.pieces[0][17] ^= 1
    assert not store.handoffs.finish(held)
    assert store.handoffs.take(space, KEY) is None
    assert store.status().handoff_bytes == 0 and store.status().counters["handoffs_corrupt"] == 1


def test_what_nobody_comes_for_is_gone_after_its_life(store, space, clock):
    put(store, space, bytes_of(5000), ttl=5.0)
    put(store, space, bytes_of(5000), key=OTHER_KEY, ttl=7.0)
    clock.now = 5.0
    assert store.handoffs.take(space, KEY) is None, "also before the tick"
    store.tick()
    assert (store.status().handoffs, store.status().counters["handoffs_expired"]) == (1, 1)
    assert store.handoffs.take(space, OTHER_KEY) is not None


def test_there_is_a_bound_and_nothing_is_pushed_out(store, space, clock):
    put(store, space, bytes_of(6 * PIECE_BYTES))
    assert begin(store, space, bytes(2 * PIECE_BYTES + 1), key=OTHER_KEY) is None
    half = begin(store, space, bytes(2 * PIECE_BYTES), key=OTHER_KEY)
    assert half is not None and store.status().handoff_bytes == 8 * PIECE_BYTES
    assert begin(store, space, b"x", key=b"x" * 32) is None
    store.handoffs.give_up(half)
    assert store.status().handoff_bytes == 6 * PIECE_BYTES and store.status().counters["handoffs_no_room"] == 2
    clock.now = 10.0
    put(store, space, bytes_of(8 * PIECE_BYTES), key=OTHER_KEY)  # expired ones make way without a tick


def test_the_latest_of_a_name_takes_the_place_of_the_one_before(store, space):
    put(store, space, bytes_of(5000, 1))
    put(store, space, bytes_of(300, 2))
    assert store.status().handoffs == 1
    with store.handoffs.take(space, KEY) as taken:
        assert b"".join(taken.pieces) == bytes_of(300, 2)
    assert store.status().handoff_bytes == 0


def test_a_reader_keeps_its_bytes_while_the_room_is_given_to_others(store, space):
    """Views outlive the handoff (a frame not sent yet): memory is used again only when the last of them is gone."""
    body = bytes_of(8 * PIECE_BYTES)
    put(store, space, body)
    with store.handoffs.take(space, KEY) as taken:
        views = list(taken.pieces)
    for seed in range(3):
        put(store, space, bytes_of(8 * PIECE_BYTES, seed + 1))
        with store.handoffs.take(space, KEY):
            pass
    assert b"".join(views) == body


def test_a_large_bound_is_not_cut_into_more_mappings_than_linux_gives(clock):
    store = Store.open(config(None, handoff_bytes=40 << 30), clock=clock)
    space = store.hello("test", presets.v4_tiny()).id
    body = bytes_of(4 * PIECE_BYTES)
    put(store, space, body)
    with store.handoffs.take(space, KEY) as taken:
        assert [len(piece) for piece in taken.pieces] == [3 * PIECE_BYTES, PIECE_BYTES]
        assert b"".join(taken.pieces) == body
    store.close(0.0)


def test_another_namespace_does_not_see_it(store, space):
    put(store, space, b"mine")
    other = store.hello("other", presets.v4_tiny()).id
    assert store.handoffs.take(other, KEY) is None
    assert store.handoffs.take(space, KEY) is not None


def test_of_many_readers_at_once_exactly_one_gets_each(store, space):
    got = []

    def reader():
        for index in range(50):
            barrier.wait()
            taken = store.handoffs.take(space, index.to_bytes(32, "little"))
            if taken is not None:
                with taken:
                    got.append((index, b"".join(taken.pieces)))
            barrier.wait()

    barrier = threading.Barrier(5)
    threads = [threading.Thread(target=reader) for _ in range(4)]
    for thread in threads:
        thread.start()
    for index in range(50):
        put(store, space, bytes_of(100, index), key=index.to_bytes(32, "little"))
        barrier.wait()
        barrier.wait()
    for thread in threads:
        thread.join()
    assert sorted(got) == [(index, bytes_of(100, index)) for index in range(50)]
    assert store.status().handoff_bytes == 0
