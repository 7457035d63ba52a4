"""Read buffers go round, but never under a reader's feet."""

import ctypes

import numpy as np

from kvstore.tiers.buffers import IDLE_BUFFERS, Buffers


def address(view):
    return ctypes.addressof(ctypes.c_char.from_buffer(view))


def test_a_buffer_is_writable_and_starts_on_a_page():
    view = Buffers().take(5000)
    assert len(view) == 5000 and not view.readonly and view.format == "B"
    assert address(view) % 4096 == 0


def test_a_buffer_comes_back_when_its_last_view_is_gone():
    buffers = Buffers()
    view = buffers.take(5000)
    where = address(view)
    part = view[100:200]
    array = np.frombuffer(part, np.uint8)
    del view, part
    assert address(buffers.take(5000)) != where  # the array still looks at it
    del array
    assert where in {address(kept) for kept in [buffers.take(5000) for _ in range(2)]}


def test_idle_buffers_are_bounded():
    buffers = Buffers()
    views = [buffers.take(4096) for _ in range(3 * IDLE_BUFFERS)]
    del views
    assert len(buffers._idle) == IDLE_BUFFERS


def test_a_small_request_does_not_take_a_large_buffer():
    buffers = Buffers()
    where = address(buffers.take(1 << 20))
    assert address(buffers.take(4096)) != where
    assert address(buffers.take(1 << 20)) == where


def test_memory_is_private_to_the_process_as_huge_pages_want_it():
    view = Buffers().take(4 << 20)
    where = address(view)
    with open("/proc/self/maps") as maps:
        for line in maps:
            start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
            if start <= where < end:
                assert line.split()[1] == "rw-p"
                return
    raise AssertionError("the buffer is in no mapping")
