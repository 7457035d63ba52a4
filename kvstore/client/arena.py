"""The daemon's host memory, mapped to be read: regions, slots, and the stamps that say whether bytes are still there.

Everything that a descriptor says is outside data. Whether its pages lie inside a region is checked for all objects at
once before memory is touched, so a wrong one is a malformed answer and never a fault.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
from copy import copy
from threading import Lock
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from kvstore.client.buffers import Bytes
from kvstore.client.lanes import Lanes
from kvstore.client.link import Link
from kvstore.core.errors import InvalidInput, StoreUnavailable
from kvstore.core.keys import CHECKSUM_BYTES, PAGE_BYTES
from kvstore.core.layout import ModelLayout
from kvstore.core.space import cut_points, slot_pages
from kvstore.rpc.generated import kvstore_pb2 as pb
from kvstore.rpc.lane import REGION
from kvstore.rpc.located import check_descriptors

_MADV_POPULATE_READ = 22  # Linux 5.14; Python 3.11's mmap module does not name it
_POPULATE_BYTES = 16 << 20  # mapped in at once: madvise keeps the interpreter, some 2 ms for so many bytes
_F_SEAL_SHRINK = 2
_STAMP_BYTES = 8

Words = NDArray[np.uint64]


class Region(NamedTuple):
    """One mapped region. The arrays are read-only and keep the mapping alive."""

    data: Bytes
    stamps: Words  # one a page


class Slots:
    """Where objects of one group lie, block after block from `first_block`."""

    def __init__(self, group: int, first_block: int, records: bytes, slots: int) -> None:
        kind = np.dtype([("pages", "<u4", (slots,)), ("stamp", "<u8"), ("content", f"V{CHECKSUM_BYTES}")])
        table = np.frombuffer(records, kind)
        if len(table) and not 0 < int(table["stamp"].min()) <= int(table["stamp"].max()) < 1 << 63:
            raise InvalidInput("a descriptor has a stamp that no copy has")
        self.group, self.first_block = group, first_block
        self.pages: NDArray[np.int64] = table["pages"].astype(np.int64)  # (objects, slots)
        self.words: Words = table["stamp"] * np.uint64(2)  # what the stamp table says while the bytes are whole
        self.contents: bytes = table["content"].tobytes()

    def __len__(self) -> int:
        return len(self.words)

    @property
    def end_block(self) -> int:
        return self.first_block + len(self.words)

    def joined(self, more: Slots) -> Slots:
        """These and those of the blocks right behind them."""
        assert more.group == self.group and more.first_block == self.end_block
        whole = copy(self)
        whole.pages = np.concatenate((self.pages, more.pages))
        whole.words = np.concatenate((self.words, more.words))
        whole.contents = self.contents + more.contents
        return whole

    def first(self, objects: int) -> Slots:
        """The first so many of these."""
        part = copy(self)
        part.pages, part.words = self.pages[:objects], self.words[:objects]
        part.contents = self.contents[: objects * CHECKSUM_BYTES]
        return part

    def content(self, block: int) -> bytes:
        start = (block - self.first_block) * CHECKSUM_BYTES
        return self.contents[start : start + CHECKSUM_BYTES]


class Arena:
    """The regions of one attachment, each mapped when first needed. Any thread."""

    def __init__(self, link: Link, lanes: Lanes, namespace: bytes, layout: ModelLayout) -> None:
        self.lanes, self.layout, self.namespace = lanes, layout, namespace
        self.region_pages = lanes.region_pages
        self.slot_pages = slot_pages(layout.rows.nbytes, self.region_pages)  # as the planner cuts its regions
        self.cuts = tuple(cut_points(group, self.slot_pages * PAGE_BYTES) for group in layout.groups)
        self._link = link
        self._regions: dict[int, Region] = {}
        self._mapping = Lock()  # two threads that need the same region map it once

    @property
    def is_alive(self) -> bool:
        return self.lanes.is_alive

    def slots(self, message: pb.Descriptors, deadline: float) -> Slots:
        """Checked descriptors, their regions mapped. Raises InvalidInput, and what a call raises (with NoLane)."""
        if message.group >= len(self.cuts):
            raise InvalidInput(f"descriptors of group {message.group}, which this layout has not")
        ends = self.cuts[message.group]
        check_descriptors(message, self.layout, len(ends))
        found = Slots(message.group, message.first_block, message.records, len(ends))
        numbers, pages = np.divmod(found.pages, self.region_pages)
        if len(found) and int(pages.max()) + self.slot_pages > self.region_pages:
            raise InvalidInput("a descriptor names a slot that reaches beyond its region")
        for number in np.unique(numbers).tolist():
            if number not in self._regions:
                self._map(number, deadline)
        return found

    def whole(self, slots: Slots, first: int, end: int, *, or_filling: bool = False) -> int:
        """Of the objects `first` to `end` (indices), how many in front are whole now: their stamps say so.

        To be asked after the bytes were read. The order holds: a numpy copy of any size gives the interpreter's lock
        back and takes it again, which no read is moved across.
        """
        numbers, pages = np.divmod(slots.pages[first:end], self.region_pages)
        words = np.empty(numbers.shape, np.uint64)
        for number in np.unique(numbers).tolist():
            here = numbers == number
            words[here] = self._regions[number].stamps[pages[here]]
        if or_filling:
            words &= ~np.uint64(1)  # core/descriptor.py: the same stamp, whole or being filled
        fits = (words == slots.words[first:end, None]).all(axis=1)
        return len(fits) if fits.all() else int(fits.argmin())

    def at(self, page: int) -> tuple[Bytes, int]:
        """The region's data that a checked page lies in, and its offset there."""
        number, page = divmod(page, self.region_pages)
        return self._regions[number].data, page * PAGE_BYTES

    def pieces(self, slots: Slots, index: int) -> list[Bytes]:
        """An object's bytes where they lie, slot by slot."""
        pieces, start = [], 0
        for page, end in zip(slots.pages[index].tolist(), self.cuts[slots.group], strict=True):
            data, offset = self.at(page)
            pieces.append(data[offset : offset + end - start])
            start = end
        return pieces

    def _map(self, number: int, deadline: float) -> None:
        with self._mapping:
            if number in self._regions:
                return
            request = pb.RegionRequest(namespace_id=self.namespace, region=number)
            _, fd = self._link.lane_fd(self.lanes, REGION, request, pb.RegionResponse, deadline)
            try:
                self._regions[number] = _mapped(fd, self.region_pages)
            except OSError as error:
                raise StoreUnavailable(f"region {number} cannot be mapped: {error}") from error
            finally:
                os.close(fd)  # Python's mmap keeps a duplicate of its own
            self._link.counters.add("regions_mapped")


def _mapped(fd: int, region_pages: int) -> Region:
    """Raises InvalidInput for a file whose end could be met, now or later: reading there is a SIGBUS."""
    data_bytes = region_pages * PAGE_BYTES
    nbytes = os.fstat(fd).st_size
    if nbytes < data_bytes + region_pages * _STAMP_BYTES or not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & _F_SEAL_SHRINK:
        raise InvalidInput(f"a region of {nbytes} bytes is too short, or not sealed against shrinking")
    memory = mmap.mmap(fd, nbytes, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
    # First touch: a page of another process's memory that is not in our page table costs a fault of 0.5 us, which
    # brings the first copy from 12 down to 2 GB/s. All of them at once cost a twentieth.
    with contextlib.suppress(OSError):  # a kernel before 5.14: the faults come with the copies
        for start in range(0, nbytes, _POPULATE_BYTES):
            memory.madvise(_MADV_POPULATE_READ, start, min(_POPULATE_BYTES, nbytes - start))
    data: Bytes = np.frombuffer(memory, np.uint8, data_bytes)
    stamps: Words = np.frombuffer(memory, np.uint64, region_pages, data_bytes)
    return Region(data, stamps)
