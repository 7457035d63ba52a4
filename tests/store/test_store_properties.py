"""Random events on a real store with small tiers: a fetch gives exactly the bytes that were put, or a miss.

The oracle is in the names: bytes are made from the key, so a model only has to know what was ever put. After each
step `contents()` runs every invariant of the planner.
"""

from __future__ import annotations

import faulthandler
import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from store_helpers import MIB, Stream, config, fill, released

from kvstore.codec.lossless import Codec
from kvstore.core.checksum import content_checksum
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import Hints, PlanKind, SessionEvent
from kvstore.core.presets import full_tiny, v4_demo, v4_tiny
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.store.store import Store

LAYOUTS = {"tiny": v4_tiny(), "demo": v4_demo(), "full": full_tiny()}
BLOCKS = 6
SHARED = 2
WAIT_SECONDS = 20.0


@pytest.fixture
def watchdog() -> Iterator[None]:
    """All stacks on standard error before the test's own timeout strikes."""
    faulthandler.dump_traceback_later(90, exit=False)
    yield
    faulthandler.cancel_dump_traceback_later()


class Events:
    """One store at a time on one folder, and everything that can happen to it. A failure prints its seed."""

    def __init__(self, folder: Path, seed: int) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.put_once: set[BlockKey] = set()
        self.host_mib, self.disk_mib = ((1, 2), (2, 4), (8, 16), (2, 0))[seed % 4]
        self.config = config(
            folder if self.disk_mib else None, self.host_mib * MIB, self.disk_mib * MIB,
            codec=self.rng.choice(list(Codec)), lease_seconds=20.0, reservation_seconds=30.0,
            disk_admission=list(DiskAdmission)[seed % 3], disk_write_bytes_per_day=(1 << 30) * (seed % 3 == 2),
        )  # fmt: skip
        self.weights = {
            self.put: 8, self.get: 6, self.open_without_a_lease: 2, self.report: 1, self.spoil_an_upload: 1,
            self.let_time_pass: 2, self.tell_of_a_session: 1, self.prefetch: 1, self.pin: 1, self.unpin: 1,
            self.release: 2, self.settle: 1, self.restart: 0.7, self.end_in_haste: 0.5,
        }  # fmt: skip
        self.open()

    def open(self) -> None:
        self.store = Store.open(self.config, lambda: self.now, lambda: 1e9 + self.now)
        self.leases: list[int] = []
        self.pins: list[int] = []
        self.streams = [
            Stream(self.store, layout, f"{name}{number}", BLOCKS, SHARED)
            for name, layout in LAYOUTS.items()
            for number in range(3)
        ]

    def step(self) -> None:
        self.rng.choices(list(self.weights), list(self.weights.values()))[0]()
        self.store.contents()

    def put(self) -> None:
        stream, hints = self._stream(), Hints(session="s", ttl_seconds=self.rng.choice([None, None, 5.0]))
        first = self.rng.choice([0, 0, SHARED, BLOCKS - 1])
        end = self.rng.randrange(first, BLOCKS) + 1
        durable = self.rng.random() < 0.3
        was_put = any(key.prefix in stream.hashes for key in self.put_once)
        if not was_put and self.rng.random() < 0.5:
            # other bytes under the same names: they were the first, so the test takes them back
            if ReserveStatus.WANTED in stream.put(self.store, first, end, (), 1, durable, hints)[0]:
                self.store.report(stream.namespace, stream.key(0), "the test's other run")
                self.settle()  # or a restart in haste could find it again
            return
        states = [block for block in range(first, end) if self.rng.random() < 0.3 or block == BLOCKS - 1]
        states = states if stream.layout.state_group is not None else []
        statuses, done, durabilities = stream.put(self.store, first, end, states, durable=durable, hints=hints)
        assert set(done) <= {PutStatus.STORED, PutStatus.DROPPED}
        assert len(durabilities) == len(statuses)
        self.put_once.update(stream.key(block) for block in range(first, end))
        self.put_once.update(stream.key(block, 1) for block in states)
        if not self.disk_mib:
            assert Durability.DISK not in durabilities

    def get(self) -> None:
        stream = self._stream()
        tokens = self.rng.randrange(1, stream.tokens + 2)
        match = stream.lookup(self.store, self.rng.choice([stream.tokens + 1, tokens]), self.rng.random() < 0.5)
        assert match.plan.tokens % stream.layout.block_tokens == 0
        found = stream.fetch(self.store, match)
        stream.verify(found)
        assert None not in found.values(), "nothing was damaged, so what a lease promised is there"
        assert set(found) <= self.put_once, "bytes that nobody put"
        if match.lease is not None and self.rng.random() < 0.3:
            self.leases.append(match.lease)
        else:
            released(self.store, match)

    def open_without_a_lease(self) -> None:
        stream = self._stream()
        keys = [stream.key(self.rng.randrange(BLOCKS), self.rng.randrange(2)) for _ in range(4)]
        for opened in self.store.open_objects(0, keys, time.monotonic() + WAIT_SECONDS):
            with opened:
                if not opened.is_missing:
                    stream.verify({opened.key: b"".join(opened.pieces)})

    def report(self) -> None:
        there = sorted(self.store.contents())
        if there:
            key = self.rng.choice(there)
            stream = next(stream for stream in self.streams if key.prefix in stream.hashes)
            assert self.store.report(stream.namespace, key, "the test says so")
            assert key not in self.store.contents()
            assert not self.store.report(stream.namespace, key, "and again")

    def spoil_an_upload(self) -> None:
        stream = self._stream()
        data = stream.payload(0)
        spec = ObjectSpec(0, 0, len(data), content_checksum([data]))
        made = self.store.reserve(stream.namespace, stream.chain(0, 1), [spec], bytes(16), b"w" * 16, Hints())
        if self.rng.random() < 0.3:
            return  # the writer is never heard of again
        if made.statuses[0] is ReserveStatus.WANTED:
            fill(self.store.begin_object(made.id, 0), bytes(len(data)))
            assert self.store.finish_object(made.id, 0) is PutStatus.CORRUPT
        assert len(self.store.commit(made.id, True, time.monotonic() + WAIT_SECONDS)) == 1

    def let_time_pass(self) -> None:
        seconds = self.rng.choice([0.1, 6.0, 40.0])
        self.now += seconds
        self.store.tick()
        if seconds > self.config.lease_seconds:
            assert self.store.status().leases == 0
            self.leases.clear()

    def tell_of_a_session(self) -> None:
        self.store.session(self._stream().namespace, "s", self.rng.choice(list(SessionEvent)), None)

    def prefetch(self) -> None:
        stream = self._stream()
        self.store.prefetch(stream.namespace, stream.chain(), stream.tokens)

    def pin(self) -> None:
        stream = self._stream()
        pin = self.store.pin(stream.namespace, stream.chain(), self.rng.choice([1.0, 100.0]))
        if pin is not None:
            self.pins.append(pin.number)

    def unpin(self) -> None:
        if self.pins:
            self.store.unpin(self.pins.pop())

    def release(self) -> None:
        if self.leases:
            assert self.store.release([self.leases.pop(), 10**9]) == 1

    def settle(self) -> None:
        assert self.store.quiesce(WAIT_SECONDS), "a copy hangs"
        assert self.store.status().queued_copies == 0

    def restart(self) -> None:
        """What is on disk, and only that, is there again."""
        self.settle()
        kept = {key for key, copies in self.store.contents().items() if ("disk", "ready") in copies}
        self.store.close()
        self.open()
        again = set(self.store.contents())
        assert again <= kept, "dropped objects came back"
        assert again >= {key for key in kept if self._stands(key, kept)}, "objects on disk were forgotten"

    def end_in_haste(self) -> None:
        self.store.close(0.0)
        self.open()

    def _stream(self) -> Stream:
        return self.rng.choice(self.streams)

    def _stands(self, key: BlockKey, kept: set[BlockKey]) -> bool:
        """Whether the rows that this object stands on are on disk too."""
        stream = next(stream for stream in self.streams if key.prefix in stream.hashes)
        return all(stream.key(above) in kept for above in range(stream.hashes.index(key.prefix) + 1))


