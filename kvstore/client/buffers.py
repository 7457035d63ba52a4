"""Page-aligned buffers that are used again: the destination of every fetch and the source of every put.

Two traps of the machine decide this file (MEASURED section 1):

- *Fresh memory.* Copying into a new large buffer runs at 1 to 2 GB/s, because the kernel zeroes each page on first
  touch; into one that was used before at 24 to 34 GB/s. So buffers are kept, and large ones ask for huge pages.
- *Alignment.* `np.empty` and `bytes` start 16 bytes into a page; a copy from a page-aligned source to there runs at
  2.8 instead of 28.5 GB/s for 64 to 256 KiB on Zen 3 (`rep movsb`). So every buffer starts at a page.
"""

from __future__ import annotations

import contextlib
import mmap
import weakref
from collections import deque
from threading import Lock
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from kvstore.client.forks import tell_of_forks
from kvstore.core.keys import PAGE_BYTES

Bytes: TypeAlias = NDArray[np.uint8]

HUGE_PAGE_BYTES = 2 << 20
SMALLEST_BYTES = 64 << 10  # below this the page faults of a fresh buffer cost less than the bookkeeping


class BufferPool:
    """Hands out uint8 arrays; each comes back by itself when the last view of it is gone.

    A caller may keep a view as long as it likes: its bytes are never overwritten, since the buffer is free only when
    numpy has dropped the array that all views are based on. Safe to use from several threads.
    """

    def __init__(self, keep_bytes: int) -> None:
        self._keep_bytes = keep_bytes
        self._lock = Lock()
        self._free: list[mmap.mmap] = []  # oldest first
        # Finalizers run at any moment, also inside `take` while its lock is held: they only append here.
        self._returned: deque[mmap.mmap] = deque()
        tell_of_forks(self)

    def take(self, nbytes: int) -> Bytes:
        """A page-aligned array of exactly `nbytes` bytes with arbitrary contents. OSError where memory is out."""
        with self._lock:
            self._collect()
            fitting = [buffer for buffer in self._free if nbytes <= len(buffer) <= max(4 * nbytes, SMALLEST_BYTES)]
            buffer = min(fitting, key=len) if fitting else None
            if buffer is not None:
                self._free.remove(buffer)
        if buffer is None:
            buffer = _fresh(nbytes)
        whole = np.frombuffer(buffer, np.uint8)
        weakref.finalize(whole, self._returned.append, buffer).atexit = False
        return whole[:nbytes]

    @property
    def free_bytes(self) -> int:
        with self._lock:
            self._collect()
            return sum(len(buffer) for buffer in self._free)

    def forked(self) -> None:
        self._lock = Lock()  # the buffers are private memory: each process has its own copies

    def _collect(self) -> None:
        while self._returned:
            self._free.append(self._returned.popleft())
        total = sum(len(buffer) for buffer in self._free)
        while total > self._keep_bytes:
            total -= len(self._free.pop(0))  # unmapped with its last reference


def _fresh(nbytes: int) -> mmap.mmap:
    """Rounded up to an eighth of its power of two, so that requests of like size share buffers."""
    size = max(nbytes, SMALLEST_BYTES)
    step = max(PAGE_BYTES, 1 << (size.bit_length() - 4))
    size = -(-size // step) * step
    # Private: Python's default is shared memory, which gets no huge pages (0.8 against 5 GB/s on first touch).
    buffer = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if size >= HUGE_PAGE_BYTES and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel built without them
            buffer.madvise(mmap.MADV_HUGEPAGE)  # first touch at 6 to 13 GB/s instead of 1 to 2
    return buffer
