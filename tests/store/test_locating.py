"""Descriptors say where bytes lie, and a stamp says whether they still do."""

from __future__ import annotations

import mmap
import os
import struct
import threading
import time
from pathlib import Path

import pytest
from store_helpers import MIB, WORKER, Stream, config, released

from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.descriptor import EMPTY, record_bytes, whole_word
from kvstore.core.index import Namespace
from kvstore.core.match import Hints
from kvstore.core.reserve import PutStatus, ReserveStatus
from kvstore.store.locating import Located, LocatedObjects
from kvstore.store.promotions import Step
from kvstore.store.staged import StagedObject
from kvstore.store.store import Store
from kvstore.tiers.host import region_file_bytes, stamp_offset

LAYOUTS = {"v4 tiny": presets.v4_tiny(), "v4 demo": presets.v4_demo(), "full": presets.full_tiny()}
SOON = 30.0


class Worker:
    """Reads the way another process does: through descriptors of its own, mapped read-only."""

    def __init__(self, store: Store, namespace: Namespace) -> None:
        self.store, self.cuts, self.pages = store, namespace.cuts, store.region_pages
        self._maps: dict[int, mmap.mmap] = {}

    def read(self, located: Located) -> list[tuple[bytes, bool, bytes]]:
        """(bytes, whether the stamps say that they are whole, announced checksum) of each object."""
        ends = self.cuts[located.group]
        size = record_bytes(len(ends))
        found = []
        for start in range(0, len(located.records), size):
            *slots, stamp, content = struct.unpack_from(f"<{len(ends)}IQ16s", located.records, start)
            data, begin = b"", 0
            for slot, end in zip(slots, ends, strict=True):
                offset = slot % self.pages * 4096
                data += self._map(slot)[offset : offset + end - begin]
                begin = end
            words = [self._word(slot) for slot in slots]
            found.append((data, words == [whole_word(stamp)] * len(slots), content))
        return found

    def _word(self, slot: int) -> int:
        (word,) = struct.unpack_from("<Q", self._map(slot), stamp_offset(self.pages) + slot % self.pages * 8)
        return int(word)

    def _map(self, slot: int) -> mmap.mmap:
        region = slot // self.pages
        if region not in self._maps:
            fd, nbytes = self.store.region_of(region)
            assert nbytes == region_file_bytes(self.pages)
            self._maps[region] = mmap.mmap(fd, nbytes, prot=mmap.PROT_READ)
        return self._maps[region]


def worker(store: Store, stream: Stream) -> Worker:
    return Worker(store, store._kept.planner.namespaces[stream.namespace])


def check(found: list[tuple[bytes, bool, bytes]], expected: list[bytes]) -> None:
    assert [(data, whole) for data, whole, _ in found] == [(data, True) for data in expected]
    assert [content for _, _, content in found] == [content_checksum([data]) for data in expected]


@pytest.mark.parametrize("name", LAYOUTS)
def test_hot_objects_lie_where_their_descriptors_say(name: str) -> None:
    layout = LAYOUTS[name]
    store = Store.open(config(None))
    stream = Stream(store, layout, "a", 12)
    stream.put(store, states=[11] if layout.state_group is not None else [])
    match = stream.lookup(store)
    assert match.lease is not None
    hot = store.hot_objects(match.lease)
    reader = worker(store, stream)
    assert hot.rows is not None and hot.rows[:3] == (0, 0, layout.rows.nbytes)
    check(reader.read(hot.rows), [stream.payload(block) for block in range(12)])
    if layout.state_group is not None:
        (state,) = hot.states
        assert state[:3] == (1, 11, layout.groups[1].nbytes)
        check(reader.read(state), [stream.payload(11, 1)])
    released(store, match)
    assert store.hot_objects(match.lease) == LocatedObjects(None, (), False, 0)  # a lease that is over says nothing
    store.close()


def test_the_stamp_is_gone_when_the_object_is_and_a_return_has_another() -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    stream.put(store, states=[3])
    reader = worker(store, stream)
    match = stream.lookup(store)
    before = store.hot_objects(match.lease or 0)
    assert before.rows is not None
    store.report(stream.namespace, stream.key(2), "a test takes it away")
    whole = [one[1] for one in reader.read(before.rows)]
    assert whole == [True, True, False, False]  # what stood on it went too
    stream.put(store, states=[3])
    assert [one[1] for one in reader.read(before.rows)] == whole, "a stamp came back"
    again = stream.lookup(store)
    after = store.hot_objects(again.lease or 0)
    assert after.rows is not None
    check(reader.read(after.rows), [stream.payload(block) for block in range(4)])
    store.close()


