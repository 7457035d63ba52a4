"""From call to first token with a shared prefix in the store, against the cold run of the same worker process.

    python bench/ttft.py [--json] [--quick]

Two workers, each its own process, warm, one torch thread, with the demo's model (configuration D); a daemon with a
host tier. The first worker puts a prefix; the second one answers prompts of that prefix and a new suffix, cold and
with the store in turn. Quick: the prefix of 2,048 only.

    TTFT row      value: with the store; ceiling: the suffix computed on a cache that is already there, in chunks of
                  128: the floor of any store
    speed-up row  value: cold / with the store, medians
    share row     value: lookup and fetch; ceiling: as many bytes at the speed of a copy within memory, in this run
"""

from __future__ import annotations

import contextlib
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch
from harness import Against, Bench, main
from numpy.typing import NDArray
from processes import running_daemon
from transformers import DeepseekV4ForCausalLM

import kvstore
from kvstore.client.client import Client
from kvstore.client.match import Blocks, ClientMatch
from kvstore.core.match import Hints
from kvstore.engines.transformers import CacheForm, Snapshot, Worker, build_demo_model, demo_layout

BLOCK_TOKENS = 128
FLUSH_SECONDS = 30.0
COPY_BYTES = 64 << 20  # what the speed of memory is measured on
FIRST_TOKEN = 2  # 0 and 1 begin and end a sequence
VOCAB = 2048


@dataclass(frozen=True, slots=True)
class Case:
    shared_tokens: int
    suffix_tokens: int
    speed_up: float | None  # the target
    runs: int

    @property
    def name(self) -> str:
        return f"{self.shared_tokens:,} + {self.suffix_tokens}"


CASES = (
    Case(2048, 64, 10.0, 9),
    Case(2048, 200, None, 5),
    Case(2300, 64, None, 5),  # unaligned: 124 of the shared tokens are computed with the suffix
    Case(8192, 64, 20.0, 5),
    Case(8192, 200, None, 5),
)
QUICK_CASES = (Case(2048, 64, 10.0, 5), Case(2300, 64, None, 3))

Tokens = NDArray[np.int32]
Answer = dict[str, float]


def collect(bench: Bench) -> None:
    cases = QUICK_CASES if bench.is_quick else CASES
    rng = np.random.default_rng(bench.seed)
    shared = {size: random_tokens(rng, size) for size in sorted({case.shared_tokens for case in cases})}
    with running_daemon("128MiB") as daemon, worker(daemon.address) as first, worker(daemon.address) as second:
        copy_gbps = memory_gbps()
        for tokens in shared.values():
            with bench.step(f"the first worker puts a prefix of {len(tokens)} tokens"):
                prompt = np.append(tokens, random_tokens(rng, BLOCK_TOKENS // 2))
                answer(first, "store", prompt, len(tokens))
        for case in cases:
            with bench.step(f"{case.runs} answers to {case.name} tokens, cold and with the store"):
                samples = measure(second, case, shared[case.shared_tokens], rng)
            report(bench, case, samples, copy_gbps)


def measure(second: Connection, case: Case, shared: Tokens, rng: np.random.Generator) -> dict[str, list[float]]:
    """Samples by name, cold and with the store in turn. Each prompt has a new suffix, or it would be a hit itself."""
    samples: dict[str, list[float]] = defaultdict(list)
    for run in range(1 + case.runs):
        prompt = np.append(shared, random_tokens(rng, case.suffix_tokens))
        for way in ("store", "floor", "cold"):
            if way == "cold" and not run:
                continue  # the first round warms the ways up that the worker has not gone yet
            told = answer(second, way, prompt, len(shared))
            if way == "store":
                assert told["resumed"] == len(shared) // BLOCK_TOKENS * BLOCK_TOKENS, f"resumed at {told['resumed']}"
            for name, value in told.items():
                if run:
                    samples[f"{way}.{name}"].append(value)
    return samples


def report(bench: Bench, case: Case, samples: dict[str, list[float]], copy_gbps: float) -> None:
    def median(name: str) -> float:
        bench.note(f"{case.name}: {name} {min(samples[name]):.4g} to {max(samples[name]):.4g}")
        return statistics.median(samples[name])

    cold, hit, floor = median("cold.ttft_ms"), median("store.ttft_ms"), median("floor.ttft_ms")
    bench.row(f"TTFT {case.name}, store", hit, "ms", ceiling=floor, runs=case.runs)
    bench.row(f"TTFT {case.name}, cold", cold, "ms", runs=case.runs)
    bench.row(
        f"speed-up {case.name}", cold / hit, "x", target=case.speed_up, against=Against.VALUE_AT_LEAST, runs=case.runs
    )
    bench.row(f"speed-up {case.name}, of the floor", cold / floor, "x", runs=case.runs)
    share, nbytes = median("store.lookup_ms") + median("store.fetch_ms"), samples["store.nbytes"][0]
    bench.row(
        f"store's share {case.name}, {nbytes / 1e6:.2f} MB", share, "ms",
        ceiling=nbytes / copy_gbps / 1e6, runs=case.runs,
    )  # fmt: skip


# -- a worker process ----------------------------------------------------------------------------
@contextlib.contextmanager
def worker(address: str) -> Iterator[Connection]:
    """A warm worker; ends with the block."""
    context = get_context("spawn")  # a fork would take torch's and grpc's threads along, broken
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, address), daemon=True)
    process.start()
    theirs.close()
    try:
        assert ours.recv() == "ready"
        yield ours
    finally:
        ours.close()
        process.join(10)
        process.kill()


