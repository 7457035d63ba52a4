"""The staging region's memory: extents never overlap, all of them come back, nothing is given out too early or late."""

from __future__ import annotations

import fcntl
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvstore.client.staging import POPULATE_BYTES, Extents, Staging
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES


@settings(max_examples=200, deadline=None)
@given(st.integers(1, 60), st.lists(st.integers(1, 20), max_size=80), st.integers(0, 2**32))
def test_extents_never_overlap_and_all_come_back(pages, asks, seed):
    rng = random.Random(seed)
    extents, taken, used = Extents(pages), [], set()
    for ask in asks:
        start = extents.take(ask)
        if start is None:
            free = sorted(set(range(pages)) - used)
            runs = {first for first in free if all(first + step in free for step in range(ask))}
            assert not runs, f"{ask} pages would have fitted at {runs}"
        else:
            mine = set(range(start, start + ask))
            assert mine <= set(range(pages)) and not mine & used
            used |= mine
            taken.append((start, ask))
        while taken and rng.random() < 0.4:
            start, length = taken.pop(rng.randrange(len(taken)))
            extents.give_back(start, length)
            used -= set(range(start, start + length))
        assert extents.free_pages == pages - len(used)
    for start, length in taken:
        extents.give_back(start, length)
    assert extents.free_pages == pages and extents.take(pages) == 0, "one piece again"


def test_what_is_given_back_twice_is_noticed():
    extents = Extents(8)
    start = extents.take(4)
    extents.give_back(start, 4)
    with pytest.raises(AssertionError):
        extents.give_back(start, 4)


@pytest.fixture
def memory():
    fds = []

    def memory(nbytes: int) -> int:
        fds.append(os.memfd_create("staging", os.MFD_ALLOW_SEALING))
        os.truncate(fds[-1], nbytes)
        fcntl.fcntl(fds[-1], fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK)
        return fds[-1]

    yield memory
    for fd in fds:
        os.close(fd)


def test_memory_that_could_shrink_under_a_put_is_refused():
    fd = os.memfd_create("staging", os.MFD_ALLOW_SEALING)
    os.truncate(fd, PAGE_BYTES)
    try:
        with pytest.raises(InvalidInput, match="sealed"):
            Staging(fd, PAGE_BYTES)
    finally:
        os.close(fd)


def test_a_region_is_used_when_all_of_it_was_touched(memory):
    nbytes = 2 * POPULATE_BYTES + PAGE_BYTES
    fd = memory(nbytes)
    staging = Staging(fd, nbytes)
    for _ in range(3):
        assert not staging.is_ready and staging.take(1) is None
        staging.populate()
    assert staging.is_ready and os.fstat(fd).st_blocks * 512 >= nbytes
    extent = staging.take(PAGE_BYTES + 1)
    assert extent.bytes.nbytes == PAGE_BYTES + 1 and extent.bytes.ctypes.data % PAGE_BYTES == 0
    extent.bytes[:] = 7
    assert os.pread(fd, PAGE_BYTES + 2, extent.start) == bytes([7]) * (PAGE_BYTES + 1) + b"\0"
    assert staging.free_bytes == nbytes - 2 * PAGE_BYTES
    assert staging.take(nbytes) is None and staging.take(nbytes + 1) is None and staging.take(0) is None
    extent.give_back()
    assert staging.take(nbytes).bytes.nbytes == nbytes


def test_a_retired_region_gives_nothing_out_and_keeps_its_bytes(memory):
    staging = Staging(memory(4 * PAGE_BYTES), 4 * PAGE_BYTES)
    staging.populate()
    extent = staging.take(PAGE_BYTES)
    extent.bytes[:] = 9
    staging.retire()
    assert staging.take(1) is None
    extent.give_back()
    assert staging.take(1) is None and np.all(extent.bytes == 9)


@pytest.mark.parametrize("said", [2 * PAGE_BYTES, 0, PAGE_BYTES - 1])
def test_memory_that_is_not_there_is_not_touched(memory, said):
    with pytest.raises(InvalidInput, match="staging region"):
        Staging(memory(PAGE_BYTES), said)
