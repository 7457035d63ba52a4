"""Buffers are page-aligned, used again, and never while somebody still looks at them."""

from __future__ import annotations

import errno
import gc
import mmap

import numpy as np

from kvstore.client import buffers
from kvstore.client.buffers import BufferPool
from kvstore.core.keys import PAGE_BYTES


def test_buffers_start_at_a_page():
    pool = BufferPool(1 << 20)
    for nbytes in (1, 5000, 100_000, 3_000_000):
        array = pool.take(nbytes)
        assert array.nbytes == nbytes and array.ctypes.data % PAGE_BYTES == 0 and array.flags.writeable


def test_a_dropped_buffer_is_used_again():
    pool = BufferPool(1 << 20)
    first = pool.take(200_000)
    address = first.ctypes.data
    del first
    assert pool.take(190_000).ctypes.data == address


def test_a_view_keeps_its_buffer():
    pool = BufferPool(1 << 20)
    first = pool.take(200_000)
    first[...] = 7
    view = np.ndarray((10, 5), np.uint8, first[1000:], 3, (100, 1))
    del first
    gc.collect()
    assert pool.free_bytes == 0
    second = pool.take(200_000)
    second[...] = 1
    assert (view == 7).all()
    del view
    assert pool.free_bytes >= 200_000


def test_what_is_kept_is_bounded():
    pool = BufferPool(300_000)
    held = [pool.take(100_000) for _ in range(10)]
    held.clear()
    assert pool.free_bytes <= 300_000


def test_a_kernel_without_huge_pages_gives_small_ones(monkeypatch):
    class Plain(mmap.mmap):
        def madvise(self, option):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(buffers.mmap, "mmap", Plain)
    assert len(BufferPool(1).take(4 << 20)) == 4 << 20
