"""Page-aligned buffers that go round: reading into fresh memory is 15 to 25 times slower (MEASURED section 1).

A buffer comes back by itself when the last view of it is gone, so a reader may keep a slice as long as it likes.
Any thread.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import weakref
from collections import deque

from kvstore.core.keys import PAGE_BYTES

IDLE_BUFFERS = 16  # four readers, each with a few objects on their way to a worker
HUGE_PAGE_BYTES = 2 << 20
IDLE_BYTES = 64 << 20  # kept for reuse at most; what is in use is bounded by who reads


class Buffers:
    """Idle buffers of a tier. Not bounded: callers bound how many they hold at once."""

    def __init__(self, idle_buffers: int = IDLE_BUFFERS) -> None:
        self._idle_buffers = idle_buffers
        self._idle: deque[mmap.mmap] = deque()

    def take(self, nbytes: int) -> memoryview:
        """Writable view of exactly `nbytes`, on a page; what is in it is whatever was there."""
        memory = self._reuse(nbytes) or _fresh(nbytes)
        # every view of `exporter` keeps it alive; its end is the end of the last one
        exporter = (ctypes.c_char * len(memory)).from_buffer(memory)
        weakref.finalize(exporter, self._give_back, memory).atexit = False
        return memoryview(exporter).cast("B")[:nbytes]

    def _reuse(self, nbytes: int) -> mmap.mmap | None:
        for _ in range(len(self._idle)):
            try:
                memory = self._idle.popleft()
            except IndexError:  # another thread took the last one
                return None
            if nbytes <= len(memory) <= 2 * nbytes + PAGE_BYTES:
                return memory
            self._idle.append(memory)
        return None

    def _give_back(self, memory: mmap.mmap) -> None:
        self._idle.append(memory)
        while len(self._idle) > self._idle_buffers or sum(map(len, list(self._idle))) > IDLE_BYTES:
            try:
                self._idle.popleft()
            except IndexError:
                return


def _fresh(nbytes: int) -> mmap.mmap:
    # Private: Python's default is shared memory, which gets no huge pages (0.8 against 5 GB/s on first touch).
    memory = mmap.mmap(-1, -(-nbytes // PAGE_BYTES) * PAGE_BYTES, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    if len(memory) >= HUGE_PAGE_BYTES:
        with contextlib.suppress(OSError):  # a kernel built without them
            memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
