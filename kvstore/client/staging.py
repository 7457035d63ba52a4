"""This worker's staging region: memory of the daemon's making that this worker alone may write to.

A put is packed into an extent of it, and a Commit names what lies where; the daemon copies from there. An extent is
this worker's again when that Commit was answered. Where none came (the lane broke, or it took too long) the daemon may
still be reading, and would store under one name what is written there for another: then nothing is taken from the
region any more (`retire`). What lies in it can still be read, for as long as it is referenced.

Two traps of MEASURED section 1 are met here: first touch of shared memory runs at 0.2 to 1 GB/s, so the writer's thread
touches the region before any put may use it; and extents begin at pages, as the arena's slots do.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
from bisect import bisect
from dataclasses import dataclass
from threading import Lock

import numpy as np

from kvstore.client.buffers import Bytes
from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES

POPULATE_BYTES = 8 << 20  # touched at once: about 20 ms, in which a queued put has to wait
_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python 3.11's mmap module does not name it
_libc = ctypes.CDLL(None, use_errno=True)


class Extents:
    """Which pages are free. First fit, so that memory that was just used is used again. Any thread."""

    def __init__(self, pages: int) -> None:
        self._lock = Lock()
        self._free = [(0, pages)] if pages else []  # (first page, pages), in order, never touching each other

    def take(self, pages: int) -> int | None:
        """First of `pages` consecutive pages; None where there are none now."""
        assert pages > 0
        with self._lock:
            for index, (start, length) in enumerate(self._free):
                if length >= pages:
                    self._free[index : index + 1] = [(start + pages, length - pages)] if length > pages else []
                    return start
        return None

    def give_back(self, start: int, pages: int) -> None:
        with self._lock:
            index = bisect(self._free, (start, 0))
            end = start + pages
            if index < len(self._free) and self._free[index][0] <= end:
                assert self._free[index][0] == end, "pages were given back twice"
                end += self._free.pop(index)[1]
            if index and sum(self._free[index - 1]) >= start:
                assert sum(self._free[index - 1]) == start, "pages were given back twice"
                index -= 1
                start = self._free.pop(index)[0]
            self._free.insert(index, (start, end - start))

    @property
    def free_pages(self) -> int:
        with self._lock:
            return sum(length for _, length in self._free)


class Staging:
    """One region. `take` and `give_back` from any thread, the rest from the writer's."""

    def __init__(self, fd: int, nbytes: int) -> None:
        """Maps `fd`, which stays the caller's. Raises OSError, and InvalidInput where less is there than was said, or
        could be."""
        pages = nbytes // PAGE_BYTES
        facts = os.fstat(fd)
        is_sealed = fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK
        if not pages or facts.st_size < pages * PAGE_BYTES or not is_sealed:  # what is not there is a SIGBUS
            raise InvalidInput(
                f"a staging region of {nbytes} bytes in {facts.st_size}, or not sealed against shrinking"
            )
        self.identity = (facts.st_dev, facts.st_ino)  # of the memory, however often it is handed out
        self.nbytes = pages * PAGE_BYTES
        self._memory = mmap.mmap(fd, self.nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        self._bytes: Bytes = np.frombuffer(self._memory, np.uint8)
        self._extents = Extents(pages)
        self._populated = 0
        self._is_retired = False

    @property
    def is_ready(self) -> bool:
        return self._populated == self.nbytes

    @property
    def is_retired(self) -> bool:
        return self._is_retired

    def retire(self) -> None:
        """Give out nothing any more: the daemon may be reading what was given back, or has forgotten the region."""
        self._is_retired = True

    def populate(self) -> None:
        """Touch the next part of it."""
        end = min(self._populated + POPULATE_BYTES, self.nbytes)
        _touch(self._bytes[self._populated : end])
        self._populated = end

    def take(self, nbytes: int) -> Extent | None:
        """Room for so many bytes, from a page on; None where there is none now."""
        if self._is_retired or not self.is_ready or not 0 < nbytes <= self.nbytes:
            return None
        start = self._extents.take(-(-nbytes // PAGE_BYTES))
        return None if start is None else Extent(self, start * PAGE_BYTES, nbytes)

    def give_back(self, extent: Extent) -> None:
        self._extents.give_back(extent.start // PAGE_BYTES, -(-extent.nbytes // PAGE_BYTES))

    def bytes_of(self, extent: Extent) -> Bytes:
        return self._bytes[extent.start : extent.start + extent.nbytes]

    @property
    def free_bytes(self) -> int:
        return self._extents.free_pages * PAGE_BYTES


@dataclass(frozen=True, slots=True, eq=False)
class Extent:
    """Bytes of one region that are one put's."""

    staging: Staging
    start: int
    nbytes: int

    @property
    def bytes(self) -> Bytes:
        return self.staging.bytes_of(self)

    def give_back(self) -> None:
        self.staging.give_back(self)


def _touch(part: Bytes) -> None:
    """Not by `mmap.madvise`, which keeps the interpreter for as long as it takes."""
    address = part.ctypes.data
    if _libc.madvise(ctypes.c_void_p(address), ctypes.c_size_t(part.nbytes), _MADV_POPULATE_WRITE):
        part[::PAGE_BYTES] = 0  # an older kernel
