"""What a disk folder holds when it is opened. Trusts nothing: a manifest that is not whole is set aside.

The manifest gives the entries if a child process can read it to its end and every record verifies, and a sample of
frames agrees with it; else the segments' headers give them. Either way the daemon goes on with a new manifest file
(see `manifest.py`). Bytes are verified when they are read. Called once, at start, from the opening thread.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal

from kvstore.core.errors import CorruptFrame, OperatorError, TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers import segment as segments
from kvstore.tiers.folder import SavedNamespace, load_namespaces
from kvstore.tiers.manifest import FILE_NAME, MAP_BYTES, Manifest
from kvstore.tiers.manifest_child import read_manifest
from kvstore.tiers.manifest_record import ManifestEntry
from kvstore.tiers.rebuild import entry_at, newest, scan_segments
from kvstore.tiers.segment import SegmentHeader

SAMPLED_FRAMES = 32  # headers compared with the manifest at start; 100 us each from a cold disk
# Generations of frames that were written and never committed are on no record: each start begins beyond all that one
# run can have given out. (A rebuild sees every frame there is.)
GENERATION_LEAP = 1 << 32
SET_ASIDE_KEPT = 3  # bad manifests kept for whoever wants to look


@dataclass(frozen=True, slots=True)
class Recovered:
    """Contents of a folder. Entries in an order in which parents come before children."""

    entries: list[ManifestEntry]
    namespaces: list[SavedNamespace]
    slot_pages: dict[int, int]  # of each segment that is assigned
    next_generation: int  # no frame on this disk has a generation from here on
    source: Literal["manifest", "rebuilt"]  # an empty folder counts as "manifest"
    problems: list[str]  # one plain sentence each, for the log


def recover(
    folder: Path,
    segment_pages: int,
    segment_count: int,
    *,
    map_bytes: int = MAP_BYTES,
    limit_seconds: float | None = None,
) -> tuple[Recovered, Manifest]:
    """What is in the folder, and a manifest that says so, open for writing.

    Segments beyond the capacity or of another size are deleted: the operator gave the tier less room. Never raises
    for damage. OperatorError where the folder cannot be read, TierFault where the manifest cannot be written.
    """
    try:
        headers, problems = _usable_segments(folder, segment_pages, segment_count)
        namespaces, unreadable = load_namespaces(folder)
        problems += unreadable
        entries, next_generation, source = _entries(folder, headers, problems, limit_seconds)
    except OSError as error:
        raise OperatorError(f"disk folder {folder} cannot be read: {error.strerror}; check the device") from error
    entries = newest(entries)
    with_slots = {number: header.slot_pages for number, header in headers.items()}
    recovered = Recovered(entries, namespaces, with_slots, next_generation, source, problems)
    return recovered, _new_manifest(folder, recovered, map_bytes)


def _new_manifest(folder: Path, recovered: Recovered, map_bytes: int) -> Manifest:
    try:
        return Manifest.create(folder, recovered.entries, recovered.next_generation, map_bytes)
    except TierFault as fault:
        # on a full device the old file's room is what the new one needs; a crash now costs a rebuild
        (folder / FILE_NAME).unlink(missing_ok=True)
        recovered.problems.append(f"{fault}; trying again without keeping the old one meanwhile")
        return Manifest.create(folder, recovered.entries, recovered.next_generation, map_bytes)


def _usable_segments(
    folder: Path, segment_pages: int, segment_count: int
) -> tuple[dict[int, SegmentHeader], list[str]]:
    headers, problems = {}, []
    for number, path in segments.segments_in(folder).items():
        try:
            header = segments.read_header_of(path, number)
        except (CorruptFrame, OSError) as problem:  # the file stays: its room is used again once it has a new header
            problems.append(f"{problem}: what it held is lost")
            header = None
        if number >= segment_count or (header is not None and header.segment_pages != segment_pages):
            path.unlink()
            problems.append(f"segment {number} does not fit the disk tier as it is configured now: deleted")
        elif header is not None:
            headers[number] = header
    return headers, problems


def _entries(
    folder: Path, headers: dict[int, SegmentHeader], problems: list[str], limit_seconds: float | None
) -> tuple[Sequence[ManifestEntry], int, Literal["manifest", "rebuilt"]]:
    path = folder / FILE_NAME
    if not path.exists() and not headers:
        return [], 1, "manifest"
    try:
        if not path.exists():
            raise CorruptFrame("the manifest is missing")
        contents = read_manifest(path, limit_seconds)
        entries = [entry for entry in contents.entries if _is_on_a_slot(entry, headers)]
        _compare_sample(folder, entries, headers)
    except CorruptFrame as problem:
        problems.append(f"{problem}: the index was rebuilt from the segments")
        _set_aside(path)
        entries = list(scan_segments(folder, headers.values()))
        highest = max((entry.generation for entry in entries), default=0)
        return entries, highest + GENERATION_LEAP, "rebuilt"
    lost = len(contents.entries) - len(entries)
    entries = _without_overwritten(folder, entries, headers)
    if lost:
        problems.append(f"{lost} objects lay in segments that are gone or have other slots now: dropped")
    return entries, contents.next_generation + GENERATION_LEAP, "manifest"


def _is_on_a_slot(entry: ManifestEntry, headers: dict[int, SegmentHeader]) -> bool:
    """Whether the page is where a slot of that segment begins, and the frame fits in it."""
    if not headers:
        return False
    segment, start = divmod(entry.page, next(iter(headers.values())).segment_pages)
    header = headers.get(segment)
    return (
        header is not None and start in header.slot_starts() and 0 < entry.frame_bytes <= header.slot_pages * PAGE_BYTES
    )


def _compare_sample(folder: Path, entries: Sequence[ManifestEntry], headers: dict[int, SegmentHeader]) -> None:
    """CorruptFrame if a frame's header, of a few spread over all, is not what the manifest says.

    A manifest of another day, or of other segments, would otherwise turn every hit into a failed read. A single
    frame that was erased or damaged is no reason to distrust the rest: most of the sample must disagree.
    """
    step = max(1, len(entries) // SAMPLED_FRAMES)
    sample = list(islice(entries, 0, None, step))
    wrong = sum(not _lies_there(folder, entry, headers) for entry in sample)
    if 2 * wrong > len(sample):
        raise CorruptFrame(f"{wrong} of {len(sample)} frames are not what the manifest says")


def _without_overwritten(
    folder: Path, entries: Sequence[ManifestEntry], headers: dict[int, SegmentHeader]
) -> list[ManifestEntry]:
    """Of entries on one page, the one whose frame lies there; no generation can tell.

    A slot is given out again when its object is dropped, and the new frame may be committed just before the drop is.
    """
    claims = Counter(entry.page for entry in entries)
    return [entry for entry in entries if claims[entry.page] == 1 or _lies_there(folder, entry, headers)]


def _lies_there(folder: Path, entry: ManifestEntry, headers: dict[int, SegmentHeader]) -> bool:
    """Whether the frame's header on disk is of this object and generation. OSError."""
    segment, start = divmod(entry.page, next(iter(headers.values())).segment_pages)
    fd = os.open(segments.path_of(folder, segment), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = entry_at(fd, headers[segment], start)
    finally:
        os.close(fd)
    return found is not None and (found.key, found.generation) == (entry.key, entry.generation)


def _set_aside(path: Path) -> None:
    """Rename a bad manifest, so that a person can look at it; the oldest ones go."""
    if not path.exists():
        return
    suffixes = (old.name.removeprefix("manifest.bad-") for old in path.parent.glob("manifest.bad-*"))
    numbers = sorted(int(suffix) for suffix in suffixes if suffix.isdecimal())
    path.rename(path.with_name(f"manifest.bad-{numbers[-1] + 1 if numbers else 1}"))
    for number in numbers[: len(numbers) + 1 - SET_ASIDE_KEPT]:
        path.with_name(f"manifest.bad-{number}").unlink(missing_ok=True)
