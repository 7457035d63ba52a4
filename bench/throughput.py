"""How fast bytes go in and out of a daemon inline (over gRPC), and how fast a million tokens are found.

    python bench/throughput.py [--json] [--quick] [--skip-million]

1. Put and fetch through a real daemon and client, in objects of 64 KB, 644 KB (a block of V4-Pro's rows) and 4 MB, in
   batches; each repetition runs beside raw grpcio streams of as many bytes and a memcpy loop over as many objects.
   The raw server parses, checks and copies nothing. A put is timed until the store has verified the last byte.
2. Lookup of the 8,192 hashes of a million tokens. Its time is that of the whole call less what the client counted as
   hashing, which has a row of its own. The memo is off, so that each call hashes and sends the whole chain.
3. Not in a quick run: a million tokens of V4-Flash (8,192 blocks, 3.7 GB) put, found, fetched whole and compared, with
   1 GiB of host memory and 6 GiB of disk. Needs 7 GiB of memory, because a fetch takes one buffer for all its rows.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import ExitStack

import numpy as np
from harness import Against, Bench, main
from numpy.typing import NDArray
from processes import Daemon, RawStreams, raw_streams, running_daemon

import kvstore
from kvstore.client.client import Client
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core.layout import Group, GroupKind, Layer, LayerKind, ModelLayout, Section
from kvstore.core.match import PlanKind
from kvstore.core.presets import custom, v4_flash, v4_pro

MIB = 1 << 20
BLOCK_TOKENS = 128
MILLION_BLOCKS = 8192  # 2^20 tokens
CHUNK_BYTES = MIB  # of the raw streams, as of the store's
FETCH_TARGET = 0.7  # of raw grpcio streaming
LOOKUP_TARGET_MS = 10.0
WAIT_SECONDS = 600.0  # longer than anything here takes: a bench is not held to a worker's deadlines
PATIENT = Timeouts(lookup_seconds=60, fetch_seconds=WAIT_SECONDS, put_seconds=WAIT_SECONDS)

Tokens = NDArray[np.int32]
Rows = dict[str, NDArray[np.uint8]]


def collect(bench: Bench) -> None:
    with running_daemon("1GiB" if bench.is_quick else "2GiB") as daemon:
        streaming(bench, daemon)
        lookups(bench, daemon)
    if not bench.is_quick and not bench.options.skip_million:
        with running_daemon("1GiB", "6GiB") as daemon:
            million(bench, daemon)


# -- 1. inline put and fetch ---------------------------------------------------------------------
def streaming(bench: Bench, daemon: Daemon) -> None:
    runs, batch_bytes = (5, 16 * MIB) if bench.is_quick else (15, 40 * MIB)
    rng = np.random.default_rng(bench.seed)
    with ExitStack() as stack:
        raw = stack.enter_context(raw_streams(CHUNK_BYTES))
        sizes = [Size(stack, daemon, name, layout, batch_bytes, rng) for name, layout in layouts().items()]
        seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        with bench.step(f"inline put and fetch, {1 + runs} interleaved repetitions of {len(sizes)} sizes"):
            for repetition in range(1 + runs):
                for size in sizes:
                    for what, took in size.measure(raw, rng):
                        if repetition:  # the first one allocates
                            seconds[size.name, what].append(took)
    for size in sizes:

        def gbps(what: str, size: Size = size) -> float:
            values = sorted(size.nbytes / took / 1e9 for took in seconds[size.name, what])
            bench.note(f"{what}, {size.name}: {values[0]:.3g} to {values[-1]:.3g} GB/s")
            return statistics.median(values)

        bench.row(f"memcpy, {size.name}", gbps("memcpy"), "GB/s", runs=runs)
        bench.row(f"inline put, {size.name}", gbps("put"), "GB/s", ceiling=gbps("up"), runs=runs)
        bench.row(
            f"inline fetch, {size.name}", gbps("fetch"), "GB/s",
            ceiling=gbps("down"), target=FETCH_TARGET, runs=runs,
        )  # fmt: skip


def layouts() -> dict[str, ModelLayout]:
    """Rows of each size and no state, so that every boundary is a resume point. The middle one is V4-Pro's rows."""
    pro = v4_pro().rows
    return {
        "64 KB": even_layout(8, 8 << 10),
        "644 KB": rows_layout("bench-644-kb", len({part.layer for part in pro.sections}), pro.sections),
        "4 MB": even_layout(32, 128 << 10),
    }


def even_layout(layers: int, section_bytes: int) -> ModelLayout:
    sections = tuple(Section(layer, "full.rows", 1, section_bytes, 0, "bytes") for layer in range(layers))
    return rows_layout(f"bench-{layers}-by-{section_bytes}", layers, sections)


