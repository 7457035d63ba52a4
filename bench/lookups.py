"""How fast the 8,192 blocks of a million tokens are found, over gRPC and on one host, and how long the lock is held.

Rows of throughput.py. A lookup's time is that of the whole call less what the client counted as hashing, which has a
row of its own. The memo is off, so that each call hashes and sends the whole chain.
"""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any

import numpy as np
from harness import Against, Bench
from processes import Daemon
from shapes import BLOCK_TOKENS, Tokens, arrays_of, even_layout, random_tokens
from shared import PATIENT, WAIT_SECONDS

import kvstore
from kvstore.client.client import Client
from kvstore.client.located import located
from kvstore.client.settings import Bounds
from kvstore.rpc.generated import kvstore_pb2 as pb

MILLION_BLOCKS = 8192  # 2^20 tokens
LOOKUP_TARGET_MS = 5.0
LOCK_TARGET_MS = 2.0
DESCRIPTORS_BYTES, DESCRIPTORS_MS = 512 << 10, 5.0


def lookups(bench: Bench, daemon: Daemon) -> None:
    layout = even_layout(1, 64)
    tokens = random_tokens(MILLION_BLOCKS * BLOCK_TOKENS + 1, bench.seed)
    calls = 30 if bench.is_quick else 100
    no_memo = Bounds(memo_bytes=1)
    at_most = Against.VALUE_AT_MOST
    with ExitStack() as stack:

        def client(bounds: Bounds, share_memory: bool) -> Client:
            return stack.enter_context(
                kvstore.connect(
                    daemon.address, layout=layout, timeouts=PATIENT, bounds=bounds, share_memory=share_memory
                )
            )

        remote, near, again = client(no_memo, False), client(no_memo, True), client(Bounds(), True)
        rows = arrays_of(layout.rows, (MILLION_BLOCKS,), np.random.default_rng(bench.seed))
        assert remote.put(tokens, first_block=0, rows=rows) and remote.flush(WAIT_SECONDS)
        with bench.step(f"{calls} lookups of {MILLION_BLOCKS} hashes, each way"):
            lookup(near, tokens)
            held = daemon.status().lock_held_seconds
            measured = [lookup(remote, tokens) for _ in range(calls)]
            held = (daemon.status().lock_held_seconds - held) / calls
            beside = [lookup(near, tokens) for _ in range(calls)]
            repeated = [lookup(again, tokens)[0] for _ in range(calls)]
            sizes, decoding = decode(near, tokens, calls)
    hashing = [sample[1] for sample in measured]
    for name, samples in (("over gRPC", measured), ("on one host, descriptors included", beside)):
        asking = sorted(whole - hashed for whole, hashed in samples)
        bench.note(f"lookup {name}: p10 {asking[calls // 10]:.3g} ms, p90 {asking[9 * calls // 10]:.3g} ms")
        bench.row(
            f"lookup of 8,192 hashes {name}, p50", statistics.median(asking), "ms",
            target=LOOKUP_TARGET_MS, against=at_most, runs=calls,
        )  # fmt: skip
    bench.row("hashing 2^20 tokens beside it", statistics.median(hashing), "ms", runs=calls)
    bench.row("the same prompt again (memo, short tail)", statistics.median(repeated), "ms", runs=calls)
    bench.row(
        "lock held for lookup, lease and release", 1e3 * held, "ms", target=LOCK_TARGET_MS, against=at_most, runs=calls
    )
    bench.row("descriptors of 8,192 blocks", sizes, "bytes", target=DESCRIPTORS_BYTES, against=at_most, runs=1)
    bench.row("decoding them", decoding, "ms", target=DESCRIPTORS_MS, against=at_most, runs=calls)


def lookup(client: Client, tokens: Tokens) -> tuple[float, float]:
    """Milliseconds of the whole call, and of hashing in it."""
    before = client.counters.get("hashing_microseconds", 0)
    start = time.perf_counter()
    with client.lookup(tokens) as match:
        took = time.perf_counter() - start
    assert match.plan.tokens == MILLION_BLOCKS * BLOCK_TOKENS
    return 1e3 * took, (client.counters["hashing_microseconds"] - before) / 1e3


def decode(client: Client, tokens: Tokens, runs: int) -> tuple[int, float]:
    """Bytes of the descriptors that a lookup on one host is answered with, and milliseconds to make use of them."""
    answers: list[bytes] = []
    call = client._link.lane_call

    def heard(*arguments: Any) -> Any:
        answer = call(*arguments)
        answers.append(answer.SerializeToString())
        return answer

    client._link.lane_call = heard  # type: ignore[method-assign]
    try:
        with client.lookup(tokens) as match:
            assert match.located is not None
            arena = match.located.arena
    finally:
        client._link.lane_call = call  # type: ignore[method-assign]
    taken = []
    for _ in range(runs):
        start = time.perf_counter()
        answer = pb.LookupResponse.FromString(answers[0])
        found = located(arena, answer, 0, 0.0, 0.0)
        taken.append(1e3 * (time.perf_counter() - start))
        assert found.rows is not None and len(found.rows) == MILLION_BLOCKS
    return len(answer.rows.records), statistics.median(taken)
