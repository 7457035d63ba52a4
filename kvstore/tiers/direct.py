"""Reading a segment without filling the page cache with it, and what the page cache has already.

Promoted bytes live in the host tier; a second copy in the page cache would halve what the machine can hold. What the
cache has (frames written a moment ago) comes from there at memory speed; the rest is read past it with O_DIRECT.
Any thread. OSError leaves here untouched.

Measured on 2 cores, ext4 on a virtual disk; four threads, 495 MB of frames of 452 KB (head, then payload, in one
preadv), caches dropped before each run, medians of five to seven interleaved runs:

    cold, in file order / in random order      GB/s           page cache afterwards   CPU seconds
    preadv, buffered                           0.8-2.0 / 1.0-1.5   all of it          0.1-0.65
    preadv, O_DIRECT                           1.4-1.75 / 1.5-1.7  nothing            0.05
    RWF_NOWAIT first, O_DIRECT for the rest    1.65 / 0.90         all of it
    RWF_DONTCACHE (Linux 6.14)                 1.2-1.35 / 1.05-1.3 2 to 6 %           0.2-0.3
    buffered, then POSIX_FADV_DONTNEED         1.7 / 1.05          up to all of it    0.1-0.3
    cachestat, then O_DIRECT                   1.3-1.6 / 1.3-1.75  nothing            0.1
    warm: buffered 9.7-13.4, cachestat then buffered 12.0, O_DIRECT 1.45

RWF_NOWAIT is no way to ask the cache: on Linux 6.18 a miss starts readahead, so that everything is read twice and
stays. `cachestat` asks without reading, in 2 us.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers.segment import MAX_BUFFERS, path_of

_CACHESTAT = 451  # Linux 6.5; the same number on every architecture


class _Range(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Stat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cached", "dirty", "writeback", "evicted", "recent"))


_libc = ctypes.CDLL(None, use_errno=True)


def is_cached(fd: int, offset: int, nbytes: int) -> bool:
    """Whether the page cache has every page of this range. False where the kernel does not say."""
    asked, stat = _Range(offset, nbytes), _Stat()
    if _libc.syscall(_CACHESTAT, fd, ctypes.byref(asked), ctypes.byref(stat), 0):
        return False
    pages = -(-(offset + nbytes) // PAGE_BYTES) - offset // PAGE_BYTES
    return bool(stat.cached >= pages)


class DirectFiles:
    """Segments opened with O_DIRECT, each when it is first read. `take` makes a buffer that starts on a page."""

    def __init__(self, folder: Path, take: Callable[[int], memoryview]) -> None:
        self._folder = folder
        self._take = take
        self._files: dict[int, int] = {}  # segment -> file descriptor
        self._is_refused = False  # by the file system: for good

    def read(self, segment: int, pieces: Sequence[memoryview], offset: int, needed: int) -> int:
        """Fill `pieces`, each of which starts on a page in memory, one after another; how many bytes could be.

        The rest is to be read through the page cache. What is not in whole pages takes a way through a buffer, of
        which the first `needed` bytes arrive. OSError.
        """
        if self._is_refused:
            return 0
        first = offset // PAGE_BYTES * PAGE_BYTES
        is_straight = offset == first and all(piece.nbytes % PAGE_BYTES == 0 for piece in pieces)
        end = -(-(offset + needed) // PAGE_BYTES) * PAGE_BYTES
        target = list(pieces[:MAX_BUFFERS]) if is_straight else [self._take(end - first)]
        try:
            done = os.preadv(self._file(segment), target, first)
        except OSError as error:
            self._is_refused |= error.errno == errno.EINVAL
            if error.errno in (errno.EINVAL, errno.EMFILE, errno.ENFILE):
                return 0
            raise
        if is_straight:
            return done
        arrived = target[0][offset - first : done]
        _scatter(arrived, pieces)
        return arrived.nbytes

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _file(self, segment: int) -> int:
        fd = self._files.get(segment)
        if fd is not None:
            return fd
        fd = os.open(path_of(self._folder, segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_DIRECT)
        kept = self._files.setdefault(segment, fd)
        if kept != fd:  # another thread was quicker
            os.close(fd)
        return kept


def _scatter(source: memoryview, pieces: Sequence[memoryview]) -> None:
    """Copy `source` over `pieces`, one after another, as far as both go."""
    start = 0
    for piece in pieces:
        part = source[start : start + piece.nbytes]
        piece[: part.nbytes] = part
        start += part.nbytes
