"""Random events on a real store with small tiers: a fetch gives exactly the bytes that were put, or a miss.

The oracle is in the names: bytes are made from the key, so a model only has to know what was ever put. After each
step `contents()` runs every invariant of the planner.
"""

from __future__ import annotations

import faulthandler
import random
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from store_helpers import MIB, Stream, config, fill, released

from kvstore.codec.lossless import Codec
from kvstore.core.checksum import content_checksum
from kvstore.core.keys import BlockKey, Tier
from kvstore.core.match import Hints, PlanKind, SessionEvent
from kvstore.core.presets import full_tiny, v4_demo, v4_tiny
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.store.store import Store

LAYOUTS = {"tiny": v4_tiny(), "demo": v4_demo(), "full": full_tiny()}
BLOCKS = 6
SHARED = 2
WAIT_SECONDS = 20.0


class StoreMachine(RuleBasedStateMachine):
    """One store at a time on one folder; restarts with and without an orderly end."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="kvstore-properties-"))
        self.now = 1000.0
        self.put_once: set[BlockKey] = set()
        self.leases: list[int] = []
        self.pins: list[int] = []
        self.store: Store

    @initialize(host_mib=st.sampled_from([1, 2, 8]), disk_mib=st.sampled_from([0, 4, 16]), codec=st.sampled_from(Codec))
    def start(self, host_mib: int, disk_mib: int, codec: Codec) -> None:
        self.sizes = (host_mib, disk_mib, codec)
        self.open()

    def open(self) -> None:
        host_mib, disk_mib, codec = self.sizes
        folder = self.folder / "d" if disk_mib else None
        made = config(folder, host_mib * MIB, disk_mib * MIB, codec=codec, lease_seconds=20.0, reservation_seconds=30.0)
        self.store = Store.open(made, lambda: self.now, lambda: 1e9 + self.now)
        self.leases, self.pins = [], []
        self.streams = {
            (name, number): Stream(self.store, layout, f"{name}{number}", BLOCKS, SHARED)
            for name, layout in LAYOUTS.items()
            for number in range(4)
        }

    picked = st.tuples(st.sampled_from(sorted(LAYOUTS)), st.integers(0, 3))

    @rule(
        which=picked,
        first=st.integers(0, BLOCKS - 1),
        blocks=st.integers(1, BLOCKS),
        states=st.sets(st.integers(0, BLOCKS - 1), max_size=2),
        durable=st.booleans(),
        ttl=st.sampled_from([None, None, 5.0]),
        run=st.sampled_from([0, 0, 0, 1]),
    )
    def put(
        self,
        which: tuple[str, int],
        first: int,
        blocks: int,
        states: set[int],
        durable: bool,
        ttl: float | None,
        run: int,
    ) -> None:
        stream = self.streams[which]
        end = min(first + blocks, BLOCKS)
        wanted = sorted(states) if stream.layout.state_group is not None else []
        # another run computes other bytes: of an object that was put once, they must never be taken beside the first
        run = run if not any(key.prefix in stream.hashes for key in self.put_once) else 0
        hints = Hints(session=which[0], ttl_seconds=ttl)
        if run:
            statuses, _, _ = stream.put(self.store, first, end, wanted, run, durable, hints)
            if ReserveStatus.WANTED in statuses:  # it was the first after all: start over with what everyone has
                for hash_ in stream.hashes:
                    self.store.report(stream.namespace, BlockKey(hash_, 0), "the test's other run")
                assert self.store.quiesce(WAIT_SECONDS)  # or a restart in haste could find it again
            return
        statuses, done, durabilities = stream.put(self.store, first, end, wanted, durable=durable, hints=hints)
        assert set(done) <= {PutStatus.STORED, PutStatus.DROPPED}
        assert len(durabilities) == len(statuses)
        self.put_once.update(stream.key(block) for block in range(first, end))
        self.put_once.update(stream.key(block, 1) for block in wanted if first <= block < end)
        if self.sizes[1] == 0:
            assert Durability.DISK not in durabilities

    @rule(which=picked, keep=st.booleans(), tokens=st.integers(1, BLOCKS * 128 + 1), replay=st.booleans())
    def get(self, which: tuple[str, int], keep: bool, tokens: int, replay: bool) -> None:
        stream = self.streams[which]
        match = stream.lookup(self.store, min(tokens, stream.tokens + 1), replay)
        assert match.plan.tokens < tokens and match.plan.tokens % stream.layout.block_tokens == 0
        found = stream.fetch(self.store, match)
        stream.verify(found)
        for key, data in found.items():
            assert data is None or key in self.put_once, "bytes that nobody put"
        # leased: what the match promised is there (nothing was damaged)
        assert None not in found.values()
        if keep and match.lease is not None:
            self.leases.append(match.lease)
        else:
            released(self.store, match)

    @rule(which=picked, block=st.integers(0, BLOCKS - 1), group=st.integers(0, 1))
    def open_without_a_lease(self, which: tuple[str, int], block: int, group: int) -> None:
        stream = self.streams[which]
        for opened in self.store.open_objects(0, [stream.key(block, group)], time.monotonic() + WAIT_SECONDS):
            with opened:
                if not opened.is_missing:
                    stream.verify({opened.key: b"".join(opened.pieces)})

    @rule(which=picked, block=st.integers(0, BLOCKS - 1), group=st.integers(0, 1))
    def report(self, which: tuple[str, int], block: int, group: int) -> None:
        stream = self.streams[which]
        was_there = stream.key(block, group) in self.store.contents()
        assert self.store.report(stream.namespace, stream.key(block, group), "the test says so") == was_there
        assert stream.key(block, group) not in self.store.contents()

    @rule(which=picked, complete=st.booleans())
    def an_upload_that_goes_wrong(self, which: tuple[str, int], complete: bool) -> None:
        stream = self.streams[which]
        data = stream.payload(0)
        spec = ObjectSpec(0, 0, len(data), content_checksum([data]))
        made = self.store.reserve(stream.namespace, stream.chain(0, 1), [spec], bytes(16), b"w" * 16, Hints())
        if made.statuses[0] is ReserveStatus.WANTED and complete:
            fill(self.store.begin_object(made.id, 0), bytes(len(data)))
            assert self.store.finish_object(made.id, 0) is PutStatus.CORRUPT
        if complete:
            assert self.store.commit(made.id, True, time.monotonic() + WAIT_SECONDS)[0] is not None

    @rule(seconds=st.sampled_from([0.1, 6.0, 40.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.store.tick()
        if seconds > 20.0:
            assert self.store.status().leases == 0

    @rule(which=picked, event=st.sampled_from(SessionEvent))
    def session(self, which: tuple[str, int], event: SessionEvent) -> None:
        self.store.session(self.streams[which].namespace, which[0], event, None)

    @rule(which=picked)
    def prefetch(self, which: tuple[str, int]) -> None:
        stream = self.streams[which]
        self.store.prefetch(stream.namespace, stream.chain(), stream.tokens)

    @rule(which=picked, ttl=st.sampled_from([1.0, 100.0]))
    def pin(self, which: tuple[str, int], ttl: float) -> None:
        stream = self.streams[which]
        pin = self.store.pin(stream.namespace, stream.chain(), ttl)
        if pin is not None:
            self.pins.append(pin.number)

    @precondition(lambda self: self.pins)
    @rule()
    def unpin(self) -> None:
        self.store.unpin(self.pins.pop())

    @precondition(lambda self: self.leases)
    @rule()
    def release(self) -> None:
        self.store.release([self.leases.pop()])
        assert self.store.release([10**9]) == 0

    @rule()
    def settle(self) -> None:
        assert self.store.quiesce(WAIT_SECONDS), "a copy hangs"
        assert self.store.status().queued_copies == 0

    @rule()
    def restart(self) -> None:
        assert self.store.quiesce(WAIT_SECONDS), "a copy hangs"
        kept = {key for key, copies in self.store.contents().items() if ("disk", "ready") in copies}
        self.store.close()
        self.open()
        again = {key for key in self.store.contents()}
        if self.sizes[1]:
            assert again <= kept and {key for key in kept if self._stands(key, kept)} <= again
        else:
            assert not again

    @rule()
    def end_in_haste(self) -> None:
        self.store.close(0.0)
        self.open()

    @invariant()
    def every_invariant_holds(self) -> None:
        if hasattr(self, "store"):
            self.store.contents()

    def teardown(self) -> None:
        if hasattr(self, "store"):
            self.store.close(0.0)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _stands(self, key: BlockKey, kept: set[BlockKey]) -> bool:
        """Whether the rows that this object stands on are on disk too."""
        for stream in self.streams.values():
            if key.prefix in stream.hashes:
                block = stream.hashes.index(key.prefix)
                return all(stream.key(above) in kept for above in range(block + 1))
        return False


StoreMachine.TestCase.settings = settings(
    max_examples=25, stateful_step_count=40, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True
)
test_any_sequence_of_events_keeps_the_promise = StoreMachine.TestCase


# -- several threads


@pytest.fixture
def watchdog() -> Iterator[None]:
    """All stacks on standard error before the test's own timeout strikes."""
    faulthandler.dump_traceback_later(90, exit=False)
    yield
    faulthandler.cancel_dump_traceback_later()


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
