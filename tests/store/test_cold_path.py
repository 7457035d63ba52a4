"""Promotion: straight into slots, once per object, fair between requests, and layer before layer."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from store_helpers import MIB, WORKER, Stream, config, released

from kvstore.codec.lossless import Codec
from kvstore.core import presets
from kvstore.core.descriptor import filling_word, whole_word
from kvstore.core.keys import PAGE_BYTES, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.match import Hints, Match
from kvstore.store import promoter
from kvstore.store.store import Store
from kvstore.tiers.disk import DiskTier

FLASH = presets.v4_flash()
DEMO = presets.v4_demo()
WAIT_SECONDS = 30


class Gate:
    """Reads of segments: counted by page and offset, in order, and held while `is_shut` says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[tuple[int, int]] = []
        self.is_open = threading.Event()
        self.is_open.set()
        self.lets_pass = lambda skip: False
        self._lock = threading.Lock()
        real = DiskTier.read_into

        def read_into(tier: DiskTier, page: int, skip: int, pieces: object, needed: int) -> None:
            with self._lock:
                self.reads.append((page, skip))
            assert self.lets_pass(skip) or self.is_open.wait(WAIT_SECONDS)
            real(tier, page, skip, pieces, needed)  # type: ignore[arg-type]

        monkeypatch.setattr(DiskTier, "read_into", read_into)


def cold(
    folder: Path, layout: ModelLayout, blocks: dict[str, int], host_bytes: int = 16 * MIB, **more: object
) -> tuple[Store, list[Stream]]:
    """A store that has these streams on disk alone, each with a state at its end."""
    made = config(folder, host_bytes, 256 * MIB, **more)
    store = Store.open(made)
    assert store.quiesce(WAIT_SECONDS)
    for name, count in blocks.items():
        Stream(store, layout, name, count).put(store, states=[count - 1], durable=True)
    store.close()
    store = Store.open(made)
    assert store.quiesce(WAIT_SECONDS)
    return store, [Stream(store, layout, name, count) for name, count in blocks.items()]


def page_of(store: Store, stream: Stream, block: int, group: int = 0) -> int:
    entry = store._kept.planner.entry(stream.key(block, group))
    assert entry is not None and entry.disk is not None
    return entry.disk.slots[0]


def on_host(store: Store, stream: Stream) -> list[bool]:
    copies = store.contents()
    return [("host", "ready") in copies.get(stream.key(block), ()) for block in range(len(stream.hashes))]


def lookup_by_layers(store: Store, stream: Stream) -> Match:
    return store.lookup(stream.namespace, stream.chain(), stream.tokens + 1, Hints(), WORKER, False, None, layers=True)


# -- single flight and fairness ------------------------------------------------------------------
def test_two_lookups_of_a_cold_prefix_read_each_object_once_and_delay_nobody(tmp_path: Path, monkeypatch) -> None:
    store, (prefix,) = cold(tmp_path / "d", DEMO, {"cold": 12})
    other = Stream(store, DEMO, "hot", 4)
    other.put(store, states=[3], durable=True)
    gate = Gate(monkeypatch)
    gate.is_open.clear()
    one, two = prefix.lookup(store), prefix.lookup(store)
    assert one.plan == two.plan and one.plan.tokens == prefix.tokens
    found: list[dict[object, bytes | None]] = []

    def read_hot() -> None:
        match = other.lookup(store)
        found.append(dict(other.fetch(store, match)))
        released(store, match)

    reader = threading.Thread(target=read_hot)
    reader.start()
    reader.join(WAIT_SECONDS)
    assert found and not gate.is_open.is_set(), "a hot prefix waits for a cold one"
    other.verify(found[0])  # type: ignore[arg-type]
    assert None not in found[0].values() and len(found[0]) == 5
    waiting = [
        threading.Thread(target=lambda match=match: found.append(dict(prefix.fetch(store, match))))
        for match in (one, two)
    ]
    for thread in waiting:
        thread.start()
    gate.is_open.set()
    for thread in waiting:
        thread.join(WAIT_SECONDS)
    assert store.quiesce(WAIT_SECONDS)
    for served in found[1:]:
        prefix.verify(served)  # type: ignore[arg-type]
        assert len(served) == 13 and None not in served.values()
    assert set(Counter(gate.reads).values()) == {1} and len(gate.reads) == 13
    store.contents()
    store.close()


