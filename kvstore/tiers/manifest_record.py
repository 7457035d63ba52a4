"""One entry of the manifest, and its bytes: the key is prefix and group, the value everything else and a checksum.

LMDB has no checksums of its own (1 flipped bit gave wrong bytes in 47 of 60 databases, RELIABILITY section 2), so
each value carries xxh3_128 over key and value. Pure.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import xxhash

from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import CHECKSUM_BYTES, HASH_BYTES, BlockKey

VERSION = 1
KEY_BYTES = HASH_BYTES + 1
_VALUE = struct.Struct("<BBBxIQQQQdd32s32s32s16s16s16s16s")
VALUE_BYTES = _VALUE.size + CHECKSUM_BYTES
_USED = struct.Struct("<d")
USED_BYTES = _USED.size + 8
_GENERATION = struct.Struct("<Q")


class ManifestEntry(NamedTuple):
    """Where one frame lies on disk, and what its header says, so that a start need not read the frames."""

    prefix: bytes
    group: int
    page: int  # tier-wide number of the slot's first page
    frame_bytes: int
    generation: int
    parent: bytes
    block: int
    lineage: bytes
    parent_lineage: bytes
    content: bytes
    namespace: bytes
    fingerprint: bytes
    raw_bytes: int
    written_at: float  # unix seconds
    last_used: float  # unix seconds
    writer: bytes
    object_class: int
    ttl_seconds: float | None

    @property
    def key(self) -> BlockKey:
        return BlockKey(self.prefix, self.group)


def pack_key(key: BlockKey) -> bytes:
    return key.prefix + bytes((key.group,))


def pack_entry(entry: ManifestEntry) -> tuple[bytes, bytes]:
    """Key and value. `last_used` is kept apart (`pack_used`), because it changes and the rest does not."""
    key = entry.prefix + bytes((entry.group,))
    has_ttl = entry.ttl_seconds is not None
    value = _VALUE.pack(
        VERSION, entry.object_class, has_ttl, entry.frame_bytes, entry.page, entry.generation, entry.block,
        entry.raw_bytes, entry.written_at, entry.ttl_seconds or 0.0, entry.parent, entry.namespace, entry.fingerprint,
        entry.lineage, entry.parent_lineage, entry.content, entry.writer,
    )  # fmt: skip
    return key, value + xxhash.xxh3_128_digest(key + value)


def unpack_entry(key: bytes, value: bytes, last_used: float | None) -> ManifestEntry:
    """The entry; used when written where `last_used` is not known. CorruptFrame if it is not one of ours."""
    if len(key) != KEY_BYTES or len(value) != VALUE_BYTES:
        raise CorruptFrame("a manifest record has the wrong length")
    if xxhash.xxh3_128_digest(key + value[: _VALUE.size]) != value[_VALUE.size :]:
        raise CorruptFrame("a manifest record fails its checksum")
    (
        version, object_class, has_ttl, frame_bytes, page, generation, block, raw_bytes, written_at, ttl_seconds,
        parent, namespace, fingerprint, lineage, parent_lineage, content, writer,
    ) = _VALUE.unpack_from(value)  # fmt: skip
    if version != VERSION:
        raise CorruptFrame(f"a manifest record has format version {version}, this kvstore reads version {VERSION}")
    return ManifestEntry(
        key[:HASH_BYTES], key[HASH_BYTES], page, frame_bytes, generation, parent, block, lineage, parent_lineage,
        content, namespace, fingerprint, raw_bytes, written_at, written_at if last_used is None else last_used,
        writer, object_class, ttl_seconds if has_ttl else None,
    )  # fmt: skip


def pack_used(key: bytes, last_used: float) -> bytes:
    packed = _USED.pack(last_used)
    return packed + xxhash.xxh3_64_digest(key + packed)


def unpack_used(key: bytes, value: bytes) -> float | None:
    """None if it does not verify: recency is a hint, losing one is no reason to distrust the rest."""
    if len(value) != USED_BYTES or xxhash.xxh3_64_digest(key + value[: _USED.size]) != value[_USED.size :]:
        return None
    return float(_USED.unpack_from(value)[0])


def pack_generation(generation: int) -> bytes:
    packed = _GENERATION.pack(generation)
    return packed + xxhash.xxh3_64_digest(packed)


def unpack_generation(value: bytes) -> int:
    """CorruptFrame if it does not verify."""
    packed, checksum = value[: _GENERATION.size], value[_GENERATION.size :]
    if len(packed) != _GENERATION.size or xxhash.xxh3_64_digest(packed) != checksum:
        raise CorruptFrame("the manifest's generation mark fails its checksum")
    return int(_GENERATION.unpack(packed)[0])
