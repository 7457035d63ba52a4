"""Many simulations in one call, on all cores: each is single-threaded, so each gets a process.

Workers are spawned and get the traces once, at their start. A script that calls `run_grid` keeps its own work under
`if __name__ == "__main__"`, as spawned processes ask for.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from multiprocessing.sharedctypes import Synchronized
from typing import NamedTuple

from kvstore.sim.simulator import SimResult, SimSettings, simulate
from kvstore.sim.trace import Trace

POLL_SECONDS = 0.2
STOPPED = -(1 << 62)  # the counter of requests, when nobody wants the rest

Progress = Callable[[int, int], None]  # requests done, requests in all


class Cell(NamedTuple):
    """One simulation of a grid."""

    trace: Trace
    settings: SimSettings


class Abandoned(Exception):
    """Inside a worker: its caller has gone on without it."""


def run_grid(
    cells: Sequence[Cell], *, processes: int | None = None, progress: Progress | None = None
) -> list[SimResult]:
    """Results in the order of the cells. One process, or one cell, runs right here.

    Raises what a simulation raised; the others then end within moments.
    """
    processes = min(len(cells), available_cores() if processes is None else processes)
    total = sum(len(cell.trace.requests) for cell in cells)
    if processes <= 1:
        return _run_here(cells, total, progress)
    traces = list({id(cell.trace): cell.trace for cell in cells}.values())
    number = {id(trace): index for index, trace in enumerate(traces)}
    context = multiprocessing.get_context("spawn")
    done: Synchronized[int] = context.Value("q", 0)
    with ProcessPoolExecutor(processes, context, _start_worker, (traces, done)) as pool:
        runs = [pool.submit(_run_in_worker, number[id(cell.trace)], cell.settings) for cell in cells]
        try:
            _wait(runs, done, total, progress)
            return [run.result() for run in runs]
        except BaseException:
            done.value = STOPPED
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def available_cores() -> int:
    """That this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _run_here(cells: Sequence[Cell], total: int, progress: Progress | None) -> list[SimResult]:
    results, before = [], 0
    for cell in cells:
        told = None if progress is None else _from(before, total, progress)
        results.append(simulate(cell.trace, cell.settings, told))
        before += len(cell.trace.requests)
    if progress is not None:
        progress(total, total)
    return results


def _from(before: int, total: int, progress: Progress) -> Callable[[int], None]:
    return lambda requests: progress(before + requests, total)


def _wait(runs: list[Future[SimResult]], done: Synchronized[int], total: int, progress: Progress | None) -> None:
    left = set(runs)
    while left:
        ended, left = wait(left, POLL_SECONDS, FIRST_COMPLETED)
        for run in ended:
            run.result()
        if progress is not None:
            progress(total if not left else min(done.value, total), total)


class _Worker:
    """What a worker process keeps between simulations."""

    traces: Sequence[Trace] = ()
    done: Synchronized[int] | None = None


def _start_worker(traces: Sequence[Trace], done: Synchronized[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears it, and tells by the counter
    _Worker.traces, _Worker.done = traces, done


def _run_in_worker(number: int, settings: SimSettings) -> SimResult:
    told = 0

    def tell(requests: int) -> None:
        nonlocal told
        assert _Worker.done is not None
        with _Worker.done.get_lock():
            if _Worker.done.value < 0:
                raise Abandoned
            _Worker.done.value += requests - told
        told = requests

    trace = _Worker.traces[number]
    result = simulate(trace, settings, tell)
    tell(len(trace.requests))
    return result
