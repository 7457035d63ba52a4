"""GET's bytes: opens objects where they lie, and holds them while someone reads."""

from __future__ import annotations

import time

from kvstore.codec.frame import decode_frame
from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.index import Facts, Held
from kvstore.core.keys import BlockKey, Tier
from kvstore.store.kept import Kept
from kvstore.store.objects import OpenObject
from kvstore.store.reports import MoverReports


class Reader:
    """Any thread."""

    def __init__(self, kept: Kept, reports: MoverReports) -> None:
        self._kept = kept
        self._reports = reports

    def open(self, key: BlockKey, deadline: float) -> OpenObject:
        """One object, until `deadline` (on `time.monotonic`); see `Store.open_objects`."""
        with self._kept.changed:
            while True:
                entry = self._kept.planner.entry(key)
                if entry is None or not (entry.node.readable and entry.is_stored):
                    self._kept.counters["fetch_missing"] += 1
                    return OpenObject(key)
                facts = entry.facts
                if entry.is_ready(Tier.HOST):
                    held = self._kept.planner.hold(key, Tier.HOST, facts.generation)
                    assert held is not None
                    return self._opened_host(facts, held)
                if entry.host is None:
                    break
                if not self._kept.changed.wait(deadline - time.monotonic()):
                    self._kept.counters["fetch_late"] += 1
                    return OpenObject(key)
            held = self._kept.planner.hold(key, Tier.DISK, facts.generation)
            assert held is not None and self._kept.disk is not None
        try:
            started = time.monotonic()
            frame = self._kept.disk.read(held.slots[0], held.nbytes)
            pieces = decode_frame(frame, key, facts.generation).pieces
        except (CorruptFrame, TierFault) as fault:
            self._reports.lost(facts, Tier.DISK, str(fault))
            self._unhold(facts, Tier.DISK, held)
            return OpenObject(key)
        self._unhold(facts, Tier.DISK, held)
        with self._kept.lock:
            self._kept.rates.note_read(Tier.DISK, held.nbytes, time.monotonic() - started)
            self._kept.counters["fetch_disk"] += 1
        return OpenObject(key, facts, Tier.DISK, pieces)

    def _opened_host(self, facts: Facts, held: Held) -> OpenObject:
        pieces = self._kept.host.pieces(held.slots, self._kept.described[facts.namespace].cuts[facts.key.group])
        started = time.monotonic()
        self._kept.counters["fetch_host"] += 1

        def close() -> None:
            # what a reader does between opening and closing is what a load from this tier costs it
            with self._kept.lock:
                self._kept.rates.note_read(Tier.HOST, facts.raw_bytes, time.monotonic() - started)
            self._unhold(facts, Tier.HOST, held)

        return OpenObject(facts.key, facts, Tier.HOST, pieces, close)

    def _unhold(self, facts: Facts, tier: Tier, held: Held) -> None:
        with self._kept.lock:
            self._kept.run(self._kept.planner.unhold(facts.key, tier, facts.generation, held))
