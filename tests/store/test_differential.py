"""One event sequence through a bare planner and through the running store leaves the same contents.

This is what makes a simulated hit rate a statement about production: the reference below does what a simulator does
(every action at once, frame lengths computed, no bytes), the store does it with memory, files and threads.
"""

from __future__ import annotations

import random
from hashlib import sha256
from pathlib import Path

import pytest
from store_helpers import MIB, WORKER, Stream, config

from kvstore.codec.frame import max_frame_bytes
from kvstore.core import presets
from kvstore.core.actions import Action, Copy, Drop
from kvstore.core.checksum import content_checksum
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, Match, Speeds
from kvstore.core.matching import Request
from kvstore.core.placement import Placement
from kvstore.core.planner import Planner
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.settings import Settings
from kvstore.store.settings import StoreConfig
from kvstore.store.store import Store


class Reference:
    """The planner with tiers that do everything at once."""

    def __init__(self, store: Store, config: StoreConfig) -> None:
        disk = store._kept.disk
        assert disk is not None
        segment_bytes = disk.segment_pages * PAGE_BYTES
        self.planner = Planner(
            Settings(
                host_bytes=config.host_bytes,
                disk_bytes=disk.segment_count * segment_bytes,
                placement=config.placement,
                lease_seconds=config.lease_seconds,
                segment_bytes=segment_bytes,
            )
        )
        host = self.planner.spaces[Tier.HOST]
        self.planner.grow(Tier.HOST, config.host_bytes // PAGE_BYTES // host.region_pages)
        self.planner.grow(Tier.DISK, disk.segment_count)

    def do(self, actions: list[Action], now: float) -> None:
        waiting = list(actions)
        while waiting:
            action = waiting.pop(0)
            if isinstance(action, Drop):
                continue
            assert isinstance(action, Copy)
            key, generation = action.facts.key, action.facts.generation
            if action.target is Tier.DISK:
                layout = self.planner.namespaces[action.facts.namespace].layout
                frame_bytes = max_frame_bytes(layout.groups[key.group].sections)
                slots, more = self.planner.encoded(key, generation, frame_bytes, now)
                waiting += more
                if not slots:
                    waiting += self.planner.failed(key, generation, Tier.DISK, now)
                    continue
            waiting += self.planner.arrived(key, generation, action.target, now)

    def put(self, stream: Stream, first: int, end: int, specs: list[ObjectSpec], now: float) -> list[ReserveStatus]:
        statuses, facts, actions = self.planner.reserve(
            stream.namespace, stream.chain(first, end), specs, stream.lineage(first), WORKER, Hints(), now, 0.0
        )
        self.do(actions, now)
        for made in facts:
            if made is not None:
                self.do(self.planner.arrived(made.key, made.generation, Tier.HOST, now), now)
        return statuses

    def lookup(self, stream: Stream, prompt_tokens: int, can_replay: bool, now: float) -> Match:
        request = Request(stream.chain(), prompt_tokens, Hints(), can_replay, Speeds({}))
        match, actions = self.planner.lookup(stream.namespace, request, WORKER, now)
        self.do(actions, now)
        return match


def _seen(match: Match) -> tuple[object, ...]:
    """A match without what only the store knows: seconds."""
    points = [(point.tokens, point.load_bytes, point.tier) for point in match.resume_points]
    plan = match.plan
    return match.rows_tokens, points, plan[:5], match.snapshots, match.reason, match.lineage, match.lease


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("placement", ["every", "interval:512", "ends", "ends+junctions", "none"])
def test_planner_and_running_store_agree_after_every_event(tmp_path: Path, placement: str, seed: int) -> None:
    rng = random.Random(sha256(f"{placement} {seed}".encode()).digest())
    now = [1000.0]
    wanted = config(
        tmp_path / "d", 1 * MIB, 4 * MIB, segment_bytes=MIB, placement=Placement.parse(placement), promote_threads=1
    )
    store = Store.open(wanted, clock=lambda: now[0])
    assert store.quiesce(10)
    reference = Reference(store, wanted)
    layouts: list[ModelLayout] = [presets.v4_demo(), presets.v4_tiny()]
    streams = [
        Stream(store, layout, f"{layout.model} {index}", rng.randrange(2, 12), shared=rng.randrange(0, 6))
        for layout in layouts
        for index in range(6)
    ]
    for stream in streams:
        reference.planner.add_namespace(stream.namespace, stream.root, stream.layout)
    leases: list[int] = []
    for step in range(60):
        now[0] += rng.random()
        stream = rng.choice(streams)
        event = rng.choices(["put", "get", "release", "tick", "report", "pin"], [6, 6, 4, 2, 0.5, 0.3])[0]
        if event == "put":
            first = rng.choice([0, 0, rng.randrange(len(stream.hashes))])
            end = rng.randrange(first + 1, len(stream.hashes) + 1)
            states = [block for block in range(first, end) if block == end - 1 or rng.random() < 0.3]
            specs = [
                ObjectSpec(block - first, group, len(data := stream.payload(block, group)), content_checksum([data]))
                for block in range(first, end)
                for group in (0, 1)
                if group == 0 or block in states
            ]
            expected = reference.put(stream, first, end, specs, now[0])
            statuses = _put_once(store, stream, first, end, specs)
            assert statuses == expected, (step, event)
        elif event == "get":
            tokens, can_replay = stream.tokens + rng.randrange(-2, 3), rng.random() < 0.5
            ours = stream.lookup(store, tokens, can_replay)
            theirs = reference.lookup(stream, tokens, can_replay, now[0])
            assert _seen(ours) == _seen(theirs), (step, event)
            leases += [ours.lease] if ours.lease is not None else []
        elif event == "release" and leases:
            lease = leases.pop(rng.randrange(len(leases)))
            assert store.release([lease]) == int(reference.planner.release(lease))
        elif event == "tick":
            now[0] += rng.choice([0.5, 40.0])
            store.tick()
            reference.do(reference.planner.tick(now[0]), now[0])
        elif event == "report":
            key = BlockKey(rng.choice(stream.hashes), rng.choice([0, 1]))
            store.report(stream.namespace, key, "a test")
            reference.do(reference.planner.report(key), now[0])
        elif event == "pin":
            ours_pin = store.pin(stream.namespace, stream.chain(), 20.0)
            theirs_pin = reference.planner.pin(stream.namespace, stream.chain(), 20.0, now[0])
            assert (ours_pin is None) == (theirs_pin is None)
        assert store.quiesce(20)
        assert store.contents() == reference.planner.snapshot(), (step, event)
        reference.planner.check()
    assert sum(store._kept.planner.counts.evicted.values()) > 0, "nothing was evicted: the tiers are too large to tell"
    store.close()


def _put_once(store: Store, stream: Stream, first: int, end: int, specs: list[ObjectSpec]) -> list[ReserveStatus]:
    """Announce, upload and end; each object is on disk before the next one is published, as in the reference."""
    reservation = store.reserve(
        stream.namespace, stream.chain(first, end), specs, stream.lineage(first), WORKER, Hints()
    )
    for index, status in enumerate(reservation.statuses):
        if status is ReserveStatus.WANTED:
            data = stream.payload(first + specs[index].block, specs[index].group)
            pieces = store.begin_object(reservation.id, index)
            assert pieces is not None
            for piece in pieces:
                piece[:] = data[: len(piece)]
                data = data[len(piece) :]
            store.finish_object(reservation.id, index)
            assert store.quiesce(20)
    store.commit(reservation.id, False, 0.0)
    return list(reservation.statuses)
