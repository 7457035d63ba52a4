"""The host tier: an arena of memfd regions, written in place, never allocated per object.

Regions are populated one after another by a mover thread, so that the daemon answers after the first. Owns memory
and mappings; which slot holds what is the planner's. Any thread may read and write slots that it was given.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence

from kvstore.core.errors import TierFault
from kvstore.core.keys import PAGE_BYTES

_MADV_POPULATE_WRITE = 23  # Linux 5.14; Python 3.11's mmap module does not name it


class HostTier:
    """Memory in regions of `region_pages`, at most `region_count` of them."""

    def __init__(self, region_pages: int, region_count: int) -> None:
        self.region_pages = region_pages
        self.region_count = region_count
        self._maps: list[mmap.mmap] = []
        self._views: list[memoryview] = []

    @property
    def populated(self) -> int:
        """Regions that can be used."""
        return len(self._views)

    def populate(self) -> None:
        """Add one region. TierFault where the machine does not grant the memory.

        Room is allocated up front (posix_fallocate) and touched here: a hole would be a SIGBUS later when memory is
        short, and the first touch of a page costs 5 to 50 times the write itself (MEASURED section 1).
        """
        nbytes = self.region_pages * PAGE_BYTES
        fd = -1
        try:
            fd = os.memfd_create("kvstore-region", os.MFD_CLOEXEC)
            os.posix_fallocate(fd, 0, nbytes)
            region = mmap.mmap(fd, nbytes)
        except (OSError, ValueError) as error:
            raise TierFault(
                f"the machine grants no more than {self.populated} of {self.region_count} host regions of {nbytes} "
                f"bytes ({error}): choose a smaller --host-bytes"
            ) from error
        finally:
            if fd >= 0:
                os.close(fd)  # the mapping keeps the memory
        try:
            region.madvise(_MADV_POPULATE_WRITE)
        except OSError:  # an older kernel: touched page by page
            for offset in range(0, nbytes, PAGE_BYTES):
                region[offset] = 0
        self._maps.append(region)
        self._views.append(memoryview(region))

    def pieces(self, slots: Sequence[int], ends: Sequence[int]) -> list[memoryview]:
        """Writable views of an object's slots in byte order; `ends` are the cut points of the object in bytes."""
        pieces, start = [], 0
        for slot, end in zip(slots, ends, strict=True):
            number, page = divmod(slot, self.region_pages)
            offset = page * PAGE_BYTES
            pieces.append(self._views[number][offset : offset + end - start])
            start = end
        return pieces

    def close(self) -> None:
        """Unmap everything. Views that a reader still holds keep their region mapped until they go."""
        for view in self._views:
            view.release()
        self._views.clear()
        for region in self._maps:
            try:
                region.close()
            except BufferError:
                continue  # a reader's view is alive; the mapping goes with it
        self._maps.clear()
