"""Entries from the segments alone: every slot's frame header, read and verified.

Payloads are not read: that is done, and their checksums verified, when an object is. Called at start when the
manifest is lost, and by `kvstore check`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from kvstore.codec.frame import HEADER_BYTES, FrameHeader, peek_header, peek_length
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import PAGE_BYTES, BlockKey
from kvstore.tiers import segment as segments
from kvstore.tiers.manifest_record import ManifestEntry
from kvstore.tiers.segment import SegmentHeader


def scan_segments(folder: Path, headers: Iterable[SegmentHeader]) -> Iterator[ManifestEntry]:
    """An entry for each slot that begins with a valid header. OSError where a segment cannot be opened."""
    for header in headers:
        fd = os.open(segments.path_of(folder, header.segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start in header.slot_starts():
                entry = entry_at(fd, header, start)
                if entry is not None:
                    yield entry
        finally:
            os.close(fd)


def entry_at(fd: int, segment: SegmentHeader, start: int) -> ManifestEntry | None:
    """The entry for the slot at page `start` of a segment; None where no valid header can be read or the frame does
    not fit."""
    try:
        head = os.pread(fd, HEADER_BYTES, start * PAGE_BYTES)
        length = peek_length(head)
        frame = peek_header(head)
    except (CorruptFrame, OSError):  # one unreadable sector must not cost the rest
        return None
    if length > segment.slot_pages * PAGE_BYTES:  # left over from when the slots were larger
        return None
    return entry_of(frame, segment.segment * segment.segment_pages + start, length)


def entry_of(frame: FrameHeader, page: int, frame_bytes: int, last_used: float | None = None) -> ManifestEntry:
    """The manifest's entry for a frame at this page; used when written where `last_used` is not known."""
    return ManifestEntry(
        prefix=frame.prefix,
        group=frame.group,
        page=page,
        frame_bytes=frame_bytes,
        generation=frame.generation,
        parent=frame.parent,
        block=frame.block,
        lineage=frame.lineage,
        parent_lineage=frame.parent_lineage,
        content=frame.content,
        namespace=frame.namespace,
        fingerprint=frame.fingerprint,
        raw_bytes=frame.raw_bytes,
        written_at=frame.written_at,
        last_used=frame.written_at if last_used is None else last_used,
        writer=frame.writer,
        object_class=frame.object_class,
        ttl_seconds=frame.ttl_seconds,
    )


def newest(entries: Iterable[ManifestEntry]) -> list[ManifestEntry]:
    """At most one entry per object and one per page: the higher generation wins. Parents come before children."""
    by_page: dict[int, ManifestEntry] = {}
    by_key: dict[BlockKey, ManifestEntry] = {}
    for entry in sorted(entries, key=lambda entry: -entry.generation):
        if entry.page not in by_page and entry.key not in by_key:
            by_page[entry.page] = by_key[entry.key] = entry
    return sorted(by_key.values(), key=lambda entry: (entry.block, entry.group))
