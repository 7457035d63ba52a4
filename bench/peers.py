"""Whole requests of 16 and 64 blocks of 1 MiB: kvstore beside Redis, Mooncake Store and LMCache, all on this host.

    python bench/peers.py [--json] [--quick] [--redis-server PROGRAM] [--mooncake-python M] [--lmcache-python L]

A whole request goes from token ids, or from keys where a store knows no tokens, to the bytes in the caller's buffers:

- kvstore: lookup with its hashing, fetch into the caller's buffers, release; by a client that did not put the blocks.
- Redis: redis-py with hiredis over a Unix socket; MGET or pipelined GET, the faster one, and the copy to the buffers.
  Once more with a GET a block: a call each, but each value's memory is used again, which is faster at this size.
- Mooncake Store over TCP: `batch_get_into` registered buffers, from memory of another process. Beside it, without a
  target, from memory of the asking process itself, which a cache that several workers share cannot promise.
- LMCache's multi-process server over shared memory: the five calls of its own bench (peer_lmcache.py). Once with the
  engine's cache as that bench has it (4 layers in pages of 16 tokens), once with whole blocks in it.

Each store has its own process pair and the same buffers: aligned pages that were touched before. A repetition puts
new blocks, asks for them three times (the median counts), compares every byte, and copies as many blocks in a memcpy
loop: the ceiling of its rows. The stores take turns within a repetition; what was stored is dropped before the next, so
that memory is used again. Puts are reported as well: until the caller goes on (kvstore: `put`), and until others find
the blocks (kvstore: `flush`; the others' puts return no sooner).

A store that is not here gets a row that says so. Nothing is installed by this bench; Debian 12, Python 3.11:

    apt install redis-server libibverbs1 librdmacm1 libnuma1 liburing2 libcurl4
    pip install redis hiredis                                   # beside kvstore
    python -m venv M && M/bin/pip install numpy mooncake-transfer-engine-non-cuda==0.3.13.post1
    python -m venv L && L/bin/pip install torch==2.13.0         # a CPU wheel will do
    L/bin/pip install --no-deps lmcache==0.5.6
    L/bin/pip install numpy safetensors msgspec pyzmq psutil prometheus_client pyyaml sortedcontainers py-cpuinfo \\
      nvtx aiofiles aiofile aiohttp requests blake3 cachetools redis httpx fastapi uvicorn httptools \\
      opentelemetry-api opentelemetry-sdk cryptography numba 'protobuf<7' grpcio
    python bench/peers.py --mooncake-python M/bin/python --lmcache-python L/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from harness import Against, Bench, main

BLOCK_BYTES = 1 << 20
SIZES = (16, 64)  # blocks of a request
WARMUPS = 2  # they touch the memory of the stores
RUNS, QUICK_RUNS = 9, 3
CLOSE_SECONDS = 20.0
LOG_BYTES = 4096  # of the end of a worker's log, for its last words
OURS = "kvstore"
PAGED = "(2,2048,16,2,128):bfloat16:4"  # as `lmcache bench server`, twice: what is put, and where requests end
WHOLE = "(2,128,256,8,128):bfloat16:1"


class WorkerStopped(Exception):
    """A store could not be started, or its worker has ended. The message says why."""


@dataclass(frozen=True, slots=True)
class Store:
    """What is compared: a worker script, the interpreter that has the store's client, and what it is told."""

    name: str
    script: str
    python: str | None
    option: str  # that names the interpreter
    settings: Mapping[str, str]
    target: float | None  # kvstore's requests over its


def stores(options: argparse.Namespace) -> list[Store]:
    mooncake, lmcache = options.mooncake_python, options.lmcache_python
    redis = {"server": shutil.which(options.redis_server) or ""}
    one_by_one = {**redis, "calls": "many"}
    return [
        Store(OURS, "peer_kvstore.py", sys.executable, "", {}, None),
        Store("Redis", "peer_redis.py", sys.executable, "", redis, 5.0),
        Store("Redis one by one", "peer_redis.py", sys.executable, "", one_by_one, 5.0),
        Store("Mooncake", "peer_mooncake.py", mooncake, "--mooncake-python", {}, 2.0),
        Store("Mooncake in-process", "peer_mooncake.py", mooncake, "--mooncake-python", {"segment": "own"}, None),
        Store("LMCache", "peer_lmcache.py", lmcache, "--lmcache-python", {"shape": PAGED}, 2.0),
        Store("LMCache whole blocks", "peer_lmcache.py", lmcache, "--lmcache-python", {"shape": WHOLE}, 2.0),
    ]


def collect(bench: Bench) -> None:
    runs = QUICK_RUNS if bench.is_quick else RUNS
    known = stores(bench.options)
    with ExitStack() as stack:
        workers: dict[str, Worker] = {}
        reasons: dict[str, str] = {}
        for store in known:
            try:
                with bench.step(f"starting {store.name}"):
                    workers[store.name] = stack.enter_context(running_worker(store))
                bench.note(f"  {workers[store.name].version}")
            except WorkerStopped as reason:
                missing(bench, store.name, reason, reasons)
        with bench.step(f"{WARMUPS} + {runs} interleaved repetitions of {len(workers)} stores"):
            seconds = interleaved(bench, workers, runs, reasons)
    for blocks in SIZES:
        report(bench, blocks, [store for store in known if store.name not in reasons], seconds, runs)
    for name, reason in reasons.items():
        bench.row(f"{name} not measured: {reason}", 0, "", runs=0)


