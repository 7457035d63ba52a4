"""The disk tier under the real mover: frames written durably, and promoted into host slots. Codec raw.

The mover's threads, the host's regions, segments and manifest are the store's own; slots are given out in a ring, as a
tier gives them that is full. Each row's ceiling does the same bytes at the same places with bare system calls, in the
same run, the two in turn:

1. disk writes: pwritev of head and payload into recycled slots, one fdatasync a batch of the mover's size;
2. promotion: four threads, one preadv of head and payload a frame, into the same host slots, through the page cache
   and past it. Caches are dropped before each (posix_fadvise), for the mover's reads too. Then the same by layers.
"""

from __future__ import annotations

import mmap
import os
import random
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from harness import Bench, main

from kvstore.codec.frame import max_frame_bytes
from kvstore.codec.frame_in_place import head_bytes
from kvstore.codec.lossless import Codec
from kvstore.core.actions import Copy, Drop
from kvstore.core.checksum import content_checksum
from kvstore.core.index import Facts, ObjectClass
from kvstore.core.keys import PAGE_BYTES, BlockKey, Tier
from kvstore.core.presets import v4_flash
from kvstore.core.space import class_pages
from kvstore.store.mover import BATCH_BYTES, Described, Mover, Written
from kvstore.store.rates import Rates
from kvstore.store.settings import PROMOTE_THREADS
from kvstore.tiers.disk import DiskTier
from kvstore.tiers.host import HostTier

MIB = 1 << 20
PREFIX_BYTES = 512 * MIB
TARGET = 0.8
THREADS = 4
WAIT_SECONDS = 120.0


def collect(bench: Bench) -> None:
    nbytes = PREFIX_BYTES // 4 if bench.is_quick else PREFIX_BYTES
    runs = 5 if bench.is_quick else 9
    with tempfile.TemporaryDirectory(prefix="kvstore-bench-") as folder, prefix(Path(folder), nbytes, bench) as made:
        disk_writes(bench, made, runs)
        promotion(bench, made, runs)


def disk_writes(bench: Bench, made: Prefix, runs: int) -> None:
    measured = alternate(bench, runs, {"mover": made.write, "bare": made.write_bare}, made.payload_bytes, "writes")
    bench.row("disk writes (codec raw)", measured["mover"], "GB/s", ceiling=measured["bare"], target=TARGET, runs=runs)


def promotion(bench: Bench, made: Prefix, runs: int) -> None:
    ways = {
        "mover": lambda: made.promote(layers=False),
        "by layers": lambda: made.promote(layers=True),
        "buffered": lambda: made.read_bare(0),
        "direct": lambda: made.read_bare(os.O_DIRECT),
    }
    measured = alternate(bench, runs, {name: made.cold(way) for name, way in ways.items()}, made.payload_bytes, "reads")
    size = f"{made.payload_bytes / MIB:.0f} MB"
    buffered, direct = measured["buffered"], measured["direct"]
    name = f"promotion of {size} (raw) into host slots"
    bench.row(name, measured["mover"], "GB/s", ceiling=buffered, target=TARGET, runs=runs)
    bench.row(f"{name}, against O_DIRECT", measured["mover"], "GB/s", ceiling=direct, target=TARGET, runs=runs)
    bench.row(f"{name}, layer by layer", measured["by layers"], "GB/s", ceiling=buffered, runs=runs)
    first, whole = statistics.median(made.first_layers), statistics.median(made.all_layers)
    bench.row("first layers of it all verified, against all layers", 1e3 * first, "ms", ceiling=1e3 * whole, runs=runs)


def alternate(
    bench: Bench, runs: int, ways: dict[str, Callable[[], float]], nbytes: int, what: str
) -> dict[str, float]:
    """Medians in GB/s of ways that take turns; each returns its seconds."""
    seconds: dict[str, list[float]] = defaultdict(list)
    names = list(ways)
    with bench.step(f"{what}: {1 + runs} repetitions of {', '.join(ways)}, in turn"):
        for repetition in range(1 + runs):
            for name in names:
                took = ways[name]()
                if repetition:  # the first one makes files and warms up
                    seconds[name].append(took)
            names.append(names.pop(0))  # none always follows the same one
    for name, took in seconds.items():
        bench.note(f"{what}, {name}: {nbytes / max(took) / 1e9:.2f} to {nbytes / min(took) / 1e9:.2f} GB/s")
    return {name: nbytes / statistics.median(took) / 1e9 for name, took in seconds.items()}