def test_a_long_cold_prefix_does_not_hold_up_a_short_one(tmp_path: Path, monkeypatch) -> None:
    store, (long, short) = cold(tmp_path / "d", DEMO, {"long": 60, "short": 2}, promote_threads=1)
    wanted = {page_of(store, short, block) for block in range(2)} | {page_of(store, short, 1, 1)}
    gate = Gate(monkeypatch)
    gate.is_open.clear()
    long.lookup(store)
    short.lookup(store)
    assert store._kept.mover.queued_bytes > 60 * DEMO.rows.nbytes
    gate.is_open.set()
    assert store.quiesce(WAIT_SECONDS)
    positions = [index for index, (page, _) in enumerate(gate.reads) if page in wanted]
    assert len(positions) == 3 and max(positions) <= 8, "they take turns"
    assert all(on_host(store, long)) and all(on_host(store, short)) and not store._kept.mover.queued_bytes
    store.close()


# -- straight into slots -------------------------------------------------------------------------
@pytest.mark.parametrize("is_cached", [False, True], ids=["from the device", "from the page cache"])
@pytest.mark.parametrize("codec", Codec)
def test_raw_frames_are_promoted_without_being_decoded(tmp_path: Path, monkeypatch, codec: Codec, is_cached) -> None:
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 4}, 32 * MIB, codec=codec)
    monkeypatch.setattr("kvstore.tiers.disk.is_cached", lambda *_: is_cached)
    decoded, real = [], promoter.decode_frame

    def decode_frame(*arguments: object) -> object:
        decoded.append(arguments)
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(promoter, "decode_frame", decode_frame)
    match = stream.lookup(store)
    assert store.quiesce(WAIT_SECONDS) and all(on_host(store, stream))
    stream.verify(stream.fetch(store, match))
    assert store.status().counters["copies_host"] == 5 and store.status().counters["fetch_host"] == 5
    assert not decoded, "noise does not shrink: these frames are raw whatever the codec"
    store.close()


def test_compressed_frames_are_decoded_into_their_slots_also_by_layers(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr("store_helpers.payload", lambda key, nbytes, run=0: bytes([key.prefix[0]]) * nbytes)
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 3}, 32 * MIB, codec=Codec.ZSTD)
    assert store._kept.planner.entry(stream.key(0)).disk.nbytes < FLASH.rows.nbytes  # type: ignore[union-attr]
    match = lookup_by_layers(store, stream)
    assert store.quiesce(WAIT_SECONDS) and all(on_host(store, stream))
    assert all(
        data == bytes([key.prefix[0]]) * FLASH.groups[key.group].nbytes
        for key, data in stream.fetch(store, match).items()
    )
    store.close()


# -- by layers -----------------------------------------------------------------------------------
def test_first_layers_of_all_blocks_are_there_before_the_last_ones(tmp_path: Path, monkeypatch) -> None:
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 6}, 32 * MIB)
    gate = Gate(monkeypatch)
    gate.is_open.clear()
    gate.lets_pass = lambda skip: skip == 0  # heads with the first layers, and the state
    match = lookup_by_layers(store, stream)
    assert match.lease is not None
    located = store.locate(match.lease, 0, 6, 0, time.monotonic() + WAIT_SECONDS)
    done = located.layers
    assert 0 < done < len(FLASH.layers) and located.is_loading
    for block in range(6):
        entry = store._kept.planner.entry(stream.key(block))
        assert entry is not None and entry.host is not None
        (slot,) = entry.host.slots
        assert word_at(store, slot) == filling_word(entry.host.stamp)
        (piece,) = store._kept.host.pieces([slot], [FLASH.rows.nbytes])
        edges = FLASH.rows.offsets()
        whole = max(index for index, part in enumerate(FLASH.rows.sections) if part.layer < done) + 1
        assert piece[: edges[whole]] == stream.payload(block)[: edges[whole]]
        assert piece != stream.payload(block), "the last layers are held back: this shows nothing"
    gate.is_open.set()
    assert store.quiesce(WAIT_SECONDS) and all(on_host(store, stream))
    for block in range(6):
        held = store._kept.planner.entry(stream.key(block)).host  # type: ignore[union-attr]
        assert held is not None and word_at(store, held.slots[0]) == whole_word(held.stamp)
    stream.verify(stream.fetch(store, match))
    firsts = [index for index, (_, skip) in enumerate(gate.reads) if skip == 0]
    assert len(firsts) == 7 and max(firsts) < 7 + store._kept.config.promote_threads
    store.contents()
    store.close()


