"""The mover: threads that carry bytes between tiers, and every queue they work from.

    kv-populate    adds host regions until all are there
    kv-promote-N   disk -> host: reads a frame, verifies it, fills the object's slots
    kv-write       host -> disk: a batch of frames, one sync, one manifest commit; also forgets dropped frames

One writer, so that what the planner decided about the disk happens in that order. Decides nothing: every end is
reported to the store, which tells the planner.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeVar

from kvstore.codec.frame import FrameHeader, decode_frame, encode_frame
from kvstore.codec.lossless import Codec
from kvstore.core.actions import Copy, Drop
from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.index import Facts
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.space import class_pages
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier
from kvstore.tiers.manifest_record import ManifestEntry

QUEUE_ACTIONS = 1 << 17  # an action is some 200 bytes; host slots bound the copies long before
BATCH_ACTIONS = 64  # a sync costs some 10 ms however much it covers (MEASURED section 1)
BATCH_BYTES = 64 << 20
RENEW_SECONDS = 10.0  # between two tries to write a manifest anew: each writes every entry
IDLE_SECONDS = 0.2  # how often an idle thread looks whether it should end

ActionT = TypeVar("ActionT", Copy, Copy | Drop)

log = logging.getLogger("kvstore.mover")


class Described(NamedTuple):
    """What the mover needs to know of an object's namespace."""

    layout: ModelLayout
    fingerprint: bytes
    cuts: tuple[tuple[int, ...], ...]  # per group: ends of the object's parts, one part a slot


class Written(NamedTuple):
    """A frame that lies in its slot."""

    facts: Facts
    page: int
    frame_bytes: int


class Reports(Protocol):
    """How the mover's threads tell the store. Each call takes the store's lock for dictionary work."""

    def describe(self, namespace: bytes) -> Described: ...
    def give_slot(self, facts: Facts, frame_bytes: int) -> int | None: ...
    def is_superseded(self, drop: Drop) -> bool: ...
    def should_erase(self, drop: Drop) -> bool: ...
    def ended(self, copies: Sequence[tuple[Facts, bool]], target: Tier, nbytes: int, seconds: float) -> None: ...
    def lost(self, facts: Facts, tier: Tier, why: str) -> None: ...
    def retire(self, segment: int) -> None: ...
    def trouble(self, tier: Tier, why: str) -> None: ...
    def populated(self) -> None: ...
    def last_used(self, key: BlockKey) -> float: ...
    def on_disk(self) -> Sequence[Written]: ...


