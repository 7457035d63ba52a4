"""What an index of millions of entries costs: memory, the time of a lookup, and the pauses of the garbage collector.

    python bench/index.py [--json] [--quick] [--ten-million]

A process of its own for each size fills the real planner with V4-Flash's blocks (chains of 512 blocks, 65,536 tokens,
each with a state at its end), without tiers: reserve and arrive, as an upload does. Bytes are what the process grew by,
over the entries. The collector is run as the daemon runs it (daemon/garbage.py, a tick every half second); a pause is
any collection, by the collector's own callbacks. Its target is held to processor time: by the clock the longest one,
on a busy machine, is that in which the process waited for its turn. Lookups are timed as the store's lock sees them:
match, lease and release in one. `a full collection` is what the collector would have done sooner or later without all
that.

A quick run has 100,000 entries, the usual one a million; --ten-million adds ten (about 12 GB and ten minutes).
"""

from __future__ import annotations

import argparse
import gc
import multiprocessing
import os
import random
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from harness import Against, Bench, main

from kvstore.core.keys import PAGE_BYTES, Chain, Tier
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import Hints, Speeds
from kvstore.core.matching import Request
from kvstore.core.planner import Planner
from kvstore.core.presets import v4_flash
from kvstore.core.reserve import ObjectSpec
from kvstore.core.settings import Settings
from kvstore.daemon.garbage import Garbage
from kvstore.daemon.server import TICK_SECONDS

QUICK, USUAL, LARGE = 100_000, 1_000_000, 10_000_000
CHAIN_BLOCKS, LONG_BLOCKS, SHORT_BLOCKS = 512, 8192, 16
PAUSE_TARGET_MS = 50.0
LOCK_TARGET_MS = 2.0
LOOKUPS = 200
SERVING_SECONDS = 3.0
NAME, ROOT, WORKER = b"n" * 32, b"r" * 32, b"w" * 16
SPEEDS = Speeds({Tier.HOST: 1e10, Tier.DISK: 2e9}, 1e15)  # with prices, as workers that know their speed ask


class Measured(NamedTuple):
    entries: int
    bytes_per_entry: float
    put_us: float  # an entry
    lookup_ms: dict[str, float]  # medians
    filling_pause_ms: float
    serving_pause_ms: float
    busy_pause_ms: float  # longest, of filling and serving, in processor time
    freezes: int
    full_collection_ms: float


def collect(bench: Bench) -> None:
    sizes = [QUICK] if bench.is_quick else [USUAL, LARGE] if bench.options.ten_million else [USUAL]
    for entries in sizes:
        with (
            bench.step(f"an index of {entries:,} entries"),
            ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool,
        ):
            rows(bench, f"{entries:,} entries", pool.submit(measure, entries, bench.seed).result())


def rows(bench: Bench, name: str, found: Measured) -> None:
    at_most = Against.VALUE_AT_MOST
    bench.row(f"{name}: memory", found.bytes_per_entry, "B an entry", runs=1)
    bench.row(f"{name}: put, planner only", found.put_us, "us an entry", runs=1)
    for what, milliseconds in found.lookup_ms.items():
        bench.row(
            f"{name}: lookup, lease and release, {what}, p50", milliseconds, "ms",
            target=LOCK_TARGET_MS, against=at_most, runs=LOOKUPS,
        )  # fmt: skip
    for what, milliseconds in (("filling", found.filling_pause_ms), ("serving", found.serving_pause_ms)):
        bench.row(f"{name}: longest collector pause, {what}, by the clock", milliseconds, "ms", runs=1)
    bench.row(
        f"{name}: longest collector pause, processor time", found.busy_pause_ms, "ms",
        target=PAUSE_TARGET_MS, against=at_most, runs=1,
    )  # fmt: skip
    bench.row(f"{name}: a full collection, were it not frozen", found.full_collection_ms, "ms", runs=1)
    bench.note(f"{name}: {found.freezes} freezes")


def measure(entries: int, seed: int) -> Measured:
    """Runs in a process of its own."""
    garbage, busy = Garbage(), BusyPauses()
    gc.callbacks.append(busy)
    index = Index(entries, seed, garbage)
    before = resident_bytes()
    start = time.perf_counter()
    long, often = index.put(LONG_BLOCKS, every=LONG_BLOCKS), index.put(LONG_BLOCKS, every=16)
    chains = [index.put(CHAIN_BLOCKS, every=CHAIN_BLOCKS) for _ in range(SHORT_BLOCKS)]
    while len(index.planner) < entries:
        index.put(CHAIN_BLOCKS, every=CHAIN_BLOCKS)
    put_us = 1e6 * (time.perf_counter() - start) / len(index.planner)
    bytes_per_entry = (resident_bytes() - before) / len(index.planner)
    filling, garbage.longest_pause = garbage.longest_pause, 0.0
    lookup_ms = {
        f"{LONG_BLOCKS:,} blocks, one state": index.lookup_ms([long]),
        f"{LONG_BLOCKS:,} blocks, a state at every 16th": index.lookup_ms([often]),
        f"{CHAIN_BLOCKS} blocks": index.lookup_ms(chains),
        f"{SHORT_BLOCKS} blocks": index.lookup_ms([short(chain) for chain in chains]),
    }
    ends = time.monotonic() + SERVING_SECONDS
    while time.monotonic() < ends:  # a put with each few lookups: new entries go on coming
        index.put(CHAIN_BLOCKS, every=CHAIN_BLOCKS)
        index.lookup_ms([long, *chains], 10)
    serving, freezes = garbage.longest_pause, garbage.freezes
    garbage.stop()
    gc.callbacks.remove(busy)
    start = time.perf_counter()
    gc.collect()
    full = time.perf_counter() - start
    return Measured(
        len(index.planner), bytes_per_entry, put_us, lookup_ms, 1e3 * filling, 1e3 * serving, 1e3 * busy.longest,
        freezes, 1e3 * full,
    )  # fmt: skip


