"""Hit rates of the daemon's planner on recorded traffic, beside what is possible.

    python bench/hit_rate.py --traces FOLDER [--rows traces,tiers,layouts,workloads,switching] [--json] [--quick]

`plain` rows are blocks without states and without slots, a trace's last, partial id counted as a block: what the
trace's authors and any textbook cache count; `ceiling` is Belady's optimum with bypass of the same size. `v4-flash`
rows are tokens that need not be computed, as a share of input tokens, in blocks of 512, whole blocks only; `ceiling`
is the rows-only optimum, which no store can reach that has to keep states as well. `with slots` is the same in real
regions and slots. `adaptive` chooses placement, policy and admission by itself. Rates are counts of one deterministic
run, so a row's `runs` is 1; `speed` rows are block references a second of one process, medians.

The expected figures are those of other simulations of the same traces: of two independent ones for `plain`, of one for
`v4-flash`. Traces are named as files; a missing one is left out and said.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from harness import Against, Bench, main
from hit_layouts import layout_rows
from hit_switching import switching_rows
from hit_tiers import tier_rows
from hit_workloads import workload_rows

from kvstore.core.placement import Placement
from kvstore.core.shadows import ADAPTIVE
from kvstore.sim.block_size import at_block_size
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.simulator import SimSettings, simulate
from kvstore.sim.trace import Trace

CONVERSATION, SYNTHETIC, MINISWE = "mooncake_conversation", "mooncake_synthetic", "lmcache_miniswe_hashed_256B"
TRACE_BLOCK = {CONVERSATION: 512, SYNTHETIC: 512, MINISWE: 64}
PLAIN = {  # percent of unique blocks -> LRU, MIN in percent of block references
    CONVERSATION: {1: (5.2, 24.6), 5: (19.6, 36.6), 10: (27.9, 36.6)},
    SYNTHETIC: {5: (15.7, 39.6), 10: (26.2, 50.6), 20: (39.3, 60.8)},
}
LRU_WITHIN, MIN_WITHIN, FLASH_WITHIN = 0.5, 0.3, 0.3  # points
SIZES = (4, 8, 16, 32, 64)  # GiB of host memory
EXPECTED = {  # trace, placement without replay -> percent of input tokens, by size
    (CONVERSATION, "every"): (4.4, 5.1, 7.3, 16.1, 25.6),
    (CONVERSATION, "ends+junctions"): (5.5, 9.4, 18.7, 27.0, 33.7),
    (SYNTHETIC, "every"): (8.0, 13.4, 22.1, 36.7, 53.3),
    (SYNTHETIC, "ends+junctions"): (14.4, 23.8, 35.7, 49.8, 58.1),
}
WANTED = {  # of the best placement there is, at least
    CONVERSATION: (8.5, 12.5, 19.3, 27.5, 34.2),
    SYNTHETIC: (16.2, 27.0, 40.8, 55.6, 63.6),
    MINISWE: (79.3, 93.1, 93.1),
}
BOUNDLESS = {CONVERSATION: 36.4, SYNTHETIC: 63.8}  # where nothing has to leave
ROWS = ("traces", "tiers", "layouts", "workloads", "switching")
POLICIES = ("lru", "lfu", "slru", "s3fifo", "arc", "gdsf", "hazard", "tlru")


class Planned(NamedTuple):
    name: str
    cell: Cell
    ceiling: float | None  # percent
    expected: float | None
    within: float | None  # points around `expected`; None: at least that


def collect(bench: Bench) -> None:
    wanted = set(bench.options.rows.split(","))
    if wanted - set(ROWS):
        raise SystemExit(f"--rows {bench.options.rows}: choose from {','.join(ROWS)}")
    traces = {}
    for name in (CONVERSATION, SYNTHETIC, MINISWE):
        path = Path(bench.options.traces) / f"{name}.jsonl.zst"
        if path.exists():
            traces[name] = load_trace(path, TRACE_BLOCK[name])
        else:
            bench.note(f"{path} is missing: its rows are left out")
    if "traces" in wanted:
        trace_rows(bench, traces)
    mooncake = [trace for name, trace in traces.items() if name in PLAIN]
    if "tiers" in wanted:
        tier_rows(bench, mooncake)
    if "layouts" in wanted:
        layout_rows(bench, mooncake)
    if "workloads" in wanted:
        workload_rows(bench)
    if "switching" in wanted:
        day = [traces[name] for name in (CONVERSATION, MINISWE, SYNTHETIC) if name in traces]
        switching_rows(bench, [at_block_size(trace, 512) for trace in day])


def trace_rows(bench: Bench, traces: dict[str, Trace]) -> None:
    planned: list[Planned] = []
    for name, trace in traces.items():
        with bench.step(f"bounds of {name}"):
            planned += plans(trace, bench.is_quick)
    with bench.step(f"{len(planned)} simulations"):
        results = run_grid([plan.cell for plan in planned])
    for plan, result in zip(planned, results, strict=True):
        is_plain = plan.cell.settings.count_partial
        rate = 100 * (result.hit_blocks / result.blocks if is_plain else result.resumed_tokens / result.input_tokens)
        ceiling = plan.ceiling
        if plan.expected is not None and plan.within is not None:
            off = abs(rate - plan.expected)
            bench.row(f"{plan.name}: off the expected {plan.expected}", off, "points",
                      target=plan.within, against=Against.VALUE_AT_MOST, runs=1)  # fmt: skip
        bench.row(plan.name, rate, "%", ceiling=ceiling, target=plan.expected if plan.within is None else None,
                  against=Against.VALUE_AT_LEAST, runs=1)  # fmt: skip
    for name, trace in traces.items():
        speed(bench, name, trace)


def plans(trace: Trace, is_quick: bool) -> Iterator[Planned]:
    name, block = trace.name, trace.block_tokens
    if name in PLAIN:
        yield from plain_plans(trace, is_quick)
    layout = sim_layout("v4-flash", block)
    whole = References(trace)
    for index, gib in enumerate(SIZES[1:2] if is_quick else SIZES):
        index += is_quick
        nbytes = gib << 30 if name != MINISWE else (64 << 20) << index
        size = f"{gib} GiB" if name != MINISWE else f"{nbytes >> 20} MiB"
        if name == MINISWE and index > 2:
            return
        optimum = 100 * whole.minimum(nbytes // layout.rows.nbytes).resumed_token_rate
        for placement in ("every", "ends+junctions"):
            settings = SimSettings(layout, nbytes, placement=Placement.parse(placement, False), is_ideal_space=True)
            expected = EXPECTED.get((name, placement))
            known = None if expected is None else expected[index]
            yield Planned(f"{name}, v4-flash, {size}: {placement}", Cell(trace, settings), optimum, known, FLASH_WITHIN)
        wanted = WANTED[name][index] if name in WANTED else None
        for label, settings, target in tried(SimSettings(layout, nbytes, is_ideal_space=True), wanted):
            yield Planned(f"{name}, v4-flash, {size}: {label}", Cell(trace, settings), optimum, target, None)
    if name in BOUNDLESS and not is_quick:
        settings = SimSettings(layout, 4 << 40, is_ideal_space=True)
        optimum = 100 * whole.minimum(settings.host_bytes // layout.rows.nbytes).resumed_token_rate
        yield Planned(f"{name}, v4-flash, boundless: adaptive", Cell(trace, settings), optimum, BOUNDLESS[name], None)


def tried(common: SimSettings, wanted: float | None) -> Iterator[tuple[str, SimSettings, float | None]]:
    """What an operator may choose, by name; the default, in ideal space, is to reach what is wanted."""
    junctions = replace(common, placement=Placement.parse("ends+junctions", True))
    yield "ends+junctions, with replay, lru", junctions, None
    yield "adaptive placement, lru", common, None
    yield "adaptive placement, arc", replace(common, policy="arc"), None
    default = replace(common, policy=ADAPTIVE, keep_seconds=None)
    yield "all adaptive, the default", default, wanted
    yield "all adaptive, with slots", replace(default, is_ideal_space=False), None


def plain_plans(trace: Trace, is_quick: bool) -> Iterator[Planned]:
    """Textbook blocks: each policy at each size, and the optimum itself against what is known of it."""
    layout = sim_layout("plain:1", trace.block_tokens)
    blocks = References(trace, count_partial=True)
    unique = len({name for request in trace.requests for name in request.ids})
    for percent, (lru, least) in list(PLAIN[trace.name].items())[:: 3 if is_quick else 1]:
        capacity = unique * percent // 100
        optimum = 100 * blocks.minimum(capacity).block_hit_rate
        assert abs(optimum - least) <= MIN_WITHIN, f"Belady's optimum on {trace.name} is {optimum}, not {least}"
        for policy in POLICIES[:1] if is_quick else POLICIES:
            settings = SimSettings(
                layout, capacity * layout.rows.nbytes, policy=policy, is_ideal_space=True, count_partial=True
            )
            is_known = policy == "lru"
            yield Planned(
                f"{trace.name}, plain, {percent} %: {policy}", Cell(trace, settings), optimum,
                lru if is_known else None, LRU_WITHIN if is_known else None,
            )  # fmt: skip


def speed(bench: Bench, name: str, trace: Trace) -> None:
    """Block references a second of one process, LRU at 10 % of the trace's blocks."""
    layout = sim_layout("plain:1", trace.block_tokens)
    unique = len({block for request in trace.requests for block in request.ids})
    settings = SimSettings(layout, unique // 10 * layout.rows.nbytes, is_ideal_space=True, count_partial=True)
    runs = 1 if bench.is_quick else 5
    results = [simulate(trace, settings) for _ in range(runs)]
    rate = statistics.median(result.block_refs / result.seconds for result in results)
    target = {CONVERSATION: 200_000.0, MINISWE: 1_000_000.0}.get(name)
    bench.row(f"{name}: speed", rate, "block references/s", target=target, runs=runs)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--traces", required=True, help="folder of the traces, as *.jsonl.zst")
    parser.add_argument("--rows", default="traces", help=f"which rows, comma-separated: {', '.join(ROWS)}")


if __name__ == "__main__":
    main("hit_rate", collect, doc=__doc__, add_arguments=add_arguments)
