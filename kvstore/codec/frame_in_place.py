"""Frames whose payload was read straight into the object's own memory: `decode_frame`'s checks without its copy.

The payload of a raw frame is the object, unchanged, right behind a head (header, section table, padding) whose length
follows from the object's sections. So one scattered read puts the head into scratch memory and the payload where it
belongs. Header and table have checksums of their own, and the checksum of the whole object covers what those of its
sections cover; single sections are verified where a reader wants the first ones before the last. Pure; any thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import NamedTuple

import xxhash

from kvstore.codec.frame import check_name, checked_table_bytes, max_frame_bytes
from kvstore.codec.frame_header import Extent, FrameHeader, unpack_header
from kvstore.codec.section_table import is_raw, raw_sizes, unpack_table
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import BlockKey
from kvstore.core.layout import Section


class RawHead(NamedTuple):
    """The verified head of a raw frame. Nothing is known yet of its payload."""

    header: FrameHeader
    extent: Extent
    table: memoryview


class SectionChecks(NamedTuple):
    """Where each section of a raw object lies, and its checksum."""

    edges: tuple[int, ...]  # offset of each section in the object, and the object's length last
    checksums: tuple[int, ...]


def head_bytes(sections: Sequence[Section]) -> int:
    """Bytes in front of the payload, in a raw frame of these sections."""
    return max_frame_bytes(sections) - sum(raw_sizes(sections))


def read_head(
    head: memoryview, sections: Sequence[Section], expect_key: BlockKey, expect_generation: int
) -> RawHead | None:
    """What the first `head_bytes(sections)` bytes of a frame say, after every check that they allow.

    None where the payload is not the raw object behind them: the frame may be good, `decode_frame` says. CorruptFrame.
    """
    header, extent = unpack_header(head)
    check_name(header, expect_key, expect_generation)
    if extent.payload_offset != len(head) or extent.stored_bytes != header.raw_bytes:
        return None
    table = checked_table_bytes(head, header, extent)
    # The codecs alone: unpacking the whole table would take as long as everything else that a promotion does in Python.
    return RawHead(header, extent, table) if is_raw(table, extent.sections, extent.names_bytes) else None


def section_checks(head: RawHead, sections: Sequence[Section]) -> SectionChecks:
    """What the table says of single sections. CorruptFrame where they are not those of the layout."""
    table = unpack_table(head.table, head.extent.sections, head.extent.names_bytes)
    if table.raw_sizes != raw_sizes(sections):
        raise CorruptFrame("the frame's sections are not those of its layout")
    return SectionChecks(tuple(accumulate(table.raw_sizes, initial=0)), table.checksums)


def verify_payload(head: RawHead, pieces: Sequence[memoryview]) -> None:
    """That these are the object's bytes, in order, cut anywhere. CorruptFrame."""
    if content_checksum(pieces) != head.header.content:
        raise CorruptFrame(f"object {head.header.prefix[:4].hex()} fails its content checksum")


def verify_sections(checks: SectionChecks, payload: memoryview, first: int, end: int) -> None:
    """That sections [first, end) of the object in `payload` are whole; what lies around them may be anything yet."""
    edges, checksums = checks
    for index in range(first, end):
        if xxhash.xxh3_64_intdigest(payload[edges[index] : edges[index + 1]]) != checksums[index]:
            raise CorruptFrame(f"section {index} of {len(checksums)} fails its checksum")
