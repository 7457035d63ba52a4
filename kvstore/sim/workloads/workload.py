"""What a workload is, and the trace of one: sessions that start by chance, cut where enough requests are taken down."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass
from operator import attrgetter

from kvstore.core.errors import InvalidInput
from kvstore.sim.trace import Trace, TraceRequest
from kvstore.sim.workloads.session import Scribe


@dataclass(frozen=True, slots=True)
class Place:
    """Where a session's requests go, and by which chance they come."""

    scribe: Scribe
    chance: random.Random
    session: str
    start: float  # seconds
    world: str  # names what sessions share: templates, documents, tools
    layout: str = ""


@dataclass(frozen=True, slots=True)
class Workload:
    """A kind of traffic with known structure. `session` takes down one session, from its first request to its last."""

    name: str
    says: str  # one line for the operator
    session: Callable[[Place], None]
    sessions_a_second: float


def trace_of(
    workload: Workload,
    seed: int,
    requests: int,
    block_tokens: int = 128,
    progress: Callable[[int], None] = lambda made: None,
) -> Trace:
    """The first `requests` requests of an endless trace: a longer one of the same seed starts with them."""
    if requests < 1:
        raise InvalidInput(f"{requests} requests: ask for at least one")
    if block_tokens < 1:
        raise InvalidInput(f"blocks of {block_tokens} tokens: a block has at least one token")
    scribe = Scribe(block_tokens)
    arrivals = random.Random(f"{workload.name}/{seed}/arrivals")
    start, index, ended, waiting = 0.0, 0, 0, list[float]()
    while ended < requests:
        known = len(scribe.requests)
        workload.session(_place(workload, scribe, seed, index, start))
        for request in scribe.requests[known:]:
            heapq.heappush(waiting, request.at)
        start += arrivals.expovariate(workload.sessions_a_second)
        while waiting and waiting[0] < start:  # what is before the next session's start can have nothing in front of it
            heapq.heappop(waiting)
            ended += 1
        index += 1
        progress(ended)
    taken = sorted(scribe.requests, key=attrgetter("at"))[:requests]
    return Trace(f"{workload.name}-{seed}", block_tokens, taken)


def whole_sessions(workload: Workload, seed: int, count: int, block_tokens: int = 128) -> list[list[TraceRequest]]:
    """The first `count` sessions, none cut; each in order of time, with its sub-agents' requests."""
    scribe = Scribe(block_tokens)
    sessions = []
    for index in range(count):
        known = len(scribe.requests)
        workload.session(_place(workload, scribe, seed, index, 0.0))
        sessions.append(sorted(scribe.requests[known:], key=attrgetter("at")))
    return sessions


def _place(workload: Workload, scribe: Scribe, seed: int, index: int, start: float) -> Place:
    chance = random.Random(f"{workload.name}/{seed}/{index}")
    return Place(scribe, chance, f"{workload.name}-{seed}-{index}", start, str(seed))
