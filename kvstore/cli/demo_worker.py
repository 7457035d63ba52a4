"""One worker process of `kvstore demo`: a model, a client, and requests as JSON lines on standard input.

    asked   {"prompt": [...], "max_new_tokens": n, "session": "...", "pause": bool}
    told    {"event": "ready"} once the model is warm; {"event": "looked up"} when told to pause between lookup and
            fetch, until any line arrives; {"event": "done", ...} at a request's end

Each request is answered twice in this process, with the store and cold, and compared bit for bit. Standard error
is the log. Ends with its standard input.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TextIO

import torch

from kvstore.cli.demo_text import AGENT_PROMPT_TOKENS
from kvstore.client.client import Client
from kvstore.client.connect import connect
from kvstore.client.match import Blocks, ClientMatch
from kvstore.core.match import Hints
from kvstore.engines.transformers import Worker, build_demo_model, demo_layout
from kvstore.engines.transformers.cache import Bytes
from kvstore.engines.transformers.stores import Tokens

CONNECT_SECONDS = 10.0
FLUSH_SECONDS = 30.0
WARM_UP_TOKENS = 2432  # as long as the prompts: first calls of every shape allocate, which no TTFT should show


class _Pausing:
    """The client, with a stop between lookup and fetch: where the demo kills the daemon."""

    def __init__(self, client: Client, told: TextIO) -> None:
        self._client, self._told = client, told
        self.worker_flops: float | None = None
        self.paused_seconds = 0.0

    @property
    def is_connected(self) -> bool:
        return self._client.is_connected

    @contextmanager
    def lookup(self, tokens: Tokens, *, hints: Hints) -> Iterator[ClientMatch]:
        with self._client.lookup(tokens, hints=hints) as match:
            began = time.perf_counter()
            _tell(self._told, {"event": "looked up", "planned_tokens": match.plan.tokens})
            sys.stdin.readline()
            self.paused_seconds += time.perf_counter() - began
            yield match

    def fetch(self, match: ClientMatch) -> Blocks:
        return self._client.fetch(match)

    def catch_up(self, match: ClientMatch, computed_tokens: int) -> Blocks | None:
        return self._client.catch_up(match, computed_tokens)

    def put(
        self,
        tokens: Tokens,
        *,
        first_block: int,
        rows: Mapping[str, Bytes],
        states: Mapping[int, Mapping[str, Bytes]],
        hints: Hints,
    ) -> bool:
        return self._client.put(tokens, first_block=first_block, rows=rows, states=states, hints=hints)


def main(address: str) -> None:
    """Serve requests until standard input ends."""
    told = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints is log
    torch.set_num_threads(1)  # two workers and a daemon share the machine
    worker = Worker(build_demo_model(), demo_layout())
    worker.run([2] * WARM_UP_TOKENS, 4)
    client: Client | None = None
    _tell(told, {"event": "ready"})
    for line in iter(sys.stdin.readline, ""):
        client = client or _connected(address)
        _tell(told, _answer(worker, client, json.loads(line), told))
    if client is not None:
        client.close()


def _answer(worker: Worker, client: Client, asked: dict[str, object], told: TextIO) -> dict[str, object]:
    prompt, count = asked["prompt"], asked["max_new_tokens"]
    assert isinstance(prompt, list) and isinstance(count, int)
    hints = Hints(session=str(asked["session"]), kind="code agent", has_tools=True, breakpoints=(AGENT_PROMPT_TOKENS,))
    pausing = _Pausing(client, told) if asked["pause"] else None
    before = client.counters
    run = worker.run(prompt, count, client if pausing is None else pausing, hints)
    after = client.counters
    flushed = client.flush(FLUSH_SECONDS, durable=True) if pausing is None else False
    cold = worker.run(prompt, count)
    return {
        "event": "done",
        "output": run.output,
        "prompt_tokens": run.prompt_tokens,
        "resumed_tokens": run.resumed_tokens,
        "recomputed_tokens": run.recomputed_tokens,
        "tier": None if run.tier is None else run.tier.value,
        "ttft_s": run.ttft_s - (0.0 if pausing is None else pausing.paused_seconds),
        "cold_ttft_s": cold.ttft_s,
        "publish_s": run.publish_s,
        "durable": flushed,
        "identical": run.is_same_as(cold),
        "shared_bytes": after.get("fetched_shared_bytes", 0) - before.get("fetched_shared_bytes", 0),
        "streamed_bytes": after.get("fetched_bytes", 0) - before.get("fetched_bytes", 0),
        "counters": client.counters,
    }


def _connected(address: str) -> Client:
    """A client that has reached the daemon, or has waited long enough: the worker goes on without it."""
    client = connect(address, layout=demo_layout())
    deadline = time.monotonic() + CONNECT_SECONDS
    while not client.is_connected and time.monotonic() < deadline:
        time.sleep(0.02)
    return client


def _tell(told: TextIO, message: dict[str, object]) -> None:
    told.write(json.dumps(message) + "\n")
    told.flush()


if __name__ == "__main__":
    main(sys.argv[1])