def test_slots_of_evicted_objects_never_pass_for_them(tmp_path: Path) -> None:
    """A reader that was held up past its lease compares stamps: other bytes are never taken for its own."""
    layout = presets.v4_demo()
    store = Store.open(config(None, host_bytes=8 * MIB))
    first = Stream(store, layout, "a", 6)
    first.put(store, states=[5])
    match = first.lookup(store)
    late = store.hot_objects(match.lease or 0)
    released(store, match)
    reader = worker(store, first)
    assert late.rows is not None
    gone = 0
    for index in range(40):
        Stream(store, layout, f"other {index}", 20).put(store, states=[19])
        for block, (data, whole, _) in enumerate(reader.read(late.rows)):
            assert not whole or data == first.payload(block)
            gone += not whole
    assert gone > 0, "nothing was evicted"
    store.contents()
    store.close()


def test_locate_gives_rows_as_they_come_from_disk(tmp_path: Path) -> None:
    layout = presets.v4_demo()
    store = Store.open(config(tmp_path / "d"))
    stream = Stream(store, layout, "a", 20)
    stream.put(store, states=[19], durable=True)
    store.close()
    store = Store.open(config(tmp_path / "d"))
    assert store.quiesce(SOON)
    again = Stream(store, layout, "a", 20)
    match = again.lookup(store)
    reader = worker(store, again)
    first, seen = 0, list[bytes]()
    ends = time.monotonic() + SOON
    while True:
        located = store.locate(match.lease or 0, first, 4, None, ends)
        if located.rows is not None:
            assert located.rows.first_block == first
            got = reader.read(located.rows)
            check(got, [again.payload(block) for block in range(first, first + len(got))])
            seen += [data for data, _, _ in got]
            first += len(got)
        if not located.is_loading:
            break
    assert first == 20 and len(located.states) == 1
    check(reader.read(located.states[0]), [again.payload(19, 1)])
    store.contents()
    store.close()


def test_what_a_lease_was_told_to_lie_on_the_host_stays_there(tmp_path: Path) -> None:
    """Rows that became hot after the lookup are held like the others: pressure takes none of them."""
    layout = presets.v4_demo()
    store = Store.open(config(tmp_path / "d", host_bytes=8 * MIB))
    stream = Stream(store, layout, "a", 8)
    stream.put(store, states=[7], durable=True)
    for index in range(12):
        Stream(store, layout, f"push {index}", 20).put(store, states=[19], durable=True)
    match = stream.lookup(store)
    located = store.locate(match.lease or 0, 0, 8, None, time.monotonic() + SOON)
    assert located.rows is not None
    for index in range(12):
        Stream(store, layout, f"more {index}", 20).put(store, states=[19])
    got = worker(store, stream).read(located.rows)
    check(got, [stream.payload(block) for block in range(len(got))])
    store.contents()
    store.close()


