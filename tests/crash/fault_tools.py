"""A device that refuses what the test says, under a real store in this process; and what a kill would leave."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from store_helpers import MIB, Stream, config, released

from kvstore.core.keys import BlockKey, Tier
from kvstore.core.presets import v4_demo
from kvstore.core.reserve import Durability
from kvstore.store.store import Store

ALWAYS = 10**9


class Device:
    """Lets calls of `os` on files of one folder fail: `device.refuse("pwritev", errno.EIO, 3)` is the third on."""

    CALLS = ("pwritev", "preadv", "fdatasync", "posix_fallocate", "fsync")

    def __init__(self, monkeypatch, folder: Path) -> None:
        self.refused = 0
        self._folder = str(folder)
        self._rules: dict[str, tuple[int, int, int]] = {}
        self._seen: dict[str, int] = {}
        for name in self.CALLS:
            monkeypatch.setattr(os, name, self._wrapped(name, getattr(os, name)))

    def refuse(self, call: str, code: int, first: int = 1, last: int = ALWAYS) -> None:
        """From the `first` call from now on, to the `last`, counted from 1."""
        self._seen[call] = 0
        self._rules[call] = (code, first, last)

    def mend(self) -> None:
        self._rules.clear()

    def _wrapped(self, name: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(fd: int, *arguments: object) -> object:
            rule = self._rules.get(name)
            if rule is not None and os.readlink(f"/proc/self/fd/{fd}").startswith(self._folder):
                self._seen[name] += 1
                if rule[1] <= self._seen[name] <= rule[2]:
                    self.refused += 1
                    raise OSError(rule[0], os.strerror(rule[0]))
            return real(fd, *arguments)

        return call


def opened(folder: Path, **more: object) -> Store:
    """A store with many small segments: eight rows or four states of the demo's layout in each."""
    store = Store.open(config(folder, **{"host_bytes": 16 * MIB, "segment_bytes": MIB, **more}))  # type: ignore[arg-type]
    assert store.quiesce(20)
    return store


def put_durably(store: Store, stream: Stream, first: int, end: int, states: tuple[int, ...] = ()) -> set[BlockKey]:
    """Put blocks [first, end) and states; the keys that were acknowledged as being on disk."""
    durable = stream.put(store, first, end, states=states, durable=True)[2]
    keys = [stream.key(block, group) for block in range(first, end) for group in (0, 1) if not group or block in states]
    return {key for key, level in zip(keys, durable, strict=True) if level is Durability.DISK}


def on_disk(store: Store) -> set[BlockKey]:
    return {key for key, copies in store.contents().items() if ("disk", "ready") in copies}


def trouble(store: Store, tier: Tier = Tier.DISK) -> str:
    return next(state.trouble for state in store.status().tiers if state.tier is tier)


def tick_until(store: Store, fact: Callable[[], bool], what: str) -> None:
    """Tick as the daemon does, without waiting half a second each time, until the fact holds."""
    for _ in range(200):
        store.tick()
        assert store.quiesce(20), "a copy hangs"
        if fact():
            return
    raise AssertionError(f"never: {what}; trouble: {trouble(store)!r}")


def after_a_kill(folder: Path, name: str, blocks: int) -> set[BlockKey]:
    """What a daemon killed now would find again: keys on disk, every byte of them read and verified."""
    copy = folder.with_name(f"{folder.name} killed")
    shutil.copytree(folder, copy)
    try:
        store = opened(copy)
        stream = Stream(store, v4_demo(), name, blocks)
        kept = on_disk(store)
        keys = [stream.key(block, group) for block in range(blocks) for group in (0, 1)]
        for found in store.open_objects(0, keys, time.monotonic() + 30):
            with found:
                data = b"".join(found.pieces)
                group = stream.layout.groups[found.key.group]
                assert found.is_missing == (found.key not in kept)
                assert found.is_missing or data == stream.payload(keys.index(found.key) // 2, found.key.group)
                assert len(data) in (0, group.nbytes)
        store.close()
        return kept
    finally:
        shutil.rmtree(copy)


def read_back(store: Store, stream: Stream) -> int:
    """Look up and fetch; tokens of the plan, every byte verified."""
    match = stream.lookup(store)
    stream.verify(stream.fetch(store, match))
    released(store, match)
    return match.plan.tokens
