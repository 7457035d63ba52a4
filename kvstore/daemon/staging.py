"""Staging regions: memory that one worker may write and the daemon reads, for puts on one host.

A memfd, room taken up front, sealed so that it keeps its size: a worker that could shrink it would end the daemon
with SIGBUS. The daemon's mapping is its own and read-only; it outlives the worker until the last copy out of it ended.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Lock

from kvstore.core.errors import InvalidInput
from kvstore.core.keys import PAGE_BYTES
from kvstore.daemon.calls import shed

MAX_WORKER_BYTES = 256 << 20  # a larger ask is cut: four batches of 64 MiB in flight
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


class Staging:
    """One worker's region. `fd` is the daemon's; `view` may be read while it is used."""

    def __init__(self, nbytes: int, room: StagingRoom) -> None:
        """Raises OSError where the machine does not grant the memory. The room was taken by the caller."""
        self.nbytes = nbytes
        self.users = 0
        self.is_ended = False
        self._room = room
        self.fd = os.memfd_create("kvstore-staging", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.posix_fallocate(self.fd, 0, nbytes)
            fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, _SEALS)
            self._memory = mmap.mmap(self.fd, nbytes, prot=mmap.PROT_READ)
        except BaseException:
            os.close(self.fd)
            raise
        self.view = memoryview(self._memory)

    @contextmanager
    def used(self) -> Iterator[memoryview]:
        """Its bytes; they stay mapped until the `with` block ends, whatever becomes of the worker."""
        self._room.begin_use(self)
        try:
            yield self.view
        finally:
            self._room.end_use(self)

    def close(self) -> None:
        """Unmap. By the room, when nobody uses it any more."""
        self.view.release()
        with suppress(BufferError):  # a failed copy's traceback holds a slice yet: the mapping goes with it
            self._memory.close()
        os.close(self.fd)


class StagingRoom:
    """All staging regions of a daemon, bounded together. Thread-safe; its lock guards numbers only."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._lock = Lock()
        self._used = 0

    @property
    def used_bytes(self) -> int:
        """Of workers that are attached, and of those that are gone while a copy of theirs ends."""
        with self._lock:
            return self._used

    def open(self, wanted_bytes: int) -> Staging:
        """A new region of at least so many bytes, or of MAX_WORKER_BYTES. Refused where all regions would be too much.

        Zeroing its memory takes the kernel some 0.3 s a GiB: not under a lock.
        """
        nbytes = staging_bytes(wanted_bytes)
        with self._lock:
            if self._used + nbytes > self._limit:
                raise shed(f"staging has {self._used} of {self._limit} bytes in use, {nbytes} more are too many")
            self._used += nbytes
        try:
            return Staging(nbytes, self)
        except BaseException as error:
            with self._lock:
                self._used -= nbytes
            if isinstance(error, OSError):
                raise shed(f"the machine grants no {nbytes} bytes for staging ({error.strerror})") from error
            raise

    def is_used(self, staging: Staging) -> bool:
        with self._lock:
            return staging.users > 0

    def begin_use(self, staging: Staging) -> None:
        with self._lock:
            if staging.is_ended:
                raise InvalidInput("the staging region is gone: ask for one again")
            staging.users += 1

    def end_use(self, staging: Staging) -> None:
        with self._lock:
            staging.users -= 1
            is_last = staging.is_ended and not staging.users
        if is_last:
            self._free(staging)

    def end(self, staging: Staging) -> None:
        """The worker is gone, or has a larger one: free it when the last copy out of it ended. Once."""
        with self._lock:
            staging.is_ended = True
            is_last = not staging.users
        if is_last:
            self._free(staging)

    def _free(self, staging: Staging) -> None:
        staging.close()
        with self._lock:
            self._used -= staging.nbytes


def staging_bytes(wanted_bytes: int) -> int:
    """What a worker that asks for so much gets, in whole pages."""
    if wanted_bytes < 1:
        raise InvalidInput("a staging region of 0 bytes: ask for some")
    return -(-min(wanted_bytes, MAX_WORKER_BYTES) // PAGE_BYTES) * PAGE_BYTES
