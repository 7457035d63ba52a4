"""What the store's one lock guards, and the lock.

The parts of the store (`namespaces`, `reader`, `uploads`, `reports`, `figures`) share one `Kept`. Whoever touches
anything here holds `lock`, for dictionary work and never across I/O, a checksum or a copy. `changed` is told when a
copy ended or an object came or went.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import cast

from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.descriptor import EMPTY, whole_word
from kvstore.core.errors import InvalidInput
from kvstore.core.handoff import Handoffs
from kvstore.core.index import Facts
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.planner import Planner
from kvstore.core.policies import policy_named
from kvstore.core.settings import Settings
from kvstore.core.shadows import variants_for
from kvstore.store.lock import MeasuredLock
from kvstore.store.mover import Described, Mover
from kvstore.store.rates import Rates
from kvstore.store.recovery import RestoredNamespace
from kvstore.store.settings import StoreConfig
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier

log = logging.getLogger("kvstore.store")


class Kept:
    """State of one open store. `mover` is set once, before any thread starts."""

    mover: Mover

    def __init__(
        self,
        config: StoreConfig,
        host: HostTier,
        disk: DiskTier | None,
        clock: Callable[[], float],
        wall: Callable[[], float],
    ) -> None:
        segment_bytes = disk.segment_pages * PAGE_BYTES if disk is not None else None
        self.config = config
        self.host, self.disk = host, disk
        self.clock, self.wall = clock, wall
        self.lock = MeasuredLock()
        self.changed = threading.Condition(cast(threading.Lock, self.lock))  # it calls nothing else of a lock
        first = variants_for(config.policy, config.keep_seconds)[0]
        self.planner = Planner(
            Settings(
                host_bytes=config.host_bytes,
                disk_bytes=disk.segment_count * (segment_bytes or 0) if disk is not None else 0,
                placement=config.placement,
                keep_seconds=first.keep_seconds,
                disk_admission=config.disk_admission,
                disk_write_bytes_per_day=config.disk_write_bytes_per_day,
                lives=config.lives,
                lease_seconds=config.lease_seconds,
                curves=True,
                segment_bytes=segment_bytes,
            ),
            policy_named(first.policy),
            first_generation=disk.recovered.next_generation if disk is not None else 1,
        )
        self.handoffs = Handoffs(config.handoff_bytes)
        self.counters: Counter[str] = Counter()
        self.rates = Rates()
        self.troubles: dict[Tier, str] = {}
        self.namespaces: dict[bytes, RestoredNamespace] = {}
        self.described: dict[bytes, Described] = {}
        self.unnamed: dict[bytes, None] = {}  # namespaces that the folder does not name: a restart would forget them
        self.bad: set[tuple[BlockKey, int]] = set()  # frames to be erased when their slot is free
        self.layers: dict[int, int] = {}  # leading layers that are whole, of flows that are loaded by layers
        self.shut: deque[int] = deque()  # segments that could not be made; each is tried again later

    def run(self, actions: Sequence[Action]) -> None:
        """Hand actions over; called under the lock. What cannot be queued has failed."""
        waiting = deque(actions)
        promotions: list[Copy] = []
        while waiting or promotions:
            if not waiting:  # all at once, and after the drops: their slots are marked then
                refused = promotions[self.mover.promote(promotions) :]
                promotions = []
                for copy in refused:
                    waiting += self._refused(copy)
                continue
            action = waiting.popleft()
            if isinstance(action, Drop) and action.tier is Tier.HOST:
                self.host.mark(action.slots, EMPTY)  # before anybody can write there
            elif isinstance(action, Copy) and action.target is Tier.HOST:
                promotions.append(action)
            elif not self.mover.submit(action):
                waiting += self._refused(action)

    def _refused(self, action: Action) -> Sequence[Action]:
        """An action that the mover has no room for."""
        self.counters["shed_copies"] += 1
        if isinstance(action, Drop):
            return ()
        facts = action.facts
        return self.planner.failed(facts.key, facts.generation, action.target, self.clock())

    def arrived_on_host(self, facts: Facts) -> None:
        """A copy on the host is complete and verified: say so in the stamp table, then to the planner. Locked."""
        entry = self.planner.entry(facts.key)
        if entry is not None and entry.facts.generation == facts.generation and entry.host is not None:
            self.host.mark(entry.host.slots, whole_word(entry.host.stamp))
        self.run(self.planner.arrived(facts.key, facts.generation, Tier.HOST, self.clock()))

    def check_namespace(self, name: bytes) -> RestoredNamespace:
        known = self.namespaces.get(name)
        if known is None:
            raise InvalidInput(f"namespace {name[:4].hex()} is not open: say Hello first")
        return known

    def host_pieces(self, facts: Facts, slots: Sequence[int]) -> list[memoryview]:
        """Writable views of an object's slots on the host. Needs no lock; the caller holds the slots."""
        return self.host.pieces(slots, self.described[facts.namespace].cuts[facts.key.group])

    def last_used_wall(self, key: BlockKey) -> float:
        """When an object was last used, in Unix seconds."""
        entry = self.planner.entry(key)
        unused = self.clock() - entry.last_used if entry is not None else 0.0
        return self.wall() - max(unused, 0.0)

    def trouble(self, tier: Tier, why: str) -> None:
        """Say what is wrong with a tier, until it works again. Takes the lock itself."""
        with self.lock:
            is_new = self.troubles.get(tier) != why
            self.troubles[tier] = why
            self.counters[f"trouble_{tier.value}"] += 1
        if is_new:
            log.warning("%s tier: %s", tier.value, why)
