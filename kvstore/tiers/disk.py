"""The disk tier: segment files of recycled slots, and a manifest that says what lies in them.

Owns the folder: lock file, segments, manifest, names of namespaces. Decides nothing: which slot is free and what to
drop is the planner's. Methods may be called from several threads, as long as no two touch the same slot and
`assign` has a segment to itself. The order that makes a crash harmless is the caller's to keep: write, sync, then
`manifest.commit`.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from kvstore.core.checksum import Buffer
from kvstore.core.errors import CorruptFrame, OperatorError, TierFault
from kvstore.core.keys import PAGE_BYTES
from kvstore.tiers import segment as segments
from kvstore.tiers.buffers import Buffers
from kvstore.tiers.direct import DirectFiles, is_cached
from kvstore.tiers.folder import lock_folder, make_folder, sync_folder
from kvstore.tiers.manifest import Manifest
from kvstore.tiers.manifest_record import ManifestEntry
from kvstore.tiers.recover import Recovered, recover
from kvstore.tiers.segment import SegmentHeader

MAX_SEGMENTS = 256  # each is up to two open files; the usual soft limit of a process is 1,024
_ZERO_PAGE = bytes(PAGE_BYTES)


class DiskTier:
    """An open disk folder. `recovered` is what it held when it was opened."""

    def __init__(self, folder: Path, lock: int, segment_pages: int, segment_count: int) -> None:
        self.folder = folder
        self.segment_pages = segment_pages
        self.segment_count = segment_count
        self.slot_pages: dict[int, int] = {}  # of each segment that is assigned
        self.bad_segments: set[int] = set()  # fdatasync failed once: what lies there is unknown until a restart
        self._lock = lock
        self._files: dict[int, int] = {}  # segment -> file descriptor
        self._buffers = Buffers()
        self._direct = DirectFiles(folder, self._buffers.take)
        self.recovered: Recovered
        self.manifest: Manifest

    @classmethod
    def open(cls, folder: Path, capacity_bytes: int, segment_bytes: int) -> DiskTier:
        """Take the folder, making it if need be, and recover what it holds.

        A folder that has segments keeps their size, whatever `segment_bytes` says now; capacity changes their
        number. FolderInUse, OperatorError (cannot be written; no room for one segment), TierFault.
        """
        make_folder(folder)
        lock = lock_folder(folder)
        try:
            wanted_pages = max(segment_bytes, -(-capacity_bytes // MAX_SEGMENTS)) // PAGE_BYTES
            segment_pages = _pages_in_use(folder, capacity_bytes) or wanted_pages
            segment_count = capacity_bytes // (segment_pages * PAGE_BYTES) if segment_pages else 0
            if segment_pages < 2 or not segment_count:
                raise OperatorError(
                    f"{capacity_bytes} bytes of disk hold no segment of {segment_bytes}: give the disk tier more bytes"
                )
            tier = cls(folder, lock, segment_pages, segment_count)
            tier.recovered, tier.manifest = recover(folder, segment_pages, segment_count)
            tier.slot_pages |= tier.recovered.slot_pages
        except BaseException:
            os.close(lock)
            raise
        return tier

    def assign(self, segment: int, slot_pages: int) -> None:
        """Give a segment that holds nothing slots of this size; makes the file, with all its room, if need be.

        Durable when it returns. TierFault where the device has no room or refuses.
        """
        assert 0 <= segment < self.segment_count and 0 < slot_pages < self.segment_pages
        self._refuse_bad(segment)
        self.slot_pages.pop(segment, None)
        header = SegmentHeader(segment, self.segment_pages, slot_pages, time.time())
        try:
            fd = self._create(segment)
            segments.write_all(fd, [segments.pack_header(header)], 0)
        except OSError as error:
            raise _fault("prepare", segment, error) from error
        self.sync([segment])
        self.slot_pages[segment] = slot_pages

    def write(self, page: int, buffers: Sequence[Buffer]) -> None:
        """Write a frame into the slot that starts at this page. Durable after `sync`. TierFault."""
        segment, start = divmod(page, self.segment_pages)
        self._refuse_bad(segment)
        nbytes = sum(memoryview(buffer).nbytes for buffer in buffers)
        slot_pages = self.slot_pages[segment]
        assert start % slot_pages == 1 % slot_pages and 0 < start <= self.segment_pages - slot_pages, (
            "a slot starts here"
        )
        assert nbytes <= slot_pages * PAGE_BYTES, "a frame fits its slot"
        try:
            segments.write_all(self._file(segment), buffers, start * PAGE_BYTES)
        except OSError as error:
            raise _fault("write to", segment, error) from error

    def sync(self, touched: Iterable[int]) -> None:
        """Make what was written to these segments durable. TierFault, after all have been tried.

        A segment that failed is bad until the process ends: the kernel has dropped the pages that it could not
        write and would report success the next time.
        """
        fault: TierFault | None = None
        for segment in dict.fromkeys(touched):
            try:
                self._refuse_bad(segment)
                os.fdatasync(self._file(segment))
            except OSError as error:
                self.bad_segments.add(segment)
                fault = _fault("sync", segment, error)
                fault.__cause__ = error
            except TierFault as error:
                fault = error
        if fault is not None:
            raise fault

    def read(self, page: int, nbytes: int) -> memoryview:
        """`nbytes` from this page on, unverified, in a recycled page-aligned buffer.

        The buffer stays the caller's while any view of it lives. CorruptFrame, TierFault, as `read_into`.
        """
        buffer = self.take(-(-nbytes // PAGE_BYTES) * PAGE_BYTES)
        self.read_into(page, 0, [buffer], nbytes)
        return buffer[:nbytes]

    def read_into(self, page: int, skip: int, pieces: Sequence[memoryview], needed: int) -> None:
        """Fill `pieces`, one after another, with what lies `skip` bytes behind this page, unverified.

        Each starts on a page in memory. Where `skip` and all lengths are whole pages too, bytes go straight from the
        device into them; otherwise they take a way through a buffer. CorruptFrame where the file has not even the
        first `needed` of these bytes, TierFault where the device refuses or the machine grants no buffer.
        """
        segment, start = divmod(page, self.segment_pages)
        self._refuse_bad(segment)
        offset = start * PAGE_BYTES + skip
        try:
            fd = self._file(segment)
            if is_cached(fd, offset, needed) or self._direct.read(segment, pieces, offset, needed) < needed:
                segments.read_into(fd, pieces, offset, needed)
        except FileNotFoundError as error:
            raise CorruptFrame(f"segment {segment} is gone") from error
        except OSError as error:
            raise _fault("read", segment, error) from error

    def take(self, nbytes: int) -> memoryview:
        """A recycled buffer that starts on a page; the caller's while any view of it lives. TierFault."""
        try:
            return self._buffers.take(nbytes)
        except OSError as error:
            raise TierFault(f"no memory to read into ({error}): {_REMEDIES[errno.ENOMEM]}") from error

    def erase(self, page: int) -> None:
        """Overwrite the first page of a frame, so that no rebuild finds it again. Durable after `sync`. TierFault."""
        segment, start = divmod(page, self.segment_pages)
        assert start > 0, "the header page of a segment is not a frame"
        self._refuse_bad(segment)
        try:
            segments.write_all(self._file(segment), [_ZERO_PAGE], start * PAGE_BYTES)
        except OSError as error:
            raise _fault("erase from", segment, error) from error

    def renew_manifest(self, entries: Iterable[ManifestEntry]) -> None:
        """Put a new manifest with these entries in the place of one that is broken. TierFault, and then it stays.

        Called by whoever commits, so that nothing is committed meanwhile.
        """
        broken = self.manifest
        self.manifest = Manifest.create(self.folder, entries, broken.next_generation)
        broken.close()

    def close(self) -> None:
        """Close every file and let go of the folder. Nothing may be under way."""
        self.manifest.close()
        self._direct.close()
        while self._files:
            os.close(self._files.popitem()[1])
        os.close(self._lock)

    def _refuse_bad(self, segment: int) -> None:
        if segment in self.bad_segments:
            raise TierFault(
                f"disk segment {segment} is out of use since a sync of it failed: check the device, then restart"
            )

    def _file(self, segment: int) -> int:
        """Descriptor of a segment that exists. OSError."""
        fd = self._files.get(segment)
        if fd is None:
            fd = self._keep(segment, os.open(segments.path_of(self.folder, segment), _FLAGS))
        return fd

    def _create(self, segment: int) -> int:
        """Descriptor of a segment that has all its room. OSError, and then no half-made file stays."""
        path = segments.path_of(self.folder, segment)
        wanted = self.segment_pages * PAGE_BYTES
        fd = self._files.get(segment)
        if fd is None:
            fd = self._keep(segment, os.open(path, _FLAGS | os.O_CREAT, 0o600))
        if os.fstat(fd).st_size == wanted:
            return fd
        try:
            os.posix_fallocate(fd, 0, wanted)
            os.ftruncate(fd, wanted)
            sync_folder(self.folder)  # or the file itself could be gone after a power loss
        except OSError:
            os.close(self._files.pop(segment))
            path.unlink(missing_ok=True)
            raise
        return fd

    def _keep(self, segment: int, fd: int) -> int:
        kept = self._files.setdefault(segment, fd)
        if kept != fd:  # another thread was quicker
            os.close(fd)
        return kept