@pytest.mark.parametrize("seed", range(12))
def test_any_sequence_of_events_keeps_the_promise(tmp_path: Path, watchdog: None, seed: int) -> None:
    events = Events(tmp_path / "d", seed)
    for _ in range(120):
        events.step()
    events.settle()
    for stream in events.streams:
        stream.verify(stream.fetch(events.store, stream.lookup(events.store)))
    events.store.contents()
    events.store.close()


# -- several threads


@pytest.mark.parametrize(("host_mib", "disk_mib"), [(2, 0), (2, 6), (4, 16)])
def test_threads_under_eviction_read_only_what_was_put(tmp_path: Path, watchdog, host_mib: int, disk_mib: int) -> None:
    """A reader compares its bytes twice while it holds them: nobody may reuse a slot under it (C11)."""
    folder = tmp_path / "d" if disk_mib else None
    store = Store.open(config(folder, host_mib * MIB, disk_mib * MIB))
    streams = [Stream(store, layout, str(n), BLOCKS, SHARED) for n in range(12) for layout in (v4_demo(), v4_tiny())]
    failures: list[BaseException] = []
    verified = [0] * 4

    def work(index: int) -> None:
        rng = random.Random(index)
        try:
            for _ in range(120):
                stream = rng.choice(streams)
                choice = rng.random()
                if choice < 0.45:
                    states = [BLOCKS - 1] if rng.random() < 0.5 else []
                    stream.put(store, states=states, durable=rng.random() < 0.1)
                elif choice < 0.95:
                    verified[index] += _read_twice(store, stream, rng)
                elif choice < 0.97:
                    store.report(stream.namespace, stream.key(rng.randrange(BLOCKS)), "at random")
                else:
                    store.tick()
        except BaseException as failure:
            failures.append(failure)

    threads = [threading.Thread(target=work, args=(index,), name=f"test-{index}") for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(80)
        assert not thread.is_alive(), "a call hangs"
    if failures:
        raise failures[0]
    assert store.quiesce(WAIT_SECONDS), "a copy hangs"
    store.contents()
    assert sum(verified) > 100
    status = store.status()
    assert status.leases == 0 and status.counters["evicted_host"] > 0
    assert status.counters.get("corrupt_host", 0) == status.counters.get("corrupt_disk", 0) == 0
    store.close()


def _read_twice(store: Store, stream: Stream, rng: random.Random) -> int:
    match = stream.lookup(store)
    blocks = match.plan.tokens // stream.layout.block_tokens
    keys = [stream.key(block) for block in range(blocks)]
    if match.plan.kind is PlanKind.RESUME:
        keys.append(stream.key(blocks - 1, 1))
    verified = 0
    for opened in store.open_objects(match.lease or 0, keys, time.monotonic() + WAIT_SECONDS):
        with opened:
            if opened.is_missing:
                continue
            for _ in range(2):
                stream.verify({opened.key: b"".join(opened.pieces)})
                if rng.random() < 0.3:
                    time.sleep(0.001)
            assert content_checksum(opened.pieces) == opened.content
            assert opened.tier in (Tier.HOST, Tier.DISK)
            verified += 1
    released(store, match)
    return verified
