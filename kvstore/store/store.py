"""The store: one lock, the planner behind it, and the tiers that do what the planner says.

Every method is thread-safe; none raises for a miss. The lock is held for dictionary work and never across I/O:
what reads or writes bytes happens outside, on slots that the planner promised not to give away (`hold`, INCOMING).
Time is `clock()` for decisions and `wall()` for what is written down.

Its parts share one `Kept` (the lock and what it guards): `namespaces`, `reader` (GET's bytes), `uploads` (PUT's),
`handoffs`, `reports` (what the movers say), `figures` (what operators see).
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Sequence

from kvstore.core.errors import InvalidInput, TierFault
from kvstore.core.keys import PAGE_BYTES, BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lease import Pin
from kvstore.core.match import Hints, Match, SessionEvent, Speeds
from kvstore.core.matching import Request
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus
from kvstore.core.settings import Settings, segment_pages
from kvstore.core.space import region_pages
from kvstore.store.changing import Choices, Wishes, change, choices, go_on
from kvstore.store.explaining import Explained, Question, explain
from kvstore.store.figures import figures
from kvstore.store.handoffs import HandoffKeeper
from kvstore.store.kept import Kept
from kvstore.store.locating import LocatedObjects, Locating
from kvstore.store.mover import Mover
from kvstore.store.namespaces import Namespaces
from kvstore.store.objects import OpenedNamespace, OpenObject, Reservation, StoreStatus
from kvstore.store.reader import Reader
from kvstore.store.recovery import check_secret, restore
from kvstore.store.reports import MoverReports
from kvstore.store.settings import StoreConfig
from kvstore.store.staged import StagedObject, StagedOutcome, StagedPuts
from kvstore.store.steering import Steering
from kvstore.store.uploads import Uploads
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier, region_file_bytes

log = logging.getLogger("kvstore.store")

CHANGEOVER_SECONDS = 0.25  # of a tick, which comes every half second


class Store:
    """Made by `Store.open`; ended by `close`."""

    def __init__(self, kept: Kept) -> None:
        self.boot_epoch = int.from_bytes(os.urandom(7), "little") + 1  # 0 means none on the wire
        self._kept = kept
        self._reports = MoverReports(kept)
        self._names = Namespaces(kept)
        self._reader = Reader(kept, self._reports)
        self._uploads = Uploads(kept)
        self.handoffs = HandoffKeeper(kept)
        self._staged = StagedPuts(self._uploads)
        self._locating = Locating(kept)
        self._persisted_at = kept.clock()
        self._steering = Steering(kept, kept.config.policy, kept.config.keep_seconds)
        kept.mover = Mover(kept.host, kept.disk, self._reports, kept.config.codec, kept.config.promote_threads)

    @classmethod
    def open(
        cls,
        config: StoreConfig,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> Store:
        """Take the memory and the folder, recover, start the movers. OperatorError and its kinds."""
        pages = region_pages(config.host_bytes)
        host = HostTier(pages, config.host_bytes // PAGE_BYTES // pages)
        host.populate()  # the first region; the others follow behind the daemon's back
        disk, trouble = None, None
        try:
            if config.disk is not None:
                wanted = Settings(config.host_bytes, config.disk_bytes, segment_bytes=config.segment_bytes)
                try:
                    disk = DiskTier.open(config.disk, config.disk_bytes, segment_pages(wanted) * PAGE_BYTES)
                except TierFault as fault:  # a full or failing device is no reason to serve nothing
                    trouble = f"{fault}; serving from memory until a restart"
                else:
                    check_secret(config.disk, config.secret)
            store = cls(Kept(config, host, disk, clock, wall))
            if trouble is not None:
                store._kept.trouble(Tier.DISK, trouble)
            store._start()
        except BaseException:
            if disk is not None:
                disk.close()
            host.close()
            raise
        return store

    # -- namespaces -----------------------------------------------------------------------------
    def hello(self, tenant: str, layout: ModelLayout, existing_only: bool = False) -> OpenedNamespace:
        """Open the namespace of a layout, or find it. LayoutMismatch names the fields where only near misses exist."""
        return self._names.hello(tenant, layout, existing_only)

    def namespace(self, id: bytes) -> OpenedNamespace | None:
        return self._names.find(id)

    # -- GET ------------------------------------------------------------------------------------
    def lookup(
        self,
        namespace_id: bytes,
        chain: Chain,
        prompt_tokens: int,
        hints: Hints,
        owner: bytes,
        can_replay: bool,
        worker_flops: float | None,
        layers: bool = False,
        host_bytes_per_second: float | None = None,
        hot_only: bool = False,
    ) -> Match:
        """Match, lease, and start promoting what is cold; with `layers` layer by layer.

        `host_bytes_per_second` is what the worker measured of its own copies. With `hot_only` only what is on the
        host counts, and nothing is promoted.
        """
        with self._kept.lock:
            self._kept.check_namespace(namespace_id)
            speeds = self._speeds(worker_flops, host_bytes_per_second)
            request = Request(chain, prompt_tokens, hints, can_replay, speeds, layers, hot_only)
            match, actions = self._kept.planner.lookup(namespace_id, request, owner, self._kept.clock())
            self._kept.run(actions)
            self._kept.counters["lookups"] += 1
            self._kept.counters[f"lookups_{match.plan.kind.value}"] += 1
            self._kept.counters["lookup_tokens"] += prompt_tokens
            self._kept.counters["hit_tokens"] += match.plan.tokens
        return match

    def open_objects(self, lease: int, keys: Sequence[BlockKey], deadline: float) -> Iterator[OpenObject]:
        """Objects in order, opened when asked for; use each as a context manager. `deadline` is on `time.monotonic`.

        A cold object whose promotion is under way is waited for; one that is not being promoted comes straight from
        disk. Missing where it is gone, corrupt or late.
        """
        return self._reader.open_all(keys, deadline)

    def hot_objects(self, lease: int) -> LocatedObjects:
        """Descriptors of what a lease holds on the host now: rows of its plan from block 0, states."""
        return self._locating.hot(lease)

    def locate(
        self, lease: int, first_block: int, min_blocks: int, seen_layers: int | None, deadline: float
    ) -> LocatedObjects:
        """Descriptors of what comes to the host for a lease; see `Locating.wait`. `deadline` is on `time.monotonic`."""
        return self._locating.wait(lease, first_block, min_blocks, seen_layers, deadline)

    def release_owner(self, owner: bytes) -> int:
        """End all leases of a worker that is gone; how many there were."""
        with self._kept.lock:
            return self._kept.planner.release_owner(owner)

    def region_of(self, number: int) -> tuple[int, int]:
        """Descriptor of a populated host region's sealed file, which stays the store's, and its length."""
        if not 0 <= number < self._kept.host.populated:
            raise InvalidInput(f"host region {number} does not exist: {self._kept.host.populated} are there")
        return self._kept.host.region_fd(number), region_file_bytes(self._kept.host.region_pages)

    @property
    def region_pages(self) -> int:
        """Pages of 4,096 bytes in a host region, without its stamp table."""
        return self._kept.host.region_pages

    @property
    def region_count(self) -> int:
        return self._kept.host.region_count

    def release(self, leases: Sequence[int]) -> int:
        """End leases; how many were not over yet."""
        with self._kept.lock:
            return sum(self._kept.planner.release(lease) for lease in leases)

    def prefetch(self, namespace_id: bytes, chain: Chain, prompt_tokens: int) -> tuple[int, int]:
        """Promote what a lookup would need: objects and bytes that are now under way."""
        with self._kept.lock:
            self._kept.check_namespace(namespace_id)
            request = Request(chain, prompt_tokens, Hints(), False, self._speeds(None, None))
            objects, nbytes, actions = self._kept.planner.prefetch(namespace_id, request, self._kept.clock())
            self._kept.run(actions)
        return objects, nbytes

    # -- PUT ------------------------------------------------------------------------------------
    def reserve(
        self,
        namespace_id: bytes,
        chain: Chain,
        objects: Sequence[ObjectSpec],
        lineage: bytes,
        owner: bytes,
        hints: Hints,
    ) -> Reservation:
        """Announce objects; see `Uploads.reserve` for room that runs out half-way."""
        return self._uploads.reserve(namespace_id, chain, objects, lineage, owner, hints)

    def begin_object(self, reservation: int, index: int) -> list[memoryview] | None:
        """Writable pieces for one wanted object, in byte order. None: not wanted, or gone meanwhile."""
        return self._uploads.begin_object(reservation, index)

    def finish_object(self, reservation: int, index: int) -> PutStatus:
        """The pieces are filled: check the arena's copy against what was announced, and publish it."""
        return self._uploads.finish_object(reservation, index)

    def abandon_object(self, reservation: int, index: int) -> None:
        """The upload of a begun object ended before its last byte."""
        self._uploads.abandon_object(reservation, index)

    def put_staged(
        self,
        namespace_id: bytes,
        chain: Chain,
        objects: Sequence[StagedObject],
        lineage: bytes,
        owner: bytes,
        hints: Hints,
    ) -> StagedOutcome:
        """Objects whose bytes lie in a worker's staging region: reserve, copy, check the copies, publish."""
        return self._staged.put(namespace_id, chain, objects, lineage, owner, hints)

    def commit(self, reservation: int, durable: bool, deadline: float) -> list[Durability]:
        """End a reservation. With `durable`, wait until what it stored is synced, or cannot be, or the deadline."""
        return self._uploads.commit(reservation, durable, deadline)

    # -- the rest of the service ----------------------------------------------------------------
    def report(self, namespace_id: bytes, key: BlockKey, reason: str) -> bool:
        """A worker found an object wrong: all its copies are dropped. False if it is gone already."""
        with self._kept.changed:
            entry = self._kept.planner.entry(key)
            if entry is None or entry.facts.namespace != namespace_id:
                return False
            self._kept.counters["reported"] += 1
            if entry.disk is not None:
                self._kept.bad.add((key, entry.facts.generation))
            self._kept.run(self._kept.planner.report(key))
            self._kept.changed.notify_all()
        log.warning("object %s was reported by a worker: %s", key.prefix[:4].hex(), reason[:200])
        return True

    def session(self, namespace_id: bytes, session: str, event: SessionEvent, gap: float | None) -> None:
        with self._kept.lock:
            self._kept.check_namespace(namespace_id)
            self._kept.run(self._kept.planner.session(namespace_id, session, event, self._kept.clock(), gap))

    def pin(self, namespace_id: bytes, chain: Chain, ttl_seconds: float) -> Pin | None:
        with self._kept.lock:
            self._kept.check_namespace(namespace_id)
            return self._kept.planner.pin(namespace_id, chain, ttl_seconds, self._kept.clock())

    def unpin(self, id: int) -> bool:
        with self._kept.lock:
            return self._kept.planner.unpin(id)

    def explain(self, question: Question) -> Explained:
        """Why lookups got less than their prompt, and what would be evicted next."""
        return explain(self._kept, question)

    def choices(self) -> Choices:
        """The policy in charge, and what else an operator can change while the store runs."""
        with self._kept.lock:
            return choices(self._kept, self._steering)

    def change(self, wishes: Wishes, seconds: float) -> tuple[Choices, Choices]:
        """Change it; what was before, and what is after so many seconds at most. Ticks finish a changeover.

        Raises InvalidInput, and then nothing was changed.
        """
        before, after = change(self._kept, self._steering, wishes)
        return before, go_on(self._kept, self._steering, seconds) if after.left_to_move else after

    def status(self) -> StoreStatus:
        """Figures for operators."""
        return figures(self._kept)

    @property
    def next_generation(self) -> int:
        """Grows by one with each object that is announced; what was there at the start is below its first value."""
        return self._kept.planner.next_generation  # one number: no lock

    @property
    def moved(self) -> int:
        """Grows by one with each object that a change of policy ranks anew."""
        return self._kept.planner.moved

    def tick(self) -> None:
        """Expiry, retries, recency to disk, what is left of a changeover. The daemon calls it every half second."""
        with self._kept.changed:
            now = self._kept.clock()
            self._uploads.expire(now)
            expired = self.handoffs.expire(now)
            self._kept.run(self._kept.planner.tick(now))
            is_changing = self._kept.planner.left_to_move > 0
            self._reports.try_a_shut_segment()
            self._kept.changed.notify_all()
            is_due = now - self._persisted_at >= self._kept.config.persist_seconds
        del expired  # their memory goes back to the machine here and not under the lock
        if self._kept.unnamed:
            self._names.save_names()
        if is_changing:
            go_on(self._kept, self._steering, CHANGEOVER_SECONDS)
        self._steering.follow()
        if is_due:
            self._persist_recency()

    def quiesce(self, timeout_seconds: float) -> bool:
        """Wait until nothing is under way; for tests and for draining."""
        deadline = time.monotonic() + timeout_seconds
        while self._kept.mover.pending or self._kept.host.populated < self._kept.host.region_count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def contents(self) -> dict[BlockKey, frozenset[tuple[str, str]]]:
        """What lies where, as `Planner.snapshot` says it; checked first. For tests and `check`."""
        with self._kept.lock:
            self._kept.planner.check()
            return self._kept.planner.snapshot()

    def close(self, drain_seconds: float = 5.0) -> None:
        """Let copies end for a bounded time, write recency down, let go of memory and folder."""
        if not self._kept.mover.close(drain_seconds):
            log.warning("%d copies were not made before the end", self._kept.mover.pending)
        if not self._kept.mover.has_ended:  # it may write yet: the folder must not be another daemon's before
            log.warning("a device does not answer: its files stay open until the process ends")
            return
        if self._kept.disk is not None:
            self._persist_recency()
            self._kept.disk.close()
        self._kept.host.close()

    # -- private --------------------------------------------------------------------------------
    def _start(self) -> None:
        with self._kept.lock:
            self._kept.planner.grow(Tier.HOST, self._kept.host.populated)
            if self._kept.disk is not None:
                self._kept.planner.grow(Tier.DISK, self._kept.disk.segment_count)
                recovery = restore(
                    self._kept.planner, self._kept.disk, self._names.open, self._kept.clock(), self._kept.wall()
                )
                self._kept.planner.take_touched()
                for problem in recovery.problems:
                    log.warning("recovery: %s", problem)
                self._kept.counters["restored"] = recovery.restored
                self._kept.counters["forgotten"] = len(recovery.forgotten)
        if self._kept.disk is not None and recovery.forgotten:
            try:
                self._kept.disk.manifest.commit([], recovery.forgotten)
            except TierFault as fault:  # they are forgotten again by the next start
                self._kept.trouble(Tier.DISK, str(fault))
        self._kept.mover.start()

    def _speeds(self, worker_flops: float | None, host_bytes_per_second: float | None) -> Speeds:
        """What prices a plan now: measured rates, and what is queued in front of it."""
        read = self._kept.rates.read
        if host_bytes_per_second is not None:
            read = {**read, Tier.HOST: host_bytes_per_second}
        return Speeds(read, worker_flops, {Tier.DISK: self._kept.planner.promoting_bytes})

    def _persist_recency(self) -> None:
        with self._kept.lock:
            touched = self._kept.planner.take_touched()  # without a disk too: it would grow for ever
            self._persisted_at = self._kept.clock()
            used = {key: self._kept.last_used_wall(key) for key in touched if self._kept.planner.entry(key) is not None}
        if self._kept.disk is None:
            return
        try:
            self._kept.disk.manifest.touch(used)
        except TierFault as fault:
            self._kept.trouble(Tier.DISK, str(fault))
