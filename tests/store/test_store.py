"""The store over real tiers: what is put is what is fetched, from memory, from disk, and after a restart."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Iterable
from pathlib import Path

import lmdb
import pytest
from store_helpers import MIB, SECRET, Stream, config, fill, released

from kvstore.codec.lossless import Codec
from kvstore.core import presets
from kvstore.core.checksum import content_checksum
from kvstore.core.errors import FolderInUse, InvalidInput, LayoutMismatch, OperatorError
from kvstore.core.keys import Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, MissReason, PlanKind
from kvstore.core.placement import Placement
from kvstore.core.reserve import Durability, ObjectSpec, PutStatus, ReserveStatus
from kvstore.store import disk_writer, promoter, reader
from kvstore.store.settings import StoreConfig
from kvstore.store.store import Store
from kvstore.tiers.host import HostTier

LAYOUTS = {"v4 tiny": presets.v4_tiny(), "v4 demo": presets.v4_demo(), "full": presets.full_tiny()}


@pytest.mark.parametrize("name", LAYOUTS)
@pytest.mark.parametrize("codec", list(Codec))
def test_what_is_put_is_fetched_from_host_disk_and_after_a_restart(tmp_path: Path, name: str, codec: Codec) -> None:
    layout = LAYOUTS[name]
    store = Store.open(config(tmp_path / "d", codec=codec))
    stream = Stream(store, layout, "a", 12)
    states = [5, 11] if layout.state_group is not None else []
    statuses, done, durable = stream.put(store, states=states, durable=True)
    assert set(statuses) == {ReserveStatus.WANTED} and set(done) == {PutStatus.STORED}
    assert set(durable) == {Durability.DISK}
    match = stream.lookup(store)
    assert match.plan.kind is PlanKind.RESUME and match.plan.tokens == stream.tokens
    assert match.plan.tier is Tier.HOST and match.lineage == stream.lineage(12)
    stream.verify(found := stream.fetch(store, match))
    assert None not in found.values()
    released(store, match)
    store.contents()
    store.close()

    store = Store.open(config(tmp_path / "d", codec=codec))
    assert store.quiesce(10)  # all host memory is populated
    again = Stream(store, layout, "a", 12)
    match = again.lookup(store)
    assert match.plan.tokens == stream.tokens and match.plan.tier is Tier.DISK
    again.verify(found := again.fetch(store, match))
    assert None not in found.values()
    released(store, match)
    assert store.quiesce(10)
    assert again.lookup(store).plan.tier is Tier.HOST  # promoted on hit
    store.contents()
    store.close()


def test_a_second_put_of_the_same_bytes_exists_and_of_others_is_another_lineage(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 6)
    stream.put(store, states=[5])
    assert set(stream.put(store, states=[5])[0]) == {ReserveStatus.EXISTS}
    statuses, done, _ = stream.put(store, states=[5], run=1)
    assert set(statuses) == {ReserveStatus.OTHER_LINEAGE} and done == []
    # bytes computed on the other run's rows are not joined to the stored ones further down either
    longer = Stream(store, presets.v4_tiny(), "a", 8)
    assert set(longer.put(store, first=6, run=1, states=[7])[0]) == {ReserveStatus.OTHER_LINEAGE}
    assert set(longer.put(store, first=6, states=[7])[0]) == {ReserveStatus.WANTED}
    longer.verify(longer.fetch(store, longer.lookup(store)))
    store.close()


def test_a_state_without_its_rows_lineage_is_refused(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    stream.put(store)
    state = stream.payload(3, 1)
    spec = ObjectSpec(3, 1, len(state), content_checksum([state]))
    alone = store.reserve(stream.namespace, stream.chain(), [spec], stream.lineage(0), b"w" * 16, Hints())
    assert alone.statuses == (ReserveStatus.OTHER_LINEAGE,)
    assert stream.lookup(store).reason is MissReason.STATE_MISSING
    store.close()


def test_bytes_that_differ_from_their_checksum_are_never_visible(tmp_path: Path) -> None:
    store = Store.open(config(tmp_path / "d"))
    stream = Stream(store, presets.v4_tiny(), "a", 2)
    data = stream.payload(0)
    spec = ObjectSpec(0, 0, len(data), content_checksum([data]))
    below = ObjectSpec(1, 0, len(data), content_checksum([stream.payload(1)]))
    reservation = store.reserve(stream.namespace, stream.chain(), [spec, below], bytes(16), b"w" * 16, Hints())
    fill(store.begin_object(reservation.id, 1), stream.payload(1))
    assert store.finish_object(reservation.id, 1) is PutStatus.STORED
    assert stream.lookup(store).rows_tokens == 0  # its parent is not there yet
    fill(store.begin_object(reservation.id, 0), bytes(len(data)))
    assert store.finish_object(reservation.id, 0) is PutStatus.CORRUPT
    assert store.commit(reservation.id, False, 0.0) == [Durability.NONE, Durability.NONE]
    assert stream.lookup(store).rows_tokens == 0 and store.contents() == {}
    store.close()


def test_an_object_has_one_writer_at_a_time_and_none_once_it_is_visible(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 1)
    data = stream.payload(0)
    spec = ObjectSpec(0, 0, len(data), content_checksum([data]))
    reservation = store.reserve(stream.namespace, stream.chain(), [spec], stream.lineage(0), bytes(16), Hints())
    pieces = store.begin_object(reservation.id, 0)
    assert store.begin_object(reservation.id, 0) is None  # a stream that was tried again while the first still runs
    fill(pieces, data)
    assert store.finish_object(reservation.id, 0) is PutStatus.STORED
    assert store.begin_object(reservation.id, 0) is None
    store.close()


def test_an_upload_that_never_ends_gives_its_room_back(tmp_path: Path) -> None:
    now = [100.0]
    store = Store.open(config(None, reservation_seconds=10.0), clock=lambda: now[0])
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    data = stream.payload(0)
    specs = [ObjectSpec(0, 0, len(data), content_checksum([data]))]
    reservation = store.reserve(stream.namespace, stream.chain(), specs, bytes(16), b"w" * 16, Hints())
    assert store.contents()
    now[0] += 11.0
    store.tick()
    assert store.contents() == {} and store.begin_object(reservation.id, 0) is None
    store.close()


def test_every_flipped_bit_on_disk_is_a_miss_and_never_wrong_bytes(tmp_path: Path) -> None:
    layout = presets.v4_tiny()
    store = Store.open(config(tmp_path / "d", segment_bytes=MIB))
    stream = Stream(store, layout, "a", 8)
    stream.put(store, states=[3, 7], durable=True)
    store.close()
    misses = 0
    for step in range(24):
        folder = tmp_path / f"flipped {step}"
        shutil.copytree(tmp_path / "d", folder)
        for path in (path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == MIB):
            data = bytearray(path.read_bytes())
            used = [offset for offset in range(4096, 40 * 4096, 4096) if any(data[offset : offset + 64])]
            data[used[step % len(used)] + (step * 97) % 1400] ^= 1 << (step % 8)
            path.write_bytes(data)
        store = Store.open(config(folder, segment_bytes=MIB))
        again = Stream(store, layout, "a", 8)
        match = again.lookup(store)
        again.verify(found := again.fetch(store, match))
        misses += None in found.values()
        released(store, match)
        shorter = again.lookup(store)  # what was bad is gone; what is offered now is whole
        again.verify(again.fetch(store, shorter))
        store.contents()
        store.close()
    assert misses > 4


def test_a_folder_written_under_another_secret_is_refused_and_kept(tmp_path: Path) -> None:
    store = Store.open(config(tmp_path / "d"))
    Stream(store, presets.v4_tiny(), "a", 3).put(store, durable=True)
    store.close()
    with pytest.raises(OperatorError, match="under secret"):
        Store.open(StoreConfig(8 * MIB, b"t" * 32, tmp_path / "d", 64 * MIB))
    store = Store.open(config(tmp_path / "d"))
    assert Stream(store, presets.v4_tiny(), "a", 3).lookup(store).rows_tokens == 3 * 128
    store.close()
    assert SECRET


def test_namespaces_of_other_layouts_tenants_and_revisions_never_meet(tmp_path: Path) -> None:
    store = Store.open(config(None))
    layout = presets.v4_tiny()
    Stream(store, layout, "a", 3).put(store)
    other = presets.with_changes(layout, revision="other")
    assert Stream(store, other, "a", 3).lookup(store).rows_tokens == 0
    assert store.hello("test", other).differing == ("revision",)
    assert store.hello("another tenant", layout).root != store.hello("test", layout).root
    with pytest.raises(LayoutMismatch, match="block_tokens"):
        store.hello("test", presets.v4_tiny(block_tokens=256), existing_only=True)
    store.close()


def test_bad_input_is_refused_in_one_sentence_and_changes_nothing(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 2)
    for spec in (ObjectSpec(0, 0, 7, bytes(16)), ObjectSpec(9, 0, 622, bytes(16)), ObjectSpec(0, 5, 622, bytes(16))):
        with pytest.raises(InvalidInput):
            store.reserve(stream.namespace, stream.chain(), [spec], bytes(16), b"w" * 16, Hints())
    with pytest.raises(InvalidInput, match="Hello"):
        store.lookup(bytes(32), stream.chain(), 10, Hints(), b"w" * 16, False, None)
    assert store.contents() == {}
    store.close()


def test_a_chain_larger_than_host_and_page_cache_is_put_found_and_fetched(tmp_path: Path) -> None:
    layout: ModelLayout = presets.v4_demo()
    store = Store.open(config(tmp_path / "d", host_bytes=2 * MIB, placement=Placement.parse("ends")))
    stream = Stream(store, layout, "long", 200)
    lineage_run = 0
    for block in range(0, 200, 10):
        statuses, done, _ = stream.put(store, block, block + 10, states=[199], run=lineage_run)
        assert set(statuses) == {ReserveStatus.WANTED} and set(done) == {PutStatus.STORED}, block
    match = stream.lookup(store)
    assert match.plan.tokens == stream.tokens and match.plan.tier is Tier.DISK
    found = stream.fetch(store, match)
    stream.verify(found)
    assert None not in found.values() and len(found) == 201
    released(store, match)
    assert store.quiesce(20)
    store.contents()
    store.close()


def test_recency_survives_a_restart(tmp_path: Path) -> None:
    now = [1000.0]
    store = Store.open(config(tmp_path / "d", host_bytes=4 * MIB), lambda: now[0], lambda: 1e9 + now[0])
    streams = [Stream(store, presets.v4_demo(), name, 6) for name in "abc"]
    for stream in streams:
        now[0] += 10
        stream.put(store, durable=True, states=[5])
    now[0] += 10
    released(store, streams[0].lookup(store))  # "a" is the most recent now
    store.close()
    store = Store.open(config(tmp_path / "d", host_bytes=4 * MIB), lambda: now[0], lambda: 1e9 + now[0])
    used = {}
    for name in "abc":
        stream = Stream(store, presets.v4_demo(), name, 6)
        entry = store._kept.planner.entry(stream.key(5))
        assert entry is not None
        used[name] = entry.last_used
    assert used["b"] < used["c"] < used["a"]
    store.close()


def test_what_was_used_is_not_remembered_without_a_disk(tmp_path: Path) -> None:
    store = Store.open(config(None, persist_seconds=0.0))
    stream = Stream(store, presets.v4_tiny(), "a", 4)
    stream.put(store, states=[3])
    released(store, stream.lookup(store))
    assert store._kept.planner._lifetimes.touched
    store.tick()
    assert not store._kept.planner._lifetimes.touched
    store.close()


def test_a_late_reader_of_a_bad_copy_does_not_cost_the_one_that_was_written_anew(tmp_path: Path) -> None:
    store = Store.open(config(tmp_path / "d"))
    stream = Stream(store, presets.v4_tiny(), "a", 1)
    stream.put(store, durable=True)
    kept, key = store._kept, stream.key(0)
    with kept.lock:
        entry = kept.planner.entry(key)
        assert entry is not None
        held = kept.planner.hold(key, Tier.DISK, entry.facts.generation)
        assert held is not None
    store._reports.lost(entry.facts, Tier.DISK, "as if its checksum had failed")
    store.tick()
    assert store.quiesce(10) and entry.is_ready(Tier.DISK)
    with kept.lock:
        kept.run(kept.planner.unhold(key, Tier.DISK, entry.facts.generation, held))
    assert store.quiesce(10)
    store.close()
    store = Store.open(config(tmp_path / "d"))
    assert Stream(store, presets.v4_tiny(), "a", 1).lookup(store).rows_tokens == stream.tokens
    store.close()


def test_a_folder_is_not_let_go_while_a_write_to_it_is_stuck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(config(tmp_path / "d"))
    disk, answers = store._kept.disk, threading.Event()
    assert disk is not None
    sync = disk.sync

    def stuck(touched: Iterable[int]) -> None:
        answers.wait(60)
        sync(touched)

    monkeypatch.setattr(disk, "sync", stuck)
    Stream(store, presets.v4_tiny(), "a", 1).put(store)
    store.close(0.0)
    with pytest.raises(FolderInUse):
        Store.open(config(tmp_path / "d"))
    answers.set()
    store.close()
    Store.open(config(tmp_path / "d")).close()


def test_commit_waits_for_the_disk_only_until_its_deadline(tmp_path: Path) -> None:
    store = Store.open(config(None))
    stream = Stream(store, presets.v4_tiny(), "a", 2)
    assert stream.put(store, durable=True)[2] == [Durability.MEMORY, Durability.MEMORY]
    assert store.commit(12345, True, time.monotonic()) == []
    store.close()


def test_a_device_that_fails_at_start_leaves_a_store_that_serves_from_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open(config(tmp_path / "d"))
    Stream(store, presets.v4_tiny(), "a", 3).put(store, states=[2], durable=True)
    store.close()

    def full(*_: object, **__: object) -> object:
        raise lmdb.DiskError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(lmdb, "open", full)
        store = Store.open(config(tmp_path / "d"))
    (disk,) = [tier for tier in store.status().tiers if tier.tier is Tier.DISK]
    assert not disk.is_writable and "memory" in disk.trouble and disk.capacity_bytes == 0
    stream = Stream(store, presets.v4_tiny(), "b", 3)
    assert stream.put(store, states=[2], durable=True)[2] == [Durability.MEMORY] * 4
    stream.verify(stream.fetch(store, stream.lookup(store)))
    store.close()
    store = Store.open(config(tmp_path / "d"))  # the device works again: nothing was lost
    assert Stream(store, presets.v4_tiny(), "a", 3).lookup(store).plan.tokens == 384
    store.close()


@pytest.mark.parametrize("name", ["encode_frame", "decode_frame"])
def test_a_fault_of_ours_in_a_mover_fails_one_copy_and_not_the_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    store = Store.open(config(tmp_path / "d"))
    stream = Stream(store, presets.v4_tiny(), "a", 3)
    if name == "decode_frame":  # only what is on disk alone is promoted
        stream.put(store, states=[2], durable=True)
        store.close()
        store = Store.open(config(tmp_path / "d"))
        assert store.quiesce(10)
        stream = Stream(store, presets.v4_tiny(), "a", 3)
    module = disk_writer if name == "encode_frame" else promoter
    real, calls = getattr(module, name), []

    def faulty(*arguments: object, **more: object) -> object:
        calls.append(name)
        if len(calls) == 1:
            raise RuntimeError("a bug")
        return real(*arguments, **more)

    monkeypatch.setattr(module, name, faulty)
    if name == "encode_frame":
        stream.put(store, states=[2])
    else:
        released(store, stream.lookup(store))
    assert store.quiesce(10) and calls
    (disk,) = [tier for tier in store.status().tiers if tier.tier is Tier.DISK]
    assert "fault of ours" in disk.trouble or name == "encode_frame"
    for _ in range(4):
        store.tick()
        released(store, stream.lookup(store))
        assert store.quiesce(10)
    assert set(stream.put(store, states=[2], durable=True)[2]) == {Durability.DISK}
    assert stream.lookup(store).plan.tier is Tier.HOST
    stream.verify(stream.fetch(store, stream.lookup(store)))
    store.contents()
    store.close()


def test_a_read_that_fails_in_any_way_gives_its_hold_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store.open(config(tmp_path / "d", host_bytes=2 * MIB))
    stream = Stream(store, presets.v4_demo(), "long", 120)  # more than the host holds: its start is on disk alone
    stream.put(store, states=[119], durable=True)
    entries = [store._kept.planner.entry(stream.key(block)) for block in range(120)]
    key = next(entry.facts.key for entry in entries if entry is not None and entry.host is None)

    def no_memory(*_: object, **__: object) -> object:
        raise MemoryError

    with monkeypatch.context() as patched, pytest.raises(MemoryError):
        patched.setattr(reader, "decode_frame", no_memory)
        next(store.open_objects(0, [key], time.monotonic() + 10))
    entry = store._kept.planner.entry(key)
    assert entry is not None and entry.disk is not None and entry.disk.busy == 0
    with next(store.open_objects(0, [key], time.monotonic() + 10)) as opened:
        assert b"".join(opened.pieces) == stream.payload(stream.hashes.index(key.prefix))
    store.close()


def test_a_put_right_after_the_start_waits_for_host_memory_that_is_still_coming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, populate = threading.Event(), HostTier.populate

    def once_asked(host: HostTier) -> None:
        assert not host.populated or asked.wait(20)
        populate(host)

    monkeypatch.setattr(HostTier, "populate", once_asked)
    store = Store.open(config(None))
    reserve = store._kept.planner.reserve
    rounds: list[list[ReserveStatus]] = []

    def seen(*arguments: object) -> object:
        answer = reserve(*arguments)  # type: ignore[arg-type]
        rounds.append(answer[0])
        if ReserveStatus.WANTED not in answer[0]:
            asked.set()
        return answer

    monkeypatch.setattr(store._kept.planner, "reserve", seen)
    stream = Stream(store, presets.v4_demo(), "a", 3)  # its state is larger than the first region
    stream.put(store, states=[2])
    assert ReserveStatus.NO_ROOM in rounds[0]
    assert stream.lookup(store).plan.tokens == 384
    store.close()
