"""Reads past the page cache bring the same bytes as reads through it, whatever the file system allows."""

import errno
import mmap
import os
import random

import pytest
from disk_samples import SEGMENT_PAGES, open_tier

from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.direct import is_cached

NBYTES = (SEGMENT_PAGES - 1) * PAGE_BYTES
WHOLE = random.Random(7).randbytes(NBYTES)
PATHS = ["direct", "cached", "refused on opening", "refused on reading"]


@pytest.fixture
def tier(tmp_path):
    (tmp_path / "probe").write_bytes(bytes(PAGE_BYTES))
    try:
        os.close(os.open(tmp_path / "probe", os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("the file system of the tests' folder knows no O_DIRECT")
    tier = open_tier(tmp_path / "disk")
    tier.assign(0, SEGMENT_PAGES - 1)
    tier.write(1, [WHOLE])
    tier.sync([0])
    yield tier
    tier.close()


class Calls:
    """Which descriptors were read, and how; the page cache claims to have nothing, or everything."""

    def __init__(self, monkeypatch, path):
        self.direct, self.cached, self.path = 0, 0, path
        self._preadv, self._open = os.preadv, os.open
        monkeypatch.setattr("kvstore.tiers.disk.is_cached", lambda *_: path == "cached")
        monkeypatch.setattr(os, "preadv", self.preadv)
        monkeypatch.setattr(os, "open", self.open)

    def open(self, path, flags, *more):
        if flags & os.O_DIRECT and self.path == "refused on opening":
            raise OSError(errno.EINVAL, "no such thing here")
        return self._open(path, flags, *more)

    def preadv(self, fd, pieces, offset):
        if not _is_direct(fd):
            self.cached += 1
            return self._preadv(fd, pieces, offset)
        assert offset % PAGE_BYTES == 0 and all(len(piece) % PAGE_BYTES == 0 for piece in pieces)
        self.direct += 1
        if self.path == "refused on reading":
            raise OSError(errno.EINVAL, "not aligned enough")
        return self._preadv(fd, pieces, offset)


def _is_direct(fd):
    with open(f"/proc/self/fdinfo/{fd}") as info:
        flags = next(line.split()[1] for line in info if line.startswith("flags:"))
    return bool(int(flags, 8) & os.O_DIRECT)


def memory(*sizes):
    """Pieces that each start on a page."""
    return [memoryview(mmap.mmap(-1, -(-size // PAGE_BYTES) * PAGE_BYTES))[:size] for size in sizes]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("skip", "sizes"),
    [
        (0, [PAGE_BYTES, 5 * PAGE_BYTES]),
        (2 * PAGE_BYTES, [3 * PAGE_BYTES]),
        (0, [PAGE_BYTES, 5000, 3000, 9]),
        (640, [700]),
        (640, [2 * PAGE_BYTES]),
        (0, [NBYTES]),
    ],
)
def test_every_way_of_reading_brings_the_same_bytes(tier, monkeypatch, path, skip, sizes):
    calls = Calls(monkeypatch, path)
    pieces = memory(*sizes)
    tier.read_into(1, skip, pieces, sum(sizes))
    assert b"".join(pieces) == WHOLE[skip : skip + sum(sizes)]
    assert (calls.direct, calls.cached) == {
        "direct": (1, 0), "cached": (0, 1), "refused on opening": (0, 1), "refused on reading": (1, 1),
    }[path]  # fmt: skip
    tier.read_into(1, skip, pieces, sum(sizes))
    assert tier.read(1, 5000) == WHOLE[:5000]
    if path == "refused on reading":
        assert (calls.direct, calls.cached) == (1, 3), "a file system that refused once is not asked again"


@pytest.mark.parametrize("path", PATHS)
def test_what_lies_behind_the_needed_bytes_may_be_missing_and_no_more(tmp_path, tier, monkeypatch, path):
    Calls(monkeypatch, path)
    needed = 3 * PAGE_BYTES + 700
    os.truncate(tmp_path / "disk" / "segment-000000", PAGE_BYTES + needed)
    pieces = memory(PAGE_BYTES, 3 * PAGE_BYTES)
    tier.read_into(1, 0, pieces, needed)
    assert b"".join(pieces)[:needed] == WHOLE[:needed]
    assert tier.read(1, needed) == WHOLE[:needed]
    with pytest.raises(CorruptFrame, match="the segment ends 1 bytes before"):
        tier.read_into(1, 0, pieces, needed + 1)
    with pytest.raises(CorruptFrame):
        tier.read_into(1, 10, memory(needed), needed)


def test_a_device_that_fails_is_a_fault_and_no_second_try(tier, monkeypatch):
    calls = Calls(monkeypatch, "direct")

    def fail(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", fail)
        with pytest.raises(TierFault, match="Input/output error"):
            tier.read_into(1, 0, memory(PAGE_BYTES), PAGE_BYTES)
    tier.read_into(1, 0, memory(PAGE_BYTES), PAGE_BYTES)
    assert calls.direct == 1, "O_DIRECT is still in use"


def test_no_descriptor_left_means_reading_through_the_cache_meanwhile(tier, monkeypatch):
    calls = Calls(monkeypatch, "direct")
    tier.read(1, 100)
    tier._direct.close()

    def none_left(path, flags, *more):
        raise OSError(errno.EMFILE, "too many")

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", none_left)
        assert tier.read(1, 100) == WHOLE[:100]
    assert (calls.direct, calls.cached) == (1, 1)
    assert tier.read(1, 100) == WHOLE[:100]
    assert calls.direct == 2


def test_a_frame_written_over_is_read_as_it_is_now(tier, monkeypatch):
    Calls(monkeypatch, "direct")
    assert tier.read(1, NBYTES) == WHOLE
    other = bytes(255 - byte for byte in WHOLE)
    tier.write(1, [other])  # not synced: only the page cache has it
    assert tier.read(1, NBYTES) == other


def test_the_cache_is_asked_page_by_page(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(bytes(64 * PAGE_BYTES))
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        if not is_cached(fd, 0, 64 * PAGE_BYTES):
            pytest.skip("this kernel does not say what its cache has (Linux 6.5 does), or has no use for one here")
        assert is_cached(fd, 5, 9) and is_cached(fd, 63 * PAGE_BYTES, PAGE_BYTES)
        assert not is_cached(fd, 63 * PAGE_BYTES, PAGE_BYTES + 1), "there is no such page"
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        before = is_cached(fd, 0, 64 * PAGE_BYTES)
        assert before == is_cached(fd, 0, 64 * PAGE_BYTES), "asking reads nothing"
    finally:
        os.close(fd)
