"""Live miss-ratio curves against the truth: how far off, in how much memory, at what time a reference.

The truth is an exact stack distance of every block reference (this file, one Fenwick tree over all blocks) and, in the
full form, the planner itself with LRU and room without slots, simulated at each of the eight sizes. Traces are those
of ../shared/traces, or of --traces FOLDER; a prompt's last, partial block counts as one, as the traces' authors count.
"""

from __future__ import annotations

import argparse
import random
import time
import tracemalloc
from collections import Counter
from hashlib import sha256
from pathlib import Path

from harness import Against, Bench, main

from kvstore.core.curve import Curve
from kvstore.core.curves import Curves
from kvstore.core.keys import HASH_BYTES
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.simulator import SimSettings, simulate
from kvstore.sim.trace import Trace

FOLDER = Path(__file__).resolve().parents[2] / "shared" / "traces"
TRACES = {
    "conversation": ("mooncake_conversation.jsonl.zst", 512),
    "synthetic": ("mooncake_synthetic.jsonl.zst", 512),
    "miniswe": ("lmcache_miniswe_hashed_256B.jsonl.zst", 64),
}
SHARES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8)  # of the trace's unique blocks: the eight sizes
BYTES_PER_TOKEN = 1024
TARGET = 0.01
MILLION_BLOCKS = 8192  # 2^20 tokens of 128 a block
LONG_LOOKUPS = 400


def collect(bench: Bench) -> None:
    for name, (file, block_tokens) in TRACES.items():
        measure(bench, name, load_trace(bench.options.traces / file, block_tokens))
    long_lookups(bench)


def measure(bench: Bench, name: str, trace: Trace) -> None:
    block_bytes = float(BYTES_PER_TOKEN * trace.block_tokens)
    asked = [b"".join(map(hashed, request.ids)) for request in trace.requests]
    references = sum(len(request.ids) for request in trace.requests)
    with bench.step(f"{name}: exact distances of {references:,} references"):
        distances, unique = exact(trace)
    blocks = [max(1, int(unique * share)) for share in SHARES]
    truth = [
        1 - sum(count for distance, count in distances.items() if distance <= size) / references for size in blocks
    ]
    tracemalloc.start()
    curves, curve = filled(asked, trace.block_tokens, block_bytes)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    guess = [curve.miss_ratio(size * block_bytes) for size in blocks]
    seconds = bench.seconds(lambda: filled(asked, trace.block_tokens, block_bytes), runs=3, warmups=0)
    compare(bench, f"{name}: mean error at 8 sizes", truth, guess)
    bench.row(f"{name}: largest error", max(abs(a - b) for a, b in zip(truth, guess, strict=True)), "", runs=1)
    bench.row(f"{name}: blocks tracked", curves.tracked_blocks, "blocks", ceiling=unique, runs=1)
    bench.row(f"{name}: memory at most", memory / 1024, "KiB", runs=1)
    bench.row(f"{name}: time a reference", 1e9 * seconds / references, "ns")
    bench.row(f"{name}: time a lookup", 1e6 * seconds / len(asked), "us")
    if bench.is_quick and name != "miniswe":
        return
    layout = sim_layout(f"plain:{BYTES_PER_TOKEN}", trace.block_tokens)
    with bench.step(f"{name}: the planner at 8 sizes"):
        simulated = []
        for size in blocks:
            store = SimSettings(layout, size * int(block_bytes), is_ideal_space=True, count_partial=True)
            result = simulate(trace, store)
            simulated.append(1 - result.hit_blocks / result.blocks)
    compare(bench, f"{name}: mean error against the simulated planner", simulated, guess)


def compare(bench: Bench, name: str, truth: list[float], guess: list[float]) -> None:
    error = sum(abs(a - b) for a, b in zip(truth, guess, strict=True)) / len(truth)
    bench.note(f"{name}: {error:.4f}; " + " ".join(f"{a:.3f}/{b:.3f}" for a, b in zip(truth, guess, strict=True)))
    bench.row(name, error, "", target=TARGET, against=Against.VALUE_AT_MOST, runs=1)


def filled(asked: list[bytes], block_tokens: int, block_bytes: float) -> tuple[Curves, Curve]:
    curves = Curves()
    curve = curves.open(b"", block_tokens)
    for hashes in asked:
        curves.record(curve, hashes, block_bytes, len(hashes) // HASH_BYTES * block_tokens)
    return curves, curve


def hashed(block: int) -> bytes:
    return sha256(block.to_bytes(8, "little")).digest()


def exact(trace: Trace) -> tuple[Counter[int], int]:
    """References by distance in blocks, its own included, as they are when a request begins; and unique blocks."""
    slots = sum(len(request.ids) for request in trace.requests)
    tree = [0] * (slots + 1)
    places: dict[int, int] = {}
    distances: Counter[int] = Counter()
    clock = 0
    for request in trace.requests:
        for block in request.ids:
            if block in places:
                index, upto = places[block] + 1, 0
                while index:
                    upto += tree[index]
                    index &= index - 1
                distances[len(places) - upto + 1] += 1
        for block in reversed(request.ids):  # leaf first: the root is the last to be used
            if block in places:
                _add(tree, places[block], -1)
            _add(tree, clock, 1)
            places[block] = clock
            clock += 1
    return distances, len(places)


def _add(tree: list[int], place: int, change: int) -> None:
    index = place + 1
    while index < len(tree):
        tree[index] += change
        index += index & -index


def long_lookups(bench: Bench) -> None:
    """A million tokens a lookup, in a daemon whose reach lets it track one block in 128 or so."""
    random_ = random.Random(bench.seed)
    chains = [random_.randbytes(MILLION_BLOCKS * HASH_BYTES) for _ in range(20)]
    block_bytes = 128.0 * BYTES_PER_TOKEN
    curves = Curves(reach_bytes=128 * 8192 * block_bytes)
    curve = curves.open(b"", 128)
    for hashes in chains:
        curves.record(curve, hashes, block_bytes, MILLION_BLOCKS * 128)
    order = [random_.choice(chains) for _ in range(LONG_LOOKUPS)]
    start = time.perf_counter()
    for hashes in order:
        curves.record(curve, hashes, block_bytes, MILLION_BLOCKS * 128)
    seconds = time.perf_counter() - start
    bench.row("a lookup of 8,192 blocks", 1e6 * seconds / LONG_LOOKUPS, "us", runs=LONG_LOOKUPS)
    bench.row("of it, a reference", 1e9 * seconds / LONG_LOOKUPS / MILLION_BLOCKS, "ns", runs=LONG_LOOKUPS)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traces", type=Path, default=FOLDER, help="folder of the traces")


if __name__ == "__main__":
    main("curves", collect, doc=__doc__, add_arguments=add_arguments)
