"""One trace through the daemon's planner, in virtual time: what would have been found, kept and written.

Every request is what a worker makes of it: a lookup, the rows and states that it then puts, and the end of its lease.
Copies end at once, so the store is quiescent before the next request, as the differential test makes a daemon be.
Payloads are never made: an object's checksum is its key's, so lineages agree as those of canonical runs do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from kvstore.core.actions import Action, Copy
from kvstore.core.classes import Lives
from kvstore.core.cost import CostModel
from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.errors import ConfigError
from kvstore.core.keys import HASH_BYTES, PAGE_BYTES, Chain, Tier
from kvstore.core.layout import ModelLayout
from kvstore.core.lineage import ROOT_LINEAGE
from kvstore.core.match import Hints, Match, PlanKind, Speeds
from kvstore.core.matching import Request, deepest, is_hot
from kvstore.core.placement import DEFAULT_PLACEMENT, Placement
from kvstore.core.planner import Planner
from kvstore.core.policies import policy_named
from kvstore.core.reserve import ObjectSpec, ReserveStatus
from kvstore.core.settings import Settings
from kvstore.core.shadows import Shadows, variants_for
from kvstore.sim.trace import Trace, TraceRequest

NAMESPACE, ROOT, OWNER = b"simulated".ljust(32), bytes(HASH_BYTES), bytes(16)
CONTENT = bytes(16)
NO_SPEEDS = Speeds({})  # nothing is priced: a hit is taken wherever there is one
PROGRESS_EVERY = 256  # requests
STEER_EVERY = 16  # requests: a daemon's tick sees some between two


@dataclass(frozen=True, slots=True)
class SimSettings:
    """One store to try. The layout's blocks must be the trace's (`at_block_size`)."""

    layout: ModelLayout
    host_bytes: int
    disk_bytes: int = 0
    policy: str = "lru"
    placement: Placement = DEFAULT_PLACEMENT
    keep_seconds: float | None = 0.0  # `core/settings.py`; None: adaptive (`core/shadows.py`)
    disk_admission: DiskAdmission = DiskAdmission.ALL
    disk_write_bytes_per_day: int = 0  # 0: no budget
    disk_ratio: float = 1.0  # frame bytes a raw byte: a plain factor, no codec is run
    # Speeds price the plans, as a daemon's measured ones do; where one is None a hit is taken wherever there is one.
    host_bytes_per_second: float | None = None
    disk_bytes_per_second: float | None = None
    worker_flops: float | None = None  # of a prefill, as `core/cost.py` counts them
    is_ideal_space: bool = False  # no slots, no regions
    count_partial: bool = False  # a prompt's last, partial block counts as one; as Mooncake's authors count


@dataclass(slots=True)
class Served:
    """Requests of one kind: tokens, and FLOP of a prefill by the layout's cost model (0 where it has none)."""

    input_tokens: int = 0
    resumed_tokens: int = 0
    input_flops: float = 0.0  # of computing all prompts
    resumed_flops: float = 0.0  # of these, not spent

    def add(self, prompt: Served) -> None:
        self.input_tokens += prompt.input_tokens
        self.resumed_tokens += prompt.resumed_tokens
        self.input_flops += prompt.input_flops
        self.resumed_flops += prompt.resumed_flops


@dataclass(slots=True)
class SimResult:
    """Counts of one run; tokens, bytes, FLOP and (where speeds are known) seconds."""

    requests: int = 0
    input_tokens: int = 0
    blocks: int = 0  # of prompts: those that could be stored
    hit_blocks: int = 0  # of them, found as unbroken rows from the start
    resumed_tokens: int = 0  # not computed: rows under a state, or in front of a replay
    input_flops: float = 0.0
    resumed_flops: float = 0.0
    load_seconds: dict[str, float] = field(default_factory=lambda: defaultdict(float))  # of the plans, by coldest tier
    by_tier: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # resumed tokens, by the coldest tier
    by_kind: dict[str, Served] = field(default_factory=dict)
    by_mode: dict[str, Served] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=lambda: defaultdict(int))  # why matches were shorter
    host_bytes_written: int = 0
    disk_bytes_written: int = 0  # frames
    host_blocks_written: int = 0  # rows
    disk_blocks_written: int = 0
    disk_hit_blocks: int = 0  # of `hit_blocks`, those behind the first that is not in host memory
    disk_held_back: int = 0  # objects that no second use brought to disk when they came
    disk_over_budget: int = 0  # copies that the write budget refused
    states_written: int = 0
    refused: int = 0  # objects for which there was no room
    evicted: int = 0  # copies
    switches: list[str] = field(default_factory=list)  # of an adaptive store: when another variant took over, and why
    seconds: float = 0.0  # that the simulation took
    block_refs: int = 0  # blocks named by requests; with `seconds`, the simulator's speed

    @property
    def hit_tokens_rate(self) -> float:
        return self.hit_blocks / max(self.blocks, 1)

    @property
    def resumed_rate(self) -> float:
        """Share of input tokens that were resumed."""
        return self.resumed_tokens / max(self.input_tokens, 1)


