"""Objects with bytes that anyone can make again: SHAKE-128 of a name."""

from __future__ import annotations

import hashlib
from itertools import pairwise

from kvstore.codec.frame import FrameHeader
from kvstore.codec.lossless import Codec
from kvstore.core.checksum import content_checksum
from kvstore.core.layout import Group, Section

TABLE_OFFSET = 304  # as ARCHITECTURE.md draws it


def noise(name: str, nbytes: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(nbytes)


def header_of(group: Group, raw: bytes, **changes: object) -> FrameHeader:
    fields: dict[str, object] = {
        "kind": group.kind,
        "group": 0 if group.name == "rows" else 1,
        "prefix": noise("prefix", 32),
        "parent": noise("parent", 32),
        "namespace": noise("namespace", 32),
        "fingerprint": noise("fingerprint", 32),
        "block": 18,
        "generation": 7,
        "lineage": noise("lineage", 16),
        "parent_lineage": noise("parent lineage", 16),
        "content": content_checksum([raw]),
        "written_at": 1790000000.25,
        "writer": noise("writer", 16),
        "object_class": 2,
        "ttl_seconds": None,
        "raw_bytes": len(raw),
    }
    return FrameHeader(**{**fields, **changes})  # type: ignore[arg-type]


def sections_of(group: Group, raw: bytes | bytearray) -> list[memoryview]:
    edges = group.offsets()
    view = memoryview(raw)
    return [view[start:end] for start, end in pairwise(edges)]


def all_raw(section: Section) -> Codec:
    return Codec.RAW


def all_zstd(section: Section) -> Codec:
    return Codec.ZSTD
