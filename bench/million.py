"""A million tokens of V4-Flash (8,192 blocks, 3.7 GB) put, found, fetched whole and compared.

Rows of throughput.py; with 1 GiB of host memory and 6 GiB of disk. Needs 7 GiB of memory, because a fetch takes one
buffer for all its rows.
"""

from __future__ import annotations

import time

import numpy as np
from harness import Against, Bench
from processes import Daemon
from shapes import BLOCK_TOKENS, Rows, arrays_of, random_tokens
from shared import PATIENT, WAIT_SECONDS

import kvstore
from kvstore.core.match import PlanKind
from kvstore.core.presets import v4_flash

MILLION_BLOCKS = 8192  # 2^20 tokens
PUT_BLOCKS = 64  # 29 MB in one put


def million(bench: Bench, daemon: Daemon) -> None:
    layout = v4_flash("bench")
    tokens = random_tokens(MILLION_BLOCKS * BLOCK_TOKENS + 1, bench.seed)
    rng = np.random.default_rng(bench.seed)
    base = arrays_of(layout.rows, (PUT_BLOCKS,), rng)
    assert layout.state is not None
    state = arrays_of(layout.state, (), rng)
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
