"""One object as it lies on disk or with a remote store: header, section table, payload, each with a checksum.

A frame describes itself: whose bytes these are, how each section is encoded, and checksums of everything. The
payload of a frame whose sections are all raw is the object's bytes, unchanged and in order, and starts on a page
where the object is large, so that a reader can go straight from the device into memory slots. The format is drawn
byte by byte in ARCHITECTURE.md; golden files are in tests/codec/golden. Pure; any thread; little-endian.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, pairwise
from typing import NamedTuple

import xxhash

from kvstore.codec import lossless
from kvstore.codec.frame_header import (
    HEADER_BYTES,
    Extent,
    FrameHeader,
    pack_header,
    peek_header,
    peek_length,
    unpack_header,
)
from kvstore.codec.lossless import Codec
from kvstore.codec.section_table import (
    SectionRecord,
    Table,
    pack_table,
    raw_sizes,
    table_bytes,
    unpack_table,
)
from kvstore.core.checksum import Buffer, content_checksum
from kvstore.core.errors import CorruptFrame, InvalidInput
from kvstore.core.keys import PAGE_BYTES, BlockKey
from kvstore.core.layout import Section

__all__ = [
    "HEADER_BYTES",
    "DecodedFrame",
    "FrameHeader",
    "cut",
    "decode_frame",
    "encode_frame",
    "max_frame_bytes",
    "peek_header",
    "peek_length",
    "read_sections",
]

PAGE_ALIGNED_FROM = 64 << 10  # raw bytes; copies between equal offsets in a page are up to 10x faster from here on
SMALL_ALIGNMENT = 64  # a cache line: frames smaller than that spend no page on their header


class DecodedFrame(NamedTuple):
    """A verified frame. `pieces` hold the object in byte order: the caller's, or one writable buffer, which is a
    slice of the frame itself if every section is raw."""

    header: FrameHeader
    pieces: Sequence[memoryview]


def encode_frame(
    header: FrameHeader,
    sections: Sequence[Section],
    pieces: Sequence[memoryview],
    codec_of: Callable[[Section], Codec],
) -> list[Buffer]:
    """Buffers that, written one after another, are the frame. Raw sections are not copied: `pieces` are among them.

    `pieces` are the raw object in byte order, cut anywhere. CorruptFrame if they no longer match `header.content`
    (bytes are verified on every tier crossing, on the way down too); InvalidInput if their length is wrong.
    """
    sizes = raw_sizes(sections)
    raw_bytes = sum(sizes)
    if sum(piece.nbytes for piece in pieces) != raw_bytes or header.raw_bytes != raw_bytes:
        raise InvalidInput(f"the pieces of this object must add up to {raw_bytes} bytes, as its header must say")
    if content_checksum(pieces) != header.content:
        raise CorruptFrame(f"object {_short(header.prefix)} changed in memory: its checksum no longer matches")
    parts_of = cut(pieces, sizes)
    codecs, payload = [Codec.RAW] * len(sizes), list[Buffer]()
    for index, section in enumerate(sections):
        wanted = codec_of(section)
        if wanted is not Codec.RAW:
            codecs[index], stored = lossless.encode(wanted, _joined(parts_of[index]))
            parts_of[index] = [memoryview(stored)]
        payload += parts_of[index]
    stored_sizes = [sum(map(len, parts)) for parts in parts_of] if any(codecs) else sizes
    names_bytes, table = pack_table(sections, codecs, stored_sizes, [_xxh3_64(parts) for parts in parts_of])
    payload_offset = _payload_offset(len(table), raw_bytes)
    table += bytes(payload_offset - HEADER_BYTES - len(table))
    extent = Extent(len(sizes), names_bytes, payload_offset, sum(stored_sizes), xxhash.xxh3_128_digest(table))
    head = pack_header(header, extent) + table
    return [head, *payload] if any(codecs) else [head, *pieces]  # the caller may have cut coarser than sections


def decode_frame(
    frame: memoryview,
    expect_key: BlockKey,
    expect_generation: int | None = None,
    into: Sequence[memoryview] | None = None,
) -> DecodedFrame:
    """The object in a frame, after every check: header, table, sections, content, and that it is the one expected.

    `into` are the caller's writable pieces, in byte order, cut anywhere; they get one copy, and may hold anything
    after an error. Bytes behind the frame's end are ignored. CorruptFrame says what does not fit.
    """
    header, extent = unpack_header(frame)
    check_name(header, expect_key, expect_generation)
    if into is not None and sum(piece.nbytes for piece in into) != header.raw_bytes:
        raise CorruptFrame(f"the frame holds {header.raw_bytes} bytes, which is not what its object should have")
    payload = _payload(frame, extent)
    table = _checked_table(frame, header, extent)
    if into is None:
        into = [payload if table.is_raw else memoryview(bytearray(header.raw_bytes))]
    if not table.is_raw:
        _copy(map(lossless.decode, map(Codec, table.codecs), _verified_sections(payload, table), table.raw_sizes), into)
    elif into[0] is not payload:
        _copy([payload], into)
    # Over the destination, so that the copy is covered too. Of raw sections it covers every byte: their own checksums
    # are for who reads a part, and would cost a second pass here.
    if content_checksum(into) != header.content:
        _verified_sections(payload, table)  # says which section it was, if it was one
        raise CorruptFrame(f"object {_short(header.prefix)} fails its content checksum")
    return DecodedFrame(header, into)


def read_sections(frame: memoryview) -> list[SectionRecord]:
    """The section table of a frame, verified; for tools that show it. CorruptFrame."""
    header, extent = unpack_header(frame)
    _payload(frame, extent)
    return _checked_table(frame, header, extent).records()


def max_frame_bytes(sections: Sequence[Section]) -> int:
    """Length of a frame of these sections at most: that of a raw one, for a codec that gains nothing is not used."""
    raw_bytes = sum(raw_sizes(sections))
    return _payload_offset(table_bytes(sections), raw_bytes) + raw_bytes


def cut(pieces: Sequence[memoryview], sizes: Sequence[int]) -> list[list[memoryview]]:
    """The same bytes, cut into runs of `sizes` bytes; a run has several views where `pieces` are cut inside it."""
    if len(pieces) == len(sizes) and all(piece.nbytes == size for piece, size in zip(pieces, sizes, strict=True)):
        return [[piece] for piece in pieces]
    runs, rest, source = [], memoryview(b""), iter(pieces)
    for size in sizes:
        run = []
        while size:
            if not rest:
                rest = next(source)
                continue
            run.append(rest[:size])
            rest, size = rest[size:], size - len(run[-1])
        runs.append(run)
    return runs


def _payload_offset(table_bytes: int, raw_bytes: int) -> int:
    alignment = PAGE_BYTES if raw_bytes >= PAGE_ALIGNED_FROM else SMALL_ALIGNMENT
    return -(-(HEADER_BYTES + table_bytes) // alignment) * alignment


def check_name(header: FrameHeader, expect_key: BlockKey, expect_generation: int | None) -> None:
    """That this is the header of the expected object. CorruptFrame."""
    if header.key != expect_key:
        raise CorruptFrame(f"expected object {_short(expect_key.prefix)}, found {_short(header.prefix)}")
    if expect_generation is not None and header.generation != expect_generation:
        raise CorruptFrame(f"expected generation {expect_generation}, found {header.generation}")


def checked_table_bytes(frame: memoryview, header: FrameHeader, extent: Extent) -> memoryview:
    """The section table and its padding as they lie in the frame. CorruptFrame where their checksum fails."""
    table_and_padding = frame[HEADER_BYTES : extent.payload_offset]
    if xxhash.xxh3_128_digest(table_and_padding) != extent.table_checksum:
        raise CorruptFrame(f"the section table of {_short(header.prefix)} fails its checksum")
    return table_and_padding


def _checked_table(frame: memoryview, header: FrameHeader, extent: Extent) -> Table:
    table_and_padding = checked_table_bytes(frame, header, extent)
    table = unpack_table(table_and_padding, extent.sections, extent.names_bytes)
    if sum(table.raw_sizes) != header.raw_bytes or sum(table.stored_sizes) != extent.stored_bytes:
        raise CorruptFrame(f"the sections of {_short(header.prefix)} do not add up")
    return table


def _payload(frame: memoryview, extent: Extent) -> memoryview:
    end = extent.payload_offset + extent.stored_bytes
    if len(frame) < end:
        raise CorruptFrame(f"the frame has {end} bytes, only {len(frame)} are here")
    return frame[extent.payload_offset : end]


def _verified_sections(payload: memoryview, table: Table) -> list[memoryview]:
    edges = list(accumulate(table.stored_sizes, initial=0))
    stored = [payload[start:end] for start, end in pairwise(edges)]
    if (*map(xxhash.xxh3_64_intdigest, stored),) != table.checksums:
        bad = next(i for i, part in enumerate(stored) if xxhash.xxh3_64_intdigest(part) != table.checksums[i])
        raise CorruptFrame(f"section {bad} of {len(stored)} fails its checksum")
    return stored


def _copy(sources: Iterable[Buffer], target: Sequence[memoryview]) -> None:
    """Copy all of `sources` over all of `target`, which add up to the same length but may be cut differently."""
    room, rest = iter(target), memoryview(b"")
    for source in sources:
        view = memoryview(source)
        while view:
            if not rest:
                rest = next(room)
                continue
            length = min(len(rest), len(view))
            rest[:length] = view[:length]
            rest, view = rest[length:], view[length:]


def _joined(parts: Sequence[memoryview]) -> memoryview:
    return parts[0] if len(parts) == 1 else memoryview(b"".join(parts))


def _xxh3_64(parts: Sequence[memoryview]) -> int:
    if len(parts) == 1:
        return int(xxhash.xxh3_64_intdigest(parts[0]))
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return int(state.intdigest())


def _short(prefix: bytes) -> str:
    return prefix[:4].hex()
