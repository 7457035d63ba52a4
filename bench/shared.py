"""What a worker on the daemon's host sees: prefixes copied or viewed, and put, beside memcpy of the same sizes.

Rows of throughput.py. Reads and puts go through shared memory; repetitions of everything are interleaved with a memcpy
loop over the same objects. The loop of the reads copies out of the very slots that the fetch copies out of, into the
same page-aligned buffer: memory differs, in how its pages lie in a virtual machine's host for one. Loops out of a memfd
and out of private huge pages of this process are noted beside it.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import numpy as np
from harness import Against, Bench
from numpy.typing import NDArray
from processes import Daemon
from shapes import (
    BLOCK_TOKENS,
    Rows,
    Tokens,
    aligned_bytes,
    arrays_of,
    even_layout,
    flash_rows,
    pro_rows,
    random_tokens,
    shared_bytes,
)

import kvstore
from kvstore.client.client import Client
from kvstore.client.settings import Bounds, Timeouts
from kvstore.core.layout import ModelLayout

MIB = 1 << 20
PAGE_BYTES = 4096
BLOCKS = 142  # of 450 KB: 64 MB
VIEWED_BLOCKS = 1000
COPY_TARGET, VERIFY_TARGET, PUT_TARGET = 0.8, 0.6, 0.5  # of memcpy
VIEWS_MS, ONE_BLOCK_MS = 3.0, 1.5
WAIT_SECONDS = 600.0
PATIENT = Timeouts(lookup_seconds=60, fetch_seconds=WAIT_SECONDS, put_seconds=WAIT_SECONDS)
ROOMY = Bounds(staging_bytes=160 * MIB)  # a put of 64 MB while the one before it is being published

Seconds = dict[str, list[float]]


def shared(bench: Bench, daemon: Daemon) -> None:
    runs = 7 if bench.is_quick else 21
    with ExitStack() as stack:
        prefix = Prefix(stack, daemon, flash_rows(), BLOCKS, bench.seed)
        seconds = interleaved(bench, runs, prefix)
        one = Prefix(stack, daemon, pro_rows(), 1, bench.seed)
        viewed = Prefix(stack, daemon, even_layout(8, 512, "bench-views"), VIEWED_BLOCKS, bench.seed)
        with bench.step("views, and one block"):
            views = [timed(viewed.view) for _ in range(3 * runs)]
            single = [timed(one.copy) for _ in range(3 * runs)]

    def gbps(what: str) -> float:
        values = sorted(prefix.nbytes / took / 1e9 for took in seconds[what])
        bench.note(f"{what}: {values[0]:.3g} to {values[-1]:.3g} GB/s")
        return statistics.median(values)

    memcpy, packed = gbps("memcpy"), gbps("memcpy, packed")
    for what in ("memcpy, memfd", "memcpy, private"):
        bench.note(f"{what}: median {gbps(what):.3g} GB/s")
    for what, target in (
        ("copy", COPY_TARGET), ("copy, without gaps", None), ("by component", None), ("verify=True", VERIFY_TARGET)
    ):  # fmt: skip
        name = "64 MB of 450 KB objects, lookup and fetch: " + what
        bench.row(name, gbps(what), "GB/s", ceiling=memcpy, target=target, runs=runs)
    most = Against.VALUE_AT_MOST
    bench.row(
        f"views of {VIEWED_BLOCKS:,} blocks, lookup and fetch", 1e3 * statistics.median(views), "ms",
        target=VIEWS_MS, against=most, runs=len(views),
    )  # fmt: skip
    bench.row(
        "one 644 KB block, lookup and fetch", 1e3 * statistics.median(single), "ms",
        target=ONE_BLOCK_MS, against=most, runs=len(single),
    )  # fmt: skip
    bench.row("put of 64 MB, seen by the worker", gbps("put"), "GB/s", ceiling=packed, target=PUT_TARGET, runs=runs)
    bench.row("put of 64 MB, until it is published", gbps("published"), "GB/s", ceiling=packed, runs=runs)


def interleaved(bench: Bench, runs: int, prefix: Prefix) -> Seconds:
    seconds: Seconds = defaultdict(list)
    with bench.step(f"64 MB through shared memory, {runs} interleaved repetitions"):
        for repetition in range(2 + runs):  # the first ones map and touch
            for what, took in prefix.measure():
                if repetition > 1:
                    seconds[what].append(took)
    return seconds


class Prefix:
    """A stored prefix, a client that asks for it, and the buffers of both sides of a memcpy."""

    def __init__(self, stack: ExitStack, daemon: Daemon, layout: ModelLayout, blocks: int, seed: int) -> None:
        self._layout, self._blocks = layout, blocks
        self._client = stack.enter_context(
            kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT, bounds=ROOMY)
        )
        wait_for_staging(self._client)
        self._rng = np.random.default_rng(seed)
        self._tokens = random_tokens(blocks * BLOCK_TOKENS + 1, seed)
        self._rows = aligned_rows(layout, blocks, self._rng)
        self.nbytes = blocks * layout.rows.nbytes
        # A worker's blocks start at pages, as the store's do: between other offsets in a page a copy is slower by half
        # and more (MEASURED section 1, "alignment trap"). The row "without gaps" shows it.
        step = -(-layout.rows.nbytes // PAGE_BYTES) * PAGE_BYTES
        self._into = aligned_bytes(blocks * step).reshape(blocks, step)[:, : layout.rows.nbytes]
        self._gapless = aligned_bytes(self.nbytes).reshape(blocks, -1)
        self._parts = aligned_rows(layout, blocks, None)
        self._source = shared_bytes(blocks * step).reshape(blocks, step)[:, : layout.rows.nbytes]
        self._private = aligned_bytes(blocks * step).reshape(blocks, step)[:, : layout.rows.nbytes]
        self._staged = shared_bytes(self.nbytes)
        self._published(self._tokens)

    def measure(self) -> Iterator[tuple[str, float]]:
        """Seconds of one repetition, of everything."""
        yield "memcpy, private", timed(lambda: self._memcpy(self._private))
        yield "memcpy, memfd", timed(lambda: self._memcpy(self._source))
        with self._client.lookup(self._tokens) as match:
            assert match.located is not None and match.located.rows is not None
            arena, slots = match.located.arena, match.located.rows
            objects = [arena.pieces(slots, block)[0] for block in range(len(slots))]
            yield "memcpy", timed(lambda: self._memcpy(objects))
        yield "copy", timed(self.copy)
        yield "verify=True", timed(lambda: self.copy(verify=True))
        yield "copy, without gaps", timed(lambda: self.copy(into=self._gapless))
        yield "by component", timed(self._by_component)
        yield "memcpy, packed", timed(self._pack)
        tokens = self._rng.integers(0, 1 << 31, len(self._tokens), dtype=np.int32)
        start = time.perf_counter()
        assert self._put(tokens)
        yield "put", time.perf_counter() - start
        assert self._client.flush(WAIT_SECONDS)
        yield "published", time.perf_counter() - start

    def copy(self, verify: bool = False, into: NDArray[np.uint8] | None = None) -> None:
        client, into = self._client, self._into if into is None else into
        with client.lookup(self._tokens) as match, client.fetch(match, into=into, verify=verify) as blocks:
            assert blocks.plan.tokens == self._blocks * BLOCK_TOKENS

    def view(self) -> None:
        with self._client.lookup(self._tokens) as match, self._client.fetch(match, views=True) as blocks:
            assert blocks.plan.tokens == self._blocks * BLOCK_TOKENS and blocks.is_valid

    def _by_component(self) -> None:
        with self._client.lookup(self._tokens) as match, self._client.fetch(match, into=self._parts) as blocks:
            assert blocks.plan.tokens == self._blocks * BLOCK_TOKENS

    def _memcpy(self, source: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> None:
        for block in range(self._blocks):
            self._into[block] = source[block]

    def _pack(self) -> None:
        """memcpy of what a put has to move, array by array."""
        start = 0
        for array in self._rows.values():
            self._staged[start : start + array.nbytes] = array.reshape(-1)
            start += array.nbytes

    def _put(self, tokens: Tokens) -> bool:
        return self._client.put(tokens, first_block=0, rows=self._rows)

    def _published(self, tokens: Tokens) -> None:
        assert self._put(tokens) and self._client.flush(WAIT_SECONDS), self._client.counters


def aligned_rows(layout: ModelLayout, blocks: int, rng: np.random.Generator | None) -> Rows:
    """Arrays by component that start at a page; random, or zeros."""
    arrays: Rows = {}
    for name, made in arrays_of(layout.rows, (blocks,), rng or np.random.default_rng(0)).items():
        target: NDArray[np.uint8] = aligned_bytes(made.nbytes).reshape(made.shape)
        if rng is not None:
            target[...] = made
        arrays[name] = target
    return arrays


def wait_for_staging(client: Client) -> None:
    """The staging region is made behind the worker's back; a bench of it waits."""
    ends = time.monotonic() + 30.0
    while not client.has_staging:
        assert time.monotonic() < ends, f"no staging region: {client.counters}"
        time.sleep(0.01)


def timed(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start
