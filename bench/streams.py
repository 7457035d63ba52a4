"""Bytes over gRPC, for workers on other hosts, beside raw grpcio streams of as many bytes in the same chunks.

Rows of throughput.py: objects of 64 KB, 644 KB (a block of V4-Pro's rows), 4 and 16 MB, in batches. The raw server
parses, checks and copies nothing. A put is timed until the store has verified the last byte. The client is told not
to share memory, as if it were elsewhere.
"""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from contextlib import ExitStack

import numpy as np
from harness import Bench
from processes import Daemon, RawStreams, raw_streams
from shapes import BLOCK_TOKENS, Tokens, aligned_bytes, arrays_of, even_layout, pro_rows
from shared import PATIENT, WAIT_SECONDS, timed

import kvstore
from kvstore.core.layout import ModelLayout

MIB = 1 << 20
CHUNK_BYTES = MIB  # of the raw streams, as of the store's
STREAM_TARGET = 0.8  # of raw grpcio streaming, for objects of 4 MB and larger
LARGE_BYTES = 4 * MIB


def streaming(bench: Bench, daemon: Daemon) -> None:
    runs, batch_bytes = (5, 16 * MIB) if bench.is_quick else (15, 48 * MIB)
    rng = np.random.default_rng(bench.seed)
    with ExitStack() as stack:
        raw = stack.enter_context(raw_streams(CHUNK_BYTES))
        sizes = [Size(stack, daemon, name, layout, batch_bytes, rng) for name, layout in layouts().items()]
        seconds: dict[tuple[str, str], list[float]] = defaultdict(list)
        with bench.step(f"remote put and fetch, {1 + runs} interleaved repetitions of {len(sizes)} sizes"):
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
        bench.row(f"remote put, {size.name}", gbps("put"), "GB/s", ceiling=gbps("up"), runs=runs)
        bench.row(
            f"remote fetch, {size.name}", gbps("fetch"), "GB/s",
            ceiling=gbps("down"), target=STREAM_TARGET if size.is_large else None, runs=runs,
        )  # fmt: skip


def layouts() -> dict[str, ModelLayout]:
    """Rows of each size and no state, so that every boundary is a resume point. The second is V4-Pro's rows."""
    return {
        "64 KB": even_layout(8, 8 << 10),
        "644 KB": pro_rows(),
        "4 MB": even_layout(32, 128 << 10),
        "16 MB": even_layout(32, 512 << 10),
    }


class Size:
    """One object size: its client, and the arrays that are put again and again under new names."""

    def __init__(
        self, stack: ExitStack, daemon: Daemon, name: str, layout: ModelLayout, nbytes: int, rng: np.random.Generator
    ) -> None:
        self.name, self._object_bytes = name, layout.rows.nbytes
        self._blocks = max(1, nbytes // self._object_bytes)
        self.nbytes = self._blocks * self._object_bytes
        self._client = stack.enter_context(
            kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT, share_memory=False)
        )
        self._rows = arrays_of(layout.rows, (self._blocks,), rng)
        self.is_large = self._object_bytes >= LARGE_BYTES
        self._source, self._target = aligned_bytes(self.nbytes), aligned_bytes(self.nbytes)

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