def answer(to: Connection, way: str, prompt: Tokens, breakpoint_tokens: int) -> Answer:
    to.send((way, prompt, breakpoint_tokens))
    told: Answer = to.recv()
    return told


def serve(asked: Connection, address: str) -> None:
    """Answer one token to each prompt, in the way asked for: `store`, `floor` or `cold`."""
    torch.set_num_threads(1)  # two workers and a daemon share the machine
    layout, model = demo_layout(), build_demo_model()
    runs, floor = Worker(model, layout), Floor(model)
    runs.run([FIRST_TOKEN] * (2 * BLOCK_TOKENS + 1), 2)
    with kvstore.connect(address, layout=layout) as client:
        asked.send("ready")
        while True:
            try:
                way, prompt, point = asked.recv()
            except EOFError:
                return
            if way == "cold":
                asked.send({"ttft_ms": 1e3 * runs.run(prompt, 1).ttft_s})
            elif way == "floor":
                asked.send({"ttft_ms": 1e3 * floor.seconds(prompt)})
            else:
                timed = Timed(client)
                run = runs.run(prompt, 1, timed, Hints(breakpoints=(point,)))
                assert client.flush(FLUSH_SECONDS)
                if timed.blocks is not None:
                    floor.keep(timed.blocks)
                asked.send({"ttft_ms": 1e3 * run.ttft_s, "resumed": run.resumed_tokens, **timed.figures})


class Floor:
    """The part of an answer that no store can take over: computing the suffix on a cache that is there."""

    def __init__(self, model: DeepseekV4ForCausalLM) -> None:
        self._model = model
        self._form = CacheForm(model.config, demo_layout(), model.dtype)
        self._kept: Snapshot | None = None

    def keep(self, blocks: Blocks) -> None:
        """Remember what was fetched for the last prompt."""
        self._kept = None if blocks.state is None else self._form.load(blocks.plan.tokens, blocks.rows, blocks.state)

    @torch.inference_mode()
    def seconds(self, prompt: Tokens) -> float:
        assert self._kept is not None
        cache, start = self._form.resume(self._kept), time.perf_counter()
        for first in range(self._kept.tokens, len(prompt), BLOCK_TOKENS):
            ids = torch.from_numpy(prompt[first : first + BLOCK_TOKENS].astype(np.int64))[None]
            hidden = self._model.model(ids, past_key_values=cache, use_cache=True).last_hidden_state
        self._model.lm_head(hidden[:, -1])
        return time.perf_counter() - start


class Timed:
    """The client, with a clock."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.figures: Answer = {}
        self.blocks: Blocks | None = None  # what was fetched

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    def lookup(self, tokens: Tokens, *, hints: Hints) -> ClientMatch:
        start = time.perf_counter()
        match = self._client.lookup(tokens, hints=hints)
        self.figures["lookup_ms"] = 1e3 * (time.perf_counter() - start)
        return match

    @contextlib.contextmanager
    def fetch(self, match: ClientMatch) -> Iterator[Blocks]:
        before = self._client.counters.get("fetched_bytes", 0)
        start = time.perf_counter()
        with self._client.fetch(match) as blocks:
            self.figures["fetch_ms"] = 1e3 * (time.perf_counter() - start)
            self.figures["nbytes"] = self._client.counters.get("fetched_bytes", 0) - before
            self.blocks = Blocks(blocks.plan, blocks.rows, blocks.state, {}, blocks.tier, blocks.lineage)
            yield blocks

    def put(self, tokens: Tokens, **arrays: Any) -> bool:
        return self._client.put(tokens, **arrays)


def random_tokens(rng: np.random.Generator, count: int) -> Tokens:
    return rng.integers(FIRST_TOKEN, VOCAB, count, dtype=np.int32)


def memory_gbps() -> float:
    """A copy within memory, too large for the caches: what the host tier's bytes could be read at."""
    source, target = np.ones(COPY_BYTES, np.uint8), np.zeros(COPY_BYTES, np.uint8)
    seconds = []
    for _ in range(7):
        start = time.perf_counter()
        target[:] = source
        seconds.append(time.perf_counter() - start)
    return COPY_BYTES / statistics.median(seconds) / 1e9


if __name__ == "__main__":
    main("ttft", collect, doc=__doc__)