def rows_layout(model: str, layers: int, sections: tuple[Section, ...]) -> ModelLayout:
    kinds = (Layer(LayerKind.FULL),) * layers
    groups = (Group("rows", GroupKind.ROWS, sections),)
    return custom(model, "bench", layers=kinds, groups=groups, block_tokens=BLOCK_TOKENS)


class Size:
    """One object size: its client, and the arrays that are put again and again under new names."""

    def __init__(
        self, stack: ExitStack, daemon: Daemon, name: str, layout: ModelLayout, nbytes: int, rng: np.random.Generator
    ) -> None:
        self.name, self._object_bytes = name, layout.rows.nbytes
        self._blocks = max(1, nbytes // self._object_bytes)
        self.nbytes = self._blocks * self._object_bytes
        self._client = stack.enter_context(kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT))
        self._rows = random_rows(layout, self._blocks, rng)
        self._source = np.zeros(self.nbytes, np.uint8)
        self._target = np.zeros(self.nbytes, np.uint8)

    def measure(self, raw: RawStreams, rng: np.random.Generator) -> list[tuple[str, float]]:
        """Seconds of one repetition, of all five."""
        tokens = rng.integers(0, 1 << 31, self._blocks * BLOCK_TOKENS + 1, dtype=np.int32)
        return [
            ("put", timed(lambda: self._put(tokens))),
            ("up", timed(lambda: raw.up(self.nbytes))),
            ("fetch", self._fetch(tokens)),
            ("down", timed(lambda: raw.down(self.nbytes))),
            ("memcpy", timed(self._memcpy)),
        ]

    def _put(self, tokens: Tokens) -> None:
        assert self._client.put(tokens, first_block=0, rows=self._rows)
        assert self._client.flush(WAIT_SECONDS)

    def _fetch(self, tokens: Tokens) -> float:
        with self._client.lookup(tokens) as match:
            assert match.plan.tokens == self._blocks * BLOCK_TOKENS, "the batch is not there whole"
            start = time.perf_counter()
            with self._client.fetch(match) as blocks:
                took = time.perf_counter() - start
                assert blocks.plan.tokens == match.plan.tokens
                assert all(np.array_equal(blocks.rows[name][-1], rows[-1]) for name, rows in self._rows.items())
        return took

    def _memcpy(self) -> None:
        length = self._object_bytes
        for start in range(0, self.nbytes, length):
            self._target[start : start + length] = self._source[start : start + length]


# -- 2. lookup of a million tokens ---------------------------------------------------------------
def lookups(bench: Bench, daemon: Daemon) -> None:
    layout = even_layout(1, 64)
    tokens = random_tokens(bench.seed)
    calls = 30 if bench.is_quick else 100
    no_memo = Bounds(memo_bytes=1)
    with ExitStack() as stack:
        client = stack.enter_context(kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT))
        fresh = stack.enter_context(kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT, bounds=no_memo))
        rows = random_rows(layout, MILLION_BLOCKS, np.random.default_rng(bench.seed))
        assert client.put(tokens, first_block=0, rows=rows) and client.flush(WAIT_SECONDS)
        with bench.step(f"{calls} lookups of {MILLION_BLOCKS} hashes"):
            measured = [lookup(fresh, tokens) for _ in range(calls)]
            again = [lookup(client, tokens)[0] for _ in range(calls)]
    whole, hashing = ([sample[part] for sample in measured] for part in (0, 1))
    asking = sorted(sample[0] - sample[1] for sample in measured)
    bench.note(f"lookup: p10 {asking[calls // 10]:.3g} ms, p90 {asking[9 * calls // 10]:.3g} ms")
    bench.row(
        "lookup of 8,192 hashes, p50", statistics.median(asking), "ms",
        target=LOOKUP_TARGET_MS, against=Against.VALUE_AT_MOST, runs=calls,
    )  # fmt: skip
    bench.row("hashing 2^20 tokens beside it", statistics.median(hashing), "ms", runs=calls)
    bench.row("both", statistics.median(whole), "ms", runs=calls)
    bench.row("the same prompt again (memo, short tail)", statistics.median(again), "ms", runs=calls)


def lookup(client: Client, tokens: Tokens) -> tuple[float, float]:
    """Milliseconds of the whole call, and of hashing in it."""
    before = client.counters.get("hashing_microseconds", 0)
    start = time.perf_counter()
    with client.lookup(tokens) as match:
        took = time.perf_counter() - start
    assert match.plan.tokens == MILLION_BLOCKS * BLOCK_TOKENS
    return 1e3 * took, (client.counters["hashing_microseconds"] - before) / 1e3