def missing(bench: Bench, name: str, reason: WorkerStopped, reasons: dict[str, str]) -> None:
    """Go on without a peer; without kvstore there is nothing to compare."""
    bench.note(f"{name} not measured: {reason}")
    if name == OURS:
        raise SystemExit(1) from reason
    reasons[name] = f"{reason}"


Seconds = dict[tuple[str, int], dict[str, list[float]]]  # (store, blocks) -> what -> one figure a repetition


def interleaved(bench: Bench, workers: dict[str, Worker], runs: int, reasons: dict[str, str]) -> Seconds:
    seconds: Seconds = defaultdict(lambda: defaultdict(list))
    for repetition in range(WARMUPS + runs):
        for blocks in SIZES:
            for name, worker in workers.items():
                if name in reasons:
                    continue
                try:
                    took = worker.measure(blocks, repetition)
                except WorkerStopped as reason:
                    missing(bench, name, reason, reasons)
                    continue
                for what, value in took.items():
                    if repetition >= WARMUPS:
                        seconds[name, blocks][what].append(value)
    return seconds


def report(bench: Bench, blocks: int, measured: list[Store], seconds: Seconds, runs: int) -> None:
    def gbps(store: Store, kind: str) -> float:
        """Median of the fastest way of doing it."""
        ways = {what: values for what, values in seconds[store.name, blocks].items() if what.startswith(kind)}
        for what, values in ways.items():
            rates = sorted(blocks * BLOCK_BYTES / took / 1e9 for took in values)
            bench.note(f"{store.name}, {blocks} blocks, {what.strip()}: {rates[0]:.3g} to {rates[-1]:.3g} GB/s")
        return blocks * BLOCK_BYTES / min(map(statistics.median, ways.values())) / 1e9

    memcpy = {store.name: gbps(store, "memcpy") for store in measured}
    requests = {store.name: gbps(store, "request") for store in measured}

    def rows(what: str, figures: Mapping[str, float]) -> None:
        for name, value in figures.items():
            bench.row(f"{what}, {blocks} blocks: {name}", value, "GB/s", ceiling=memcpy[name], runs=runs)

    rows("whole request", requests)
    for store in measured:
        if store.name != OURS:
            bench.row(
                f"request, {blocks} blocks: {OURS} / {store.name}", requests[OURS] / requests[store.name], "x",
                target=store.target, against=Against.VALUE_AT_LEAST, runs=runs,
            )  # fmt: skip
    rows("put", {store.name: gbps(store, "put") for store in measured})
    rows("put, published", {store.name: gbps(store, "published") for store in measured if store.name == OURS})


class Worker:
    """A process of one store: `peer_*.py`, spoken to in lines of JSON."""

    def __init__(self, process: subprocess.Popen[str], log: IO[bytes]) -> None:
        self.process, self._log = process, log
        first = self._answer()
        if "unavailable" in first:
            raise WorkerStopped(str(first["unavailable"]))
        self.version = first["version"]

    def measure(self, blocks: int, repetition: int) -> dict[str, float]:
        """Seconds of one repetition, by what was done."""
        assert self.process.stdin is not None
        try:
            print(json.dumps({"blocks": blocks, "repetition": repetition}), file=self.process.stdin, flush=True)
        except BrokenPipeError:
            raise WorkerStopped(self._last_words()) from None
        return {str(what): float(took) for what, took in self._answer()["seconds"].items()}

    def _answer(self) -> dict:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise WorkerStopped(self._last_words())
        return json.loads(line)

    def _last_words(self) -> str:
        size = os.fstat(self._log.fileno()).st_size
        # pread: the worker writes at the same file position, which must not move
        text = os.pread(self._log.fileno(), LOG_BYTES, max(0, size - LOG_BYTES)).decode(errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        return "it ended: " + (lines[-1] if lines else "without a word")


@contextmanager
def running_worker(store: Store) -> Iterator[Worker]:
    """A worker in a session of its own, with its server; all of it is gone at the end."""
    if store.python is None:
        raise WorkerStopped(f"no interpreter that has it: give {store.option}")
    python = shutil.which(store.python)
    if python is None:
        raise WorkerStopped(f"{store.python} is no program")
    script = Path(__file__).resolve().with_name(store.script)
    # -E: another interpreter must not see what PYTHONPATH adds for this one
    flags = [] if python == sys.executable else ["-E"]
    with tempfile.TemporaryFile() as log:  # without a name: nothing stays, however this ends
        process = subprocess.Popen(
            [python, *flags, str(script), json.dumps(dict(store.settings))],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, start_new_session=True,
        )  # fmt: skip
        try:
            yield Worker(process, log)
        finally:
            end(process)


def end(process: subprocess.Popen[str]) -> None:
    """Ask the worker to end, which ends its server; then make all of its session end."""
    assert process.stdin is not None and process.stdout is not None
    try:
        with suppress(BrokenPipeError, subprocess.TimeoutExpired):
            process.stdin.close()
            process.wait(CLOSE_SECONDS)
    finally:
        with suppress(ProcessLookupError):  # nobody is left
            os.killpg(process.pid, signal.SIGKILL)  # the group's id is its first process', also when that has ended
        process.wait()
        process.stdout.close()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--redis-server", default="redis-server", help="program, by default the one on PATH")
    parser.add_argument("--mooncake-python", help="interpreter that has mooncake; its programs lie beside it")
    parser.add_argument("--lmcache-python", help="interpreter that has lmcache; its programs lie beside it")


if __name__ == "__main__":
    main("peers", collect, doc=__doc__, add_arguments=add_arguments)
