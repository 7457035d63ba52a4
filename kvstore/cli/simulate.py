"""`kvstore simulate`: what the daemon's planner would have found on a trace, for a grid of settings.

Reads the arguments, runs the grid on all cores, prints. The planner is the daemon's; reading, bounds, tables and plots
are in `sim`.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, NamedTuple

import typer
from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from kvstore.core.disk_admission import DiskAdmission
from kvstore.core.errors import ConfigError, InvalidInput
from kvstore.core.keys import PAGE_BYTES
from kvstore.core.layout import ModelLayout
from kvstore.core.placement import DEFAULT_PLACEMENT, Placement
from kvstore.core.shadows import ADAPTIVE, variants_for
from kvstore.core.sizes import WRITTEN_UNITS, format_size, parse_size
from kvstore.core.space import REGIONS
from kvstore.sim.block_size import at_block_size
from kvstore.sim.bounds import References
from kvstore.sim.grid import Cell, run_grid
from kvstore.sim.layouts import sim_layout
from kvstore.sim.reading import load_trace
from kvstore.sim.report import Outcome, Report, capacity_blocks, facts, placement_name, tables
from kvstore.sim.simulator import SimSettings
from kvstore.sim.trace import Trace

QUIET_SECONDS = 2.0  # work shorter than this shows no bar
WIDEST = 1000  # characters of a table
SMALLEST_HOST_BYTES = REGIONS * PAGE_BYTES  # with slots: one page a region


def simulate_command(
    traces: Annotated[list[Path], typer.Argument(metavar="TRACE...", help="JSONL in Mooncake's form, plain or zstd")],
    layout: Annotated[str, typer.Option(help="v4-flash, v4-pro, v32, v4-demo or plain:BYTES_PER_TOKEN")] = "v4-flash",
    block_tokens: Annotated[int, typer.Option(help="tokens of a stored block")] = 512,
    trace_block_tokens: Annotated[int, typer.Option(help="tokens that an id of the trace names")] = 512,
    host_bytes: Annotated[
        str, typer.Option(help="sizes of host memory: 4GiB,8GiB; 5% is of the bytes of all the trace's blocks")
    ] = "4GiB,16GiB,64GiB",
    disk_bytes: Annotated[str, typer.Option(help="sizes of disk, likewise")] = "0",
    policy: Annotated[str, typer.Option(help="eviction policies: lru,arc; or adaptive")] = "lru",
    keep_seconds: Annotated[
        str, typer.Option(help="what was used within so many seconds is not evicted for what is new: 0,60 or adaptive")
    ] = "0",
    disk_admission: Annotated[
        str, typer.Option(help="what is copied to disk: all, second-hit, adaptive (needs a budget)")
    ] = "all",
    disk_write_budget: Annotated[str, typer.Option(help="bytes a day that may be written to disk: 0,1TB,5TB")] = "0",
    disk_ratio: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="bytes on disk a raw byte: a plain factor, no codec is run")
    ] = 1.0,
    host_bandwidth: Annotated[str | None, typer.Option(help="bytes a second that a worker copies: 20GB")] = None,
    disk_bandwidth: Annotated[str | None, typer.Option(help="bytes a second that the disk reads: 5GB")] = None,
    worker_flops: Annotated[
        float | None, typer.Option(min=1.0, help="a worker's prefill speed: plans are priced as the daemon prices them")
    ] = None,
    placement: Annotated[
        str, typer.Option(help="where states are taken: every, interval:N, ends, ends+junctions, adaptive, none")
    ] = placement_name(DEFAULT_PLACEMENT),
    replay: Annotated[bool, typer.Option("--replay/--no-replay", help="rebuild a missing state by replay")] = True,
    ideal_space: Annotated[bool, typer.Option("--ideal-space", help="bytes instead of slots")] = False,
    count_partial: Annotated[bool, typer.Option("--count-partial", help="a prompt's last id is a block")] = False,
    resume_alignment: Annotated[
        int | None, typer.Option(help="the engine resumes at multiples of so many tokens; the block by default")
    ] = None,
    processes: Annotated[int | None, typer.Option(min=1, help="simulations at once; the cores by default")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="hit rate against bytes, .svg or .png")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="print one JSON object; of several traces {'traces': [one each]}")
    ] = False,
) -> None:
    """Try policies, placements and sizes on a trace, with the daemon's own planner and the bounds of any cache.

    Options that name several, comma-separated, are all combined; each trace starts with an empty store.
    """
    if plot is not None:
        draw = _drawing(plot)
    grid = Grid(
        layout=sim_layout(layout, block_tokens, resume_alignment),
        host_sizes=_named("--host-bytes", host_bytes),
        disk_sizes=_named("--disk-bytes", disk_bytes),
        policies=_named("--policy", policy),
        keeps=[_seconds(text) for text in _named("--keep-seconds", keep_seconds)],
        admissions=[
            (mode, budget)
            for mode in _named("--disk-admission", disk_admission)
            for budget in (
                _written("--disk-write-budget", text) for text in _named("--disk-write-budget", disk_write_budget)
            )
        ],
        tiers=Tiers(
            None if host_bandwidth is None else _written("--host-bandwidth", host_bandwidth),
            None if disk_bandwidth is None else _written("--disk-bandwidth", disk_bandwidth),
            worker_flops,
            disk_ratio,
        ),
        placements=[Placement.parse(text, replay) for text in _named("--placement", placement)],
        is_ideal_space=ideal_space,
        count_partial=count_partial,
    )
    grid.check()
    loaded = [_loaded(path, trace_block_tokens, block_tokens, count_partial) for path in traces]
    reports = simulated(loaded, grid, processes)
    if plot is not None:
        draw(reports, plot)
    if as_json:
        told = [facts(report) for report in reports]
        typer.echo(json.dumps(told[0] if len(told) == 1 else {"traces": told}))
    else:
        _print(Console(), reports)


class Tiers(NamedTuple):
    """Bytes a second of each tier, FLOP a second of a worker; None: unknown, and then nothing is priced."""

    host_bytes_per_second: float | None = None
    disk_bytes_per_second: float | None = None
    worker_flops: float | None = None
    disk_ratio: float = 1.0


UNPRICED = Tiers()


@dataclass(frozen=True, slots=True)
class Grid:
    """What is to be combined. Sizes are texts, because a share is of each trace's own bytes."""

    layout: ModelLayout
    host_sizes: Sequence[str]
    disk_sizes: Sequence[str]
    policies: Sequence[str]
    keeps: Sequence[float | None]
    placements: Sequence[Placement]
    is_ideal_space: bool
    count_partial: bool
    admissions: Sequence[tuple[str, int]] = (("all", 0),)  # to disk, with a budget in bytes a day
    tiers: Tiers = UNPRICED

    def check(self) -> None:
        """Find a wrong name or size before any work."""
        for policy in self.policies:
            variants_for(policy, None)
        for mode, budget in self.admissions:
            DiskAdmission.parse(mode, budget)
        if self.tiers.worker_flops and not self.tiers.host_bytes_per_second:
            raise InvalidInput("--worker-flops prices nothing without speeds: give --host-bandwidth too, such as 20GB")
        if self.tiers.worker_flops and not self.tiers.disk_bytes_per_second and any(t != "0" for t in self.disk_sizes):
            raise InvalidInput("--worker-flops cannot price what is on disk: give --disk-bandwidth too, such as 5GB")
        self.settings(unique_bytes=1 << 60)

    def settings(self, unique_bytes: int) -> list[SimSettings]:
        """Every combination. Without states there is nothing to place, and one placement stands for all."""
        hosts = [_size("--host-bytes", text, unique_bytes) for text in self.host_sizes]
        disks = [_size("--disk-bytes", text, unique_bytes) for text in self.disk_sizes]
        if not all(hosts):
            raise InvalidInput("--host-bytes names a size of nothing: give each store some memory, such as 4GiB")
        if not self.is_ideal_space and min(hosts) < SMALLEST_HOST_BYTES:
            raise InvalidInput(
                f"--host-bytes: {format_size(min(hosts))} are less than the {format_size(SMALLEST_HOST_BYTES)} that "
                "slots need: give more, or --ideal-space"
            )
        placements = self.placements if self.layout.state is not None else self.placements[:1]
        return [
            SimSettings(
                layout=self.layout,
                host_bytes=host_bytes,
                disk_bytes=disk_bytes,
                policy=policy,
                keep_seconds=keep,
                placement=placement,
                disk_admission=DiskAdmission.parse(mode, budget),
                disk_write_bytes_per_day=budget,
                host_bytes_per_second=self.tiers.host_bytes_per_second,
                disk_bytes_per_second=self.tiers.disk_bytes_per_second,
                worker_flops=self.tiers.worker_flops,
                disk_ratio=self.tiers.disk_ratio,
                is_ideal_space=self.is_ideal_space,
                count_partial=self.count_partial,
            )
            for policy, keep, placement, (mode, budget), disk_bytes, host_bytes in product(
                self.policies, self.keeps, placements, self.admissions, disks, hosts
            )
        ]