_FLAGS = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
_REMEDIES = {
    errno.ENOSPC: "free space on the device or give the disk tier fewer bytes",
    errno.EDQUOT: "raise the quota or give the disk tier fewer bytes",
    errno.EFBIG: "raise the file size limit (ulimit -f) of the daemon",
    errno.EROFS: "remount the device writable",
    errno.ENOMEM: "give the daemon's machine more memory, or the host tier less",
}


def _fault(verb: str, segment: int, error: OSError) -> TierFault:
    remedy = _REMEDIES.get(error.errno or 0, "check the device")
    return TierFault(f"cannot {verb} disk segment {segment}: {os.strerror(error.errno or 0)}; {remedy}")


def _pages_in_use(folder: Path, capacity_bytes: int) -> int | None:
    """Pages of the segments that are there; None without, or where not even one would fit the capacity.

    OperatorError where the device lets no header be read: going on would throw away what it holds.
    """
    refused: OSError | None = None
    for number, path in segments.segments_in(folder).items():
        try:
            pages = segments.read_header_of(path, number).segment_pages
        except CorruptFrame:
            continue
        except OSError as error:
            refused = error
            continue
        return pages if pages * PAGE_BYTES <= capacity_bytes else None
    if refused is not None:
        raise OperatorError(f"disk folder {folder} cannot be read: {refused.strerror}; check the device") from refused
    return None
