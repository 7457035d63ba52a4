"""Reads every frame of a folder that no daemon holds, and compares the manifest with what is there.

Changes nothing. For `kvstore check`; also the oracle of crash tests. The caller holds the folder's lock.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from kvstore.codec.frame import HEADER_BYTES, decode_frame, peek_header, peek_length
from kvstore.codec.frame_header import MAGIC
from kvstore.core.errors import CorruptFrame
from kvstore.core.keys import PAGE_BYTES, BlockKey
from kvstore.tiers import segment as segments
from kvstore.tiers.buffers import Buffers
from kvstore.tiers.folder import load_namespaces
from kvstore.tiers.manifest import FILE_NAME
from kvstore.tiers.manifest_child import read_manifest
from kvstore.tiers.manifest_record import ManifestEntry
from kvstore.tiers.rebuild import entry_of
from kvstore.tiers.segment import SegmentHeader


@dataclass(frozen=True, slots=True)
class BadFrame:
    """A frame that the manifest promises, or that would be rebuilt, and that does not verify."""

    segment: int
    page: int  # within the segment
    prefix: str  # first 8 hex digits of the key
    problem: str


@dataclass(slots=True)
class Verification:
    """What was found. Damage is what `problems` and `bad` say; orphans and leftovers are what crashes and evictions
    leave behind, and harmless."""

    segments: int = 0
    slots: int = 0
    entries: int = 0  # of the manifest
    whole: int = 0  # frames of the manifest that verify
    raw_bytes: int = 0  # of these objects
    orphans: int = 0  # whole frames that the manifest does not name
    leftovers: int = 0  # unfinished or partly overwritten ones
    bad: list[BadFrame] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def is_clean(self) -> bool:
        return not self.bad and not self.problems


def verify_folder(folder: Path, progress: Callable[[int, int], None] = lambda done, slots: None) -> Verification:
    """Verify everything; `progress` is told how many of all slots are done. OSError where names cannot be read."""
    found = Verification()
    found.problems += load_namespaces(folder)[1]
    by_page = _manifest(folder, found)
    headers = list(_headers(folder, found))
    found.slots = sum(len(header.slot_starts()) for header in headers)
    buffers, done = Buffers(), 0
    for header in headers:
        fd = os.open(segments.path_of(folder, header.segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            for start in header.slot_starts():
                entry = by_page.pop(header.segment * header.segment_pages + start, None) if by_page else None
                _verify_slot(found, buffers, fd, header, start, entry, is_indexed=by_page is not None)
                done += 1
                progress(done, found.slots)
        finally:
            os.close(fd)
    pages = headers[0].segment_pages if headers else 1
    for entry in (by_page or {}).values():
        segment, start = divmod(entry.page, pages)
        found.bad.append(BadFrame(segment, start, _short(entry.key), "no slot of a usable segment begins here"))
    return found


def _manifest(folder: Path, found: Verification) -> dict[int, ManifestEntry] | None:
    """Entries by page; None where there is no manifest to believe."""
    path = folder / FILE_NAME
    if not path.exists():
        if segments.segments_in(folder):
            found.problems.append("the manifest is missing: the next start of the daemon rebuilds it")
        return None
    try:
        entries = read_manifest(path).entries
    except CorruptFrame as problem:
        found.problems.append(f"{problem}: the next start of the daemon rebuilds it")
        return None
    found.entries = len(entries)
    by_page = {entry.page: entry for entry in sorted(entries, key=lambda entry: entry.generation)}
    if len(by_page) < len(entries):
        found.problems.append(f"{len(entries) - len(by_page)} entries of the manifest share a page with a newer one")
    return by_page


def _headers(folder: Path, found: Verification) -> Iterator[SegmentHeader]:
    for number, path in segments.segments_in(folder).items():
        found.segments += 1
        try:
            header = segments.read_header_of(path, number)
        except (CorruptFrame, OSError) as problem:
            found.problems.append(f"{problem}: its frames cannot be reached")
            continue
        missing = header.segment_pages * PAGE_BYTES - path.stat().st_size
        if missing > 0:
            found.problems.append(f"segment {number} is cut off: {missing} bytes are missing")
        yield header


def _verify_slot(
    found: Verification,
    buffers: Buffers,
    fd: int,
    header: SegmentHeader,
    start: int,
    entry: ManifestEntry | None,
    *,
    is_indexed: bool,
) -> None:
    slot_bytes = header.slot_pages * PAGE_BYTES
    key = entry.key if entry is not None else None
    try:
        head = os.pread(fd, HEADER_BYTES, start * PAGE_BYTES)
        if entry is None:
            if not head.startswith(MAGIC):
                return  # never used, or erased
            key = peek_header(head).key
        length = peek_length(head)
        if length > slot_bytes:
            raise CorruptFrame(f"the frame has {length} bytes, its slot {slot_bytes}")
        frame = buffers.take(length)
        segments.read_into(fd, [frame], start * PAGE_BYTES, length)
        decoded = decode_frame(frame, key or peek_header(head).key)
        page = header.segment * header.segment_pages + start
        if entry is not None and entry != entry_of(decoded.header, page, length, entry.last_used):
            raise CorruptFrame("the manifest describes another frame")
    except (CorruptFrame, OSError) as problem:
        if entry is None and (is_indexed or key is None):
            found.leftovers += 1
        else:
            found.bad.append(BadFrame(header.segment, start, _short(key), str(problem)))
        return
    if entry is None:
        found.orphans += 1
    else:
        found.whole += 1
        found.raw_bytes += decoded.header.raw_bytes


def _short(key: BlockKey | None) -> str:
    return key.prefix[:4].hex() if key is not None else "unknown"
