"""Rows of bench/hit_rate.py about the built-in workloads: by kind and mode, and agentic search beside retrieval.

V4-Flash (each part of `mixed` in the layout that it names), blocks of 128 tokens, real slots, one size of host memory
for all. FLOP are of prefill by the layout's cost model, seconds those at WORKER_FLOPS: a fifth of the 1,979 TFLOP/s in
FP8 that an H100's data sheet names, a round figure and no measurement; another speed scales them.

Search tokens are what a session's prompts have beyond its first one: results, and the calls that asked for them. The
first prompt (instructions, tools, question) is in neither share.
"""

from __future__ import annotations

from collections.abc import Iterator

from harness import Bench

from kvstore.core.match import PlanKind
from kvstore.sim.layouts import sim_layout
from kvstore.sim.simulator import SimResult, SimSettings, Simulation
from kvstore.sim.trace import Trace
from kvstore.sim.workloads import WORKLOADS, trace_of
from kvstore.sim.workloads.mixed import LAYOUTS, only

HOST_BYTES = 16 << 30
REQUESTS, QUICK_REQUESTS = 2000, 300
BLOCK, SEED = 128, 4
WORKER_FLOPS = 4e14
TFLOP = 1e12


def workload_rows(bench: Bench) -> None:
    queries: dict[str, tuple[float, float]] = {}
    for name, layout, trace in _traces(QUICK_REQUESTS if bench.is_quick else REQUESTS):
        with bench.step(f"workload {name}"):
            run = Simulation(BLOCK, SimSettings(sim_layout(layout, BLOCK), HOST_BYTES))
            search, served = _run(run, trace)
        result = run.result
        bench.row(f"{name}: blocks found", 100 * result.hit_blocks / result.blocks, "%", runs=1)
        bench.row(f"{name}: resumed", 100 * result.resumed_rate, "%", runs=1)
        bench.row(f"{name}: prefill spared", 100 * result.resumed_flops / result.input_flops, "% of FLOP", runs=1)
        bench.row(f"{name}: recomputing spared", result.resumed_flops / WORKER_FLOPS, "s", runs=1)
        _class_rows(bench, name, result)
        if name in ("agentic-search", "rag"):
            if name == "agentic-search":  # retrieval has its documents in the first prompt
                bench.row(f"{name}: search tokens served from the cache", 100 * served / search, "%", runs=1)
            sessions = len({request.session for request in trace.requests})
            cold, warm = result.input_flops / sessions, (result.input_flops - result.resumed_flops) / sessions
            queries[name] = cold, warm
            bench.row(f"{name}: prefill a query, nothing stored", cold / TFLOP, "TFLOP", runs=1)
            bench.row(f"{name}: prefill a query", warm / TFLOP, "TFLOP", runs=1)
    if len(queries) == 2:
        (cold, warm), (rag_cold, rag_warm) = queries["agentic-search"], queries["rag"]
        bench.row("agentic search over rag, a query's prefill: nothing stored", cold / rag_cold, "times", runs=1)
        bench.row("agentic search over rag, a query's prefill", warm / rag_warm, "times", runs=1)


def _traces(requests: int) -> Iterator[tuple[str, str, Trace]]:
    for name, workload in WORKLOADS.items():
        trace = trace_of(workload, SEED, requests, BLOCK)
        if name != "mixed":
            yield name, "v4-flash", trace
            continue
        for layout in LAYOUTS:
            yield f"{name}, {layout}", layout, only(trace, layout)


def _run(run: Simulation, trace: Trace) -> tuple[int, int]:
    """Search tokens that were asked for, and those of them that were not computed."""
    first: dict[str, int] = {}
    asked = served = 0
    for request in trace.requests:
        plan = run.step(request).plan
        begin = first.setdefault(request.session, request.input_tokens)
        saved = plan.compute_from if plan.kind is PlanKind.REPLAY else plan.tokens
        asked += max(request.input_tokens - begin, 0)
        served += max(min(saved, request.input_tokens) - begin, 0)
    return asked, served


def _class_rows(bench: Bench, name: str, result: SimResult) -> None:
    for table in (result.by_kind, result.by_mode):
        for label, one in sorted(table.items()) if len(table) > 1 else ():
            bench.row(f"{name}, {label}: resumed", 100 * one.resumed_tokens / one.input_tokens, "%", runs=1)
