"""A device that refuses: each fault is a miss or a plain sentence, the store stays up, and it recovers by itself."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest
from fault_tools import (
    ALWAYS,
    Device,
    after_a_kill,
    on_disk,
    opened,
    put_durably,
    read_back,
    tick_until,
    trouble,
)
from store_helpers import MIB, Stream

from kvstore.core.presets import v4_demo
from kvstore.store.store import Store

BLOCKS = 12
STATES = (5, 11)


@pytest.mark.parametrize("last", [None, ALWAYS], ids=["once", "until mended"])
@pytest.mark.parametrize("nth", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("call", "code"),
    [
        ("pwritev", errno.EIO),
        ("fdatasync", errno.EIO),
        ("posix_fallocate", errno.ENOSPC),
    ],
)
def test_a_refusing_device_costs_durability_and_nothing_else(
    tmp_path: Path, monkeypatch, call: str, code: int, nth: int, last: int | None
) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    stream = Stream(store, v4_demo(), "a", BLOCKS)
    device = Device(monkeypatch, folder)
    device.refuse(call, code, nth, last or nth)
    durable = put_durably(store, stream, 0, 4)
    durable |= put_durably(store, stream, 4, 8, (5,))
    durable |= put_durably(store, stream, 8, BLOCKS, (11,))
    assert read_back(store, stream) == stream.tokens, "a fault of the disk is not one of memory"
    everything = {stream.key(block) for block in range(BLOCKS)} | {stream.key(block, 1) for block in STATES}
    assert device.refused or durable == everything, "the fault is to strike"
    # a failed sync takes the whole segment away, with what was durable before (C9)
    assert (durable & on_disk(store) if call == "fdatasync" else durable) <= after_a_kill(folder, "a", BLOCKS)
    if last is not None and device.refused:
        assert os.strerror(code) in trouble(store) or "out of use since a sync" in trouble(store)
        assert len(trouble(store).splitlines()) == 1

    device.mend()
    tick_until(store, lambda: on_disk(store) == everything, "all objects reach the disk")
    assert everything <= after_a_kill(folder, "a", BLOCKS)
    puts_resume(store)
    store.close()


def puts_resume(store: Store) -> None:
    """New objects become durable, and then nothing is said to be wrong any more."""
    streams = iter(Stream(store, v4_demo(), f"new {index}", 1) for index in range(300))

    def is_well() -> bool:
        stream = next(streams)
        assert put_durably(store, stream, 0, 1) == {stream.key(0)}
        return not trouble(store)

    tick_until(store, is_well, "the trouble is over")


def test_nothing_is_durable_before_its_namespace_has_a_name_on_disk(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    device = Device(monkeypatch, folder)
    device.refuse("fsync", errno.EIO)
    stream = Stream(store, v4_demo(), "a", 3)
    assert "cannot save a namespace" in trouble(store)
    assert put_durably(store, stream, 0, 2) == set()
    assert read_back(store, stream) == 0 and stream.lookup(store).rows_tokens == 2 * 128
    device.mend()
    store.tick()
    assert put_durably(store, stream, 0, 3) == {stream.key(0), stream.key(1), stream.key(2)}
    assert after_a_kill(folder, "a", 3) == {stream.key(0), stream.key(1), stream.key(2)}
    puts_resume(store)
    store.close()


@pytest.mark.parametrize("left", [b"", b"0123", b"\xff\xfe\x00garbage\n"])
def test_a_start_that_was_killed_while_it_wrote_the_secrets_name_is_followed_by_one(
    tmp_path: Path, left: bytes
) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    stream = Stream(store, v4_demo(), "a", 2)
    durable = put_durably(store, stream, 0, 2)
    store.close()
    (folder / "secret.id").write_bytes(left)
    assert after_a_kill(folder, "a", 2) == durable
    assert len(durable) == 2


def test_a_read_that_gets_no_memory_is_a_miss(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "d"
    store = opened(folder)
    put_durably(store, Stream(store, v4_demo(), "a", 4), 0, 4, (3,))
    store.close()

    def no_memory(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))

    store = opened(folder)
    stream = Stream(store, v4_demo(), "a", 4)
    with monkeypatch.context() as patch:
        patch.setattr("kvstore.tiers.buffers.mmap.mmap", no_memory)
        match = stream.lookup(store)  # starts promotions, which get no buffer
        assert store.quiesce(20)
        assert set(stream.fetch(store, match).values()) == {None}
    puts_resume(store)
    store.close()


def test_a_failed_sync_retires_its_segment_and_what_lay_only_there_is_a_miss(tmp_path: Path, monkeypatch) -> None:
    folder = tmp_path / "d"
    store = opened(folder, host_bytes=2 * MIB)
    streams = [Stream(store, v4_demo(), str(number), 6) for number in range(12)]
    for stream in streams[:-1]:
        assert len(put_durably(store, stream, 0, 6, (5,))) == 7
    for stream in streams[:6]:  # they take the host from the ones that were put last
        assert read_back(store, stream) == stream.tokens
        assert store.quiesce(20)
    before = on_disk(store)
    device = Device(monkeypatch, folder)
    device.refuse("fdatasync", errno.EIO, 1, 1)
    acknowledged = put_durably(store, streams[-1], 0, 2)
    assert device.refused == 1 and "sync disk segment" in trouble(store) and "check the device" in trouble(store)
    assert not acknowledged & {streams[-1].key(0), streams[-1].key(1)}, "a failed sync is never taken for one"
    lost = before - on_disk(store)
    assert lost and store.status().counters["retired_segments"] == 1
    in_memory = {key for key, copies in store.contents().items() if ("host", "ready") in copies}
    for found in store.open_objects(0, sorted(lost), time.monotonic() + 30):
        with found:
            assert found.is_missing == (found.key not in in_memory)
    assert lost - in_memory, "the host held everything: this shows nothing"
    for stream in streams:
        read_back(store, stream)
    puts_resume(store)
    for stream in streams:
        assert len(put_durably(store, stream, 0, 6, (5,))) == 7
    store.contents()
    store.close()
