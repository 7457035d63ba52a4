"""Several workers at once on one daemon: shares of one prefix, four readers against one, and what attaching costs.

Rows of throughput.py. Each worker is a process of its own (`reader.py`) that copies into buffers of its own.
"""

from __future__ import annotations

import statistics
from contextlib import ExitStack

import numpy as np
from children import Child, child
from harness import Against, Bench
from processes import Daemon, running_daemon
from shapes import BLOCK_TOKENS, arrays_of, flash_rows, random_tokens

import kvstore
from kvstore.client.settings import Timeouts

BLOCKS = 142  # of 450 KB: 64 MB
RANKS = 8
WORKERS = 4
P99_OVER_P50 = 4.0
PATIENT = Timeouts(fetch_seconds=60, put_seconds=60)


def crowd(bench: Bench, daemon: Daemon) -> None:
    """Shares and rivals, on a prefix of 64 MB."""
    prefix_bytes = put_prefix(daemon, bench.seed)
    with ExitStack() as stack:
        readers = [stack.enter_context(child("reader.py", daemon.address)) for _ in range(RANKS)]
        shares(bench, readers, prefix_bytes)
        rivals(bench, readers[:WORKERS], prefix_bytes)


def put_prefix(daemon: Daemon, seed: int, blocks: int = BLOCKS) -> int:
    """Its bytes, when it is stored."""
    layout = flash_rows()
    with kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT) as client:
        rows = arrays_of(layout.rows, (blocks,), np.random.default_rng(seed))
        assert client.put(random_tokens(blocks * BLOCK_TOKENS + 1, seed), first_block=0, rows=rows)
        assert client.flush(60.0), client.counters
    return blocks * layout.rows.nbytes


def shares(bench: Bench, readers: list[Child], prefix_bytes: int) -> None:
    with bench.step(f"{RANKS} processes fetch their shares of one prefix"):
        for rank, reader in enumerate(readers):
            reader.tell({"blocks": BLOCKS, "seed": bench.seed, "share": [rank, RANKS], "seconds": 0})
        answers = [reader.hear() for reader in readers]
    copied = sum(answer["bytes"] + answer["streamed"] for answer in answers)
    bench.row(
        f"{RANKS} processes reading shares: bytes copied in all / prefix", copied / prefix_bytes, "x",
        target=1.0, against=Against.VALUE_EQUALS, runs=RANKS,
    )  # fmt: skip


def rivals(bench: Bench, readers: list[Child], prefix_bytes: int) -> None:
    """Total bandwidth and fairness of four readers, against one alone; turn and turn about."""
    seconds, rounds = (1.0, 3) if bench.is_quick else (3.0, 5)
    asked = {"blocks": BLOCKS, "seed": bench.seed, "share": [0, 1], "seconds": seconds}
    alone: list[float] = []
    together: list[float] = []
    spread: list[float] = []
    least: list[float] = []
    with bench.step(f"one reader and {len(readers)} readers, {rounds} times each"):
        for _ in range(rounds):
            one = readers[0].ask(asked)["seconds"]
            alone.append(prefix_bytes * len(one) / sum(one) / 1e9)
            for reader in readers:
                reader.tell(asked)
            times = [reader.hear()["seconds"] for reader in readers]
            together.append(sum(prefix_bytes * len(each) / sum(each) for each in times) / 1e9)
            every = sorted(value for each in times for value in each)
            spread.append(every[len(every) * 99 // 100] / every[len(every) // 2])
            counts = [len(each) for each in times]
            least.append(min(counts) / statistics.mean(counts))
    name = f"{len(readers)} workers at once"
    bench.row(
        f"{name}: total bandwidth", statistics.median(together), "GB/s",
        ceiling=statistics.median(alone), target=1.0, runs=rounds,
    )  # fmt: skip
    bench.row(
        f"{name}: p99 / p50 of a fetch", statistics.median(spread), "x",
        target=P99_OVER_P50, against=Against.VALUE_AT_MOST, runs=rounds,
    )  # fmt: skip
    bench.row(
        f"{name}: fetches of the slowest / mean", statistics.median(least), "x",
        target=0.5, against=Against.VALUE_AT_LEAST, runs=rounds,
    )  # fmt: skip


def attaching(bench: Bench) -> None:
    """Time of connecting, and page tables of a worker that has read from all of an arena, for arenas of two sizes."""
    for size, blocks in (("1GiB", 2000), ("2GiB", 4000)) if not bench.is_quick else (("1GiB", 1000),):
        with running_daemon(size) as daemon, child("reader.py", daemon.address) as reader:
            step = 100
            prefix_bytes = put_long(daemon, bench.seed, blocks, step)
            asked: dict[str, object] = {
                "blocks": blocks, "seed": bench.seed, "share": [0, 200], "seconds": 0,
            }  # fmt: skip
            runs = [reader.ask(asked) for _ in range(5)]
            whole = reader.ask({**asked, "share": [0, 1]})
        attach = statistics.median(run["attach_seconds"] for run in runs)
        bench.row(f"attach to an arena of {size}: connect", 1e3 * attach, "ms", runs=len(runs))
        tables = whole["page_table_bytes"]
        mapped = prefix_bytes
        bench.row(f"arena of {size}: page tables of a worker that read {mapped >> 20} MiB", tables, "bytes", runs=1)
        bench.note(f"page tables / bytes read: {tables / mapped:.5f} (the copy's destination included)")


def put_long(daemon: Daemon, seed: int, blocks: int, step: int, durable: bool = False) -> int:
    """A prefix larger than one put may be; its bytes."""
    layout = flash_rows()
    tokens = random_tokens(blocks * BLOCK_TOKENS + 1, seed)
    rows = arrays_of(layout.rows, (step,), np.random.default_rng(seed))
    with kvstore.connect(daemon.address, layout=layout, timeouts=PATIENT) as client:
        for first in range(0, blocks, step):
            assert client.put(tokens[: (first + step) * BLOCK_TOKENS], first_block=first, rows=rows)
            assert client.flush(60.0, durable=durable), client.counters
    return blocks * layout.rows.nbytes