class Mover:
    """Starts its threads at once; `submit` hands work over and never blocks."""

    def __init__(
        self, host: HostTier, disk: DiskTier | None, reports: Reports, codec: Codec, promote_threads: int
    ) -> None:
        self._host = host
        self._disk = disk
        self._reports = reports
        self._codec = codec
        self._writes: queue.Queue[Copy | Drop] = queue.Queue(QUEUE_ACTIONS)
        self._promotions: queue.Queue[Copy] = queue.Queue(QUEUE_ACTIONS)
        self._pending = 0  # submitted and not ended; guarded by _count
        self._count = threading.Lock()
        self._closing = threading.Event()
        self._renew_at = 0.0  # on time.monotonic
        self._slot_pages = dict(disk.recovered.slot_pages) if disk is not None else {}
        works: list[tuple[str, Callable[[], None]]] = [("kv-populate", self._populate)]
        if disk is not None:
            works.append(("kv-write", self._write_all))
            works += [(f"kv-promote-{index}", self._promote_all) for index in range(promote_threads)]
        self._threads = [threading.Thread(target=self._guarded, args=work, name=work[0], daemon=True) for work in works]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    @property
    def pending(self) -> int:
        """Actions that were submitted and have not ended."""
        return self._pending

    @property
    def has_ended(self) -> bool:
        """No thread is at work any more."""
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_populating(self) -> bool:
        """Host regions are still being added."""
        return self._threads[0].is_alive()

    def submit(self, action: Copy | Drop) -> bool:
        """Take an action over. False where the queue is full: the copy is not made. Called under the store's lock."""
        target: queue.Queue[Copy] | queue.Queue[Copy | Drop] = self._writes
        if isinstance(action, Copy) and action.target is Tier.HOST:
            target = self._promotions
        try:
            with self._count:
                self._pending += 1
            target.put_nowait(action)  # type: ignore[arg-type]
        except queue.Full:
            self._done(1)
            return False
        return True

    def close(self, drain_seconds: float) -> bool:
        """Let queued work end, for a bounded time, and end the threads. True if nothing was left undone."""
        deadline = time.monotonic() + drain_seconds
        while self._pending and time.monotonic() < deadline and any(thread.is_alive() for thread in self._threads):
            time.sleep(0.005)
        is_drained = self._pending == 0
        self._closing.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(timeout=max(5.0, drain_seconds))
        return is_drained

    # -- threads --------------------------------------------------------------------------------
    def _guarded(self, name: str, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception:  # the top of a thread: the store must learn that the tier is no longer served
            log.exception("thread %s ended by a fault of ours", name)
            self._reports.trouble(Tier.DISK, f"thread {name} ended by a fault; restart the daemon")

    def _populate(self) -> None:
        while self._host.populated < self._host.region_count and not self._closing.is_set():
            try:
                self._host.populate()
            except TierFault as fault:
                self._reports.trouble(Tier.HOST, str(fault))
                return
            self._reports.populated()

    def _promote_all(self) -> None:
        while (copy := self._next(self._promotions)) is not None:
            started, is_whole = time.monotonic(), False
            try:
                is_whole = self._promote(copy)
            except Exception:  # the top of a thread: this one copy has failed, the next is another matter
                self._own_fault("promote")
            nbytes = copy.source_bytes if is_whole else 0
            self._reports.ended([(copy.facts, is_whole)], Tier.HOST, nbytes, time.monotonic() - started)
            self._done(1)

    def _write_all(self) -> None:
        while (first := self._next(self._writes)) is not None:
            batch, nbytes = [first], _nbytes(first)
            while len(batch) < BATCH_ACTIONS and nbytes < BATCH_BYTES:
                try:
                    batch.append(self._writes.get_nowait())
                except queue.Empty:
                    break
                nbytes += _nbytes(batch[-1])
            started, written = time.monotonic(), list[Written]()
            try:
                written = self._write_batch(batch)
            except Exception:  # the top of a thread: this batch has failed, the next is another matter
                self._own_fault("write")
            whole = {one.facts for one in written}
            ends = [(action.facts, action.facts in whole) for action in batch if isinstance(action, Copy)]
            frame_bytes = sum(one.frame_bytes for one in written)
            self._reports.ended(ends, Tier.DISK, frame_bytes, time.monotonic() - started)
            self._done(len(batch))

    def _own_fault(self, what: str) -> None:
        log.exception("a %s ended by a fault of ours", what)
        self._reports.trouble(Tier.DISK, f"a {what} ended by a fault of ours: report what the log says")

    def _next(self, actions: queue.Queue[ActionT]) -> ActionT | None:
        while not self._closing.is_set():
            try:
                return actions.get(timeout=IDLE_SECONDS)
            except queue.Empty:
                continue
        return None

    def _done(self, count: int) -> None:
        with self._count:
            self._pending -= count

    # -- disk -> host ---------------------------------------------------------------------------
    def _promote(self, copy: Copy) -> bool:
        """Whether the object's slots are filled with bytes that verified."""
        assert self._disk is not None
        facts = copy.facts
        described = self._reports.describe(facts.namespace)
        pieces = self._host.pieces(copy.target_slots, described.cuts[facts.key.group])
        try:
            frame = self._disk.read(copy.source_slots[0], copy.source_bytes)
            decode_frame(frame, facts.key, facts.generation, pieces)
        except (CorruptFrame, TierFault) as fault:
            self._reports.lost(facts, Tier.DISK, str(fault))
            return False
        return True

    # -- host -> disk ---------------------------------------------------------------------------
    def _write_batch(self, batch: Sequence[Copy | Drop]) -> list[Written]:
        """Write frames, sync them, commit the manifest: in this order a crash leaves orphan bytes at worst.

        What was written durably; the batch's other copies have failed.
        """
        assert self._disk is not None
        written: list[Written] = []
        touched: set[int] = set()
        drops = [action for action in batch if isinstance(action, Drop)]
        for action in batch:
            if isinstance(action, Copy):
                done = self._write(action)
                if done is not None:
                    written.append(done)
                    touched.add(done.page // self._disk.segment_pages)
        touched |= self._erase(drops)
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

    def _write(self, copy: Copy) -> Written | None:
        """One frame into its slot. None where the object went bad or away, or the disk has no room."""
        assert self._disk is not None
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
        assert self._disk is not None
        slot_pages = class_pages(frame_bytes)
        if self._slot_pages.get(segment) != slot_pages:
            self._slot_pages.pop(segment, None)
            self._disk.assign(segment, slot_pages)
            self._slot_pages[segment] = slot_pages

    def _erase(self, drops: Sequence[Drop]) -> set[int]:
        """Overwrite bad frames, so that a rebuild of the manifest cannot find them again."""
        assert self._disk is not None
        touched: set[int] = set()
        for drop in drops:
            if drop.slots and self._reports.should_erase(drop):
                try:
                    self._disk.erase(drop.slots[0])
                    touched.add(drop.slots[0] // self._disk.segment_pages)
                except TierFault as fault:
                    self._reports.trouble(Tier.DISK, str(fault))
        return touched

    def _renew_manifest(self) -> None:
        """After a failed sync of the manifest its file is left alone: what is known to be on disk goes to a new one."""
        assert self._disk is not None
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


def _nbytes(action: Copy | Drop) -> int:
    return action.source_bytes if isinstance(action, Copy) else 0
