"""A store that chooses by itself, on traffic that changes its nature: one trace after the other, no restart.

Each part of the day is judged after `WARM_UP` requests: what the adaptive store resumes against the best variant that
stays the same all day, and against plain LRU over every ten minutes of the whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from harness import Against, Bench

from kvstore.core.match import PlanKind
from kvstore.core.placement import DEFAULT_PLACEMENT
from kvstore.core.shadows import ADAPTIVE, VARIANTS
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import SimSettings, Simulation
from kvstore.sim.trace import Trace, TraceRequest

HOST_BYTES = 8 << 30
WARM_UP = 1000  # requests of a part: the ghosts' scores fade by half every 512
WINDOW_SECONDS = 600.0
WITHIN = 0.5  # points
PAUSE_SECONDS = 60.0  # between two parts


def switching_rows(bench: Bench, traces: Sequence[Trace]) -> None:
    """`traces` in the order of the day, with blocks of one size."""
    if len(traces) < 2:
        bench.note("rows of switching need at least two traces: left out")
        return
    day, starts = joined(traces)
    layout = sim_layout("v4-flash", day.block_tokens)
    common = SimSettings(layout, HOST_BYTES, placement=DEFAULT_PLACEMENT, is_ideal_space=True)
    resumed: dict[str, list[int]] = {}
    for variant in VARIANTS:
        settings = replace(common, policy=variant.policy, keep_seconds=variant.keep_seconds)
        with bench.step(f"a day of {variant}"):
            resumed[str(variant)], _ = followed(day, settings)
    with bench.step("a day of the adaptive store"):
        resumed[ADAPTIVE], switches = followed(day, replace(common, policy=ADAPTIVE, keep_seconds=None))
    for line in switches:
        bench.note(f"{ADAPTIVE}: {line}")
    ends = [*starts[1:], len(day.requests)]
    for trace, start, end in zip(traces, starts, ends, strict=True):
        first = min(start + WARM_UP, end - 1)
        asked = sum(request.input_tokens for request in day.requests[first:end])
        rates = {name: 100 * sum(found[first:end]) / asked for name, found in resumed.items()}
        for name, rate in rates.items():
            bench.row(f"day, {trace.name}: {name}", rate, "%", runs=1)
        best = max(rate for name, rate in rates.items() if name != ADAPTIVE)
        bench.row(f"day, {trace.name}: {ADAPTIVE} behind the best fixed", best - rates[ADAPTIVE], "points",
                  target=WITHIN, against=Against.VALUE_AT_MOST, runs=1)  # fmt: skip
    bench.row(f"day: {ADAPTIVE} behind lru in the worst ten minutes", worst_window(day, resumed), "points",
              target=WITHIN, against=Against.VALUE_AT_MOST, runs=1)  # fmt: skip


def joined(traces: Sequence[Trace]) -> tuple[Trace, list[int]]:
    """One trace, and where each part starts. Blocks of one part are not those of another."""
    requests: list[TraceRequest] = []
    starts, at, name = [], 0.0, 0
    for trace in traces:
        starts.append(len(requests))
        last = max(max(request.ids, default=0) for request in trace.requests)
        for request in trace.requests:
            ids = tuple(name + number for number in request.ids)
            requests.append(replace(request, at=at + request.at, ids=ids, output_ids=()))
        at, name = requests[-1].at + PAUSE_SECONDS, name + last + 1
    return Trace("day", traces[0].block_tokens, requests), starts


def followed(day: Trace, settings: SimSettings) -> tuple[list[int], list[str]]:
    """Tokens that each request did not compute, and the changes of who is in charge."""
    run, resumed = Simulation(day.block_tokens, settings), []
    for request in day.requests:
        plan = run.step(request).plan
        saved = plan.compute_from if plan.kind is PlanKind.REPLAY else plan.tokens
        resumed.append(min(saved, request.input_tokens))
    return resumed, run.result.switches


def worst_window(day: Trace, resumed: dict[str, list[int]]) -> float:
    """Points by which the adaptive store is behind LRU in its worst ten minutes, by the tokens asked there."""
    worst, first, asked, behind = 0.0, 0, 0, 0
    for last, request in enumerate(day.requests):
        asked += request.input_tokens
        behind += resumed["lru"][last] - resumed[ADAPTIVE][last]
        while day.requests[first].at < request.at - WINDOW_SECONDS:
            asked -= day.requests[first].input_tokens
            behind -= resumed["lru"][first] - resumed[ADAPTIVE][first]
            first += 1
        if request.at - day.requests[0].at >= WINDOW_SECONDS:
            worst = max(worst, 100 * behind / asked)
    return worst
