"""One segment file: a header page, then slots of one size, written in place.

The header page says which segment this is, how many pages a segment and a slot have, and when it was given that
slot size; a checksum covers it. Drawn byte by byte in ARCHITECTURE.md. Plain functions over file descriptors; any
thread, as long as no two write the same slot. OSError leaves here untouched: `disk.py` gives it a sentence.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import xxhash

from kvstore.core.checksum import Buffer
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import PAGE_BYTES

MAGIC = b"KVSEGMT\x1a"
VERSION = 1
_HEADER = struct.Struct("<8sHHIIId")
_ZEROS = bytes(PAGE_BYTES)
MAX_BUFFERS = os.sysconf("SC_IOV_MAX")  # of one pwritev or preadv; 1024 on Linux


class SegmentHeader(NamedTuple):
    """What the first page of a segment says."""

    segment: int
    segment_pages: int
    slot_pages: int
    assigned_at: float  # unix seconds

    def slot_starts(self) -> range:
        """First page of each slot, within the segment."""
        return range(1, self.segment_pages - self.slot_pages + 1, self.slot_pages)


def path_of(folder: Path, segment: int) -> Path:
    return folder / f"segment-{segment:06d}"


def segments_in(folder: Path) -> dict[int, Path]:
    """Segment files by number."""
    paths = {path: path.name.removeprefix("segment-") for path in folder.glob("segment-*")}
    return {int(number): path for path, number in sorted(paths.items()) if number.isdecimal()}


def pack_header(header: SegmentHeader) -> bytes:
    """One page."""
    packed = _HEADER.pack(
        MAGIC, VERSION, 0, header.segment, header.segment_pages, header.slot_pages, header.assigned_at
    )
    return (packed + xxhash.xxh3_128_digest(packed)).ljust(PAGE_BYTES, b"\0")


def read_header(fd: int, segment: int) -> SegmentHeader:
    """The header of segment number `segment`. CorruptFrame says why there is none."""
    page = os.pread(fd, PAGE_BYTES, 0)
    size = _HEADER.size
    if len(page) < PAGE_BYTES:
        raise CorruptFrame(f"segment {segment} is cut off inside its header page")
    magic, version, _, number, segment_pages, slot_pages, assigned_at = _HEADER.unpack_from(page)
    if magic != MAGIC:
        raise CorruptFrame(f"segment {segment} has no header")
    if version != VERSION:
        raise CorruptFrame(f"segment {segment} has format version {version}, this kvstore reads version {VERSION}")
    if xxhash.xxh3_128_digest(page[:size]) != page[size : size + 16]:
        raise CorruptFrame(f"the header of segment {segment} fails its checksum")
    if number != segment or not 0 < slot_pages < segment_pages:
        raise CorruptFrame(f"the header of segment {segment} belongs to segment {number}, or contradicts itself")
    return SegmentHeader(number, segment_pages, slot_pages, assigned_at)


def read_header_of(path: Path, segment: int) -> SegmentHeader:
    """The header of a segment file. CorruptFrame, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        return read_header(fd, segment)
    finally:
        os.close(fd)


def write_all(fd: int, buffers: Sequence[Buffer], offset: int) -> None:
    """Write `buffers` one after another, and zeros to the end of the last page.

    Whole pages spare the kernel reading the rest of one before it can write it.
    """
    todo = [memoryview(buffer).cast("B") for buffer in buffers]
    padding = -sum(map(len, todo)) % PAGE_BYTES
    todo.append(memoryview(_ZEROS)[:padding])
    while todo:
        written = os.pwritev(fd, todo[:MAX_BUFFERS], offset)
        offset += written
        todo = _behind(todo, written)


def read_into(fd: int, pieces: Sequence[memoryview], offset: int, needed: int) -> None:
    """Fill `pieces`, one after another. CorruptFrame where the file has not even the first `needed` bytes."""
    done, left = 0, list(pieces)
    while done < needed:
        got = os.preadv(fd, left[:MAX_BUFFERS], offset + done)
        if not got:
            raise CorruptFrame(f"the segment ends {needed - done} bytes before the frame does")
        done += got
        left = _behind(left, got)


def _behind(buffers: Sequence[memoryview], done: int) -> list[memoryview]:
    """`buffers` without their first `done` bytes."""
    left = []
    for buffer in buffers:
        if done < len(buffer):
            left.append(buffer[done:])
        done = max(done - len(buffer), 0)
    return left
