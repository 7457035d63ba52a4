"""A device that refuses: each fault is a miss or a plain sentence, the store stays up, and it recovers by itself."""

from __future__ import annotations

import errno
import os
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
from store_helpers import Stream

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
