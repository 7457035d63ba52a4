"""The store: one lock, the planner behind it, and the tiers that do what the planner says.

Every method is thread-safe; none raises for a miss. The lock is held for dictionary work and never across I/O:
what reads or writes bytes happens outside, on slots that the planner promised not to give away (`hold`, INCOMING).
Time is `clock()` for decisions and `wall()` for what is written down.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence

from kvstore.codec.frame import decode_frame
from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import CorruptFrame, InvalidInput, LayoutMismatch, TierFault
from kvstore.core.fingerprint import differing_fields, fingerprint
from kvstore.core.index import Facts, Held
from kvstore.core.keys import PAGE_BYTES, BlockKey, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.layout_json import dump_layout
from kvstore.core.lease import Pin
from kvstore.core.match import Hints, Match, SessionEvent, Speeds
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.prefix import namespace_id, namespace_root
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.core.settings import Settings, segment_pages
from kvstore.core.space import region_pages
from kvstore.store.mover import Described, Mover, Written
from kvstore.store.objects import NamespaceState, OpenedNamespace, OpenObject, Reservation, StoreStatus, TierState
from kvstore.store.rates import Rates
from kvstore.store.recovery import RestoredNamespace, check_secret, restore
from kvstore.store.settings import StoreConfig
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier

ROOM_SECONDS = 2.0  # how long a reservation waits for copies to disk to make room on the host
FAR_FUTURE = 1e18

log = logging.getLogger("kvstore.store")


class Store:
    """Made by `Store.open`; ended by `close`."""

    def __init__(
        self,
        config: StoreConfig,
        host: HostTier,
        disk: DiskTier | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        self.config = config
        self.boot_epoch = int.from_bytes(os.urandom(7), "little") + 1
        self.counters: Counter[str] = Counter()
        self._clock, self._wall = clock, wall
        self._host, self._disk = host, disk
        settings = Settings(
            host_bytes=config.host_bytes,
            disk_bytes=disk.segment_count * disk.segment_pages * PAGE_BYTES if disk is not None else 0,
            placement=config.placement,
            lease_seconds=config.lease_seconds,
            segment_bytes=disk.segment_pages * PAGE_BYTES if disk is not None else None,
        )
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)  # a copy ended, an object came or went
        self._planner = Planner(settings, first_generation=disk.recovered.next_generation if disk is not None else 1)
        self._namespaces: dict[bytes, RestoredNamespace] = {}
        self._described: dict[bytes, Described] = {}
        self._naming = threading.Lock()  # one writer of names at a time; taken before `_lock`, held across its I/O
        self._unnamed: dict[bytes, None] = {}  # namespaces that the folder does not name: a restart would forget them
        self._reservations: dict[int, Reservation] = {}
        self._last_reservation = 0
        self._rates = Rates()
        self._troubles: dict[Tier, str] = {}
        self._shut: deque[int] = deque()  # segments that could not be made; each is tried again later
        self._bad: set[tuple[BlockKey, int]] = set()  # frames to be erased when their slot is free
        self._persisted_at = clock()
        self._mover = Mover(host, disk, self, config.codec, config.promote_threads)

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
        disk = None
        try:
            if config.disk is not None:
                wanted = Settings(config.host_bytes, config.disk_bytes, segment_bytes=config.segment_bytes)
                disk = DiskTier.open(config.disk, config.disk_bytes, segment_pages(wanted) * PAGE_BYTES)
                check_secret(config.disk, config.secret)
            store = cls(config, host, disk, clock, wall)
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
        mark = fingerprint(layout)
        name = namespace_id(tenant, mark)
        with self._lock:
            is_known = name in self._namespaces
            others = [other.layout for other in self._namespaces.values() if other.tenant == tenant]
        nearest = _nearest(layout, [other for other in others if other.model == layout.model and other != layout])
        if not is_known:
            if existing_only and nearest:
                raise LayoutMismatch(
                    f"layout mismatch: the store knows {layout.model} with other values of {', '.join(nearest)}; "
                    "make the layouts equal, or open a namespace of its own"
                )
            with self._lock:
                self._open_namespace(tenant, layout)
                if self._disk is not None:
                    self._unnamed[name] = None
            self._save_names()
        root = namespace_root(self.config.secret, tenant, mark)
        return OpenedNamespace(name, root, layout, not is_known, nearest)

    def namespace(self, id: bytes) -> OpenedNamespace | None:
        with self._lock:
            known = self._namespaces.get(id)
            if known is None:
                return None
            root = self._planner.namespaces[id].root.prefix
            return OpenedNamespace(id, root, known.layout, False, ())

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
    ) -> Match:
        """Match, lease, and start promoting what is cold."""
        with self._lock:
            self._check_namespace(namespace_id)
            request = self._request(chain, prompt_tokens, hints, can_replay, worker_flops)
            match, actions = self._planner.lookup(namespace_id, request, owner, self._clock())
            self._run(actions)
            self.counters["lookups"] += 1
            self.counters[f"lookups_{match.plan.kind.value}"] += 1
            self.counters["lookup_tokens"] += prompt_tokens
            self.counters["hit_tokens"] += match.plan.tokens
        return match

    def open_objects(self, lease: int, keys: Sequence[BlockKey], deadline: float) -> Iterator[OpenObject]:
        """Objects in order, opened when asked for; use each as a context manager. `deadline` is on `time.monotonic`.

        A cold object whose promotion is under way is waited for; one that is not being promoted comes straight from
        disk. Missing where it is gone, corrupt or late.
        """
        return (self._open(key, deadline) for key in keys)

    def release(self, leases: Sequence[int]) -> int:
        """End leases; how many were not over yet."""
        with self._lock:
            return sum(self._planner.release(lease) for lease in leases)

    def prefetch(self, namespace_id: bytes, chain: Chain, prompt_tokens: int) -> tuple[int, int]:
        """Promote what a lookup would need: objects and bytes that are now under way."""
        with self._lock:
            self._check_namespace(namespace_id)
            request = self._request(chain, prompt_tokens, Hints(), False, None)
            objects, nbytes, actions = self._planner.prefetch(namespace_id, request, self._clock())
            self._run(actions)
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
        """Room for what is wanted. Waits a moment where there is none at all and copies to disk will free some.

        Where room runs out half-way, the rest is NO_ROOM: upload what is wanted, then announce the rest again. (The
        first part must be on disk before it can leave the host to make room for the second.)
        """
        with self._changed:
            namespace = self._check_namespace(namespace_id)
            _check_objects(namespace.layout, chain, objects)
            patience = time.monotonic() + ROOM_SECONDS
            while True:
                now, wall = self._clock(), self._wall()
                answer = self._planner.reserve(namespace_id, chain, objects, lineage, owner, hints, now, wall)
                statuses, facts, actions = answer
                self._run(actions)
                is_stuck = ReserveStatus.NO_ROOM in statuses and ReserveStatus.WANTED not in statuses
                if not is_stuck or not self._mover.pending or not self._changed.wait(patience - time.monotonic()):
                    break
            self._last_reservation += 1
            keys = tuple(BlockKey(chain.hash_at(spec.block), spec.group) for spec in objects)
            expires = self._clock() + self.config.reservation_seconds
            reservation = Reservation(self._last_reservation, tuple(statuses), keys, facts, expires)
            self._reservations[reservation.id] = reservation
            self.counters.update(f"reserve_{status.value.replace(' ', '_')}" for status in statuses)
        return reservation

    def begin_object(self, reservation: int, index: int) -> list[memoryview] | None:
        """Writable pieces for one wanted object, in byte order. None: not wanted, or gone meanwhile."""
        with self._lock:
            found = self._reservations.get(reservation)
            facts = found.facts[index] if found is not None and 0 <= index < len(found.facts) else None
            if found is None or facts is None or not self._planner.is_live(facts.key, facts.generation):
                return None
            entry = self._planner.entry(facts.key)
            assert entry is not None and entry.host is not None
            found.writing.add(index)
            slots = entry.host.slots
            cuts = self._described[facts.namespace].cuts[facts.key.group]
        return self._host.pieces(slots, cuts)

    def finish_object(self, reservation: int, index: int) -> PutStatus:
        """The pieces are filled: check the arena's copy against what was announced, and publish it."""
        with self._lock:
            found = self._reservations.get(reservation)
            facts = found.facts[index] if found is not None else None
            is_live = facts is not None and self._planner.is_live(facts.key, facts.generation)
            if found is None or facts is None:
                return PutStatus.DROPPED
            entry = self._planner.entry(facts.key) if is_live else None
            slots = entry.host.slots if entry is not None and entry.host is not None else ()
            cuts = self._described[facts.namespace].cuts[facts.key.group]
        is_whole = is_live and content_checksum(self._host.pieces(slots, cuts)) == facts.content
        with self._changed:
            found.writing.discard(index)
            found.facts[index] = None
            now = self._clock()
            if is_whole:
                is_live = self._planner.is_live(facts.key, facts.generation)
                self._run(self._planner.arrived(facts.key, facts.generation, Tier.HOST, now))
            else:
                self._run(self._planner.failed(facts.key, facts.generation, Tier.HOST, now))
            self._changed.notify_all()
            status = (PutStatus.STORED if is_whole else PutStatus.CORRUPT) if is_live else PutStatus.DROPPED
            self.counters[f"put_{status.value}"] += 1
            self.counters["put_bytes"] += facts.raw_bytes if status is PutStatus.STORED else 0
        return status

    def abandon_object(self, reservation: int, index: int) -> None:
        """The upload of a begun object ended before its last byte."""
        with self._changed:
            found = self._reservations.get(reservation)
            if found is not None and index in found.writing:
                found.writing.discard(index)
                self._give_up(found, index)

    def commit(self, reservation: int, durable: bool, deadline: float) -> list[Durability]:
        """End a reservation. With `durable`, wait until what it stored is synced, or cannot be, or the deadline."""
        with self._changed:
            found = self._reservations.get(reservation)
            if found is None:
                return []
            if found.writing:
                found.expires = self._clock()  # an upload is still at it: `tick` ends the reservation after it
            else:
                del self._reservations[reservation]
            for index in range(len(found.facts)):
                self._give_up(found, index)
            stored = [
                key if status in (ReserveStatus.WANTED, ReserveStatus.EXISTS) else None
                for key, status in zip(found.keys, found.statuses, strict=True)
            ]
            while durable and any(key is not None and self._is_being_written(key) for key in stored):
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            known: set[bytes] = set()
            return [Durability.NONE if key is None else self._durability(key, known) for key in stored]

    # -- the rest of the service ----------------------------------------------------------------
    def report(self, namespace_id: bytes, key: BlockKey, reason: str) -> bool:
        """A worker found an object wrong: all its copies are dropped. False if it is gone already."""
        with self._changed:
            entry = self._planner.entry(key)
            if entry is None or entry.facts.namespace != namespace_id:
                return False
            log.warning("object %s was reported by a worker: %s", key.prefix[:4].hex(), reason[:200])
            self.counters["reported"] += 1
            self._bad.add((key, entry.facts.generation))
            self._run(self._planner.report(key))
            self._changed.notify_all()
        return True

    def session(self, namespace_id: bytes, session: str, event: SessionEvent, gap: float | None) -> None:
        with self._lock:
            self._check_namespace(namespace_id)
            self._run(self._planner.session(namespace_id, session, event, self._clock()))

    def pin(self, namespace_id: bytes, chain: Chain, ttl_seconds: float) -> Pin | None:
        with self._lock:
            self._check_namespace(namespace_id)
            return self._planner.pin(namespace_id, chain, ttl_seconds, self._clock())

    def unpin(self, id: int) -> bool:
        with self._lock:
            return self._planner.unpin(id)

    def status(self) -> StoreStatus:
        """Figures for operators; walks the index, so not for every request."""
        with self._lock:
            objects: Counter[Tier] = Counter()
            groups: Counter[tuple[bytes, bool]] = Counter()
            host_bytes: Counter[bytes] = Counter()
            for key in self._planner.snapshot():
                entry = self._planner.entry(key)
                assert entry is not None
                objects.update(tier for tier, _ in entry.copies())
                name = entry.facts.namespace
                groups[name, entry.is_rows] += 1
                host_bytes[name] += entry.facts.raw_bytes if entry.host is not None else 0
            counts = self._planner.counts
            counters = dict(self.counters)
            counters |= {f"evicted_{tier.value}": count for tier, count in counts.evicted.items()}
            counters |= {"expired": counts.expired, "lost": counts.lost, "other_lineage": counts.other_lineage}
            return StoreStatus(
                tiers=tuple(self._tier_state(tier, objects[tier]) for tier in self._tiers()),
                namespaces=tuple(
                    NamespaceState(name, known.layout, groups[name, True], groups[name, False], host_bytes[name])
                    for name, known in self._namespaces.items()
                ),
                leases=self._planner.leases.lease_count,
                pins=self._planner.leases.pin_count,
                queued_copies=self._mover.pending,
                counters=counters,
            )

    def tick(self) -> None:
        """Expiry, retries, recency to disk. The daemon calls it every half second."""
        with self._changed:
            now = self._clock()
            for reservation in list(self._reservations.values()):
                if reservation.expires <= now and not reservation.writing:
                    del self._reservations[reservation.id]
                    for index in range(len(reservation.facts)):
                        self._give_up(reservation, index)
            self._run(self._planner.tick(now))
            self._try_a_shut_segment()
            self._changed.notify_all()
            is_due = now - self._persisted_at >= self.config.persist_seconds
        if self._unnamed:
            self._save_names()
        if is_due:
            self._persist_recency()

    def quiesce(self, timeout_seconds: float) -> bool:
        """Wait until nothing is under way; for tests and for draining."""
        deadline = time.monotonic() + timeout_seconds
        while self._mover.pending or self._host.populated < self._host.region_count:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.002)
        return True

    def contents(self) -> dict[BlockKey, frozenset[tuple[str, str]]]:
        """What lies where, as `Planner.snapshot` says it; checked first. For tests and `check`."""
        with self._lock:
            self._planner.check()
            return self._planner.snapshot()

    def close(self, drain_seconds: float = 5.0) -> None:
        """Let copies end for a bounded time, write recency down, let go of memory and folder."""
        if not self._mover.close(drain_seconds):
            log.warning("%d copies were not made before the end", self._mover.pending)
        if self._disk is not None:
            self._persist_recency()
            self._disk.close()
        self._host.close()

    # -- what the mover reports (kvstore/store/mover.py: Reports) ---------------------------------
    def describe(self, namespace: bytes) -> Described:
        return self._described[namespace]

    def give_slot(self, facts: Facts, frame_bytes: int) -> int | None:
        with self._lock:
            slots, actions = self._planner.encoded(facts.key, facts.generation, frame_bytes, self._clock())
            self._run(actions)
        return slots[0] if slots else None

    def is_superseded(self, drop: Drop) -> bool:
        """A newer copy of the same object has taken the manifest entry's place, or is about to."""
        with self._lock:
            entry = self._planner.entry(drop.key)
            return entry is not None and entry.facts.generation != drop.generation and entry.disk is not None

    def should_erase(self, drop: Drop) -> bool:
        """The frame was found bad, and its slot has not been given out again."""
        with self._lock:
            if (drop.key, drop.generation) not in self._bad:
                return False
            self._bad.discard((drop.key, drop.generation))
            return self._planner.spaces[Tier.DISK].is_free(drop.slots[0])

    def ended(self, copies: Sequence[tuple[Facts, bool]], target: Tier, nbytes: int, seconds: float) -> None:
        with self._changed:
            now = self._clock()
            for facts, is_whole in copies:
                end = self._planner.arrived if is_whole else self._planner.failed
                self._run(end(facts.key, facts.generation, target, now))
                self.counters[f"copies_{target.value}" + ("" if is_whole else "_failed")] += 1
            if nbytes and target is Tier.DISK:
                self._rates.note_written(Tier.DISK, nbytes, seconds)
                if not self._shut and all(is_whole for _, is_whole in copies):
                    self._troubles.pop(Tier.DISK, None)
            elif nbytes:
                self._rates.note_read(Tier.DISK, nbytes, seconds)
            self._changed.notify_all()

    def lost(self, facts: Facts, tier: Tier, why: str) -> None:
        """A copy does not verify. Its slot keeps its bytes until it is given out again, its name is forgotten."""
        log.warning("dropped a %s copy of %s: %s", tier.value, facts.key.prefix[:4].hex(), why)
        with self._changed:
            self.counters[f"corrupt_{tier.value}"] += 1
            if tier is Tier.DISK:
                self._bad.add((facts.key, facts.generation))
            self._run(self._planner.corrupt(facts.key, facts.generation, tier))
            self._changed.notify_all()

    def retire(self, segment: int) -> None:
        with self._changed:
            self.counters["retired_segments"] += 1
            self._run(self._planner.retire(Tier.DISK, segment))
            if self._disk is not None and segment not in self._disk.bad_segments and segment not in self._shut:
                self._shut.append(segment)
            self._changed.notify_all()

    def trouble(self, tier: Tier, why: str) -> None:
        with self._lock:
            if self._troubles.get(tier) != why:
                log.warning("%s tier: %s", tier.value, why)
            self._troubles[tier] = why
            self.counters[f"trouble_{tier.value}"] += 1

    def populated(self) -> None:
        with self._changed:
            self._planner.grow(Tier.HOST, 1)
            self._changed.notify_all()

    def last_used(self, key: BlockKey) -> float:
        with self._lock:
            return self._last_used_wall(key)

    def on_disk(self) -> list[Written]:
        """Every whole copy on disk; for a manifest that is written anew."""
        with self._lock:
            entries = [self._planner.entry(key) for key in self._planner.snapshot()]
            return [
                Written(entry.facts, entry.disk.slots[0], entry.disk.nbytes)
                for entry in entries
                if entry is not None and entry.disk is not None and entry.is_ready(Tier.DISK)
            ]

    # -- private --------------------------------------------------------------------------------
    def _start(self) -> None:
        with self._lock:
            self._planner.grow(Tier.HOST, self._host.populated)
            if self._disk is not None:
                self._planner.grow(Tier.DISK, self._disk.segment_count)
                recovery = restore(self._planner, self._disk, self._open_namespace, self._clock(), self._wall())
                self._planner.take_touched()
                for problem in recovery.problems:
                    log.warning("recovery: %s", problem)
                self.counters["restored"] = recovery.restored
                self.counters["forgotten"] = len(recovery.forgotten)
        if self._disk is not None and recovery.forgotten:
            self._disk.manifest.commit([], recovery.forgotten)
        self._mover.start()

    def _open_namespace(self, tenant: str, layout: ModelLayout) -> None:
        mark = fingerprint(layout)
        name = namespace_id(tenant, mark)
        opened = self._planner.add_namespace(name, namespace_root(self.config.secret, tenant, mark), layout)
        self._namespaces[name] = RestoredNamespace(tenant, layout)
        self._described[name] = Described(layout, mark, opened.cuts)

    def _save_names(self) -> None:
        """Let the folder name every open namespace. What it cannot name is served, and tried again by `tick`."""
        with self._naming:
            for name in list(self._unnamed):
                tenant, layout = self._namespaces[name]
                try:
                    assert self._disk is not None
                    self._disk.manifest.save_namespace(name, tenant, dump_layout(layout))
                except TierFault as fault:
                    self.trouble(Tier.DISK, str(fault))
                    return
                with self._lock:
                    self._unnamed.pop(name, None)

    def _check_namespace(self, name: bytes) -> RestoredNamespace:
        known = self._namespaces.get(name)
        if known is None:
            raise InvalidInput(f"namespace {name[:4].hex()} is not open: say Hello first")
        return known

    def _request(
        self, chain: Chain, prompt_tokens: int, hints: Hints, can_replay: bool, worker_flops: float | None
    ) -> Request:
        return Request(chain, prompt_tokens, hints, can_replay, Speeds(self._rates.read, worker_flops))

    def _run(self, actions: Sequence[Action]) -> None:
        """Hand actions over; called under the lock. What cannot be queued has failed."""
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Drop) and action.tier is Tier.HOST:
                continue  # the slots are free already
            if self._mover.submit(action):
                continue
            self.counters["shed_copies"] += 1
            if isinstance(action, Copy):
                facts = action.facts
                waiting += self._planner.failed(facts.key, facts.generation, action.target, self._clock())

    def _open(self, key: BlockKey, deadline: float) -> OpenObject:
        with self._changed:
            while True:
                entry = self._planner.entry(key)
                if entry is None or not (entry.node.readable and entry.is_stored):
                    self.counters["fetch_missing"] += 1
                    return OpenObject(key)
                facts = entry.facts
                if entry.is_ready(Tier.HOST):
                    held = self._planner.hold(key, Tier.HOST, facts.generation)
                    assert held is not None
                    return self._opened_host(facts, held)
                if entry.host is None:
                    break
                if not self._changed.wait(deadline - time.monotonic()):
                    self.counters["fetch_late"] += 1
                    return OpenObject(key)
            held = self._planner.hold(key, Tier.DISK, facts.generation)
            assert held is not None and self._disk is not None
        try:
            started = time.monotonic()
            frame = self._disk.read(held.slots[0], held.nbytes)
            pieces = decode_frame(frame, key, facts.generation).pieces
        except (CorruptFrame, TierFault) as fault:
            self.lost(facts, Tier.DISK, str(fault))
            self._unhold(facts, Tier.DISK, held)
            return OpenObject(key)
        self._unhold(facts, Tier.DISK, held)
        with self._lock:
            self._rates.note_read(Tier.DISK, held.nbytes, time.monotonic() - started)
            self.counters["fetch_disk"] += 1
        return OpenObject(key, facts, Tier.DISK, pieces)

    def _opened_host(self, facts: Facts, held: Held) -> OpenObject:
        pieces = self._host.pieces(held.slots, self._described[facts.namespace].cuts[facts.key.group])
        started = time.monotonic()
        self.counters["fetch_host"] += 1

        def close() -> None:
            # what a reader does between opening and closing is what a load from this tier costs it
            with self._lock:
                self._rates.note_read(Tier.HOST, facts.raw_bytes, time.monotonic() - started)
            self._unhold(facts, Tier.HOST, held)

        return OpenObject(facts.key, facts, Tier.HOST, pieces, close)

    def _unhold(self, facts: Facts, tier: Tier, held: Held) -> None:
        with self._lock:
            self._run(self._planner.unhold(facts.key, tier, facts.generation, held))

    def _give_up(self, reservation: Reservation, index: int) -> None:
        """An announced object will not come. One that is being written now is ended by its writer."""
        facts = reservation.facts[index]
        if facts is None or index in reservation.writing:
            return
        reservation.facts[index] = None
        self._run(self._planner.failed(facts.key, facts.generation, Tier.HOST, self._clock()))
        self._changed.notify_all()

    def _try_a_shut_segment(self) -> None:
        """One segment that could not be made, for want of room as a rule, may be tried again: one a tick."""
        if self._shut and not self._planner.revive(Tier.DISK, self._shut[0]):
            self._shut.rotate(-1)  # a copy there has not ended
        elif self._shut:
            self._shut.popleft()

    def _is_being_written(self, key: BlockKey) -> bool:
        entry = self._planner.entry(key)
        return entry is not None and entry.disk is not None and not entry.is_ready(Tier.DISK)

    def _durability(self, key: BlockKey, known: set[bytes]) -> Durability:
        entry = self._planner.entry(key)
        if entry is None or not entry.is_stored:
            return Durability.NONE
        survives = entry.facts.namespace not in self._unnamed and self._planner.survives(key, known)
        return Durability.DISK if survives else Durability.MEMORY

    def _last_used_wall(self, key: BlockKey) -> float:
        entry = self._planner.entry(key)
        unused = self._clock() - entry.last_used if entry is not None else 0.0
        return self._wall() - max(unused, 0.0)

    def _persist_recency(self) -> None:
        if self._disk is None:
            return
        with self._lock:
            touched = self._planner.take_touched()
            self._persisted_at = self._clock()
            used = {key: self._last_used_wall(key) for key in touched if self._planner.entry(key) is not None}
        try:
            self._disk.manifest.touch(used)
        except TierFault as fault:
            self.trouble(Tier.DISK, str(fault))

    def _tiers(self) -> list[Tier]:
        return [Tier.HOST] if self._disk is None else [Tier.HOST, Tier.DISK]

    def _tier_state(self, tier: Tier, objects: int) -> TierState:
        space = self._planner.spaces[tier]
        ready = space.total_pages * PAGE_BYTES
        capacity = self._host.region_count * self._host.region_pages * PAGE_BYTES if tier is Tier.HOST else ready
        trouble = self._troubles.get(tier, "")
        return TierState(
            tier,
            capacity,
            ready,
            space.used_pages * PAGE_BYTES,
            objects,
            tier is Tier.HOST or not trouble,
            trouble,
            self._rates.read.get(tier),
            self._rates.written.get(tier),
        )


def _nearest(layout: ModelLayout, others: Sequence[ModelLayout]) -> tuple[str, ...]:
    """Fields in which the most similar other layout differs; empty without one."""
    return min((differing_fields(layout, other) for other in others), key=len, default=())


def _check_objects(layout: ModelLayout, chain: Chain, objects: Sequence[ObjectSpec]) -> None:
    for spec in objects:
        if not 0 <= spec.block < chain.blocks:
            raise InvalidInput(f"object names block {spec.block} of a chain of {chain.blocks}")
        if not 0 <= spec.group < len(layout.groups):
            raise InvalidInput(f"object names group {spec.group}, the layout has {len(layout.groups)}")
        wanted = layout.groups[spec.group].nbytes
        if spec.length != wanted:
            name = layout.groups[spec.group].name
            raise InvalidInput(f"an object of group {name} has {wanted} bytes in this layout, not {spec.length}")