class BusyPauses:
    """The longest collection in seconds of this thread's processor time."""

    def __init__(self) -> None:
        self.longest = self._started = 0.0

    def __call__(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._started = time.thread_time()
        else:
            self.longest = max(self.longest, time.thread_time() - self._started)


class Index:
    """A planner whose uploads end at once and whose memory is only counted."""

    def __init__(self, entries: int, seed: int, garbage: Garbage) -> None:
        self._random = random.Random(seed)
        self._layout = v4_flash("bench")
        slots = 2 * entries + 8 * LONG_BLOCKS * len(self._layout.groups)  # room for what serving adds, and for states
        self.planner = Planner(Settings(host_bytes=slots * -(-self._layout.rows.nbytes // PAGE_BYTES) * PAGE_BYTES))
        space = self.planner.spaces[Tier.HOST]
        self.planner.grow(Tier.HOST, self.planner.settings.host_bytes // PAGE_BYTES // space.region_pages)
        self.planner.add_namespace(NAME, ROOT, self._layout)
        self._garbage = garbage
        self._garbage.start(self.planner.next_generation)
        self._tick_at = time.monotonic() + TICK_SECONDS

    def put(self, blocks: int, every: int) -> Chain:
        """A new chain with a state at the end of every `every`-th block."""
        hashes, parent = [], ROOT
        for content in range(blocks):
            parent = sha256(parent + self._random.randbytes(8) + bytes([content & 255])).digest()
            hashes.append(parent)
        chain = Chain(0, ROOT, b"".join(hashes))
        groups = self._layout.groups
        for first in range(0, blocks, CHAIN_BLOCKS):  # as a client does: so many blocks a call
            self._put(chain, range(first, min(first + CHAIN_BLOCKS, blocks)), every, groups[0].nbytes, groups[1].nbytes)
            self._tick()
        return chain

    def _put(self, chain: Chain, blocks: range, every: int, rows_bytes: int, state_bytes: int) -> None:
        contents = self._random.randbytes(16 * len(blocks))
        specs = []
        for index, block in enumerate(blocks):
            content = contents[16 * index : 16 * index + 16]
            specs.append(ObjectSpec(index, 0, rows_bytes, content))
            if (block + 1) % every == 0:
                specs.append(ObjectSpec(index, 1, state_bytes, content))
        parent = chain.hash_at(blocks.start - 1) if blocks.start else chain.parent
        part = Chain(blocks.start, parent, chain.hashes[32 * blocks.start : 32 * blocks.stop])
        above = self.planner.namespaces[NAME].node(parent)
        lineage = above.lineage if above is not None else ROOT_LINEAGE
        now = time.monotonic()
        _, facts, _ = self.planner.reserve(NAME, part, specs, lineage, WORKER, Hints(), now, now)
        for made in facts:
            assert made is not None, "the index refused a block"
            self.planner.arrived(made.key, made.generation, Tier.HOST, now)

    def lookup_ms(self, chains: list[Chain], lookups: int = LOOKUPS) -> float:
        """Median of lookups with their release."""
        took = []
        for number in range(lookups):
            chain = chains[number % len(chains)]
            request = Request(chain, chain.blocks * self._layout.block_tokens + 1, Hints(), True, SPEEDS)
            start = time.perf_counter()
            match, _ = self.planner.lookup(NAME, request, WORKER, time.monotonic())
            if match.lease is not None:
                self.planner.release(match.lease)
            took.append(time.perf_counter() - start)
            assert match.rows_tokens == chain.blocks * self._layout.block_tokens
            self._tick()
        return 1e3 * statistics.median(took)

    def _tick(self) -> None:
        """As the daemon's thread does every half second."""
        if time.monotonic() >= self._tick_at:
            self.planner.tick(time.monotonic())
            self._garbage.tick(self.planner.next_generation)
            self._tick_at = time.monotonic() + TICK_SECONDS


def short(chain: Chain) -> Chain:
    return Chain(0, chain.parent, chain.hashes[: 32 * SHORT_BLOCKS])


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--ten-million", action="store_true", help="also ten million entries (about 12 GB)")


if __name__ == "__main__":
    main("index", collect, doc=__doc__, add_arguments=add_arguments)