def test_locate_ends_with_its_time_when_a_copy_does_not_come(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    stream.put(store, states=[3])
    match = stream.lookup(store)
    kept = store._kept
    with kept.lock:  # as if the deepest block were still on its way
        entry = kept.planner.entry(stream.key(3))
        assert entry is not None and entry.host is not None
        whole, entry.host.status = entry.host.status, type(entry.host.status).INCOMING
        entry.node.hot = False
    located = store.locate(match.lease or 0, 0, 4, None, time.monotonic() + 0.05)
    assert located.is_loading and located.rows is not None and len(located.rows.records) == 3 * record_bytes(1)
    waiter = list[LocatedObjects]()
    thread = threading.Thread(
        target=lambda: waiter.append(store.locate(match.lease or 0, 0, 4, None, time.monotonic() + SOON))
    )
    thread.start()
    with kept.changed:
        entry.host.status, entry.node.hot = whole, True
        kept.changed.notify_all()
    thread.join(SOON)
    assert waiter and waiter[0].rows is not None and len(waiter[0].rows.records) == 4 * record_bytes(1)
    store.close()


def test_rows_that_go_while_locate_waits_are_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Stream(store := Store.open(config(tmp_path / "d")), presets.v4_tiny(), "a", 8).put(store, states=[7], durable=True)
    store.close()
    store = Store.open(config(tmp_path / "d"))
    stream, kept = Stream(store, presets.v4_tiny(), "a", 8), store._kept
    goes_on, waits = threading.Event(), threading.Event()
    do, wait = kept.mover._promoter.do, kept.changed.wait

    def held_up(step: Step) -> int:
        if step.promotion.copy.facts.block >= 4:
            goes_on.wait(SOON)
        return do(step)

    def waiting(timeout: float | None = None) -> bool:
        waits.set()  # under the lock: whoever takes it next finds a waiter
        return wait(timeout)

    monkeypatch.setattr(kept.mover._promoter, "do", held_up)
    match = stream.lookup(store)
    assert store.locate(match.lease or 0, 0, 4, None, time.monotonic() + SOON).rows is not None
    monkeypatch.setattr(kept.changed, "wait", waiting)
    told = list[LocatedObjects]()
    thread = threading.Thread(
        target=lambda: told.append(store.locate(match.lease or 0, 0, 8, None, time.monotonic() + SOON))
    )
    thread.start()
    assert waits.wait(SOON)
    store.report(stream.namespace, stream.key(2), "a test takes it away")
    thread.join(SOON)
    goes_on.set()
    assert told and told[0].rows is not None and told[0].rows.objects == 2
    check(worker(store, stream).read(told[0].rows), [stream.payload(block) for block in range(2)])
    store.contents()
    store.close()


def test_a_workers_end_ends_its_leases_and_no_others() -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    stream.put(store, states=[3])
    for _ in range(3):
        stream.lookup(store)
    other = b"o" * 16
    store.lookup(stream.namespace, stream.chain(), stream.tokens + 1, Hints(), other, False, None)
    assert store.status().leases == 4
    assert store.release_owner(WORKER) == 3 and store.release_owner(WORKER) == 0
    assert store.status().leases == 1
    assert store.release_owner(other) == 1
    store.contents()
    store.close()


def test_staged_objects_are_stored_as_they_were_copied() -> None:
    layout = presets.v4_demo()
    store = Store.open(config(None))
    stream = Stream(store, layout, "a", 5)
    staging = bytearray()
    named = [(block, group) for block in range(5) for group in (0, 1) if group == 0 or block == 4]
    for block, group in named:
        staging += stream.payload(block, group)
    objects, offset = [], 0
    for block, group in named:
        nbytes = layout.groups[group].nbytes
        objects.append(StagedObject(block, group, memoryview(staging)[offset : offset + nbytes].toreadonly()))
        offset += nbytes
    outcome = store.put_staged(stream.namespace, stream.chain(), objects, bytes(16), WORKER, Hints())
    assert set(outcome.statuses) == {ReserveStatus.WANTED} and set(outcome.outcomes) == {PutStatus.STORED}
    assert list(outcome.contents) == [content_checksum([staged.data]) for staged in objects]
    stream.verify(found := stream.fetch(store, stream.lookup(store)))
    assert None not in found.values() and len(found) == 6
    again = store.put_staged(stream.namespace, stream.chain(), objects, bytes(16), WORKER, Hints())
    assert set(again.statuses) == {ReserveStatus.EXISTS} and set(again.outcomes) == {None}
    staging[0] ^= 1  # another run's bytes
    other = store.put_staged(stream.namespace, stream.chain(), objects, bytes(16), WORKER, Hints())
    assert set(other.statuses) == {ReserveStatus.OTHER_LINEAGE}
    store.close()


def test_a_staged_put_larger_than_the_host_ends_when_no_more_of_it_finds_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a disk its own states make room for its rows, and are wanted again: round after round."""
    store = Store.open(config(None, host_bytes=MIB))
    assert store.quiesce(SOON)
    stream = Stream(store, presets.v4_tiny(), "a", 250)
    named = [(block, group) for block in range(250) for group in (0, 1)]
    objects = [StagedObject(block, group, memoryview(stream.payload(block, group))) for block, group in named]
    rounds, reserve = list[object](), store._uploads.reserve
    monkeypatch.setattr(store._uploads, "reserve", lambda *asked: (rounds.append(asked), reserve(*asked))[1])
    outcome = store.put_staged(stream.namespace, stream.chain(), objects, bytes(16), WORKER, Hints())
    assert {PutStatus.STORED, None} == set(outcome.outcomes) and ReserveStatus.NO_ROOM in outcome.statuses
    assert len(rounds) < 10
    durabilities = store.commit(outcome.reservation, True, time.monotonic() + SOON)
    assert len(durabilities) == len(objects), "the reservation that was named is over"
    store.contents()
    store.close()


def test_bytes_that_change_while_they_are_copied_are_not_published(monkeypatch: pytest.MonkeyPatch) -> None:
    layout = presets.v4_tiny()
    store = Store.open(config(None))
    stream = Stream(store, layout, "a", 1)
    staging = bytearray(stream.payload(0))
    real = store._uploads.begin_object

    def scribble(reservation: int, index: int) -> list[memoryview] | None:
        staging[7] ^= 0xFF  # the worker writes between our checksum and our copy
        return real(reservation, index)

    monkeypatch.setattr(store._uploads, "begin_object", scribble)
    objects = [StagedObject(0, 0, memoryview(staging))]
    outcome = store.put_staged(stream.namespace, stream.chain(), objects, bytes(16), WORKER, Hints())
    assert outcome.outcomes == (PutStatus.CORRUPT,)
    assert stream.lookup(store).rows_tokens == 0
    store.contents()
    store.close()


def test_regions_are_sealed_and_their_stamps_start_empty() -> None:
    store = Store.open(config(None))
    fd, nbytes = store.region_of(0)
    with mmap.mmap(fd, nbytes, prot=mmap.PROT_READ) as seen:
        table = seen[stamp_offset(store.region_pages) : stamp_offset(store.region_pages) + 8 * store.region_pages]
    assert table == bytes([EMPTY]) * len(table)
    with pytest.raises(PermissionError):
        mmap.mmap(fd, nbytes)
    with pytest.raises(PermissionError):
        os.ftruncate(fd, 0)
    with pytest.raises(PermissionError):
        os.pwrite(fd, b"x", 0)
    reopened = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        with pytest.raises(PermissionError):
            mmap.mmap(reopened, nbytes)
    finally:
        os.close(reopened)
    store.close()
