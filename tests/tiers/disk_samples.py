"""A small disk tier and objects whose bytes anyone can make again from their number."""

from __future__ import annotations

import hashlib
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvstore.codec.frame import FrameHeader, decode_frame, encode_frame, max_frame_bytes
from kvstore.codec.lossless import Codec
from kvstore.core.checksum import Buffer, content_checksum
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.layout import Group, GroupKind, Section
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.manifest_record import ManifestEntry
from kvstore.tiers.rebuild import entry_of

GROUP = Group(
    "rows", GroupKind.ROWS, (Section(0, "main", 4, 100, 8), Section(1, "main", 4, 100), Section(1, "k", 1, 9))
)
SEGMENT_PAGES = 8
SEGMENTS = 6


def noise(name: str, nbytes: int) -> bytes:
    return hashlib.shake_128(name.encode()).digest(nbytes)


def open_tier(folder: Path, segments: int = SEGMENTS) -> DiskTier:
    return DiskTier.open(folder, segments * SEGMENT_PAGES * PAGE_BYTES, SEGMENT_PAGES * PAGE_BYTES)


def raw_of(number: int) -> bytes:
    return noise(f"object {number}", GROUP.nbytes)


def header_of(number: int, generation: int | None = None, **changes: object) -> FrameHeader:
    fields: dict[str, object] = {
        "kind": GROUP.kind,
        "group": 0,
        "prefix": noise(f"prefix {number}", 32),
        "parent": noise(f"prefix {number - 1}", 32),
        "namespace": noise("namespace", 32),
        "fingerprint": noise("fingerprint", 32),
        "block": number,
        "generation": number + 1 if generation is None else generation,
        "lineage": noise(f"lineage {number}", 16),
        "parent_lineage": noise(f"lineage {number - 1}", 16),
        "content": content_checksum([raw_of(number)]),
        "written_at": 1790000000.0 + number,
        "writer": noise("writer", 16),
        "object_class": 1,
        "ttl_seconds": 60.0 if number % 2 else None,
        "raw_bytes": GROUP.nbytes,
    }
    return FrameHeader(**{**fields, **changes})  # type: ignore[arg-type]


def frame_of(header: FrameHeader) -> list[Buffer]:
    return encode_frame(header, GROUP.sections, [memoryview(raw_of(header.block))], lambda section: Codec.RAW)


def page_of(slot: int) -> int:
    """Slots of one page: seven in each segment, behind its header."""
    segment, index = divmod(slot, SEGMENT_PAGES - 1)
    return segment * SEGMENT_PAGES + 1 + index


def entry_for(number: int, page: int | None = None, generation: int | None = None) -> ManifestEntry:
    page = page_of(number) if page is None else page
    return entry_of(
        header_of(number, generation), page, max_frame_bytes(GROUP.sections), last_used=1800000000.0 + number
    )


def put(tier: DiskTier, *numbers: int) -> list[ManifestEntry]:
    """The order of DESIGN section 8: slots, data, sync, manifest."""
    entries = [entry_for(number) for number in numbers]
    touched = {entry.page // tier.segment_pages for entry in entries}
    for segment in sorted(touched):
        if segment not in tier.slot_pages:
            tier.assign(segment, 1)
    for entry in entries:
        tier.write(entry.page, frame_of(header_of(entry.block)))
    tier.sync(touched)
    tier.manifest.commit(entries, [])
    return entries


@contextmanager
def failing(monkeypatch, name: str, code: int, first: int, last: int = 10**9) -> Iterator[None]:
    """os.`name` fails with `code` from call number `first` to `last`, counted from 1."""
    calls, real = [0], getattr(os, name)

    def call(*arguments):
        calls[0] += 1
        if first <= calls[0] <= last:
            raise OSError(code, os.strerror(code))
        return real(*arguments)

    with monkeypatch.context() as patch:
        patch.setattr(os, name, call)
        yield


@contextmanager
def file_size_limit(nbytes: int) -> Iterator[None]:
    """No file of this process can grow beyond `nbytes`: what a full device looks like, without one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (nbytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def read(tier: DiskTier, entry: ManifestEntry) -> bytes:
    """The object's bytes, verified. CorruptFrame, TierFault."""
    frame = tier.read(entry.page, entry.frame_bytes)
    return b"".join(decode_frame(frame, entry.key, entry.generation).pieces)
