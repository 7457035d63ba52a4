"""A prefix of 512 MB that only the disk has: fetched whole beside four-thread preadv, and layer by layer.

Rows of throughput.py. For each repetition the daemon is started anew and the kernel's page cache of the segments is
dropped (posix_fadvise), for the store and for its ceiling alike. The ceiling reads as many bytes in pieces of a slot
from the same segment files, with four threads, straight from the device and through the page cache; the quicker way
counts.
"""

from __future__ import annotations

import mmap
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from crowd import put_long
from harness import Against, Bench
from processes import Daemon, running_daemon
from shapes import BLOCK_TOKENS, aligned_bytes, flash_rows, random_tokens
from shared import PATIENT

import kvstore

MIB = 1 << 20
BLOCKS = 1200  # of 450 KB: 540 MB
STEP = 100
THREADS = 4
TARGET = 0.8  # of four-thread preadv
HEADER_BYTES = 4096  # of a segment; then slots


def cold(bench: Bench) -> None:
    blocks, runs = (300, 3) if bench.is_quick else (BLOCKS, 5)
    folder = Path(tempfile.mkdtemp(prefix="kvstore-bench-"))
    try:
        with bench.step(f"putting {blocks} blocks on disk"), running_daemon("1GiB", "3GiB", folder) as daemon:
            nbytes = put_long(daemon, bench.seed, blocks, STEP, durable=True)
        into = aligned_bytes(nbytes)
        seconds: dict[str, list[float]] = {"fetch": [], "direct": [], "buffered": [], "first layer": [], "layers": []}
        with bench.step(f"{runs} interleaved repetitions of cold fetches"):
            for _ in range(runs):
                for what, flags in (("direct", os.O_DIRECT), ("buffered", 0)):
                    drop_caches(folder)
                    seconds[what].append(read_all(folder, nbytes, into, flags))
                with running_daemon("1GiB", "3GiB", folder) as daemon:
                    drop_caches(folder)
                    seconds["fetch"].append(fetch(daemon, bench.seed, blocks, into))
                with running_daemon("1GiB", "3GiB", folder) as daemon:
                    drop_caches(folder)
                    first, whole = fetch_layers(daemon, bench.seed, blocks)
                    seconds["first layer"].append(first)
                    seconds["layers"].append(whole)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    medians = {what: statistics.median(values) for what, values in seconds.items() if values}
    ceiling = nbytes / min(medians["direct"], medians["buffered"]) / 1e9
    for what in ("direct", "buffered"):
        bench.note(f"four-thread preadv, {what}: {nbytes / medians[what] / 1e9:.3g} GB/s")
    bench.row(
        f"cold fetch of {nbytes // MIB} MiB from disk, raw", nbytes / medians["fetch"] / 1e9, "GB/s",
        ceiling=ceiling, target=TARGET, runs=runs,
    )  # fmt: skip
    bench.row("cold, by layers: all of them", nbytes / medians["layers"] / 1e9, "GB/s", ceiling=ceiling, runs=runs)
    bench.row(
        "cold, by layers: first layer there after, of the whole load", medians["first layer"] / medians["layers"], "x",
        target=0.5, against=Against.VALUE_AT_MOST, runs=runs,
    )  # fmt: skip


def fetch(daemon: Daemon, seed: int, blocks: int, into: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> float:
    layout = flash_rows()
    tokens = random_tokens(blocks * BLOCK_TOKENS + 1, seed)
    with kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT) as client:
        start = time.perf_counter()
        with client.lookup(tokens) as match, client.fetch(match, into=into.reshape(blocks, -1)) as fetched:
            assert fetched.plan.tokens == blocks * BLOCK_TOKENS
            return time.perf_counter() - start


def fetch_layers(daemon: Daemon, seed: int, blocks: int) -> tuple[float, float]:
    """Seconds until the first layer of all blocks was there, and until all were."""
    layout = flash_rows()
    tokens = random_tokens(blocks * BLOCK_TOKENS + 1, seed)
    with kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT) as client:
        start = time.perf_counter()
        with (
            client.lookup(tokens, order="layers") as match,
            client.fetch(match, order="layers", can_abandon=True) as fetched,
        ):
            first = None
            for layer in sorted({section.layer for section in layout.rows.sections}):
                fetched.layer(layer, 60.0)
                first = first or time.perf_counter() - start
            assert fetched.finish(60.0)
            assert first is not None
            return first, time.perf_counter() - start


def segments(folder: Path) -> list[Path]:
    return sorted((folder / "disk").glob("segment-*"))


def drop_caches(folder: Path) -> None:
    for path in segments(folder):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)


def read_all(folder: Path, nbytes: int, into: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], flags: int) -> float:
    """Seconds to read so many bytes out of the segments, a slot at a time."""
    slot = -(-flash_rows().rows.nbytes // mmap.PAGESIZE + 1) * mmap.PAGESIZE  # the frame's header, then the rows
    pieces: list[tuple[int, int]] = []
    fds = [os.open(path, os.O_RDONLY | flags) for path in segments(folder)]
    try:
        for fd in fds:
            size = os.fstat(fd).st_size
            pieces += [(fd, start) for start in range(HEADER_BYTES, size - slot, slot)]
        pieces = pieces[: nbytes // slot]
        view = memoryview(into)
        start = time.perf_counter()
        with ThreadPoolExecutor(THREADS) as threads:
            parts = [threads.submit(read_some, pieces[part::THREADS], view, slot, part) for part in range(THREADS)]
            done = sum(part.result() for part in parts)
        return (time.perf_counter() - start) * nbytes / done
    finally:
        for fd in fds:
            os.close(fd)


def read_some(pieces: Sequence[tuple[int, int]], into: memoryview, slot: int, part: int) -> int:
    done = 0
    for index, (fd, offset) in enumerate(pieces):
        target = (index * THREADS + part) * slot
        done += os.preadv(fd, [into[target : target + slot]], offset)
    return done