def simulate(trace: Trace, settings: SimSettings, progress: Callable[[int], None] | None = None) -> SimResult:
    """`progress` is told how many requests are done. Raises ConfigError for settings that do not fit the trace."""
    run = Simulation(trace.block_tokens, settings)
    start = time.perf_counter()
    for number, request in enumerate(trace.requests):
        run.step(request)
        if progress is not None and number % PROGRESS_EVERY == 0:
            progress(number)
    run.result.seconds = time.perf_counter() - start
    run.result.evicted = sum(run.planner.counts.evicted.values())
    gate = run.planner.gate
    run.result.disk_held_back, run.result.disk_over_budget = gate.held_back, gate.over_budget
    return run.result


class Simulation:
    """A planner and what was counted; `step` by `step`, so that a test can look in between."""

    def __init__(self, block_tokens: int, settings: SimSettings) -> None:
        self.settings, self.result = settings, SimResult()
        self._layout = settings.layout
        if self._layout.block_tokens != block_tokens:
            raise ConfigError(
                f"the layout has blocks of {self._layout.block_tokens} tokens and the trace of {block_tokens}:"
                " give both the same --block-tokens"
            )
        variants = variants_for(settings.policy, settings.keep_seconds)
        self.planner = Planner(
            Settings(
                host_bytes=settings.host_bytes,
                disk_bytes=settings.disk_bytes,
                placement=settings.placement,
                keep_seconds=variants[0].keep_seconds,
                lives=Lives(scratch=None),  # an output is put here when it begins: its life would be over at its end
                disk_admission=settings.disk_admission,
                disk_write_bytes_per_day=settings.disk_write_bytes_per_day,
                ideal_space=settings.is_ideal_space,
            ),
            policy_named(variants[0].policy),
        )
        for tier, nbytes in ((Tier.HOST, settings.host_bytes), (Tier.DISK, settings.disk_bytes)):
            space = self.planner.spaces[tier]  # regions that are full, as the daemon counts them
            self.planner.grow(tier, nbytes // PAGE_BYTES // space.region_pages if nbytes else 0)
        self.planner.add_namespace(NAMESPACE, ROOT, self._layout)
        self.shadows: Shadows | None = None
        if len(variants) > 1:
            self.shadows = Shadows(self.planner.settings, variants, variants[0])
            self.planner.watch(self.shadows)
        self._lengths = [group.nbytes for group in self._layout.groups]
        self._cost = CostModel.of(self._layout)
        speeds = {Tier.HOST: settings.host_bytes_per_second, Tier.DISK: settings.disk_bytes_per_second}
        known = {tier: speed for tier, speed in speeds.items() if speed is not None}
        self._speeds = Speeds(known, settings.worker_flops) if settings.worker_flops else NO_SPEEDS
        self._now = 0.0

    def step(self, request: TraceRequest) -> Match:
        """One request, from its lookup to the end of its lease."""
        planner, block = self.planner, self._layout.block_tokens
        self._now = max(self._now, request.at)
        self._run(planner.tick(self._now))
        counts_partial = self.settings.count_partial
        blocks = len(request.ids) if counts_partial else request.input_tokens // block
        prompt_tokens = blocks * block + 1 if counts_partial else request.input_tokens
        ids = request.ids[:blocks]
        # the tail is of use to whoever asks for the same prompt; what is partial is never stored
        chain = chain_of(ids)
        hints = Hints(
            session=request.session,
            turn=request.turn,
            mode=request.mode,
            kind=request.kind.partition("@")[0],  # workloads name the model that serves it too
            has_tools=request.has_tools,
            breakpoints=request.breakpoints,
            prompt_tokens=request.input_tokens,
        )
        hot_blocks = self._hot_blocks(chain)
        asked = Request(chain, prompt_tokens, hints, True, self._speeds)
        match, actions = planner.lookup(NAMESPACE, asked, OWNER, self._now)
        self._run(actions)
        self._count(request, match, blocks, hot_blocks)
        self._put(request, chain, match, hints)
        if match.lease is not None:
            planner.release(match.lease)
        if self.shadows is not None:
            self._steer(self.shadows)
        return match

    def _steer(self, shadows: Shadows) -> None:
        """As the daemon's tick does."""
        shadows.work()
        if self.result.requests % STEER_EVERY:
            return
        verdict = shadows.steer(self.planner)
        if verdict is not None:
            self.result.switches.append(f"{self._now:.0f} s: {verdict.why}")
            self.planner.change_some(len(self.planner))

    def _hot_blocks(self, chain: Chain) -> int | None:
        """Leading blocks that are in host memory; None where there is nothing else."""
        if not self.settings.disk_bytes:
            return None
        namespace = self.planner.namespaces[NAMESPACE]
        return deepest(namespace, namespace.root, chain, is_hot).block + 1

    def _count(self, request: TraceRequest, match: Match, blocks: int, hot_blocks: int | None) -> None:
        result, plan = self.result, match.plan
        # a replay computes its window anew: only what is in front of it was saved
        saved = plan.compute_from if plan.kind is PlanKind.REPLAY else plan.tokens
        resumed = min(saved, request.input_tokens)
        result.requests += 1
        result.input_tokens += request.input_tokens
        result.blocks += blocks
        result.block_refs += blocks
        found = match.rows_tokens // self._layout.block_tokens
        result.hit_blocks += found
        result.disk_hit_blocks += 0 if hot_blocks is None else found - hot_blocks
        prompt = Served(request.input_tokens, resumed)
        if self._cost is not None:
            prompt.input_flops = self._cost.prefill_flops(0, request.input_tokens)
            prompt.resumed_flops = self._cost.prefill_flops(0, resumed)
        result.resumed_tokens += resumed
        result.input_flops += prompt.input_flops
        result.resumed_flops += prompt.resumed_flops
        result.reasons[match.reason.value] += 1
        if plan.tier is not None:
            result.by_tier[plan.tier.value] += resumed
            result.load_seconds[plan.tier.value] += plan.load_seconds or 0.0
        mode = "" if request.mode is None else request.mode.value
        for table, name in ((result.by_kind, request.kind), (result.by_mode, mode)):
            if name:
                table.setdefault(name, Served()).add(prompt)

    def _put(self, request: TraceRequest, chain: Chain, match: Match, hints: Hints) -> None:
        """What a worker stores: the rows that it computed, and states where the match told it to."""
        block, ids = self._layout.block_tokens, request.output_ids
        whole = chain if not ids else Chain(0, ROOT, chain.hashes + chain_of(ids).hashes)
        snapshots, first = match.snapshots, match.plan.tokens // block
        ends = set(snapshots.at)
        output_end = (request.input_tokens + request.output_tokens) // block * block
        output_end = min(output_end, whole.blocks * block)
        if snapshots.every:
            ends |= set(
                range((first * block // snapshots.every + 1) * snapshots.every, output_end + 1, snapshots.every)
            )
        alignment = self._layout.resume_alignment
        if snapshots.at_output_end:
            ends.add(output_end - output_end % alignment)
        group = self._layout.state_group
        objects = []
        for index in range(first, whole.blocks):
            objects.append(ObjectSpec(index - first, 0, self._lengths[0], CONTENT))
            if group is not None and (index + 1) * block in ends:
                objects.append(ObjectSpec(index - first, group, self._lengths[group], CONTENT))
        if not objects:
            return
        tail = Chain(first, ROOT if not first else whole.hash_at(first - 1), whole.hashes[first * HASH_BYTES :])
        lineage = match.lineage if first else ROOT_LINEAGE
        statuses, facts, actions = self.planner.reserve(
            NAMESPACE, tail, objects, lineage, OWNER, hints, self._now, self._now
        )
        self._run(actions)
        self.result.refused += statuses.count(ReserveStatus.NO_ROOM)
        for made in facts:
            if made is not None:
                self.result.host_bytes_written += made.raw_bytes
                self.result.states_written += made.key.group == group
                self.result.host_blocks_written += made.key.group == 0
                actions = self.planner.arrived(made.key, made.generation, Tier.HOST, self._now)
                if actions:
                    self._run(actions)

    def _run(self, actions: Iterable[Action]) -> None:
        """Copies end at once; drops have happened."""
        waiting = [action for action in actions if isinstance(action, Copy)]
        while waiting:
            copy, more = waiting.pop(0), list[Action]()
            key, generation = copy.facts.key, copy.facts.generation
            if copy.target is Tier.DISK:
                frame_bytes = max(1, int(copy.facts.raw_bytes * self.settings.disk_ratio))
                slots, more = self.planner.encoded(key, generation, frame_bytes, self._now)
                if not slots:
                    more = more + self.planner.failed(key, generation, Tier.DISK, self._now)
                    waiting += [action for action in more if isinstance(action, Copy)]
                    continue
                self.result.disk_bytes_written += frame_bytes
                self.result.disk_blocks_written += key.group == 0
            more = more + self.planner.arrived(key, generation, copy.target, self._now)
            waiting += [action for action in more if isinstance(action, Copy)]


def chain_of(ids: Iterable[int]) -> Chain:
    """A trace's ids are chained: each names its block with all before it, as a prefix hash does."""
    return Chain(0, ROOT, b"".join([(number + 1).to_bytes(HASH_BYTES, "big") for number in ids]))
