"""One engine of production.py: a process that looks up, fetches and puts on an open loop. Driven over pipes.

    python bench/engine.py ADDRESS        commands and answers are one JSON object a line

Turns start at times that were drawn beforehand (Poisson); one that is late starts late and its lateness counts, as a
user would count it. Computing is left out: what remains is the store's.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from threading import current_thread, main_thread
from typing import Any

import numpy as np
from shapes import Rows, Tokens, arrays_of, scaled_flash

import kvstore
from kvstore.client.client import Client
from kvstore.client.settings import Bounds
from kvstore.core.match import PlanKind

BLOCK_TOKENS = 128


@dataclass
class Session:
    tokens: Tokens
    turns: int = 0


@dataclass(frozen=True)
class Plan:
    """What one engine does. Tokens, turns a second, seconds."""

    seed: int
    base_tokens: int  # shared by all sessions of all engines
    turn_tokens: int
    turns_a_session: int
    sessions: int
    rate: float
    seconds: float


class Engine:
    def __init__(self, address: str) -> None:
        self._layout = scaled_flash()
        assert self._layout.state is not None
        self._client = kvstore.connect(address, layout=self._layout, bounds=Bounds(queue_bytes=1 << 30))
        self._waited = Waited(self._client)
        rng = np.random.default_rng(1)
        self._state = arrays_of(self._layout.state, (), rng)
        self._rows: dict[int, Rows] = {}

    def put_base(self, seed: int, tokens: int) -> None:
        base = base_of(seed, tokens)
        blocks, step = tokens // BLOCK_TOKENS, 128
        for first in range(0, blocks, step):
            end = min(first + step, blocks)
            states = {tokens: self._state} if end == blocks else {}
            while not self._client.put(
                base[: end * BLOCK_TOKENS], first_block=first, rows=self._some(end - first), states=states
            ):
                time.sleep(0.01)
        assert self._client.flush(60.0), self._client.counters

    def run(self, plan: Plan) -> dict[str, object]:
        rng = np.random.default_rng(plan.seed)
        base = base_of(0, plan.base_tokens)
        sessions = deque(Session(base) for _ in range(plan.sessions))
        starts = np.cumsum(rng.exponential(1.0 / plan.rate, int(plan.rate * plan.seconds)))
        figures: dict[str, list[float]] = {
            name: [] for name in ("lookup", "late", "fetch", "reuse", "calls", "hashing")
        }
        began = time.perf_counter()
        for start in starts:
            time.sleep(max(0.0, began + start - time.perf_counter()))
            session = sessions.popleft()
            fresh = rng.integers(0, 1 << 31, plan.turn_tokens, dtype=np.int32)
            session.tokens = np.concatenate((session.tokens, fresh))
            self._turn(session, began + start, figures)
            session.turns += 1
            sessions.append(Session(base) if session.turns == plan.turns_a_session else session)
        return {**figures, "seconds": time.perf_counter() - began, "counters": self._client.counters}

    def _turn(self, session: Session, due: float, figures: dict[str, list[float]]) -> None:
        client, prompt = self._client, session.tokens
        calls, hashing = self._waited.calls, client.counters.get("hashing_microseconds", 0)
        began = time.perf_counter()
        with client.lookup(prompt) as match:
            found = time.perf_counter()
            with client.fetch(match) as blocks:
                fetched = time.perf_counter()
                resumed = blocks.plan.tokens if blocks.plan.kind is not PlanKind.COLD else 0
        figures["lookup"].append(1e3 * (found - began))
        figures["late"].append(1e3 * (fetched - due))
        figures["fetch"].append(1e3 * (fetched - found))
        figures["reuse"].append(resumed / len(prompt))
        figures["calls"].append(self._waited.calls - calls)
        figures["hashing"].append((client.counters["hashing_microseconds"] - hashing) / 1e3)
        whole = len(prompt) // BLOCK_TOKENS
        first = resumed // BLOCK_TOKENS
        client.put(
            prompt, first_block=first, rows=self._some(whole - first), states={whole * BLOCK_TOKENS: self._state}
        )

    def _some(self, blocks: int) -> Rows:
        """Rows of so many blocks; the same bytes again and again, under new names."""
        if blocks not in self._rows:
            self._rows[blocks] = arrays_of(self._layout.rows, (blocks,), np.random.default_rng(blocks))
        return self._rows[blocks]


def base_of(seed: int, tokens: int) -> Tokens:
    return np.random.default_rng(1000 + seed).integers(0, 1 << 31, tokens, dtype=np.int32)


class Waited:
    """Counts the calls that the worker's own thread waits for; the client's thread makes others beside it."""

    def __init__(self, client: Client) -> None:
        self.calls = 0
        link = client._link
        for name in ("call", "lane_call", "fetch"):
            setattr(link, name, self._counting(getattr(link, name)))

    def _counting(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **options: Any) -> Any:
            if current_thread() is not main_thread():
                return call(*arguments, **options)
            self.calls += not self._is_inside
            self._is_inside, before = True, self._is_inside
            try:
                return call(*arguments, **options)
            finally:
                self._is_inside = before

        return counted

    _is_inside = False  # `call` goes on to `lane_call`


def main(address: str) -> None:
    engine = Engine(address)
    print(json.dumps({"ready": True}), flush=True)
    for line in iter(sys.stdin.readline, ""):
        asked = json.loads(line)
        if "base" in asked:
            engine.put_base(0, asked["base"])
            print(json.dumps({"done": True}), flush=True)
        else:
            print(json.dumps(engine.run(Plan(**asked))), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
