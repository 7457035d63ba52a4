"""The answer to the store's one question: where can this chain resume, at what price, and what to snapshot.

Pure values. The planner fills them; rpc carries them; workers act on them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from kvstore.core.keys import Tier

MAX_RESUME_POINTS = 32
MAX_SNAPSHOTS = 64  # boundaries named in one match; `every` covers regular ones


class InferenceMode(Enum):
    """DeepSeek-V4's modes; they decide what the next turn strips (V4-CACHE section 6)."""

    NON_THINK = "non-think"
    THINK_HIGH = "think-high"
    THINK_MAX = "think-max"


@dataclass(frozen=True, slots=True)
class Hints:
    """What the worker knows about a request. Everything is optional; tokens, seconds."""

    session: str = ""
    turn: int = 0
    mode: InferenceMode | None = None
    kind: str = ""  # chat, code agent, search agent, retrieval, ...; "quick": one quick instruction, never continued
    has_tools: bool = False
    expected_gap_seconds: float | None = None
    breakpoints: tuple[int, ...] = ()  # token counts at which a shared part of the prompt ends
    ttl_seconds: float | None = None  # forget what this request puts when unused for so long
    prompt_tokens: int | None = None  # of the request that puts: what lies behind is its output (`core/classes.py`)


class SessionEvent(Enum):
    """What an agent session does. Of a session that the store knows, by its lookups, the first three keep its chain
    warm; two of them also bring what is cold of it into host memory, before its next request asks.

    OPENED: it resumes now. TOOL_CALL: it waits for a tool, for `expected_gap_seconds` where the worker says so; only
    a short gap is worth host memory meanwhile. TURN_ENDED: a person may answer, in seconds or never. CLOSED: what only
    it used goes first from now on.
    """

    OPENED = "opened"
    TOOL_CALL = "tool call"
    TURN_ENDED = "turn ended"
    CLOSED = "closed"


class Speeds(NamedTuple):
    """Measured speeds that price a plan. A missing one makes the price unknown, never zero."""

    # DISK: throughput of the promoting threads together (store/rates.py); HOST: what the worker measured of its own
    # copies, else what the daemon saw of its readers
    read_bytes_per_second: Mapping[Tier, float]
    worker_flops: float | None = None  # prefill speed in the cost model's FLOP a second; the worker declares it
    # raw bytes that each flow of promotions still has to read from a tier (core/copies.py); flows take turns
    queued_bytes: Mapping[Tier, tuple[int, ...]] = MappingProxyType({})


class ResumePoint(NamedTuple):
    """A boundary from which a worker can go on exactly: rows below it and the state at it are readable."""

    tokens: int
    load_bytes: int  # rows of [0, tokens) and the state
    tier: Tier  # the coldest that has to be read
    load_seconds: float | None
    recompute_seconds: float | None  # of the prompt's tokens from here on
    comes_along: bool = False  # its state is on the host or comes with the plan's rows: of use once these are here


class PlanKind(Enum):
    COLD = "cold"  # compute everything
    RESUME = "resume"  # load rows and state, compute from `tokens`
    REPLAY = "replay"  # load rows, rebuild the state by computing [compute_from, tokens) over them, go on


class Plan(NamedTuple):
    """What the worker should do. New rows start at `tokens`; computing starts at `compute_from`."""

    kind: PlanKind
    tokens: int
    compute_from: int
    load_bytes: int
    tier: Tier | None  # the coldest that has to be read; None for COLD
    load_seconds: float | None
    recompute_seconds: float | None


COLD_PLAN = Plan(PlanKind.COLD, 0, 0, 0, None, 0.0, None)


class Snapshots(NamedTuple):
    """Where the worker should take states while computing, all beyond the plan's `tokens` and aligned."""

    at: tuple[int, ...] = ()
    every: int = 0  # also at multiples of this many tokens, output included; 0: no
    at_output_end: bool = False  # also at the last aligned boundary at or before the end of output


class MissReason(Enum):
    """Why a match is shorter than its prompt: the first thing that it lacks, from the root."""

    NONE = "none"
    NEVER_SEEN = "never seen"
    STATE_MISSING = "state missing"  # rows reach further than any state that stands on them
    SHORT_PROMPT = "short prompt"  # shorter than one resumable boundary
    SLOWER_THAN_RECOMPUTE = "slower than recompute"
    PARENT_UNKNOWN = "parent unknown"  # a tail was sent and its parent is not stored: send the whole chain
    # What a block's rows were before they were missing (`core/ghosts.py`):
    EVICTED = "evicted"
    EXPIRED = "expired"  # unused for their TTL
    CORRUPT = "corrupt"  # a checksum failed, or a worker found them wrong
    QUOTA = "quota"  # they were announced and there was no room
    ROWS_MISSING = "rows missing"  # they went because rows before them were lost
    UPLOADING = "uploading"  # they are being written right now
    COLDER = "colder"  # only what is in host memory was asked for
    NAMESPACE_DIFFERS = "namespace differs"  # nothing was stored under this layout, but under a similar one

    __hash__ = object.__hash__  # members are one of a kind; Enum's own is a Python call, and each lookup counts one


@dataclass(frozen=True, slots=True)
class Match:
    """All that is known about one chain at one moment, and what was promised about it."""

    rows_tokens: int  # longest unbroken rows
    resume_points: tuple[ResumePoint, ...]  # deepest first, at most MAX_RESUME_POINTS
    replay: Plan | None  # the replay alternative, where it would recompute less than the best resume point
    plan: Plan
    snapshots: Snapshots
    canonical: bool
    reason: MissReason
    lease: int | None  # holds rows of [0, plan.tokens) and the plan's state until released or expired
    lineage: bytes  # of the rows under plan.tokens; 16 bytes
    cold_seconds: float | None = None  # predicted, of computing the whole prompt
