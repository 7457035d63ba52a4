"""Power fails at any step of a write: what was not synced is gone, what was acknowledged as durable is there.

SIGKILL cannot show this, because the kernel keeps what a dead process wrote. Here each write remembers what it
replaced until its file is synced; at the chosen step the folder is copied and those writes are undone in the copy.
LMDB syncs every commit by itself and is taken at its word.
"""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
from fault_tools import opened, put_durably
from store_helpers import MIB, Stream

from kvstore.core.keys import BlockKey
from kvstore.core.presets import v4_demo
from kvstore.store.store import Store

STREAMS = 14
BLOCKS = 6


class Power:
    """Counts the steps of the writer thread and takes the copy at step `at`."""

    def __init__(self, monkeypatch, folder: Path, at: int) -> None:
        self.folder, self.at, self.steps = folder, at, 0
        self.left = folder.with_name("after the power loss")
        self.acknowledged: set[BlockKey] = set()
        self.must_be_there: set[BlockKey] = set()
        self.store: Store | None = None
        self._undo: list[tuple[str, int, bytes]] = []
        self._thread = threading.Lock()
        self._real = {name: getattr(os, name) for name in ("pwritev", "fdatasync")}
        monkeypatch.setattr(os, "pwritev", self._pwritev)
        monkeypatch.setattr(os, "fdatasync", self._fdatasync)

    def watch(self, store: Store) -> None:
        self.store = store
        assert store._kept.disk is not None
        manifest = store._kept.disk.manifest
        real = manifest.commit

        def commit(*arguments) -> None:
            self._step()
            real(*arguments)
            self._step()

        manifest.commit = commit  # type: ignore[method-assign]

    def _pwritev(self, fd: int, buffers, offset: int) -> int:
        path = os.readlink(f"/proc/self/fd/{fd}")
        if not path.startswith(str(self.folder)):
            return self._real["pwritev"](fd, buffers, offset)
        self._step()
        before = os.pread(fd, sum(map(len, buffers)), offset)
        written = self._real["pwritev"](fd, buffers, offset)
        self._undo.append((path, offset, before))
        self._step()
        return written

    def _fdatasync(self, fd: int) -> None:
        self._step()
        self._real["fdatasync"](fd)
        path = os.readlink(f"/proc/self/fd/{fd}")
        self._undo = [undo for undo in self._undo if undo[0] != path]
        self._step()

    def _step(self) -> None:
        if self.store is None:
            return
        self.steps += 1
        if self.steps != self.at:
            return
        acknowledged = set(self.acknowledged)
        # with no room left, what was acknowledged may have been evicted since
        self.must_be_there = {
            key for key, copies in self.store.contents().items() if key in acknowledged and ("disk", "ready") in copies
        }
        shutil.copytree(self.folder, self.left)
        for path, offset, before in reversed(self._undo):
            with open(self.left / Path(path).name, "r+b") as file:
                file.seek(offset)
                file.write(before)


@pytest.mark.parametrize("disk_bytes", [64 * MIB, 6 * MIB], ids=["with room", "evicting"])
@pytest.mark.parametrize("seed", range(8))
def test_what_was_acknowledged_survives_a_power_loss(tmp_path: Path, monkeypatch, seed: int, disk_bytes: int) -> None:
    rng = random.Random(f"{seed}/{disk_bytes}")
    folder = tmp_path / "d"
    power = Power(monkeypatch, folder, at=rng.randrange(20, 160))
    store = opened(folder, disk_bytes=disk_bytes, host_bytes=4 * MIB)
    streams = [Stream(store, v4_demo(), str(number), BLOCKS) for number in range(STREAMS)]
    power.watch(store)
    for stream in streams:
        middle = rng.randrange(1, BLOCKS)
        power.acknowledged |= put_durably(store, stream, 0, middle)
        power.acknowledged |= put_durably(store, stream, middle, BLOCKS, (BLOCKS - 1,))
    assert power.left.exists(), f"only {power.steps} steps, none is number {power.at}"
    store.close()
    store = opened(power.left, disk_bytes=disk_bytes, host_bytes=4 * MIB)
    found: set[BlockKey] = set()
    for number in range(STREAMS):
        stream = Stream(store, v4_demo(), str(number), BLOCKS)
        keys = [stream.key(block) for block in range(BLOCKS)] + [stream.key(BLOCKS - 1, 1)]
        for at, opening in enumerate(store.open_objects(0, keys, time.monotonic() + 30)):
            with opening:
                if not opening.is_missing:
                    assert b"".join(opening.pieces) == stream.payload(min(at, BLOCKS - 1), opening.key.group)
                    found.add(opening.key)
    assert power.must_be_there <= found, f"lost {len(power.must_be_there - found)} of {len(power.must_be_there)}"
    store.close()
