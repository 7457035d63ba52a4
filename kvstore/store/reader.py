"""GET's bytes: opens objects where they lie, and holds them while someone reads."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from kvstore.codec.frame import decode_frame
from kvstore.core.errors import CorruptFrame, TierFault
from kvstore.core.index import Facts, Held
from kvstore.core.keys import BlockKey, Tier
from kvstore.store.kept import Kept
from kvstore.store.objects import OpenObject
from kvstore.store.reports import MoverReports

RUN_OBJECTS = 64  # hot objects that are opened together, under one lock ...
RUN_BYTES = 4 << 20  # ... until they have so many bytes: held no longer than a few chunks take to send


class Reader:
    """Any thread."""

    def __init__(self, kept: Kept, reports: MoverReports) -> None:
        self._kept = kept
        self._reports = reports

    def open_all(self, keys: Sequence[BlockKey], deadline: float) -> Iterator[OpenObject]:
        """Objects in order, opened when asked for; see `Store.open_objects`. `deadline` is on `time.monotonic`.

        Hot ones are opened and closed by the run: a lock an object would cost as much as sending 64 KB of it.
        """
        position = 0
        while position < len(keys):
            run = self._open_hot(keys[position : position + RUN_OBJECTS])
            position += max(len(run), 1)
            if not run:
                yield self._open(keys[position - 1], deadline)
                continue
            run.reverse()
            try:
                while run:
                    yield run.pop()
            finally:
                for unread in run:
                    unread.close()

    def _open_hot(self, keys: Sequence[BlockKey]) -> list[OpenObject]:
        """As many of these as follow one another on the host, up to RUN_BYTES."""
        run = _Run(self._kept)
        with self._kept.lock:
            for key in keys:
                entry = self._kept.planner.entry(key)
                if entry is None or not entry.node.readable or run.nbytes >= RUN_BYTES:
                    break
                held = self._kept.planner.hold(key, Tier.HOST, entry.facts.generation)
                if held is None:
                    break
                run.add(entry.facts, held)
            self._kept.counters["fetch_host"] += len(run.holds)
        return [
            OpenObject(facts.key, facts, Tier.HOST, self._kept.host_pieces(facts, held.slots), run.end_one)
            for facts, held in run.holds
        ]

    def _open(self, key: BlockKey, deadline: float) -> OpenObject:
        """One object that was not on the host a moment ago."""
        with self._kept.changed:
            while True:
                entry = self._kept.planner.entry(key)
                if entry is None or not (entry.node.readable and entry.is_stored):
                    self._kept.counters["fetch_missing"] += 1
                    return OpenObject(key)
                facts = entry.facts
                held = self._kept.planner.hold(key, Tier.HOST, facts.generation)
                if held is not None:
                    run = _Run(self._kept)
                    run.add(facts, held)
                    self._kept.counters["fetch_host"] += 1
                    return OpenObject(key, facts, Tier.HOST, self._kept.host_pieces(facts, held.slots), run.end_one)
                if entry.host is None:
                    break
                if not self._kept.changed.wait(deadline - time.monotonic()):
                    self._kept.counters["fetch_late"] += 1
                    return OpenObject(key)
            held = self._kept.planner.hold(key, Tier.DISK, facts.generation)
            assert held is not None
        return self._read_disk(facts, held)

    def _read_disk(self, facts: Facts, held: Held) -> OpenObject:
        """Straight from disk, for what the host has no room for."""
        assert self._kept.disk is not None
        pieces: Sequence[memoryview] = ()
        started = time.monotonic()
        try:
            frame = self._kept.disk.read(held.slots[0], held.nbytes)
            pieces = decode_frame(frame, facts.key, facts.generation).pieces
        except (CorruptFrame, TierFault) as fault:
            self._reports.lost(facts, Tier.DISK, str(fault))
        finally:  # whatever else went wrong: a hold that nobody gives back keeps its slot for ever
            with self._kept.lock:
                self._kept.run(self._kept.planner.unhold(facts.key, Tier.DISK, facts.generation, held))
                if pieces:
                    self._kept.rates.note_read(Tier.DISK, held.nbytes, time.monotonic() - started)
                    self._kept.counters["fetch_disk"] += 1
        return OpenObject(facts.key, facts if pieces else None, Tier.DISK, pieces)


class _Run:
    """Hot objects that were opened together, held until the last of them is closed. One thread closes them."""

    __slots__ = ("_kept", "_left", "_started", "holds", "nbytes")

    def __init__(self, kept: Kept) -> None:
        self.holds: list[tuple[Facts, Held]] = []
        self.nbytes = 0
        self._kept = kept
        self._left = 0
        self._started = time.monotonic()

    def add(self, facts: Facts, held: Held) -> None:
        self.holds.append((facts, held))
        self.nbytes += facts.raw_bytes
        self._left += 1

    def end_one(self) -> None:
        self._left -= 1
        if self._left:
            return
        with self._kept.lock:
            # what a reader does between opening and closing is what a load from this tier costs it
            self._kept.rates.note_read(Tier.HOST, self.nbytes, time.monotonic() - self._started)
            for facts, held in self.holds:
                self._kept.run(self._kept.planner.unhold(facts.key, Tier.HOST, facts.generation, held))
