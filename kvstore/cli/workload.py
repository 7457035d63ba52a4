"""`kvstore workload`: a trace of made-up traffic with known structure, as JSON lines on standard output."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from kvstore.core.errors import InvalidInput
from kvstore.sim.workloads import WORKLOADS, trace_of, workload_named
from kvstore.sim.workloads.mixed import LAYOUTS, layout_of, only
from kvstore.sim.writing import trace_lines

MAX_REQUESTS = 1_000_000
QUIET_SECONDS = 2.0  # work that is done by then shows no progress


def workload_command(
    name: Annotated[str, typer.Argument(help=", ".join(WORKLOADS))],
    seed: Annotated[int, typer.Option(help="the same seed gives the same trace, on every machine")],
    requests: Annotated[int, typer.Option(help="how many; a longer trace starts with the shorter one")] = 2000,
    block_tokens: Annotated[int, typer.Option(help="tokens a hash id names")] = 128,
    layout: Annotated[str | None, typer.Option(help="of mixed: only what v4-flash, or v4-pro, serves")] = None,
) -> None:
    workload = workload_named(name)
    _within(requests, "--requests")
    _within(block_tokens, "--block-tokens")
    with _progress(requests) as progress:
        trace = trace_of(workload, seed, requests, block_tokens, progress)
    if layout is not None:
        if layout not in LAYOUTS or not layout_of(trace.requests[0]):
            raise InvalidInput(f"--layout {layout} of {name}: only mixed has layouts, {' and '.join(LAYOUTS)}")
        trace = only(trace, layout)
    for line in trace_lines(trace):
        sys.stdout.write(f"{line}\n")


def _within(count: int, option: str) -> None:
    if not 1 <= count <= MAX_REQUESTS:
        raise InvalidInput(f"{option} {count} is out of range: give 1 to {MAX_REQUESTS}")


@contextmanager
def _progress(requests: int) -> Iterator[Callable[[int], None]]:
    """A bar on standard error for work that takes long."""
    bar = Progress(
        TextColumn("requests"), BarColumn(), MofNCompleteColumn(), console=Console(stderr=True), transient=True
    )
    task = bar.add_task("requests", total=requests)
    started = time.monotonic()
    with ExitStack() as stack:

        def show(made: int) -> None:
            if not bar.live.is_started and time.monotonic() - started > QUIET_SECONDS:
                stack.enter_context(bar)
            bar.update(task, completed=made)

        yield show


workload_command.__doc__ = (
    "Write a trace with known structure for what the model's report describes, as JSON lines.\n\n\b\n"
    + "\n".join(f"{one.name:<15} {one.says}" for one in WORKLOADS.values())
    + "\n\nEach states what it assumes, and where from, in kvstore/sim/workloads. "
    "Simulate it with `kvstore simulate FILE --trace-block-tokens 128`."
)
