"""The first bytes of a frame: whose bytes these are, and where its parts lie. Verified by a checksum of its own.

Enough for a rebuild of the manifest, which reads headers only. Drawn byte by byte in ARCHITECTURE.md. Pure; any
thread; little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import NamedTuple

import xxhash

from kvstore.codec.section_table import RECORD_BYTES
from kvstore.core.checksum import Buffer
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import BlockKey
from kvstore.core.layout import MAX_OBJECT_BYTES, GroupKind

MAGIC = b"KVFRAME\x1a"
VERSION = 1
_HEADER = struct.Struct("<8sHBBBBHIIIIQQQQdd16s16s16s16s32s32s32s32s16s")
HEADER_BYTES = _HEADER.size + 16  # the header's own xxh3_128 is last
_KINDS = (GroupKind.ROWS, GroupKind.STATE)
_HAS_TTL = 1


@dataclass(frozen=True, slots=True)
class FrameHeader:
    """What a frame says about its object. Hashes 32 bytes; lineages, content and writer 16."""

    kind: GroupKind
    group: int
    prefix: bytes
    parent: bytes
    namespace: bytes
    fingerprint: bytes
    block: int
    generation: int
    lineage: bytes
    parent_lineage: bytes
    content: bytes  # xxh3_128 of the raw object
    written_at: float  # unix seconds
    writer: bytes
    object_class: int
    ttl_seconds: float | None
    raw_bytes: int

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.prefix, self.group)


class Extent(NamedTuple):
    """Where the parts of a frame lie. Offsets from its first byte."""

    sections: int
    names_bytes: int
    payload_offset: int
    stored_bytes: int
    table_checksum: bytes


def peek_header(buffer: Buffer) -> FrameHeader:
    """The verified header in the first HEADER_BYTES of a frame; payload and table are not looked at. CorruptFrame."""
    return unpack_header(memoryview(buffer))[0]


def peek_length(buffer: Buffer) -> int:
    """Bytes of the whole frame, from its first HEADER_BYTES. CorruptFrame."""
    extent = unpack_header(memoryview(buffer))[1]
    return extent.payload_offset + extent.stored_bytes


def pack_header(header: FrameHeader, extent: Extent) -> bytes:
    """HEADER_BYTES bytes."""
    has_ttl = header.ttl_seconds is not None
    packed = _HEADER.pack(
        MAGIC, VERSION, _KINDS.index(header.kind), header.group, header.object_class, _HAS_TTL if has_ttl else 0, 0,
        extent.sections, extent.names_bytes, extent.payload_offset, 0, header.raw_bytes, extent.stored_bytes,
        header.block, header.generation, header.written_at, header.ttl_seconds or 0.0, header.writer, header.lineage,
        header.parent_lineage, header.content, header.prefix, header.parent, header.namespace, header.fingerprint,
        extent.table_checksum,
    )  # fmt: skip
    return packed + xxhash.xxh3_128_digest(packed)


def unpack_header(frame: memoryview) -> tuple[FrameHeader, Extent]:
    """Both, after every check that the header allows by itself. CorruptFrame says what does not fit."""
    if len(frame) < HEADER_BYTES:
        raise CorruptFrame(f"a frame begins with {HEADER_BYTES} bytes of header, here are {len(frame)}")
    (
        magic, version, kind, group, object_class, flags, _, sections, names_bytes, payload_offset, _, raw_bytes,
        stored_bytes, block, generation, written_at, ttl_seconds, writer, lineage, parent_lineage, content, prefix,
        parent, namespace, fingerprint, table_checksum,
    ) = _HEADER.unpack_from(frame)  # fmt: skip
    if magic != MAGIC:
        raise CorruptFrame("no frame begins here")
    if version != VERSION:
        raise CorruptFrame(f"the frame has format version {version}, this kvstore reads version {VERSION}")
    if xxhash.xxh3_128_digest(frame[: _HEADER.size]) != frame[_HEADER.size : HEADER_BYTES]:
        raise CorruptFrame("the frame's header fails its checksum")
    table_end = HEADER_BYTES + names_bytes + sections * RECORD_BYTES
    if kind >= len(_KINDS) or table_end > payload_offset or not 0 < stored_bytes <= raw_bytes <= MAX_OBJECT_BYTES:
        raise CorruptFrame("the frame's header contradicts itself")
    header = FrameHeader(
        _KINDS[kind], group, prefix, parent, namespace, fingerprint, block, generation, lineage, parent_lineage,
        content, written_at, writer, object_class, ttl_seconds if flags & _HAS_TTL else None, raw_bytes,
    )  # fmt: skip
    return header, Extent(sections, names_bytes, payload_offset, stored_bytes, table_checksum)