# -- 3. a million tokens of V4-Flash -------------------------------------------------------------
PUT_BLOCKS = 64  # 29 MB in one put


def million(bench: Bench, daemon: Daemon) -> None:
    layout = v4_flash("bench")
    tokens = random_tokens(bench.seed)
    rng = np.random.default_rng(bench.seed)
    base = random_rows(layout, PUT_BLOCKS, rng)
    assert layout.state is not None
    state = {
        name: np.stack([rng.integers(0, 256, part.nbytes, dtype=np.uint8) for part in parts])
        for name, parts in sections_by_component(layout.state).items()
    }
    total = MILLION_BLOCKS * layout.rows.nbytes + layout.state.nbytes
    last = MILLION_BLOCKS * BLOCK_TOKENS
    with kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT) as client:
        with bench.step("putting a million tokens of V4-Flash"):
            start = time.perf_counter()
            for first in range(0, MILLION_BLOCKS, PUT_BLOCKS):
                end = (first + PUT_BLOCKS) * BLOCK_TOKENS
                states = {last: state} if last == end else {}
                rows = marked(base, first)
                while not client.put(tokens[:end], first_block=first, rows=rows, states=states):
                    time.sleep(0.01)  # the client's queue is full: it sheds rather than wait
            put_seconds = time.perf_counter() - start
            assert client.flush(WAIT_SECONDS, durable=True), f"not all of it is on disk: {client.counters}"
            durable_seconds = time.perf_counter() - start
        with client.lookup(tokens) as match:
            found = match.plan
            with bench.step("fetching all of it"):
                start = time.perf_counter()
                blocks = client.fetch(match)
                fetch_seconds = time.perf_counter() - start
        with bench.step("comparing"), blocks:
            fetched, whole = blocks.plan.tokens, 0
            for first in range(0, MILLION_BLOCKS, PUT_BLOCKS):
                end = min(first + PUT_BLOCKS, fetched // BLOCK_TOKENS)
                for name, rows in marked(base, first).items():
                    whole += np.array_equal(blocks.rows[name][first:end], rows[: end - first])
            states_equal = blocks.state is not None and all(
                np.array_equal(blocks.state[name], array) for name, array in state.items()
            )
    bench.note(f"client's share of the put: {put_seconds:.1f} s; counters {client.counters}")
    equals = Against.VALUE_EQUALS
    bench.row("V4-Flash, 2^20 tokens: put, on disk", total / durable_seconds / 1e9, "GB/s", runs=1)
    bench.row("V4-Flash: found", found.tokens, "tokens", target=last, against=equals, runs=1)
    bench.row("V4-Flash: fetched", fetched, "tokens", target=last, against=equals, runs=1)
    bench.row("V4-Flash: fetched from host and disk", total / fetch_seconds / 1e9, "GB/s", runs=1)
    expected = MILLION_BLOCKS // PUT_BLOCKS * len(base)
    bench.row("V4-Flash: equal parts of the rows", whole, "parts", target=expected, against=equals, runs=1)
    bench.row("V4-Flash: state equal", states_equal, "", target=1, against=equals, runs=1)
    assert found.kind is PlanKind.RESUME


def marked(base: Rows, first_block: int) -> Rows:
    """The base rows with the block's number in the first bytes of each section: every object differs."""
    numbers = np.arange(first_block, first_block + PUT_BLOCKS, dtype="<u4").view(np.uint8).reshape(-1, 1, 4)
    for rows in base.values():
        rows[:, :, :4] = numbers
    return base


# -- shared --------------------------------------------------------------------------------------
def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def random_tokens(seed: int) -> Tokens:
    """A million tokens and one that is still to be computed: a resume point leaves at least one."""
    return np.random.default_rng(seed).integers(0, 1 << 31, MILLION_BLOCKS * BLOCK_TOKENS + 1, dtype=np.int32)


def sections_by_component(group: Group) -> dict[str, list[Section]]:
    parts: dict[str, list[Section]] = defaultdict(list)
    for section in group.sections:
        parts[section.component].append(section)
    return parts


def random_rows(layout: ModelLayout, blocks: int, rng: np.random.Generator) -> Rows:
    return {
        name: rng.integers(0, 256, (blocks, len(parts), parts[0].nbytes), dtype=np.uint8)
        for name, parts in sections_by_component(layout.rows).items()
    }


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--skip-million", action="store_true", help="leave out part 3 (3.7 GB of disk)")


if __name__ == "__main__":
    main("throughput", collect, doc=__doc__, add_arguments=add_arguments)
