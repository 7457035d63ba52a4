"""A daemon whose disk is throttled, jitters and stalls: `python bench/slow_disk.py WISHES serve ...`.

Everything is the daemon's own but one thing: before a read of the disk tier goes to the device, it waits its turn on
a simulated one, which serves reads one after another. A read takes its bytes at the mean rate times a log-normal
factor; now and then it stalls; now and then, for a whole request of the bench, a neighbour takes most of the rate.

WISHES is a file with one JSON object, written anew by the bench before each request: `{"seed": ..., ...}` with the
fields of `Wishes`. The same seed gives the same device for the same sequence of reads.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from kvstore.cli.main import main
from kvstore.tiers.disk import DiskTier


@dataclass(frozen=True, slots=True)
class Wishes:
    """How the disk is to behave. Bytes a second, seconds, chances."""

    seed: int = 0
    bytes_per_second: float = 60e6
    jitter: float = 0.5  # sigma of the log-normal factor of each read; its mean is 1
    stall_chance: float = 0.0004  # of each read
    stall_seconds: tuple[float, float] = (0.05, 0.5)  # log-uniform in between
    slow_chance: float = 0.03  # of each seed
    slow_factor: float = 4.0

    def write(self, path: Path) -> None:
        fresh = path.with_suffix(".new")
        fresh.write_text(json.dumps(asdict(self)))
        fresh.rename(path)


class SlowDevice:
    """When each read is over. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._written_at = 0
        self._free_at = 0.0
        self._wishes, self._rng, self._factor = Wishes(), random.Random(), 1.0

    def wait(self, nbytes: int) -> None:
        with self._lock:
            self._look()
            begin = max(self._free_at, time.monotonic())
            self._free_at = begin + self._seconds(nbytes)
            until = self._free_at
        time.sleep(max(until - time.monotonic(), 0.0))

    def _seconds(self, nbytes: int) -> float:
        wishes, rng = self._wishes, self._rng
        factor = rng.lognormvariate(-(wishes.jitter**2) / 2, wishes.jitter)
        low, high = wishes.stall_seconds
        stall = low * (high / low) ** rng.random()  # drawn each time: a read more or less shifts nothing
        is_stalled = rng.random() < wishes.stall_chance
        return nbytes / wishes.bytes_per_second * factor * self._factor + (stall if is_stalled else 0.0)

    def _look(self) -> None:
        """A new wish begins a new sequence."""
        written_at = self._path.stat().st_mtime_ns
        if written_at == self._written_at:
            return
        self._written_at = written_at
        given = json.loads(self._path.read_text())
        self._wishes = Wishes(**{**given, "stall_seconds": tuple(given["stall_seconds"])})
        self._rng = random.Random(self._wishes.seed)
        self._factor = self._wishes.slow_factor if self._rng.random() < self._wishes.slow_chance else 1.0


def slow_down(device: SlowDevice) -> None:
    """Let every read of the disk tier wait for the device."""
    read_into = DiskTier.read_into

    def slow_read_into(tier: DiskTier, page: int, skip: int, pieces: Sequence[memoryview], needed: int) -> None:
        device.wait(needed)
        read_into(tier, page, skip, pieces, needed)

    DiskTier.read_into = slow_read_into  # type: ignore[method-assign]


if __name__ == "__main__":
    slow_down(SlowDevice(Path(sys.argv.pop(1))))
    main()
