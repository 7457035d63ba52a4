"""What is copied to disk: the second use, the budget, and that what is on disk has what it stands on there."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest
from planner_world import NO_SPEEDS, WORKER, Document, World

from kvstore.core import presets
from kvstore.core.actions import Action, Copy
from kvstore.core.disk_admission import BURST_SECONDS, DAY_SECONDS, DiskAdmission
from kvstore.core.errors import ConfigError
from kvstore.core.keys import Tier
from kvstore.core.match import Hints
from kvstore.core.matching import Request
from kvstore.core.settings import Settings

MIB = 1 << 20
LAYOUT = presets.v4_tiny()
ROWS = LAYOUT.rows.nbytes


class Store(World):
    """A world whose copies end at once, unless a test says otherwise."""

    def __init__(self, mode: DiskAdmission = DiskAdmission.ALL, bytes_per_day: int = 0, **more: int) -> None:
        sizes = {"host_bytes": 64 * MIB, "disk_bytes": 64 * MIB} | more
        settings = Settings(**sizes, disk_admission=mode, disk_write_bytes_per_day=bytes_per_day)  # type: ignore[arg-type]
        super().__init__(0, [LAYOUT], settings, failures=0.0)
        self.name = self.names[0]
        self.root = self.documents[0][1].root

    def document(self, number: int, blocks: int = 4) -> Document:
        return Document(self.root, 100 + number, 0, 0, blocks)

    def store(self, document: Document, first: int = 0, with_states: bool = False) -> None:
        self.put_blocks(self.name, document, first, len(document.hashes), with_states=with_states)
        while self.uploads:
            self._end(self.uploads.pop(0), Tier.HOST)
        self.copy()

    def use(self, document: Document) -> list[Action]:
        tokens = len(document.hashes) * LAYOUT.block_tokens + 1
        request = Request(document.chain(), tokens, Hints(), False, NO_SPEEDS)
        match, actions = self.planner.lookup(self.name, request, WORKER, self.now)
        self.do(actions)
        if match.lease is not None:
            self.planner.release(match.lease)
        self.copy()
        return actions

    def copy(self) -> None:
        while self.copies:
            self.end_copy()
        self.check()

    def on_disk(self, document: Document) -> list[bool]:
        return [self.is_there(prefix, Tier.DISK) for prefix in document.hashes]

    def is_there(self, prefix: bytes, tier: Tier, group: int = 0) -> bool:
        entry = self.planner.entry((prefix, group))  # type: ignore[arg-type]
        return entry is not None and entry.is_ready(tier)


def test_by_default_everything_is_written_as_it_comes() -> None:
    store = Store()
    document = store.document(0)
    store.store(document)
    assert all(store.on_disk(document)) and store.planner.gate.held_back == 0
    assert store.planner.gate.bytes_written >= 4 * ROWS


def test_second_hit_writes_what_was_used_again_with_all_that_it_stands_on() -> None:
    store = Store(DiskAdmission.SECOND_HIT)
    document, other = store.document(0), store.document(1)
    store.store(document)
    store.store(other)
    assert not any(store.on_disk(document)) and store.planner.gate.held_back == 8
    actions = store.use(document)
    assert [copy.facts.key.prefix for copy in actions if isinstance(copy, Copy)] == document.hashes  # root first
    assert all(store.on_disk(document)) and not any(store.on_disk(other))


def test_what_extends_a_proven_chain_has_to_be_used_again_itself() -> None:
    store = Store(DiskAdmission.SECOND_HIT)
    long = store.document(0, 6)
    short = Document(store.root, 100, 0, 0, 3)
    assert short.hashes == long.hashes[:3]
    store.store(short)
    store.use(short)
    store.store(long, first=3)
    assert store.on_disk(long) == [True] * 3 + [False] * 3
    store.use(long)
    assert all(store.on_disk(long))


def test_a_state_waits_for_its_own_second_use() -> None:
    store = Store(DiskAdmission.SECOND_HIT)
    document = store.document(0)
    store.store(document, with_states=True)
    last, group = document.hashes[-1], LAYOUT.state_group
    assert group is not None and store.is_there(last, Tier.HOST, group) and not store.is_there(last, Tier.DISK, group)
    store.use(document)
    assert store.is_there(last, Tier.DISK, group)


def test_a_held_back_object_that_the_host_evicts_is_lost() -> None:
    store = Store(DiskAdmission.SECOND_HIT, host_bytes=64 * 4096)
    first = store.document(0, 3)
    store.store(first)
    for number in range(1, 60):
        store.now += 1.0
        store.store(store.document(number))
    assert not any(store.is_there(prefix, tier) for prefix in first.hashes for tier in Tier)


def test_a_copy_that_was_admitted_and_failed_is_tried_again_by_ticks() -> None:
    store = Store(DiskAdmission.SECOND_HIT)
    document = store.document(0)
    store.store(document)
    store.failures = 1.0
    store.use(document)
    assert not any(store.on_disk(document))
    store.failures = 0.0
    store.do(store.planner.tick(store.now))
    store.copy()
    assert all(store.on_disk(document))


def test_a_long_chain_is_started_in_parts_and_ticks_start_the_rest() -> None:
    store = Store(DiskAdmission.SECOND_HIT)
    document = store.document(0, 700)
    store.store(document)
    started = [action for action in store.use(document) if isinstance(action, Copy)]
    assert len(started) == 256 and store.on_disk(document) == [True] * 256 + [False] * 444
    for _ in range(2):
        store.do(store.planner.tick(store.now))
        store.copy()
    assert all(store.on_disk(document))


def _days(store: Store, seconds: int, step: int, each: int) -> Iterator[tuple[float, int]]:
    """Newcomers of `each` blocks every `step` seconds; (now, bytes written so far) after each."""
    for number, at in enumerate(range(0, seconds, step)):
        store.now = float(at)
        store.do(store.planner.tick(store.now))
        store.store(store.document(number, each))
        yield store.now, store.planner.gate.bytes_written


@pytest.mark.parametrize("mode", list(DiskAdmission))
def test_no_day_writes_more_than_the_budget_and_an_hour_of_it(mode: DiskAdmission) -> None:
    budget = 24 * 20 * ROWS
    store = Store(mode, budget, host_bytes=512 << 10)
    written = [(0.0, 0), *_days(store, int(1.5 * DAY_SECONDS), 600, 8)]
    slack = 8 * (
        ROWS + 3000
    )  # eight copies start before the first one's frame, here much longer than its rows, is known
    for start, before in written:
        day = [total - before for at, total in written if start <= at <= start + DAY_SECONDS]
        assert max(day) <= budget * (1 + BURST_SECONDS / DAY_SECONDS) + slack
    if mode is DiskAdmission.ALL:  # what there is to spend is spent
        assert store.planner.gate.over_budget and written[-1][1] > 0.9 * 1.5 * budget
    if mode is DiskAdmission.SECOND_HIT:
        assert written[-1][1] == 0


def test_adaptive_takes_all_while_there_is_plenty_and_asks_for_a_second_use_when_short() -> None:
    hour = 40 * (ROWS + 3000)
    store = Store(DiskAdmission.ADAPTIVE, 24 * hour)
    documents = [store.document(number) for number in range(12)]
    for document in documents:  # all at one moment: 48 blocks where an hour's budget has 40
        store.store(document)
    taken = [all(store.on_disk(document)) for document in documents]
    assert taken == sorted(taken, reverse=True) and 7 <= sum(taken) <= 8  # until a quarter is left
    assert store.planner.gate.held_back and not store.planner.gate.over_budget
    late = documents[-1]
    store.use(late)
    assert all(store.on_disk(late))
    store.now += BURST_SECONDS
    new = store.document(99)
    store.do(store.planner.tick(store.now))
    store.store(new)
    assert all(store.on_disk(new))


def test_nothing_is_written_when_the_budget_is_empty_and_a_later_use_starts_it() -> None:
    store = Store(DiskAdmission.ALL, 24 * 2 * ROWS)
    document = store.document(0)
    store.store(document)
    reached = store.on_disk(document)
    assert reached == sorted(reached, reverse=True) and any(reached) and not all(reached)
    store.use(document)
    assert store.on_disk(document) == reached and store.planner.gate.over_budget > 1
    store.now += 12 * BURST_SECONDS  # frames are longer here than what was charged at first: a debt
    store.do(store.planner.tick(store.now))
    store.use(document)
    assert sum(store.on_disk(document)) > sum(reached)


def test_copies_that_end_unwritten_give_their_bytes_back() -> None:
    store = Store(DiskAdmission.ALL, 24 * 100 * ROWS, disk_bytes=1 * MIB)
    gate = store.planner.gate
    documents = [store.document(number) for number in range(2)]
    store.put_blocks(store.name, documents[0], 0, 4, with_states=False)
    for facts in store.uploads:
        store.do(store.planner.arrived(facts.key, facts.generation, Tier.HOST, store.now))
    store.uploads.clear()
    for copy in store.copies:
        store.do(store.planner.failed(copy.facts.key, copy.facts.generation, Tier.DISK, store.now))
    assert gate.bytes_written == 0 and not gate._started and gate._level == gate._full


@pytest.mark.parametrize("mode", [DiskAdmission.SECOND_HIT, DiskAdmission.ADAPTIVE])
@pytest.mark.parametrize("seed", range(4))
def test_rows_on_disk_stand_on_rows_on_disk_whatever_is_held_back(mode: DiskAdmission, seed: int) -> None:
    settings = Settings(
        host_bytes=2 * MIB, disk_bytes=64 * MIB, lease_seconds=5.0, segment_bytes=MIB,
        disk_admission=mode, disk_write_bytes_per_day=300 * MIB,
    )  # fmt: skip
    world = World(seed, [LAYOUT], settings, failures=0.0)
    world.fault = lambda: None  # type: ignore[method-assign]
    for _ in range(600):
        world.step()
    world.quiesce()
    for _, document in world.documents:
        there = [
            entry is not None and entry.is_ready(Tier.DISK)
            for entry in (world.planner.entry((prefix, 0)) for prefix in document.hashes)  # type: ignore[arg-type]
        ]
        assert all(above >= below for above, below in pairwise(there)), there
    assert not world.planner.gate._started


def test_bad_settings_are_refused_in_one_sentence() -> None:
    with pytest.raises(ConfigError, match="choose one of all, second-hit, adaptive"):
        DiskAdmission.parse("often", 0)
    with pytest.raises(ConfigError, match="set write_bytes_per_day"):
        DiskAdmission.parse("adaptive", 0)