def _seconds(text: str) -> float | None:
    if text == ADAPTIVE:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < math.inf:
        raise InvalidInput(f"--keep-seconds: {text!r} is no number of seconds: write 0, 60 or adaptive")
    return seconds


def simulated(traces: Sequence[Trace], grid: Grid, processes: int | None) -> list[Report]:
    """The grid on each trace; all simulations share the cores."""
    alignment = grid.layout.resume_alignment
    references = [References(trace, count_partial=grid.count_partial, resume_alignment=alignment) for trace in traces]
    grids = [grid.settings(one.unique_blocks * grid.layout.rows.nbytes) for one in references]
    cells = [Cell(trace, one) for trace, settings in zip(traces, grids, strict=True) for one in settings]
    with _bar("simulating") as progress:
        results = iter(run_grid(cells, processes=processes, progress=progress))
    reports = []
    for trace, one, settings in zip(traces, references, grids, strict=True):
        minimum = {blocks: one.minimum(blocks) for blocks in {capacity_blocks(each) for each in settings}}
        outcomes = [Outcome(each, next(results), minimum[capacity_blocks(each)]) for each in settings]
        reports.append(Report(trace, one.infinite(), one.unique_blocks, outcomes))
    return reports


def _loaded(path: Path, trace_block_tokens: int, block_tokens: int, count_partial: bool) -> Trace:
    if count_partial and trace_block_tokens != block_tokens:
        raise InvalidInput(
            f"--count-partial needs blocks as the trace has them: leave it out, or give --block-tokens "
            f"{trace_block_tokens}"
        )
    return at_block_size(load_trace(path, trace_block_tokens), block_tokens)


