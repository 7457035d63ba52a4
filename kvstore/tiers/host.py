"""The host tier: an arena of memfd regions, written in place, never allocated per object.

Regions are populated one after another by a mover thread, so that the daemon answers after the first. Owns memory
and mappings; which slot holds what is the planner's. Any thread may read and write slots that it was given.

A region's file holds its pages and then the stamp table, one u64 a page (`core/descriptor.py`). It is sealed: a worker
that gets its descriptor can map it to read, but neither write, nor shrink, grow or open it anew for writing; the
daemon's own mapping was made before and goes on writing.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
from collections.abc import Sequence
from contextlib import suppress
from typing import NamedTuple

from kvstore.core.errors import TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.huge_pages import HUGE_PAGE_BYTES, asks_for_huge_pages, free_huge_pages, transparent_bytes

STAMP_BYTES = 8
_libc = ctypes.CDLL(None, use_errno=True)
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python 3.11's mmap module does not name it
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
_F_SEAL_FUTURE_WRITE = 0x10  # Linux 5.1; no writable mapping from now on, also through /proc/self/fd
_MFD_HUGETLB = 4


class Region(NamedTuple):
    fd: int
    memory: mmap.mmap
    view: memoryview  # of the whole file, writable
    stamps: memoryview  # of its stamp table, as u64
    huge_bytes: int  # of its pages' bytes


def stamp_offset(region_pages: int) -> int:
    """Where the stamp table starts in a region's file."""
    return region_pages * PAGE_BYTES


def region_file_bytes(region_pages: int) -> int:
    """Bytes of a region's file: its pages and the stamp table, in whole pages."""
    return stamp_offset(region_pages) + -(-region_pages * STAMP_BYTES // PAGE_BYTES) * PAGE_BYTES


class HostTier:
    """Memory in regions of `region_pages`, at most `region_count` of them."""

    def __init__(self, region_pages: int, region_count: int) -> None:
        self.region_pages = region_pages
        self.region_count = region_count
        self._regions: list[Region] = []

    @property
    def populated(self) -> int:
        """Regions that can be used."""
        return len(self._regions)

    @property
    def huge_bytes(self) -> int:
        """Of the populated bytes, those that lie in huge pages."""
        return sum(region.huge_bytes for region in self._regions)

    def populate(self) -> None:
        """Add one region. TierFault where the machine does not grant the memory.

        Room is allocated up front (posix_fallocate) and touched here: a hole would be a SIGBUS later when memory is
        short, and the first touch of a page costs 5 to 50 times the write itself (MEASURED section 1).
        """
        nbytes = region_file_bytes(self.region_pages)
        try:
            region = _huge_region(nbytes, self.region_pages) or _region(nbytes, self.region_pages)
        except (OSError, ValueError) as error:
            raise TierFault(
                f"the machine grants no more than {self.populated} of {self.region_count} host regions of {nbytes} "
                f"bytes ({error}): choose a smaller --host-bytes"
            ) from error
        self._regions.append(region)

    def pieces(self, slots: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
        """Writable views of an object's slots in byte order; `ends` are the cut points of the object in bytes."""
        pieces, start = [], 0
        for slot, end in zip(slots, ends, strict=True):
            number, page = divmod(slot, self.region_pages)
            offset = page * PAGE_BYTES
            pieces.append(self._regions[number].view[offset : offset + end - start])
            start = end
        return pieces

    def mark(self, slots: Sequence[int], word: int) -> None:
        """Write a word of `core/descriptor.py` into the stamp table, at each of these slots."""
        for slot in slots:
            number, page = divmod(slot, self.region_pages)
            self._regions[number].stamps[page] = word

    def region_fd(self, number: int) -> int:
        """Descriptor of a populated region's sealed file; it stays the tier's."""
        return self._regions[number].fd

    def close(self) -> None:
        """Unmap everything. Views that a reader still holds keep their region mapped until they go."""
        for region in self._regions:
            region.stamps.release()
            region.view.release()
            with suppress(BufferError):  # a reader's view is alive; the mapping goes with it
                region.memory.close()
            os.close(region.fd)
        self._regions.clear()


def _region(nbytes: int, pages: int) -> Region:
    fd = os.memfd_create("kvstore-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        asked = asks_for_huge_pages()
        if not asked:
            os.posix_fallocate(fd, 0, nbytes)  # with small pages; huge ones come with the first touch
        else:
            os.ftruncate(fd, nbytes)
        memory = mmap.mmap(fd, nbytes)
        if asked:
            with suppress(OSError):
                memory.madvise(mmap.MADV_HUGEPAGE)
        _touch(memory)
        if asked:
            os.posix_fallocate(fd, 0, nbytes)  # what was not touched for want of memory fails here, not as a SIGBUS
        _seal(fd)
    except BaseException:
        os.close(fd)
        raise
    return _mapped(fd, memory, pages, transparent_bytes(memory) if asked else 0)


def _huge_region(nbytes: int, pages: int) -> Region | None:
    """A region of huge pages that the operator reserved (vm.nr_hugepages), while there are enough of them."""
    whole = -(-nbytes // HUGE_PAGE_BYTES) * HUGE_PAGE_BYTES
    if pages * PAGE_BYTES < HUGE_PAGE_BYTES or free_huge_pages() * HUGE_PAGE_BYTES < whole:
        return None
    fd = -1
    try:
        fd = os.memfd_create("kvstore-region", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING | _MFD_HUGETLB)
        os.posix_fallocate(fd, 0, whole)
        memory = mmap.mmap(fd, whole)
        _touch(memory)
        _seal(fd)
    except OSError:  # somebody else took them meanwhile: small pages do
        if fd >= 0:
            os.close(fd)
        return None
    return _mapped(fd, memory, pages, whole)


def _mapped(fd: int, memory: mmap.mmap, pages: int, huge_bytes: int) -> Region:
    view = memoryview(memory)
    table = view[stamp_offset(pages) : stamp_offset(pages) + pages * STAMP_BYTES]
    return Region(fd, memory, view, table.cast("Q"), min(huge_bytes, pages * PAGE_BYTES))


def _touch(memory: mmap.mmap) -> None:
    """Not by `mmap.madvise`, which keeps the interpreter for as long as it takes: 30 ms for a region of 64 MiB."""
    start = ctypes.c_char.from_buffer(memory)
    nbytes = ctypes.c_size_t(len(memory))
    if not _libc.madvise(ctypes.byref(start), nbytes, _MADV_POPULATE_WRITE):
        return
    error = ctypes.get_errno()
    if error != errno.EINVAL:  # no memory: a touch would be a SIGBUS
        raise OSError(error, os.strerror(error))
    for offset in range(0, len(memory), PAGE_BYTES):  # an older kernel: touched page by page
        memory[offset] = 0


def _seal(fd: int) -> None:
    try:
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS | _F_SEAL_FUTURE_WRITE)
    except OSError as error:
        raise OSError(error.errno, "this kernel cannot seal memory against future writing; Linux 5.1 can") from error