class Prefix:
    """Rows of a long prefix: on the host, and in a ring of disk slots."""

    def __init__(self, host: HostTier, disk: DiskTier, nbytes: int, seed: int) -> None:
        layout = v4_flash("bench")
        self._group, self._host, self._disk = layout.rows, host, disk
        self._files: dict[int, int] = {}  # segment -> descriptor of the bare calls
        self._started = 0.0
        self._is_written = False  # by the mover, since the last bare write, whose heads are empty
        self.first_layers: list[float] = []  # seconds until they were verified
        self.all_layers: list[float] = []
        self._slot_pages = -(-self._group.nbytes // PAGE_BYTES)
        self._frame_bytes = max_frame_bytes(self._group.sections)
        self._class_pages = class_pages(self._frame_bytes)
        self._head_bytes = head_bytes(self._group.sections)
        count = nbytes // self._group.nbytes
        self.payload_bytes = count * self._group.nbytes
        noise = random.Random(seed).randbytes(self._group.nbytes)
        per_region = host.region_pages // self._slot_pages
        self._slots = [
            index // per_region * host.region_pages + index % per_region * self._slot_pages for index in range(count)
        ]
        self._facts = [self._fill(index, noise) for index in range(count)]
        per_segment = (disk.segment_pages - 1) // self._class_pages
        self._pages = [
            index // per_segment * disk.segment_pages + 1 + index % per_segment * self._class_pages
            for index in range(count)
        ]
        described = Described(layout, bytes(32), ((self._group.nbytes,),))
        self._reports = Reports(described, dict(zip(self._facts, self._pages, strict=True)))
        self._mover = Mover(host, disk, self._reports, Codec.RAW, PROMOTE_THREADS)
        self._reports.mover = self._mover
        self._mover.start()
        self._flow = 0

    def _fill(self, index: int, noise: bytes) -> Facts:
        (piece,) = self._host.pieces([self._slots[index]], [self._group.nbytes])
        piece[:] = noise
        piece[:8] = index.to_bytes(8, "little")
        name = index.to_bytes(32, "little")
        content = content_checksum([piece])
        return Facts(
            key=BlockKey(name, 0), namespace=bytes(32), parent=bytes(32), block=index, generation=index + 1,
            lineage=bytes(16), parent_lineage=bytes(16), content=content, raw_bytes=self._group.nbytes,
            written_at=0.0, writer=bytes(16), object_class=ObjectClass(0), ttl_seconds=None,
        )  # fmt: skip

    def write(self) -> float:
        """Seconds until all of it is durable and in the manifest."""
        copies = [
            Copy(facts, Tier.HOST, Tier.DISK, (slot,), self._group.nbytes, ())
            for facts, slot in zip(self._facts, self._slots, strict=True)
        ]
        return self._run(copies)

    def write_bare(self) -> float:
        """The same bytes to the same slots; a sync a batch."""
        self._is_written = False
        head = memoryview(mmap.mmap(-1, self._head_bytes))
        padding = bytes(-self._frame_bytes % PAGE_BYTES)
        start = time.perf_counter()
        waiting, touched = 0, set[int]()
        for slot, page in zip(self._slots, self._pages, strict=True):
            fd, offset = self._place(page)
            os.pwritev(fd, [head, *self._host.pieces([slot], [self._group.nbytes]), padding], offset)
            touched.add(fd)
            waiting += self._group.nbytes
            if waiting >= BATCH_BYTES:
                waiting = _sync(touched)
        _sync(touched)
        return time.perf_counter() - start

    def cold(self, read: Callable[[], float]) -> Callable[[], float]:
        def from_cold() -> float:
            if not self._is_written:
                self.write()
                self._is_written = True
            for page in {page // self._disk.segment_pages: page for page in self._pages}.values():
                os.posix_fadvise(self._place(page)[0], 0, 0, os.POSIX_FADV_DONTNEED)
            return read()

        return from_cold

    def promote(self, layers: bool) -> float:
        """Seconds until all of it is verified in its host slots."""
        self._flow += 1
        copies = [
            Copy(facts, Tier.DISK, Tier.HOST, (page,), self._frame_bytes, (slot,), index + 1, self._flow, layers)
            for index, (facts, slot, page) in enumerate(zip(self._facts, self._slots, self._pages, strict=True))
        ]
        took = self._run(copies)
        if layers:
            steps = self._reports.steps
            self.first_layers.append(steps[0] - self._started)
            self.all_layers.append(steps[-1] - self._started)
        return took

    def read_bare(self, flags: int) -> float:
        """Four threads, one preadv a frame: its head into scratch memory, its payload into the host slot."""
        todo = iter(list(zip(self._slots, self._pages, strict=True)))
        lock = threading.Lock()
        files = {
            segment: os.open(self._disk.folder / f"segment-{segment:06d}", os.O_RDONLY | flags)
            for segment in {page // self._disk.segment_pages for page in self._pages}
        }

        def work() -> None:
            head = memoryview(mmap.mmap(-1, self._head_bytes))
            while True:
                with lock:
                    slot, page = next(todo, (-1, -1))
                if slot < 0:
                    return
                segment, start = divmod(page, self._disk.segment_pages)
                room = self._host.pieces([slot], [self._slot_pages * PAGE_BYTES])
                done = os.preadv(files[segment], [head, *room], start * PAGE_BYTES)
                assert done == self._head_bytes + self._slot_pages * PAGE_BYTES

        threads = [threading.Thread(target=work) for _ in range(THREADS)]
        start = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - start
        for fd in files.values():
            os.close(fd)
        return took

    def close(self) -> None:
        self._mover.close(WAIT_SECONDS)
        while self._files:
            os.close(self._files.popitem()[1])

    def _run(self, copies: Sequence[Copy]) -> float:
        self._reports.expect(len(copies))
        self._started = time.perf_counter()
        if copies[0].target is Tier.HOST:
            assert self._mover.promote(copies) == len(copies)
        else:
            assert all(self._mover.submit(copy) for copy in copies)
        assert self._reports.is_done.wait(WAIT_SECONDS)
        took = time.perf_counter() - self._started
        assert not self._reports.failed, f"{self._reports.failed} copies failed"
        return took

    def _place(self, page: int) -> tuple[int, int]:
        segment, start = divmod(page, self._disk.segment_pages)
        fd = self._files.get(segment)
        if fd is None:
            fd = self._files[segment] = os.open(self._disk.folder / f"segment-{segment:06d}", os.O_RDWR)
        return fd, start * PAGE_BYTES


def _sync(touched: set[int]) -> int:
    while touched:
        os.fdatasync(touched.pop())
    return 0


class Reports:
    """The store's part, with the planner's answers ready: each object has its slot."""

    mover: Mover

    def __init__(self, described: Described, pages: dict[Facts, int]) -> None:
        self.rates = Rates()
        self.is_done = threading.Event()
        self.failed = 0
        self.steps: list[float] = []  # when layers became whole
        self._described = described
        self._pages = pages
        self._left = 0
        self._lock = threading.Lock()

    def expect(self, copies: int) -> None:
        self._left, self.failed = copies, 0
        self.steps.clear()
        self.is_done.clear()

    def ended(self, copies: Sequence[tuple[Facts, bool]], target: Tier) -> None:
        with self._lock:
            self._left -= len(copies)
            self.failed += sum(not is_whole for _, is_whole in copies)
            if not self._left:
                self.is_done.set()

    def layered(self, flow: int) -> None:
        self.steps.append(time.perf_counter())

    def describe(self, namespace: bytes) -> Described:
        return self._described

    def give_slot(self, facts: Facts, frame_bytes: int) -> int:
        return self._pages[facts]

    def is_superseded(self, drop: Drop) -> bool:
        return False

    def should_erase(self, drop: Drop) -> bool:
        return False

    def lost(self, facts: Facts, tier: Tier, why: str) -> None:
        raise AssertionError(why)

    def retire(self, segment: int) -> None:
        raise AssertionError(f"segment {segment} failed")

    def trouble(self, tier: Tier, why: str) -> None:
        raise AssertionError(why)

    def populated(self) -> None:
        pass

    def last_used(self, key: BlockKey) -> float:
        return 0.0

    def on_disk(self) -> list[Written]:
        return []


@contextmanager
def prefix(folder: Path, nbytes: int, bench: Bench) -> Iterator[Prefix]:
    """The tiers have room for it and a little more."""
    capacity = nbytes + nbytes // 4
    region_pages = capacity // 16 // PAGE_BYTES
    host = HostTier(region_pages, 16)
    with bench.step(f"making {capacity >> 20} MB of host memory and of segments"):
        for _ in range(16):
            host.populate()
        disk = DiskTier.open(folder / "disk", capacity, region_pages * PAGE_BYTES)
        made = Prefix(host, disk, nbytes, bench.seed)
    try:
        yield made
    finally:
        made.close()
        disk.close()
        host.close()


if __name__ == "__main__":
    main("disk", collect, doc=__doc__)