def _named(option: str, text: str) -> list[str]:
    """The parts of a comma-separated option, each once."""
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InvalidInput(f"{option} {text!r} names nothing somewhere: write them as a,b,c")
    return list(dict.fromkeys(parts))


def _size(option: str, text: str, unique_bytes: int) -> int:
    try:
        return parse_size(text, lambda: unique_bytes)
    except ConfigError as error:
        raise InvalidInput(f"{option}: {error}") from error


def _written(option: str, text: str) -> int:
    """Bytes in powers of ten or two."""
    try:
        return parse_size(text, None, WRITTEN_UNITS)
    except ConfigError as error:
        raise InvalidInput(f"{option}: {error}") from error


def _drawing(path: Path) -> Callable[[Sequence[Report], Path], None]:
    """How to draw, before anything is computed for it."""
    try:
        from kvstore.sim.plot import check_format, draw
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        raise InvalidInput("--plot needs matplotlib: pip install 'kvstore[plot]'") from error
    check_format(path)
    if not path.parent.is_dir():
        raise InvalidInput(f"--plot {path}: there is no folder {path.parent}; make it or name another file")
    return draw


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error, from the moment that the work takes longer than two seconds."""
    bar = Progress(
        TextColumn(what), BarColumn(), MofNCompleteColumn(), TextColumn("requests"), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True,
    )  # fmt: skip
    start, task = time.monotonic(), None

    def tell(done: int, total: int) -> None:
        nonlocal task
        if task is None and time.monotonic() - start > QUIET_SECONDS:
            bar.start()
            task = bar.add_task(what, total=total)
        if task is not None:
            bar.update(task, completed=done)

    try:
        yield tell
    finally:
        if task is not None:
            bar.stop()


def _print(console: Console, reports: Sequence[Report]) -> None:
    for report in reports:
        for table in tables(report):
            # figures cut off by a narrow terminal are no figures: lines are as long as they need to be
            wanted = Measurement.get(console, console.options.update(width=WIDEST), table).maximum
            console.width = max(console.width, wanted)
            console.print(table)
        if report.trace.notes:
            odd = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in report.trace.notes.items())
            console.print(f"{report.trace.name}: handled and counted: {odd}", highlight=False)