def word_at(store: Store, slot: int) -> int:
    number, page = divmod(slot, store._kept.host.region_pages)
    return store._kept.host._regions[number].stamps[page]


def flip(store: Store, folder: Path, page: int, offset: int) -> None:
    disk = store._kept.disk
    assert disk is not None
    segment, start = divmod(page, disk.segment_pages)
    fd = os.open(folder / f"segment-{segment:06d}", os.O_RDWR)
    try:
        at = start * PAGE_BYTES + offset
        os.pwrite(fd, bytes([os.pread(fd, 1, at)[0] ^ 4]), at)
    finally:
        os.close(fd)


@pytest.mark.parametrize("layers", [False, True], ids=["whole", "by layers"])
@pytest.mark.parametrize(
    "offset", [20, 150, 400, 4000, 4096, 4096 + 140_000, 4096 + 300_000, 4096 + FLASH.rows.nbytes - 1]
)
def test_a_flipped_bit_anywhere_in_a_frame_is_a_miss(tmp_path: Path, offset: int, layers: bool) -> None:
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 4}, 32 * MIB)
    flip(store, tmp_path / "d", page_of(store, stream, 2), offset)
    match = lookup_by_layers(store, stream) if layers else stream.lookup(store)
    assert store.quiesce(WAIT_SECONDS)
    assert on_host(store, stream) == [True, True, False, False]
    found = stream.fetch(store, match)
    stream.verify(found)
    assert [found[stream.key(block)] is None for block in range(4)] == [False, False, True, True]
    assert store.status().counters["corrupt_disk"] == 1
    released(store, match)
    stream.put(store, states=[3], durable=True)
    assert store.quiesce(WAIT_SECONDS)
    assert None not in stream.fetch(store, stream.lookup(store)).values()
    store.contents()  # checks that no slot is lost
    store.close()


def test_bytes_that_change_in_their_slot_after_their_layer_was_verified_are_a_miss(tmp_path: Path, monkeypatch) -> None:
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 2}, 32 * MIB)
    real, calls = promoter.verify_sections, []

    def verify_and_flip(head: object, payload: memoryview, first: int, end: int) -> None:
        real(head, payload, first, end)  # type: ignore[arg-type]
        calls.append(first)
        if len(calls) == 1:
            payload[5] ^= 1

    monkeypatch.setattr(promoter, "verify_sections", verify_and_flip)
    lookup_by_layers(store, stream)
    assert store.quiesce(WAIT_SECONDS) and calls
    assert store.status().counters["corrupt_disk"] == 1 and not all(on_host(store, stream))
    store.contents()
    store.close()


def test_a_fault_of_ours_in_one_group_of_layers_fails_one_copy(tmp_path: Path, monkeypatch) -> None:
    store, (stream,) = cold(tmp_path / "d", FLASH, {"a": 4}, 32 * MIB)
    real, calls = promoter.verify_sections, []

    def faulty(*arguments: object) -> None:
        calls.append(arguments)
        if len(calls) == 6:
            raise RuntimeError("a bug")
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(promoter, "verify_sections", faulty)
    lookup_by_layers(store, stream)
    assert store.quiesce(WAIT_SECONDS) and sum(on_host(store, stream)) == 3
    (disk,) = [tier for tier in store.status().tiers if tier.tier is Tier.DISK]
    assert "fault of ours" in disk.trouble
    assert not store._kept.mover._promoter._by_layers, "nothing is kept of what has ended"
    match = stream.lookup(store)
    assert store.quiesce(WAIT_SECONDS) and all(on_host(store, stream))
    stream.verify(stream.fetch(store, match))
    store.close()
