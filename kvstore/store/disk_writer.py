"""Host to disk: frames are encoded and written by one thread, made durable and named in the manifest by another.

The order that makes a crash harmless is kept batch by batch: write, sync the segments, commit the manifest, report.
The second thread takes batches in the order in which the first one wrote them, and several at once when it was kept
waiting: their syncs and their commits are then one. While it waits for the device, the next batch is written.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from kvstore.codec.frame import FrameHeader, encode_frame
from kvstore.codec.lossless import Codec
from kvstore.core.actions import Copy, Drop
from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.index import Facts
from kvstore.core.keys import Tier
from kvstore.core.space import class_pages
from kvstore.store.moving import Described, Reports, Written
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier
from kvstore.tiers.manifest_record import ManifestEntry

RENEW_SECONDS = 10.0  # between two tries to write a manifest anew: each writes every entry


class Batch(NamedTuple):
    """Actions that were carried out and are not durable yet."""

    actions: Sequence[Copy | Drop]
    written: list[Written]
    touched: set[int]  # segments


class DiskWriter:
    """`write` is called by one thread, `commit` by one."""

    def __init__(self, host: HostTier, disk: DiskTier, reports: Reports, codec: Codec) -> None:
        self._host = host
        self._disk = disk
        self._reports = reports
        self._codec = codec
        self._renew_at = 0.0  # on time.monotonic
        self._slot_pages = dict(disk.recovered.slot_pages)

    # -- the writing thread ---------------------------------------------------------------------
    def write(self, actions: Sequence[Copy | Drop]) -> Batch:
        """Frames of the copies into their slots. What was not written has failed."""
        written: list[Written] = []
        for action in actions:
            if isinstance(action, Copy):
                done = self._write(action)
                if done is not None:
                    written.append(done)
        touched = {one.page // self._disk.segment_pages for one in written}
        touched |= self._erase([action for action in actions if isinstance(action, Drop)])
        return Batch(actions, written, touched)

    def _write(self, copy: Copy) -> Written | None:
        """One frame into its slot. None where the object went bad or away, or the disk has no room."""
        facts = copy.facts
        described = self._reports.describe(facts.namespace)
        group = described.layout.groups[facts.key.group]
        pieces = self._host.pieces(copy.source_slots, described.cuts[facts.key.group])
        try:
            frame = encode_frame(_header(facts, described), group.sections, pieces, lambda _: self._codec)
        except CorruptFrame as fault:
            self._reports.lost(facts, Tier.HOST, str(fault))
            return None
        frame_bytes = sum(memoryview(buffer).nbytes for buffer in frame)
        page = self._reports.give_slot(facts, frame_bytes)
        if page is None:
            return None
        segment = page // self._disk.segment_pages
        try:
            self._assign(segment, frame_bytes)
            self._disk.write(page, frame)
        except TierFault as fault:
            self._reports.trouble(Tier.DISK, str(fault))
            if segment not in self._slot_pages or segment in self._disk.bad_segments:
                self._reports.retire(segment)  # it could not be made, or can no longer be trusted
            return None
        return Written(facts, page, frame_bytes)

    def _assign(self, segment: int, frame_bytes: int) -> None:
        slot_pages = class_pages(frame_bytes)
        if self._slot_pages.get(segment) != slot_pages:
            self._slot_pages.pop(segment, None)
            self._disk.assign(segment, slot_pages)
            self._slot_pages[segment] = slot_pages

    def _erase(self, drops: Sequence[Drop]) -> set[int]:
        """Overwrite bad frames, so that a rebuild of the manifest cannot find them again."""
        touched: set[int] = set()
        for drop in drops:
            if drop.slots and self._reports.should_erase(drop):
                try:
                    self._disk.erase(drop.slots[0])
                    touched.add(drop.slots[0] // self._disk.segment_pages)
                except TierFault as fault:
                    self._reports.trouble(Tier.DISK, str(fault))
        return touched

    # -- the committing thread ------------------------------------------------------------------
    def commit(self, batches: Sequence[Batch]) -> list[Written]:
        """Sync what batches wrote, then commit the manifest: in this order a crash leaves orphan bytes at worst.

        What is durable now; the batches' other copies have failed.
        """
        written = [one for batch in batches for one in batch.written]
        touched = set().union(*(batch.touched for batch in batches))
        drops = [action for batch in batches for action in batch.actions if isinstance(action, Drop)]
        try:
            self._disk.sync(touched)
            self._renew_manifest()
            self._disk.manifest.commit(
                [self._manifest_entry(one) for one in written],
                [drop.key for drop in drops if not self._reports.is_superseded(drop)],
            )
        except TierFault as fault:
            written = []
            self._reports.trouble(Tier.DISK, str(fault))
            for segment in touched & self._disk.bad_segments:
                self._reports.retire(segment)
        return written

    def _renew_manifest(self) -> None:
        """After a failed sync of the manifest its file is left alone: what is known to be on disk goes to a new one."""
        if not self._disk.manifest.is_broken or time.monotonic() < self._renew_at:
            return
        self._renew_at = time.monotonic() + RENEW_SECONDS
        self._disk.renew_manifest([self._manifest_entry(one) for one in self._reports.on_disk()])

    def _manifest_entry(self, one: Written) -> ManifestEntry:
        facts = one.facts
        return ManifestEntry(
            prefix=facts.key.prefix,
            group=facts.key.group,
            page=one.page,
            frame_bytes=one.frame_bytes,
            generation=facts.generation,
            parent=facts.parent,
            block=facts.block,
            lineage=facts.lineage,
            parent_lineage=facts.parent_lineage,
            content=facts.content,
            namespace=facts.namespace,
            fingerprint=self._reports.describe(facts.namespace).fingerprint,
            raw_bytes=facts.raw_bytes,
            written_at=facts.written_at,
            last_used=self._reports.last_used(facts.key),
            writer=facts.writer,
            object_class=facts.object_class.value,
            ttl_seconds=facts.ttl_seconds,
        )


def _header(facts: Facts, described: Described) -> FrameHeader:
    return FrameHeader(
        kind=described.layout.groups[facts.key.group].kind,
        group=facts.key.group,
        prefix=facts.key.prefix,
        parent=facts.parent,
        namespace=facts.namespace,
        fingerprint=described.fingerprint,
        block=facts.block,
        generation=facts.generation,
        lineage=facts.lineage,
        parent_lineage=facts.parent_lineage,
        content=facts.content,
        written_at=facts.written_at,
        writer=facts.writer,
        object_class=facts.object_class.value,
        ttl_seconds=facts.ttl_seconds,
        raw_bytes=facts.raw_bytes,
    )
