"""A store in a dictionary, for tests of the daemon: the same methods, no tiers, no planner, every block its own."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from itertools import count
from types import SimpleNamespace

from kvstore.core.checksum import content_checksum
from kvstore.core.errors import LayoutMismatch
from kvstore.core.fingerprint import differing_fields, fingerprint
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import COLD_PLAN, Match, MissReason, Plan, PlanKind, Snapshots
from kvstore.core.prefix import namespace_id, namespace_root
from kvstore.core.reserve import Durability, PutStatus, ReserveStatus
from kvstore.store.lock import LockFigures


class MemoryObject:
    """An object under the store's eyes: entered and left exactly once."""

    def __init__(self, store, key, body):
        self.key = key
        self.is_missing = body is None
        self.length = 0 if body is None else len(body)
        self.generation = 7
        self.lineage = b"l" * 16
        self.content = b"" if body is None else content_checksum([body])
        self.tier = Tier.HOST
        self._store = store
        self._body = body
        self.pieces = []

    def __enter__(self):
        self._store.open_now += 1
        if self._body is not None:
            view = memoryview(self._body)
            middle = len(view) // 2
            self.pieces = [view[:middle].toreadonly(), view[middle:].toreadonly()]
        return self

    def __exit__(self, *exc):
        self._store.open_now -= 1
        for piece in self.pieces:
            piece.release()  # a reader that kept them would now fail


@dataclass
class MemoryStore:
    boot_epoch: int = 41
    namespaces: dict = field(default_factory=dict)
    objects: dict = field(default_factory=dict)
    reservations: dict = field(default_factory=dict)
    log: list = field(default_factory=list)
    open_now: int = 0
    closed_with: float | None = None
    dropped: set = field(default_factory=set)  # indices that begin_object refuses
    before_object: object = None  # called before each object is opened
    ticks: int = 0

    def __post_init__(self):
        self._ids = count(1)
        self._lock = threading.Lock()

    def hello(self, tenant, layout, existing_only):
        known = [space for space in self.namespaces.values() if space.layout.model == layout.model]
        differing = tuple(name for space in known for name in differing_fields(space.layout, layout))
        if existing_only and differing:
            raise LayoutMismatch(f"layout mismatch: {differing[0]}")
        id = namespace_id(tenant, fingerprint(layout))
        created = id not in self.namespaces
        root = namespace_root(b"secret", tenant, fingerprint(layout))
        space = SimpleNamespace(id=id, root=root, layout=layout, created=created, differing=differing)
        return self.namespaces.setdefault(id, space) if created else space

    def namespace(self, id):
        return self.namespaces.get(id)

    def lookup(
        self, namespace_id, chain, prompt_tokens, hints, owner, can_replay, worker_flops,
        layers=False, host_bytes_per_second=None, hot_only=False,
    ):  # fmt: skip
        self.log.append(("lookup", hints, owner, can_replay, worker_flops))
        layout = self.namespaces[namespace_id].layout
        found = 0
        while found < chain.blocks and BlockKey(chain.hash_at(found), 0) in self.objects:
            found += 1
        tokens = found * layout.block_tokens
        plan = Plan(PlanKind.RESUME, tokens, tokens, 0, Tier.HOST, None, None) if tokens else COLD_PLAN
        reason = MissReason.NONE if found else MissReason.NEVER_SEEN
        lease = next(self._ids) if found else None
        return Match(tokens, (), None, plan, Snapshots(), True, reason, lease, bytes(16))

    def open_objects(self, lease, keys, deadline):
        for key in keys:
            if self.before_object is not None:
                self.before_object()
            yield MemoryObject(self, key, self.objects.get(key))

    def reserve(self, namespace_id, chain, objects, lineage, owner, hints):
        id = next(self._ids)
        keys = [BlockKey(chain.hash_at(spec.block), spec.group) for spec in objects]
        self.reservations[id] = [(key, spec, bytearray(spec.length)) for key, spec in zip(keys, objects, strict=True)]
        wanted = [ReserveStatus.EXISTS if key in self.objects else ReserveStatus.WANTED for key in keys]
        return SimpleNamespace(id=id, statuses=wanted)

    def begin_object(self, reservation, index):
        if index in self.dropped:
            return None
        view = memoryview(self.reservations[reservation][index][2])
        return [view[:5], view[5:]]

    def finish_object(self, reservation, index):
        key, spec, body = self.reservations[reservation][index]
        if content_checksum([body]) != spec.content:
            return PutStatus.CORRUPT
        self.objects[key] = body
        return PutStatus.STORED

    def abandon_object(self, reservation, index):
        self.log.append(("abandoned", index))

    def commit(self, reservation, durable, deadline):
        self.log.append(("commit", durable, deadline - time.monotonic()))
        kept = self.reservations.pop(reservation)
        return [Durability.MEMORY if key in self.objects else Durability.NONE for key, _, _ in kept]

    def release(self, leases):
        return len(leases)

    def release_owner(self, owner):
        self.log.append(("released", owner))
        return 0

    def report(self, namespace_id, key, reason):
        return self.objects.pop(key, None) is not None

    def session(self, namespace_id, session, event, gap):
        self.log.append(("session", session, event, gap))

    def prefetch(self, namespace_id, chain, prompt_tokens):
        return chain.blocks, 99

    def pin(self, namespace_id, chain, ttl_seconds):
        return SimpleNamespace(number=5, tokens=chain.blocks * 128, nbytes=10) if chain.blocks else None

    def unpin(self, id):
        return id == 5

    def status(self):
        tier = SimpleNamespace(
            tier=Tier.HOST,
            capacity_bytes=1000,
            ready_bytes=500,
            used_bytes=sum(map(len, self.objects.values())),
            objects=len(self.objects),
            is_writable=True,
            trouble="",
            read_bytes_per_second=None,
            write_bytes_per_second=2.0,
            huge_bytes=100,
        )
        spaces = [
            SimpleNamespace(id=space.id, layout=space.layout, rows=len(self.objects), states=0, host_bytes=0, curve=())
            for space in self.namespaces.values()
        ]
        return SimpleNamespace(
            tiers=[tier], namespaces=spaces, leases=1, pins=2, queued_copies=3, counters={"hits": 4},
            handoffs=5, handoff_bytes=6, lock=LockFigures(7.0, 8.0, 9.0),
        )  # fmt: skip

    @property
    def next_generation(self):
        return 8

    @property
    def moved(self):
        return 0

    def tick(self):
        self.ticks += 1

    def close(self, drain_seconds):
        self.closed_with = drain_seconds
