"""The mover: threads that carry bytes between tiers, and every queue they work from.

    kv-populate    adds host regions until all are there
    kv-promote-N   disk -> host: steps of promotions (`promotions.py`, `promoter.py`)
    kv-write       host -> disk: writes frames batch by batch; also erases what was found bad (`disk_writer.py`)
    kv-sync        makes batches durable: one sync, one manifest commit; also forgets dropped frames

One writer and one thread behind it, so that what the planner decided about the disk happens in that order. Decides
nothing: every end is reported to the store, which tells the planner.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

from kvstore.codec.lossless import Codec
from kvstore.core.actions import Copy, Drop
from kvstore.core.errors import TierFault
from kvstore.core.keys import Tier
from kvstore.store.disk_writer import Batch, DiskWriter
from kvstore.store.moving import Described, Reports, Written
from kvstore.store.promoter import Promoter
from kvstore.store.promotions import Promotions, Step
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier

__all__ = ["Described", "Mover", "Reports", "Written"]

QUEUE_ACTIONS = 1 << 17  # an action is some 200 bytes; host slots bound the copies long before
BATCH_ACTIONS = 1024  # a sync costs some 10 ms however much it covers (MEASURED section 1)
BATCH_BYTES = 32 << 20  # large enough for that to be little, small enough for writing and syncing to overlap
BATCHES_AHEAD = 2  # written and waiting for their sync
IDLE_SECONDS = 0.2  # how often an idle thread looks whether it should end

log = logging.getLogger("kvstore.mover")


class Mover:
    """Starts its threads at once; `submit` hands work over and never blocks."""

    def __init__(
        self, host: HostTier, disk: DiskTier | None, reports: Reports, codec: Codec, promote_threads: int
    ) -> None:
        self._host = host
        self._reports = reports
        self._writes: queue.Queue[Copy | Drop] = queue.Queue(QUEUE_ACTIONS)
        self._to_sync: queue.Queue[Batch] = queue.Queue(BATCHES_AHEAD)
        self._promotions = Promotions(QUEUE_ACTIONS)
        self._pending = 0  # submitted and not ended; guarded by _count
        self._count = threading.Lock()
        self._closing = threading.Event()
        self._has_written = threading.Event()  # kv-write hands over no more
        self._has_synced = threading.Event()  # kv-sync takes no more
        works: list[tuple[str, Callable[[], None]]] = [("kv-populate", self._populate)]
        if disk is not None:
            self._writer = DiskWriter(host, disk, reports, codec)
            self._promoter = Promoter(host, disk, reports, self._promotions)
            works += [("kv-write", self._write_all), ("kv-sync", self._sync_all)]
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
    def queued_bytes(self) -> int:
        """Bytes on disk of promotions that have not ended: what a new one waits for."""
        return self._promotions.queued_bytes

    @property
    def has_ended(self) -> bool:
        """No thread is at work any more."""
        return not any(thread.is_alive() for thread in self._threads)

    @property
    def is_populating(self) -> bool:
        """Host regions are still being added."""
        return self._threads[0].is_alive()

    def layers_done(self, flow: int) -> int | None:
        """See `Promotions.layers_done`. Under the store's lock it knows of every copy of the flow."""
        return self._promotions.layers_done(flow)

    def submit(self, action: Copy | Drop) -> bool:
        """Take an action on the disk over; False where the queue is full. Called under the store's lock."""
        with self._count:
            self._pending += 1
        try:
            self._writes.put_nowait(action)
        except queue.Full:
            self._done(1)
            return False
        return True

    def promote(self, copies: Sequence[Copy]) -> int:
        """Take copies to the host over; how many of the first ones there was room for. Under the store's lock."""
        with self._count:
            self._pending += len(copies)
        taken = self._promotions.put_all(copies)
        self._done(len(copies) - taken)
        return taken

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
        while not self._closing.is_set():
            step = self._promotions.next(IDLE_SECONDS)
            if step is None:
                continue
            nbytes = 0
            self._reports.rates.begin_read(Tier.DISK)
            try:
                nbytes = self._promoter.do(step)
            except Exception:  # the top of a thread: this one copy has failed, the next is another matter
                step.promotion.has_failed = True
                self._own_fault("promote")
            self._reports.rates.end_read(Tier.DISK, nbytes)
            if self._promotions.is_last(step):
                self._end_promotion(step)

    def _end_promotion(self, step: Step) -> None:
        promotion, facts, is_whole = step.promotion, step.promotion.copy.facts, False
        try:
            is_whole = self._promoter.finish(promotion)
        except Exception:  # the top of a thread
            self._own_fault("promote")
        self._reports.ended([(facts, is_whole)], Tier.HOST)
        layers = len(self._reports.describe(facts.namespace).layout.layers) if is_whole else None
        if self._promotions.ended(promotion, layers) and promotion.copy.layers:
            self._reports.layered(promotion.copy.flow)
        self._done(1)

    def _write_all(self) -> None:
        try:
            while not self._closing.is_set():
                actions = self._next_writes()
                if not actions:
                    continue
                self._reports.rates.begin_write(Tier.DISK)
                try:
                    batch = self._writer.write(actions)
                except Exception:  # the top of a thread: this batch has failed, the next is another matter
                    self._own_fault("write")
                    self._end_batch(Batch(actions, [], set()), [])
                    continue
                self._hand_over(batch)
        finally:
            self._has_written.set()

    def _hand_over(self, batch: Batch) -> None:
        """Waits where the device is slower than this thread."""
        while not self._has_synced.is_set():
            try:
                return self._to_sync.put(batch, timeout=IDLE_SECONDS)
            except queue.Full:
                continue
        self._end_batch(batch, [])  # nobody is there to sync it

    def _next_writes(self) -> list[Copy | Drop]:
        """As many actions as are waiting, up to a batch; waits for the first."""
        actions: list[Copy | Drop] = []
        nbytes = 0
        try:
            while len(actions) < BATCH_ACTIONS and nbytes < BATCH_BYTES:
                wait = not actions
                actions.append(self._writes.get(block=wait, timeout=IDLE_SECONDS))
                nbytes += _nbytes(actions[-1])
        except queue.Empty:
            pass
        return actions

    def _sync_all(self) -> None:
        try:
            while batches := self._next_batches():
                written: list[Written] = []
                try:
                    written = self._writer.commit(batches)
                except Exception:  # the top of a thread: these batches have failed, the next is another matter
                    self._own_fault("write")
                for batch in batches:
                    self._end_batch(batch, written)
        finally:
            self._has_synced.set()

    def _next_batches(self) -> list[Batch]:
        """All that wait; none when kv-write has ended and everything is synced."""
        batches: list[Batch] = []
        while not batches:
            has_written = self._has_written.is_set()
            try:
                batches.append(self._to_sync.get(timeout=IDLE_SECONDS))
            except queue.Empty:
                if has_written:
                    break
        while not self._to_sync.empty():  # nobody else takes from it
            batches.append(self._to_sync.get_nowait())
        return batches

    def _end_batch(self, batch: Batch, written: list[Written]) -> None:
        """`written`: what became durable, of this batch and others."""
        frame_bytes = {id(one.facts): one.frame_bytes for one in written}
        ends = [(action.facts, id(action.facts) in frame_bytes) for action in batch.actions if isinstance(action, Copy)]
        nbytes = sum(frame_bytes[id(facts)] for facts, is_whole in ends if is_whole)
        self._reports.rates.end_write(Tier.DISK, nbytes)
        self._reports.ended(ends, Tier.DISK)
        self._done(len(batch.actions))

    def _own_fault(self, what: str) -> None:
        log.exception("a %s ended by a fault of ours", what)
        self._reports.trouble(Tier.DISK, f"a {what} ended by a fault of ours: report what the log says")

    def _done(self, count: int) -> None:
        with self._count:
            self._pending -= count


def _nbytes(action: Copy | Drop) -> int:
    return action.source_bytes if isinstance(action, Copy) else 0
